"""Checkpoints: written whole or not at all, and enough for a killed run to go on bit for bit."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import lightning as L
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from ddpm_lab.callbacks.loggers import CSVHistory
from ddpm_lab.utils import safe_load, watchdog
from ddpm_lab.utils.atomic_io import PARTIAL, atomic_write
from ddpm_lab.utils.errors import DivergenceError, ResourceError

LOG = logging.getLogger(__name__)
FAILURES = 3
"""Saves in a row that may fail before training ends"""
AGREEMENT = 8
"""Steps between two questions whether any of several processes heard a signal: each is an exchange between them"""


class AtomicCheckpointIO(CheckpointIO):
    """How Lightning's checkpoints get to the disk and back. What hinders a save is kept in `hindrance`."""

    hindrance: str | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        self.hindrance = None
        try:
            with atomic_write(Path(path)) as partial:
                torch.save(checkpoint, partial)
                with ZipFile(partial) as written:
                    if damaged := written.testzip():
                        raise OSError(f"{damaged} was not written as it is")
        except (
            OSError,
            RuntimeError,
            BadZipFile,
        ) as error:  # torch has a RuntimeError for a full disk
            early = "unexpected pos" in str(error) and "the file was cut short, as by a full disk"
            self.hindrance = (
                early or getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            )

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return safe_load.load_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoints(L.Callback):
    """`checkpoints/step-N.ckpt` every `every` optimizer steps, at the end, and where training stops before; the last
    `keep` stay.

    Saves before what looks at the model at that step does so, which is made up for when a run goes on. A save that
    fails costs nothing; the third in a row, and one of the last step, raise Hindered. Numbers that are not finite are
    not saved, but raise Diverged. Belongs behind the callbacks with a state, and before those that look.
    """

    run_id: str | None = None
    """Id of the run, which its checkpoints carry"""

    def __init__(self, every: int = 200, keep: int = 2) -> None:
        for name, value in {"every": every, "keep": keep}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1 (got {value})")
        self.every, self.keep = every, keep
        self.files = AtomicCheckpointIO()
        self.seconds = 0.0
        self._failures, self._step, self._saved, self._between = 0, 0, 0, False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = self.files
        self.folder = Path(trainer.default_root_dir) / "checkpoints"
        self._started = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(exist_ok=True)
            for left in self.folder.glob(f"*{PARTIAL}"):  # by a process that was killed
                left.unlink()
        self._step = self._saved = trainer.global_step
        if self._asked_too_much is not None:
            trainer.fit_loop.epoch_loop.max_steps = self._asked_too_much

    def on_train_batch_start(self, *args: Any) -> None:
        self._between = False

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        step = trainer.global_step
        if step == self._step:  # gradients are still being accumulated, which no checkpoint holds
            return
        self._step, self._between = step, True
        due = step % self.every == 0 or step == trainer.max_steps
        ending = self._ending(trainer, due)
        if due or ending:
            self._save(trainer, last=step >= trainer.max_steps)
        if ending:
            raise watchdog.interruption()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._saved != self._step:  # training ended between two saves
            self._save(trainer, last=True)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if (
            self._between and trainer.world_size == 1
        ):  # of several processes, the others may be anywhere
            self._save(trainer)

    def _ending(self, trainer: L.Trainer, due: bool) -> bool:
        if trainer.world_size == 1:
            return watchdog.stop_requested()
        return (due or self._step % AGREEMENT == 0) and trainer.strategy.reduce_boolean_decision(
            watchdog.stop_requested(), all=False
        )

    def _save(self, trainer: L.Trainer, last: bool = False) -> None:
        if self._step == self._saved:
            return
        self._between = False  # if it fails, it is not tried again on the way out
        trainer.save_checkpoint(self.folder / f"step-{self._step:06d}.ckpt")
        self._between = True
        if hindrance := trainer.strategy.broadcast(self.files.hindrance):
            self._failures += 1
            told = f"step {self._step}: no checkpoint could be saved ({hindrance}); {self._last()}"
            if last or self._failures == FAILURES:
                self._between = False
                why = "this was the last step" if last else f"{FAILURES} in a row failed"
                raise ResourceError(
                    f"{told}; {why}; make room and repeat the command, which goes on from there"
                )
            LOG.warning("%s; training goes on", told)
            return
        self._failures, self._saved = 0, self._step
        if trainer.is_global_zero:
            for old in list_checkpoints(self.folder)[self.keep :]:
                old.unlink()

    def _last(self) -> str:
        kept = list_checkpoints(self.folder)
        return f"the last is {kept[0].name}" if kept else "there is none before it"

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if strange := next(find_non_finite(checkpoint), None):
            raise DivergenceError(
                f"step {self._step}: {strange} is not finite, and is not saved; try a smaller optimizer.lr"
            )
        histories = [logger for logger in trainer.loggers if isinstance(logger, CSVHistory)]
        for history in histories:
            history.save()
        checkpoint["run_id"] = self.run_id
        checkpoint["history"] = [history.text for history in histories]
        # Lightning has a state for each of the places where a checkpoint may be written, and goes on differently from
        # each. Ours is always that of the end of a batch, before what looks at it.
        loops = checkpoint["loops"]["fit_loop"]
        for counts in (loops["epoch_loop.batch_progress"][which] for which in ("total", "current")):
            counts["completed"] = counts["processed"] - 1
        for counts in (
            loops["epoch_loop.val_loop.batch_progress"][which] for which in ("total", "current")
        ):
            counts.update(dict.fromkeys(counts, 0))
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"] - 1

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds + time.monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]

    _asked_too_much: int | None = None

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        step = checkpoint["global_step"]
        if step >= trainer.max_steps:  # or it would not call on_train_end
            self._asked_too_much = trainer.max_steps
            trainer.fit_loop.epoch_loop.max_steps = step + 1
        histories = [logger for logger in trainer.loggers if isinstance(logger, CSVHistory)]
        for history, text in zip(histories, checkpoint["history"], strict=False):
            history.rewind(text)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, from the latest step on. Times of files say nothing: copying changes them."""
    found = [file for file in folder.glob("step-*.ckpt") if file.stem[5:].isdecimal()]
    return sorted(found, key=checkpoint_step, reverse=True)


def checkpoint_step(file: Path) -> int:
    """The step in the name of a checkpoint."""
    return int(file.stem[5:])


def find_non_finite(content: Any, path: str = "") -> Iterator[str]:
    """Where in `content` numbers are not finite."""
    if isinstance(content, Tensor):
        if content.is_floating_point() and not content.isfinite().all():
            yield path
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from find_non_finite(value, f"{path}.{key}".lstrip("."))
    elif isinstance(content, Sequence) and not isinstance(content, str):
        for i, value in enumerate(content):
            yield from find_non_finite(value, f"{path}.{i}")
