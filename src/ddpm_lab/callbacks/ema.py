"""Exponential moving average of the denoiser's weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from ddpm_lab.systems.sharding import gather_weights, load_whole_state, shard, whole_state
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

    def on_fit_start(self, trainer: L.Trainer, pl_module: Diffusion) -> None:
        for model in self.models:
            model.average.to(pl_module.device)
            shard(model.average, pl_module.device_mesh)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        step = trainer.global_step
        if step <= self.model.updates:  # during gradient accumulation
            return
        for model in self.models:
            model.update()
        if self.lengths and self._is_due(step, trainer.max_steps):
            states = {each.gamma: whole_state(each.average) for each in self.power_averages}
            if trainer.is_global_zero:
                write_snapshot(snapshot_file(Path(trainer.default_root_dir), step), states)

    def _is_due(self, step: int, max_steps: int) -> bool:
        """Return True if one of the equal distances ends at `step`."""
        return step * self.snapshots // max_steps > (step - 1) * self.snapshots // max_steps

    def state_dict(self) -> dict[str, Any]:
        averages = [whole_state(each.average) for each in self.power_averages]
        return {
            "updates": self.model.updates,
            "average": whole_state(self.average),
            **({"power_averages": averages} if averages else {}),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        load_whole_state(self.average, state_dict["average"])
        states = state_dict.get("power_averages", [])
        for each, state in zip(self.power_averages, states, strict=True):
            load_whole_state(each.average, state)
        for model in self.models:
            model.updates = state_dict["updates"]


@contextmanager
def ema_or_raw(trainer: L.Trainer, system: Diffusion) -> Iterator[tuple[str, SamplingPipeline]]:
    """Yield "ema" and the pipeline of the average or, without an EMA, "raw" and the system's.

    All processes must enter it. Inside, each can sample alone.
    """
    averages = [each.average for each in callbacks(trainer) if isinstance(each, EMA)]
    denoiser, *_ = *averages, system.denoiser
    with gather_weights(denoiser):
        yield "ema" if averages else "raw", system.pipeline.with_denoiser(denoiser)
