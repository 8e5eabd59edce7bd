"""Exponential moving average of the denoiser's weights."""

from typing import Annotated, Any

import lightning as L
from annotated_types import Ge, Lt

from ddpm_lab.callbacks.lightning_internals import callbacks
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.ema_model import EMAModel
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.ranges import check_ranges


@check_ranges
class EMA(L.Callback):
    """Average of the denoiser's weights after each optimizer step; see `EMAModel`.

    Checkpoints have the average under the callback's key, in addition to the raw weights. The
    average is never swapped into the model.
    """

    supports = ("images", "points")
    model: EMAModel[Denoiser]

    def __init__(self, decay: Annotated[float, Ge(0), Lt(1)] = 0.9999) -> None:
        self.decay = decay

    def setup(self, trainer: L.Trainer, pl_module: Diffusion, stage: str) -> None:
        self.model = EMAModel(pl_module.denoiser, self.decay)

    @property
    def average(self) -> Denoiser:
        return self.model.average

    def on_train_start(self, trainer: L.Trainer, pl_module: Diffusion) -> None:
        self.average.to(pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step > self.model.updates:  # not during gradient accumulation
            self.model.update()

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.model.updates, "average": self.average.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.model.updates = state_dict["updates"]
        self.average.load_state_dict(state_dict["average"])


def ema_or_raw(trainer: L.Trainer, system: Diffusion) -> tuple[str, SamplingPipeline]:
    """Return "ema" and the pipeline of the average or, without an EMA, "raw" and the system's."""
    averages = [each.average for each in callbacks(trainer) if isinstance(each, EMA)]
    if averages:
        return "ema", system.pipeline.with_denoiser(averages[0])
    return "raw", system.pipeline
