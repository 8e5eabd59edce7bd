"""Exponential moving average of the denoiser's weights."""

import copy
from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Ge, Lt

from ddpm_lab.callbacks.lightning_internals import callbacks
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.ranges import check_ranges


@check_ranges
class EMA(L.Callback):
    """average += (1 - d) (weights - average) after optimizer step n.

    d = min(decay, (1 + n) / (10 + n)). Checkpoints have the average under the callback's key, in
    addition to the raw weights. The average is never swapped into the model.
    """

    supports = ("images", "points")
    average: Denoiser

    def __init__(self, decay: Annotated[float, Ge(0), Lt(1)] = 0.9999) -> None:
        self.decay, self.updates = decay, 0

    def setup(self, trainer: L.Trainer, pl_module: Diffusion, stage: str) -> None:
        self.average = copy.deepcopy(pl_module.denoiser).requires_grad_(False).eval()

    def on_train_start(self, trainer: L.Trainer, pl_module: Diffusion) -> None:
        self.average.to(pl_module.device)
        self._averages = [parameter.data for parameter in self.average.parameters()]
        self._weights = [parameter.data for parameter in pl_module.denoiser.parameters()]

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.updates:  # gradient accumulation
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
    """Return "ema" and the pipeline of the average or, without an EMA, "raw" and the system's."""
    averages = [each.average for each in callbacks(trainer) if isinstance(each, EMA)]
    if averages:
        return "ema", system.pipeline.with_denoiser(averages[0])
    return "raw", system.pipeline
