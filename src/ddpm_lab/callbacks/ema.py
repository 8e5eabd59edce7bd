"""The exponential moving average of the denoiser's weights."""

import copy
from typing import Any

import lightning as L
import torch

from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.systems.diffusion import Diffusion


class EMA(L.Callback):
    """average += (1 - d) (weights - average) after every optimizer step n, d = min(decay, (1 + n) / (10 + n)).

    The average is saved beside the raw weights, under the callback's own key; nothing is ever swapped in or out.
    """

    average: Denoiser

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1) (got {decay:g}); try decay=0.999")
        self.decay, self.updates = decay, 0

    def setup(self, trainer: L.Trainer, pl_module: Diffusion, stage: str) -> None:
        self.average = copy.deepcopy(pl_module.denoiser).requires_grad_(False).eval()

    def on_train_start(self, trainer: L.Trainer, pl_module: Diffusion) -> None:
        self.average.to(pl_module.device)
        self._averages = [parameter.data for parameter in self.average.parameters()]
        self._weights = [parameter.data for parameter in pl_module.denoiser.parameters()]

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.updates:  # gradients are still being accumulated
            return
        self.updates = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self.average.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self.average.load_state_dict(state_dict["average"])


def ema_or_raw(trainer: L.Trainer, system: Diffusion) -> tuple[str, SamplingPipeline]:
    """ "ema" and the averaged denoiser where one is kept, else "raw" and the system's own."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    averages = [callback.average for callback in callbacks if isinstance(callback, EMA)]
    if averages:
        return "ema", system.pipeline.with_denoiser(averages[0])
    return "raw", system.pipeline
