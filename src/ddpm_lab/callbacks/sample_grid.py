"""Sample grids during training, and the trajectory from noise to image at the end."""

import lightning as L
import torch

from ddpm_lab.callbacks.ema import ema_or_raw
from ddpm_lab.callbacks.lightning_internals import datamodule
from ddpm_lab.callbacks.periodic import Periodic, image_path, log_image
from ddpm_lab.data.datasets import Batch
from ddpm_lab.reports.grids import save_grid
from ddpm_lab.sampling.captions import describe_conditions, describe_sampler
from ddpm_lab.sampling.pipeline import SamplingPipeline, Step
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.distributed import all_gather
from ddpm_lab.utils.errors import pluralize
from ddpm_lab.utils.ranges import Count, check_ranges


@check_ranges
class SampleGrid(Periodic):
    """Saves `rows` x `columns` samples in `images/`, every `every` steps and at the end.

    All grids start from the same noise.
    """

    supports = ("images",)

    def __init__(self, every: Count = 200, rows: Count = 8, columns: Count = 10) -> None:
        self.every, self.rows, self.columns = every, rows, columns

    def samples(self) -> int:
        return self.rows * self.columns

    def on_train_end(self, trainer: L.Trainer, pl_module: Diffusion) -> None:
        self.run(trainer, pl_module)
        with ema_or_raw(trainer, pl_module) as (weights, pipeline):
            if trainer.is_global_zero:
                self._save_trajectory(trainer, weights, pipeline)

    def run(self, trainer: L.Trainer, system: Diffusion) -> None:
        with ema_or_raw(trainer, system) as (weights, pipeline):
            conditions = self._conditions(trainer, pipeline, self.samples())
            batches = pipeline.sample(self.samples(), conditions=conditions)
            pixels = torch.cat(all_gather([batch[0].cpu() for batch in batches]))
        if trainer.is_global_zero:
            file = image_path(trainer, f"samples-{trainer.global_step:06d}")
            step, sampler = trainer.global_step, describe_sampler(pipeline, weights)
            caption = f"Samples after {pluralize(step, 'step')} of training. {sampler}. "
            caption += describe_conditions(conditions, pipeline.classes, self.columns)
            log_image(trainer, "samples", save_grid(pixels, file, self.columns, caption))

    @torch.inference_mode()
    def _save_trajectory(
        self, trainer: L.Trainer, weights: str, pipeline: SamplingPipeline
    ) -> None:
        conditions = self._conditions(trainer, pipeline, self.columns)
        steps = spaced_steps(pipeline, self.columns, conditions, limit=12)
        states = [pipeline.to_images(x, None)[0] for _, x in steps]
        grid = torch.stack(states, dim=1).flatten(0, 1)
        file = image_path(trainer, "denoising")
        times = ", ".join(f"{t:.5g}" for t, _ in steps)
        caption = f"Denoising: each row is a sample, and its columns are x_t at t = {times}. "
        caption += f"{describe_sampler(pipeline, weights)}."
        log_image(trainer, "denoising", save_grid(grid, file, len(states), caption))

    def _conditions(self, trainer: L.Trainer, pipeline: SamplingPipeline, count: int) -> Batch:
        return pipeline.make_conditions(count, images=datamodule(trainer).test)


def spaced_steps(
    pipeline: SamplingPipeline, count: int, conditions: Batch, limit: int
) -> list[Step]:
    """Return at most `limit` evenly spaced steps of a trajectory of `count` samples."""
    last = pipeline.num_steps
    indices = torch.linspace(0, last, min(last + 1, limit)).round().long().tolist()
    trajectory = pipeline.trajectory(range(count), conditions, seed=0)
    return [step for i, step in enumerate(trajectory) if i in indices]
