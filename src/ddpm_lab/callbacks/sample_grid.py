"""Sample grids while training runs, and at its end the way from noise to image and the curve of the loss."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lab.callbacks.ema import ema_or_raw
from ddpm_lab.callbacks.periodic import Periodic, datamodule, log_image
from ddpm_lab.data.datasets import Batch
from ddpm_lab.reports.figures import save_grid
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.distributed import all_gather


class SampleGrid(Periodic):
    """Every `every` steps and at the end, `rows` x `columns` samples, always of the same noise, in `images/`."""

    def __init__(self, every: int = 200, rows: int = 8, columns: int = 10) -> None:
        for name, value in {"every": every, "rows": rows, "columns": columns}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1 (got {value})")
        self.every, self.rows, self.columns = every, rows, columns

    def samples(self) -> int:
        return self.rows * self.columns

    def on_train_end(self, trainer: L.Trainer, pl_module: Diffusion) -> None:
        self.run(trainer, pl_module)
        self._path(trainer, pl_module)

    def run(self, trainer: L.Trainer, system: Diffusion) -> None:
        _, pipeline = ema_or_raw(trainer, system)
        count = self.rows * self.columns
        batches = pipeline.sample(count, conditions=self._ask(trainer, system, count))
        pixels = torch.cat(all_gather([batch[0].cpu() for batch in batches]))
        if not trainer.is_global_zero:
            return
        file = self._place(trainer) / f"samples-{trainer.global_step:06d}.png"
        log_image(trainer, "samples", save_grid(pixels, file, self.columns))

    @rank_zero_only
    @torch.inference_mode()
    def _path(self, trainer: L.Trainer, system: Diffusion) -> None:
        _, pipeline = ema_or_raw(trainer, system)
        conditions = self._ask(trainer, system, self.columns)
        trajectory = pipeline.trajectory(range(self.columns), conditions, seed=0)
        states = [system.pipeline.to_images(x, None)[0].cpu() for _, x in trajectory]
        shown = torch.linspace(0, len(states) - 1, min(len(states), 12)).round().long().tolist()
        path = torch.stack([states[i] for i in shown], dim=1).flatten(0, 1)
        file = save_grid(path, self._place(trainer) / "denoising.png", columns=len(shown))
        log_image(trainer, "denoising", file)

    def _ask(self, trainer: L.Trainer, system: Diffusion, count: int) -> Batch:
        return system.pipeline.make_conditions(count, images=datamodule(trainer).test)

    def _place(self, trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "images"
