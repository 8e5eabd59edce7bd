"""torch.compile for training steps."""

import logging
import time
from typing import Any, Literal

import lightning as L
import torch

from ddpm_lab.systems.base import BaseSystem
from ddpm_lab.systems.sharding import compile_units

LOG = logging.getLogger(__name__)


class TorchCompile(L.Callback):
    """Compiles training steps with `torch.compile(network, mode=mode)`.

    "reduce-overhead" uses CUDA graphs, for small networks bound by kernel launches. Validation,
    sampling, weight names and checkpoints do not change. The duration of the first step, which
    includes compilation, is logged.
    """

    def __init__(self, mode: Literal["default", "reduce-overhead", "max-autotune"]) -> None:
        self.mode, self.seconds = mode, 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: BaseSystem) -> None:
        assert pl_module.compile_target is not None  # checked by config.validation
        units = compile_units(pl_module.compile_target)
        # Units of one class share their code, and so the limit on its versions.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 2 * len(units))
        for module in units:
            # A graph of dynamic shapes would replace the static one when checkpointing recomputes.
            module.compile(mode=self.mode, dynamic=False)
        torch.compiler.set_stance("force_eager")

    def on_train_batch_start(self, *args: Any) -> None:
        torch.compiler.set_stance("default")
        if not self.seconds:
            self._start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        torch.compiler.set_stance("force_eager")
        if not self.seconds:
            self.seconds = time.perf_counter() - self._start
            LOG.info("compile=%s: the first step took %.0f s", self.mode, self.seconds)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        torch.compiler.set_stance("default")
