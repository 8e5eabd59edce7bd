"""Atomic checkpoints, from which an interrupted run resumes bit-for-bit."""

import logging
import time
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ddpm_lab.callbacks.lightning_internals import set_end_of_batch, set_max_steps
from ddpm_lab.callbacks.loggers import CSVHistory
from ddpm_lab.callbacks.monitor import Monitor
from ddpm_lab.utils import safe_load, watchdog
from ddpm_lab.utils.atomic_io import PARTIAL, atomic_write
from ddpm_lab.utils.errors import DivergenceError, ResourceError
from ddpm_lab.utils.ranges import Count, check_ranges
from ddpm_lab.utils.safe_load import BEST, find_non_finite, list_checkpoints

LOG = logging.getLogger(__name__)
MAX_FAILURES = 3
"""Consecutive failed saves after which training ends"""
STOP_CHECK_INTERVAL = 8
"""Steps between the collective checks for a stop signal, with several processes"""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Atomic writes and safe reads of checkpoints. A failed save sets `error`, without raising."""

    error: str | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        self.error = None
        try:
            with atomic_write(Path(path)) as partial:
                torch.save(checkpoint, partial)
                with ZipFile(partial) as archive:
                    if corrupt := archive.testzip():
                        raise OSError(f"{corrupt} was not written correctly")
        except (OSError, RuntimeError, BadZipFile) as error:  # torch: RuntimeError for a full disk
            text = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            cut = "unexpected pos" in str(error)
            self.error = "the file was truncated; the disk may be full" if cut else text

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return safe_load.load_checkpoint(path)


@check_ranges
class Checkpoints(Monitor):
    """Saves `checkpoints/step-N.ckpt` every `every` optimizer steps and when training stops.

    The last `keep` checkpoints are kept, and `best.ckpt`, that of the best value of the metric
    `best`, if it is not None. Stateful callbacks come before this one, and those that
    evaluate the model after it. On resume, the latter catch up on the saved step.

    A failed save is logged. Raises ResourceError at the last step or the third failure in a row.
    Raises DivergenceError for non-finite numbers.
    """

    argument = "best"
    run_id: str | None = None
    """Id of the run, stored in its checkpoints"""
    _max_steps: int | None = None
    """The trainer's value, restored when training starts"""

    def __init__(self, every: Count = 200, keep: Count = 2, best: str | None = None) -> None:
        self.every, self.keep, self.metric = every, keep, best
        self.files = AtomicCheckpointIO()
        self.seconds = 0.0
        self._failures = self._step = self._saved = 0
        self._between_steps = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = self.files
        self.folder = Path(trainer.default_root_dir) / "checkpoints"
        self._started = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(exist_ok=True)
            for partial in self.folder.glob(f"*{PARTIAL}"):  # of an interrupted process
                partial.unlink()
        self._step = self._saved = trainer.global_step
        if self._max_steps is not None:
            set_max_steps(trainer, self._max_steps)

    def on_train_batch_start(self, *args: Any) -> None:
        self._between_steps = False

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        step = trainer.global_step
        if step == self._step:  # gradient accumulation, which is not in checkpoints
            return
        self._step, self._between_steps = step, True
        due = step % self.every == 0 or step == trainer.max_steps
        stop = self._stop_requested(trainer, due)
        if due or stop:
            self._save(trainer, last=step >= trainer.max_steps)
        if stop:
            raise watchdog.interruption()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._saved != self._step:  # training ended between saves
            self._save(trainer, last=True)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if self._between_steps and trainer.world_size == 1:  # other processes may be mid-step
            self._save(trainer)

    def observe(self, trainer: L.Trainer, improved: bool) -> None:
        if improved:
            trainer.save_checkpoint(self.folder / BEST)
            if error := trainer.strategy.broadcast(self.files.error):
                LOG.warning("step %d: %s could not be saved (%s)", self._step, BEST, error)

    def _stop_requested(self, trainer: L.Trainer, due: bool) -> bool:
        if trainer.world_size == 1:
            return watchdog.stop_requested()
        if not due and self._step % STOP_CHECK_INTERVAL:
            return False
        return trainer.strategy.reduce_boolean_decision(watchdog.stop_requested(), all=False)

    def _save(self, trainer: L.Trainer, last: bool = False) -> None:
        if self._step == self._saved:
            return
        self._between_steps = False  # no second attempt in on_exception if it fails
        trainer.save_checkpoint(self.folder / f"step-{self._step:06d}.ckpt")
        self._between_steps = True
        if error := trainer.strategy.broadcast(self.files.error):
            self._handle_failure(error, last)
            return
        self._failures, self._saved = 0, self._step
        if trainer.is_global_zero:
            for old in list_checkpoints(self.folder)[self.keep :]:
                old.unlink()

    def _handle_failure(self, error: str, last: bool) -> None:
        self._failures += 1
        files = list_checkpoints(self.folder)
        previous = f"the last is {files[0].name}" if files else "this would be the first"
        message = f"step {self._step}: no checkpoint could be saved ({error}); {previous}"
        if last or self._failures == MAX_FAILURES:
            self._between_steps = False
            reason = "this was the last step" if last else f"{MAX_FAILURES} in a row failed"
            raise ResourceError(f"{message}; {reason}; free space and repeat the command to resume")
        LOG.warning("%s; training continues", message)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Rank zero alone has the whole tensors of a sharded model.
        if path := trainer.strategy.broadcast(next(find_non_finite(checkpoint), None)):
            raise DivergenceError(
                f"step {self._step}: {path} is not finite, so no checkpoint is saved; try a "
                "smaller optimizer.lr"
            )
        histories = _histories(trainer)
        for history in histories:
            history.save()
        checkpoint["run_id"] = self.run_id
        checkpoint["history"] = [history.text for history in histories]
        set_end_of_batch(checkpoint)

    def state_dict(self) -> dict[str, Any]:
        seconds = self.seconds + time.monotonic() - self._started
        return {**super().state_dict(), "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.seconds = state_dict["seconds"]

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        step = checkpoint["global_step"]
        if step >= trainer.max_steps:  # or Lightning would not call on_train_end
            self._max_steps = trainer.max_steps
            set_max_steps(trainer, step + 1)
        for history, text in zip(_histories(trainer), checkpoint["history"], strict=False):
            history.rewind(text)


def _histories(trainer: L.Trainer) -> list[CSVHistory]:
    return [logger for logger in trainer.loggers if isinstance(logger, CSVHistory)]
