"""Progress bar over all optimizer steps, with an ETA."""

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class Progress(ProgressBar):
    """Counts optimizer steps, not epochs. Fetches the loss only when the bar is refreshed."""

    bar = tqdm(disable=True)
    _disabled = False

    def disable(self) -> None:
        """Hide the bar; Lightning calls this in all processes except rank zero."""
        self._disabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc="training",
            unit="step",
            disable=self._disabled,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
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
