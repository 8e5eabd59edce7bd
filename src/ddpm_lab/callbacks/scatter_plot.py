"""Scatter plots of points while training runs, and at its end the way from noise to data."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lab.callbacks.ema import ema_or_raw
from ddpm_lab.callbacks.periodic import Periodic, datamodule, log_image
from ddpm_lab.data.datasets import Points
from ddpm_lab.reports.figures import save_scatter
from ddpm_lab.systems.diffusion import Diffusion


class ScatterPlot(Periodic):
    """Every `every` steps and at the end, `count` samples beside as many points of the data, in `images/`."""

    def __init__(self, every: int = 400, count: int = 2000) -> None:
        for name, value in {"every": every, "count": count}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1 (got {value})")
        self.every, self.count = every, count

    def samples(self) -> int:
        return self.count

    def on_train_end(self, trainer: L.Trainer, pl_module: Diffusion) -> None:
        self.run(trainer, pl_module)

    @rank_zero_only
    @torch.inference_mode()
    def run(self, trainer: L.Trainer, system: Diffusion) -> None:
        _, pipeline = ema_or_raw(trainer, system)
        conditions = system.pipeline.make_conditions(self.count)
        labels = conditions.get("label")
        states = [x.cpu() for _, x in pipeline.trajectory(range(self.count), conditions, seed=0)]
        shown = torch.linspace(0, len(states) - 1, min(len(states), 5)).round().long().tolist()
        times = system.pipeline.sampler.timesteps(pipeline.process.steps)
        panels = {f"t = {times[i]}": (states[i], labels) for i in shown[:-1]}
        panels["samples"] = (states[-1], labels)
        held_out = datamodule(trainer).test.select(slice(self.count))
        assert isinstance(held_out, Points)  # _fitting refuses images
        panels["data"] = (held_out.x0, held_out.labels)
        file = Path(trainer.default_root_dir) / "images" / f"samples-{trainer.global_step:06d}.png"
        log_image(trainer, "samples", save_scatter(panels, file))
