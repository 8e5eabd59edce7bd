"""Exponential moving average of the denoiser's weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import lightning as L
from annotated_types import Ge, Lt

from ddpm_lab.callbacks.lightning_internals import callbacks
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.ema_model import EMAModel
from ddpm_lab.diffusion.power_averages import Length, PowerAverage
from ddpm_lab.sampling.averages import snapshot_file, write_snapshot
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.ranges import Count, check_range, check_ranges


@check_ranges
class EMA(L.Callback):
    """Average of the denoiser's weights after each optimizer step; see `EMAModel`.

    Checkpoints have the average under the callback's key, in addition to the raw weights. The
    average is never swapped into the model.

    Args:
        decay: Of the average that checkpoints and evaluations use.
        lengths: Relative lengths of further averages, with power-function profiles. They are saved
            at `snapshots` equal distances and combine to averages of other lengths after training,
            weights=ema:LENGTH (Karras et al., 2024, "training dynamics"). Two suffice: [0.05, 0.1].
        snapshots: Number of files, each with all of these averages.

    Raises ValueError for lengths out of range.
    """

    supports = ("images", "points")
    model: EMAModel[Denoiser]
    power_averages: list[PowerAverage[Denoiser]]

    def __init__(
        self,
        decay: Annotated[float, Ge(0), Lt(1)] = 0.9999,
        lengths: Sequence[float] = (),
        snapshots: Count = 16,
    ) -> None:
        self.decay, self.lengths, self.snapshots = decay, sorted(lengths), snapshots
        for length in lengths:
            check_range("lengths", length, Length)

    def setup(self, trainer: L.Trainer, pl_module: Diffusion, stage: str) -> None:
        self.model = EMAModel(pl_module.denoiser, self.decay)
        self.power_averages = [PowerAverage(pl_module.denoiser, each) for each in self.lengths]

    @property
    def average(self) -> Denoiser:
        return self.model.average

    @property
    def models(self) -> list[EMAModel[Denoiser]]:
        return [self.model, *self.power_averages]

    def on_train_start(self, trainer: L.Trainer, pl_module: Diffusion) -> None:
        for model in self.models:
            model.average.to(pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        step = trainer.global_step
        if step <= self.model.updates:  # during gradient accumulation
            return
        for model in self.models:
            model.update()
        if self.lengths and self._is_due(step, trainer.max_steps) and trainer.is_global_zero:
            states = {each.gamma: each.average.state_dict() for each in self.power_averages}
            write_snapshot(snapshot_file(Path(trainer.default_root_dir), step), states)

    def _is_due(self, step: int, max_steps: int) -> bool:
        """Return True if one of the equal distances ends at `step`."""
        return step * self.snapshots // max_steps > (step - 1) * self.snapshots // max_steps

    def state_dict(self) -> dict[str, Any]:
        averages = [each.average.state_dict() for each in self.power_averages]
        return {
            "updates": self.model.updates,
            "average": self.average.state_dict(),
            **({"power_averages": averages} if averages else {}),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average.load_state_dict(state_dict["average"])
        states = state_dict.get("power_averages", [])
        for each, state in zip(self.power_averages, states, strict=True):
            each.average.load_state_dict(state)
        for model in self.models:
            model.updates = state_dict["updates"]


def ema_or_raw(trainer: L.Trainer, system: Diffusion) -> tuple[str, SamplingPipeline]:
    """Return "ema" and the pipeline of the average or, without an EMA, "raw" and the system's."""
    averages = [each.average for each in callbacks(trainer) if isinstance(each, EMA)]
    if averages:
        return "ema", system.pipeline.with_denoiser(averages[0])
    return "raw", system.pipeline
