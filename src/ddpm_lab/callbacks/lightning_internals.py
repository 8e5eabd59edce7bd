"""Undocumented parts of Lightning on which the callbacks depend."""

from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger

from ddpm_lab.data.module import Data


def callbacks(trainer: L.Trainer) -> list[L.Callback]:
    """Return the trainer's callbacks, an attribute that Lightning's connector sets."""
    return vars(trainer)["callbacks"]


def datamodule(trainer: L.Trainer) -> Data:
    """Return the data of the trainer's data module, which Lightning's connector sets."""
    return vars(trainer)["datamodule"].data


def set_max_steps(trainer: L.Trainer, steps: int) -> None:
    """Set `trainer.max_steps`, a read-only property of the epoch loop's attribute."""
    trainer.fit_loop.epoch_loop.max_steps = steps


def set_end_of_batch(checkpoint: dict[str, Any]) -> None:
    """Set the loop state of a checkpoint to the end of its batch, before validation.

    Lightning's state depends on the hook that saves, and training resumes differently from each.
    """
    loops = checkpoint["loops"]["fit_loop"]
    scopes = ("total", "current")
    for counts in (loops["epoch_loop.batch_progress"][scope] for scope in scopes):
        counts["completed"] = counts["processed"] - 1
    for counts in (loops["epoch_loop.val_loop.batch_progress"][scope] for scope in scopes):
        counts.update(dict.fromkeys(counts, 0))
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"] - 1


def csv_rows(logger: CSVLogger) -> list[dict[str, Any]]:
    """Return the mutable rows of the logger's writer, one per step."""
    return logger.experiment.metrics
