"""Scatter plots of points and their trajectory from noise to data."""

import lightning as L
import torch

from ddpm_lab.callbacks.ema import ema_or_raw
from ddpm_lab.callbacks.lightning_internals import datamodule
from ddpm_lab.callbacks.periodic import Periodic, image_path, log_image
from ddpm_lab.callbacks.sample_grid import spaced_steps
from ddpm_lab.reports.figures import save_scatter
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.ranges import Count, check_ranges


@check_ranges
class ScatterPlot(Periodic):
    """Saves plots of `count` samples and points of the data in `images/`.

    It runs every `every` steps and at the end.
    """

    supports = ("points",)

    def __init__(self, every: Count = 400, count: Count = 2000) -> None:
        self.every, self.count = every, count

    def samples(self) -> int:
        return self.count

    def run(self, trainer: L.Trainer, system: Diffusion) -> None:
        with ema_or_raw(trainer, system) as (_, pipeline):
            if trainer.is_global_zero:
                self._save(trainer, pipeline)

    @torch.inference_mode()
    def _save(self, trainer: L.Trainer, pipeline: SamplingPipeline) -> None:
        conditions = pipeline.make_conditions(self.count)
        steps = spaced_steps(pipeline, self.count, conditions, limit=5)
        labels = conditions.get("label")
        panels = {f"t = {round(t, 1)}" if t else "samples": (x, labels) for t, x in steps}
        points = datamodule(trainer).test.select(slice(self.count))
        panels["data"] = (points.x0, points.labels)
        file = image_path(trainer, f"samples-{trainer.global_step:06d}")
        log_image(trainer, "samples", save_scatter(panels, file))
