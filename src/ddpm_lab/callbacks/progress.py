"""Progress bar over all optimizer steps, with an ETA."""

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor
from tqdm import tqdm


class Progress(ProgressBar):
    """Counts optimizer steps, not epochs. The loss is fetched only when the bar is refreshed."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self.bar = tqdm(disable=True)

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc="training",
            unit="step",
            disable=not (self._enabled and trainer.is_global_zero),
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: dict[str, Tensor],
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.bar.update(trainer.global_step - self.bar.n):
            self.bar.set_postfix(loss=f"{outputs['losses'].mean().item():.4f}", refresh=False)
        if self.bar.n == trainer.max_steps:  # the metrics at the end have their own bars
            self.bar.close()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.set_description("validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.set_description("training")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, *args: Any) -> None:
        self.bar.close()
