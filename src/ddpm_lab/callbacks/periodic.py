"""Callbacks that run every `every` steps, and logging of metrics and images."""

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from ddpm_lab.callbacks.lightning_internals import callbacks
from ddpm_lab.callbacks.loggers import optional
from ddpm_lab.callbacks.monitor import Monitor
from ddpm_lab.data.module import Data
from ddpm_lab.utils.errors import RESOURCE_ERRNOS

LOG = logging.getLogger(__name__)


def log_metrics(trainer: L.Trainer, metrics: dict[str, float]) -> None:
    """Send metrics to the loggers and to the callbacks that follow one."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)
    for monitor in (each for each in callbacks(trainer) if isinstance(each, Monitor)):
        monitor.receive(trainer, metrics)


def log_image(trainer: L.Trainer, name: str, file: Path) -> None:
    """Send the PNG `file` to the loggers that support images."""
    step = trainer.global_step
    for logger in trainer.loggers:
        with optional(logger):
            if isinstance(logger, WandbLogger):
                logger.log_image(name, [str(file)], step=step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, pil_to_tensor(Image.open(file)), step)


def image_path(trainer: L.Trainer, name: str) -> Path:
    """Return the path of a PNG in the run's folder images."""
    return Path(trainer.default_root_dir) / "images" / f"{name}.png"


class Periodic(L.Callback, ABC):
    """Calls `run` every `every` optimizer steps (None: never), and at the end of training.

    On resume, a call missed because of an interruption is made. A full disk ends training only in
    the last call.
    """

    every: int | None
    last_step = 0
    """Step of the last call of `run`"""

    @abstractmethod
    def run(self, trainer: L.Trainer, system: Any) -> None:
        """Observe the system without changing training."""

    def samples(self) -> int:
        """Return the number of samples per call of `run`."""
        return 0

    def measured(self, system: Any, data: Data) -> list[str]:
        """Return the metrics that `run` logs during training, without eval/."""
        return []

    def run_count(self, steps: int) -> int:
        """Return the number of calls of `run` in the next `steps` steps and at the end."""
        return 1 + (steps // self.every if self.every else 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._run_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        self._run_if_due(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.run(trainer, pl_module)

    def _run_if_due(self, trainer: L.Trainer, system: L.LightningModule) -> None:
        step = trainer.global_step  # constant during gradient accumulation
        if self.every and step % self.every == 0 and self.last_step < step < trainer.max_steps:
            try:
                self.run(trainer, system)
            except OSError as error:
                if error.errno not in RESOURCE_ERRNOS:
                    raise
                message = "step %d: %s could not be saved (%s); training continues"
                LOG.warning(message, step, type(self).__name__.lower(), error.strerror)
            self.last_step = step

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self.last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_step = state_dict["last_step"]
