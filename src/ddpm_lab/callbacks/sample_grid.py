"""Sample grids during training, and the trajectory from noise to image at the end."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lab.callbacks.ema import ema_or_raw
from ddpm_lab.callbacks.lightning_internals import datamodule
from ddpm_lab.callbacks.periodic import Periodic, log_image
from ddpm_lab.data.datasets import Batch
from ddpm_lab.reports.figures import save_grid
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.distributed import all_gather


class SampleGrid(Periodic):
    """Saves `rows` x `columns` samples in `images/`, every `every` steps and at the end.

    All grids start from the same noise.
    """

    def __init__(self, every: int = 200, rows: int = 8, columns: int = 10) -> None:
        for name, value in {"every": every, "rows": rows, "columns": columns}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1 (got {value})")
        self.every, self.rows, self.columns = every, rows, columns

    def samples(self) -> int:
        return self.rows * self.columns

    def on_train_end(self, trainer: L.Trainer, pl_module: Diffusion) -> None:
        self.run(trainer, pl_module)
        self._save_trajectory(trainer, pl_module)

    def run(self, trainer: L.Trainer, system: Diffusion) -> None:
        _, pipeline = ema_or_raw(trainer, system)
        count = self.rows * self.columns
        batches = pipeline.sample(count, conditions=self._conditions(trainer, system, count))
        pixels = torch.cat(all_gather([batch[0].cpu() for batch in batches]))
        if not trainer.is_global_zero:
            return
        file = self._folder(trainer) / f"samples-{trainer.global_step:06d}.png"
        log_image(trainer, "samples", save_grid(pixels, file, self.columns))

    @rank_zero_only
    @torch.inference_mode()
    def _save_trajectory(self, trainer: L.Trainer, system: Diffusion) -> None:
        _, pipeline = ema_or_raw(trainer, system)
        conditions = self._conditions(trainer, system, self.columns)
        trajectory = pipeline.trajectory(range(self.columns), conditions, seed=0)
        states = [system.pipeline.to_images(x, None)[0].cpu() for _, x in trajectory]
        indices = torch.linspace(0, len(states) - 1, min(len(states), 12)).round().long().tolist()
        grid = torch.stack([states[i] for i in indices], dim=1).flatten(0, 1)
        file = save_grid(grid, self._folder(trainer) / "denoising.png", columns=len(indices))
        log_image(trainer, "denoising", file)

    def _conditions(self, trainer: L.Trainer, system: Diffusion, count: int) -> Batch:
        return system.pipeline.make_conditions(count, images=datamodule(trainer).test)

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "images"
