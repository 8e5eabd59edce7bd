"""Weights & Biases that neither blocks nor ends a run, and a history that goes on where a checkpoint was."""

import csv
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import chdir, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import wandb as wb
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lab.utils.atomic_io import write_text
from ddpm_lab.utils.errors import CLIError, escape_control

LOG = logging.getLogger(__name__)


@contextmanager
def optional(logger: object) -> Iterator[None]:
    """Around a call to `logger`: its first error is reported in a line, and the run goes on without it."""
    try:
        yield
    except CLIError:
        raise
    except Exception as error:  # errors of W&B have no class in common
        if not has_failed(logger):
            LOG.warning("%s: %s; the run goes on without it", _name(logger), _in_a_line(error))
        vars(logger)["failed"] = True


def make_optional(logger: Logger) -> Logger:
    """`logger` with its methods inside `optional`, unless it is the history, which checkpoints hold."""

    def tried(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def attempt(*args: Any, **kwargs: Any) -> Any:
            with optional(logger):
                return None if has_failed(logger) else call(*args, **kwargs)

        return attempt

    for name in ("log_metrics", "log_hyperparams", "log_image", "save", "finalize"):
        if not isinstance(logger, CSVHistory) and (method := getattr(logger, name, None)):
            setattr(logger, name, tried(method))
    return logger


def wandb(
    save_dir: str, project: str = "ddpm-lab", name: str | None = None, group: str | None = None
) -> WandbLogger | None:
    """Lightning's logger of a run that `begin` begins; None, with a line, where W&B fails."""
    mark = Path(save_dir, "wandb", "id.txt")  # a run that goes on is the same run there
    try:
        known = (
            re.fullmatch(r"[a-z0-9]{4,64}", mark.read_text("ascii", "replace"))
            if mark.is_file()
            else None
        )
        run = start_wandb(
            dir=save_dir,
            project=project,
            name=name or Path(save_dir).name,
            group=group,
            id=known and known[0],
            resume="allow",
        )
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        logger = WandbLogger(
            save_dir=save_dir, project=project, offline=run.offline, experiment=run
        )
    except CLIError:
        raise
    except Exception as error:
        LOG.warning("W&B: %s; the run goes on without it", _in_a_line(error))
        return None
    if run.id and not known:
        with suppress(OSError):
            mark.parent.mkdir(exist_ok=True)
            mark.write_text(run.id)
    return logger


def start_wandb(**options: Any) -> wb.Run:
    """wandb.init: online where a key exists, else offline, with a line that says how to log in.

    A key is looked for in WANDB_API_KEY and where `wandb login` puts it; WANDB_MODE and `wandb offline` are obeyed.
    Nothing else is read from the current directory, which may be a run of someone else: neither an address in
    wandb/settings nor a Git repository, whose configuration can run programs. If the server does not answer within 30
    seconds the run goes on offline.
    """
    options["dir"] = str(Path(options["dir"]).absolute())
    program = Path(sys.argv[0]).absolute().parent
    here = _local_mode()
    with chdir(Path(__file__).parent):
        settings = wb.Settings(init_timeout=30, silent=True, console="off", git_root=str(program))
        mode: Any = here or wb.setup().settings.mode
        if mode == "online" and not wb.login(prompt=False, verify=False):
            LOG.info("W&B: no key found, so this run is kept offline; to log in: wandb login")
            mode = "offline"
        try:
            return wb.init(**options, mode=mode, settings=settings)
        except Exception as error:
            LOG.info("W&B: %s; this run is kept offline", _in_a_line(error))
            return wb.init(**options | {"id": None}, mode="offline", settings=settings)


def _local_mode() -> str | None:
    """The mode that `wandb offline` or `wandb disabled` keeps in the current directory, unless it is online."""
    parser = ConfigParser(interpolation=None)
    try:
        if (file := Path("wandb", "settings")).is_file():
            parser.read(file, encoding="utf-8")
    except (OSError, ValueError, ConfigParserError):
        return None
    mode = parser.get("default", "mode", fallback=None)
    return mode if mode in ("offline", "disabled") else None


def has_failed(logger: object) -> bool:
    """Whether the run goes on without `logger`."""
    return bool(vars(logger).get("failed"))


def _name(logger: object) -> str:
    return (
        "W&B" if isinstance(logger, WandbLogger) else type(logger).__name__.removesuffix("Logger")
    )


def _in_a_line(error: Exception) -> str:
    return escape_control(" ".join(str(error).split())[:200] or type(error).__name__)


class CSVHistory(CSVLogger):
    """metrics.csv, whose rows all stay in memory: each save replaces the file, and one that fails costs no row."""

    @property
    def text(self) -> str:
        """What the file says after a save."""
        rows = self.experiment.metrics
        generator = io.StringIO()
        writer = csv.DictWriter(generator, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
        return generator.getvalue()

    @rank_zero_only
    def save(self) -> None:
        try:
            write_text(Path(self.log_dir, self.experiment.NAME_METRICS_FILE), self.text)
        except OSError as error:
            LOG.warning(
                "metrics.csv could not be written (%s); its next save has all rows", error.strerror
            )

    def rewind(self, text: str) -> None:
        """Goes back to when it said `text`."""
        rows = csv.DictReader(io.StringIO(text))
        self.experiment.metrics[:] = [
            {key: value for key, value in row.items() if value} for row in rows
        ]
        self.save()


def finish() -> None:
    """Ends the process's W&B run, if there is one, so that the next job of a sweep begins its own."""
    if wb.run is not None:
        try:
            wb.finish()
        except Exception as error:
            LOG.warning(
                "W&B: %s; what it has not sent lies in the run's folder wandb", _in_a_line(error)
            )
