"""torch.compile, of what trains and while it trains."""

import logging
import time
from typing import Any, Literal

import lightning as L
import torch

from ddpm_lab.systems.base import BaseSystem

LOG = logging.getLogger(__name__)


class TorchCompile(L.Callback):
    """Training steps go through `torch.compile(network, mode=mode)`: "reduce-overhead" is CUDA graphs, for networks so
    small that a GPU waits for their next kernel.

    Names of weights, checkpoints, averages, validation and samples know nothing of it: all but training steps run as
    they would without. It says what the first step took, which compiles.
    """

    def __init__(self, mode: Literal["default", "reduce-overhead", "max-autotune"]) -> None:
        self.mode, self.seconds = mode, 0.0
        """Of the first step"""

    def on_fit_start(self, trainer: L.Trainer, pl_module: BaseSystem) -> None:
        assert pl_module.compile_target is not None  # or it was refused
        pl_module.compile_target.compile(mode=self.mode)
        torch.compiler.set_stance("force_eager")

    def on_train_batch_start(self, *args: Any) -> None:
        torch.compiler.set_stance("default")
        if not self.seconds:
            self._since = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        torch.compiler.set_stance("force_eager")
        if not self.seconds:
            self.seconds = time.perf_counter() - self._since
            LOG.info("compile=%s: the first step took %.0f s", self.mode, self.seconds)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        torch.compiler.set_stance("default")
