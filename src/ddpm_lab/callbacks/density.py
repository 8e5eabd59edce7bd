"""The exact likelihood of held-out points, at the end of training."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lab.callbacks.ema import best
from ddpm_lab.callbacks.log import datamodule, log
from ddpm_lab.evaluation.density import assess_density
from ddpm_lab.systems.diffusion import Diffusion


class Density(L.Callback):
    """Logs what `assess_density` says of `count` held-out points."""

    def __init__(self, count: int = 1000) -> None:
        if count < 2:
            raise ValueError(f"count must be at least 2 (got {count})")
        self.count = count
        self.result: dict[str, Any] = {}

    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: Diffusion) -> None:
        weights, denoiser = best(trainer, pl_module)
        self.result = assess_density(
            pl_module,
            denoiser,
            datamodule(trainer),
            weights=weights,
            split="test",
            count=self.count,
        )
        log(trainer, {"density/nll": self.result["nll"]})
