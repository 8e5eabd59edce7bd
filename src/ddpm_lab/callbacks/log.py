"""To every logger at once, past `LightningModule.log`, which would cost a millisecond a step."""

from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from ddpm_lab.data.module import Data
from ddpm_lab.loggers import optional


def log(trainer: L.Trainer, metrics: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)


def datamodule(trainer: L.Trainer) -> Data:
    """What it trains on."""
    found: Data = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning's connector
    return found


def log_picture(trainer: L.Trainer, name: str, file: Path) -> None:
    """The PNG `file` to the loggers that take pictures."""
    for logger in trainer.loggers:
        with optional(logger):
            if isinstance(logger, WandbLogger):
                logger.log_image(name, [str(file)], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(
                    name, pil_to_tensor(Image.open(file)), trainer.global_step
                )
