"""Loggers: W&B that cannot block or end a run, and a CSV history that can be rewound."""

import csv
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lab.callbacks.lightning_internals import csv_rows
from ddpm_lab.utils.atomic_io import write_text
from ddpm_lab.utils.errors import CLIError, escape_control
from ddpm_lab.utils.safe_load import BEST, list_checkpoints

if TYPE_CHECKING:
    import wandb as wb

LOG = logging.getLogger(__name__)
UNNAMED = ("hydra", "logger", "resume", "trust", "trainer.default_root_dir", "-")
"""First words of overrides that are not in the name of a run"""


@contextmanager
def optional(logger: object) -> Iterator[None]:
    """Catch errors of `logger`: log the first one and disable the logger."""
    try:
        yield
    except CLIError:
        raise
    except Exception as error:  # W&B's errors have no common base class
        if not has_failed(logger):
            name = type(logger).__name__.removesuffix("Logger").replace("Wandb", "W&B")
            LOG.warning("%s: %s; continuing without it", name, _one_line(error))
        vars(logger)["failed"] = True


def make_optional(logger: Logger) -> Logger:
    """Wrap the methods of `logger` in `optional`, except for `CSVHistory`, which is required."""
    if not isinstance(logger, CSVHistory):
        for name in ("log_metrics", "log_hyperparams", "log_image", "save", "finalize"):
            if method := getattr(logger, name, None):
                setattr(logger, name, partial(_call_optional, logger, method))
    return logger


def _call_optional(logger: Logger, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with optional(logger):
        return None if has_failed(logger) else method(*args, **kwargs)


def wandb(
    save_dir: str,
    project: str = "ddpm-lab",
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    checkpoints: bool = False,
) -> WandbLogger | None:
    """Return a logger of a run from `start_wandb`, or log a line and return None on errors.

    With `checkpoints`, `log_checkpoints` uploads checkpoints at the end.
    """
    run_id = read_wandb_id(save_dir)  # resume continues the same W&B run
    if "WANDB_SWEEP_ID" in os.environ:  # the agent has chosen the id
        run_id = os.environ.get("WANDB_RUN_ID", run_id)
    try:
        run = start_wandb(
            dir=save_dir,
            project=project,
            name=name or Path(save_dir).name,
            group=group,
            tags=[*tags],
            id=run_id,
            resume="allow",
        )
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        logger = WandbLogger(
            save_dir=save_dir, project=project, offline=run.offline, experiment=run
        )
        vars(logger)["uploads"] = checkpoints
    except CLIError:
        raise
    except Exception as error:
        LOG.warning("W&B: %s; continuing without it", _one_line(error))
        return None
    if run.id and run.id != read_wandb_id(save_dir):
        with suppress(OSError):
            write_text(_id_file(save_dir), run.id)
    return logger


def read_wandb_id(save_dir: str | Path) -> str | None:
    """Return the id of the W&B run of the run directory `save_dir`; None without one."""
    file = _id_file(save_dir)
    text = ""
    with suppress(OSError):
        text = file.read_text("ascii", "replace") if file.is_file() else ""
    return text if re.fullmatch(r"[a-z0-9]{4,64}", text) else None


def _id_file(save_dir: str | Path) -> Path:
    return Path(save_dir, "wandb", "id.txt")


def run_name(overrides: Sequence[str]) -> str | None:
    """Return a short name for a run with these overrides of train.py; None without any."""
    words = [word for word in overrides if "=" in word and not word.startswith(UNNAMED)]
    return " ".join(word.lstrip("+~") for word in words)[:80] or None


def log_protocol(loggers: Sequence[Logger], protocol: dict[str, Any]) -> None:
    """Add the settings that the metrics depend on to the summary of the W&B run."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and not has_failed(logger):
            with optional(logger):
                logger.experiment.summary.update({"protocol": protocol})


def log_checkpoints(loggers: Sequence[Logger], run: Path) -> None:
    """Upload the last and the best checkpoint of `run` to W&B, as a run for `run=DIR`."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and vars(logger)["uploads"]:
            import wandb as wb

            with optional(logger):
                files = [*list_checkpoints(run / "checkpoints")[:1], run / "checkpoints" / BEST]
                files += [run / "config.yaml", run / "run.json"]
                artifact = wb.Artifact(f"run-{logger.experiment.id}", "model")
                for file in files:
                    if file.is_file():
                        artifact.add_file(str(file), str(file.relative_to(run)))
                logger.experiment.log_artifact(artifact)


def start_wandb(**options: Any) -> "wb.Run":
    """Call wandb.init, online if there is a key, else offline with a hint.

    The key comes from WANDB_API_KEY or `wandb login`. WANDB_MODE and `wandb offline` apply. After a
    timeout of 30 seconds the run continues offline.

    The current directory may be someone else's run. Only the mode in its wandb/settings is used.
    Its Git repository is not, because Git configurations can execute programs.
    """
    import wandb as wb

    options["dir"] = str(Path(options["dir"]).absolute())
    program = Path(sys.argv[0]).absolute().parent
    local_mode = _local_mode()
    with chdir(Path(__file__).parent):
        settings = wb.Settings(init_timeout=30, silent=True, console="off", git_root=str(program))
        mode: Any = local_mode or wb.setup().settings.mode
        if mode == "online" and not wb.login(prompt=False, verify=False):
            LOG.info("W&B: no key found, so this run is kept offline; to log in: wandb login")
            mode = "offline"
        try:
            return wb.init(**options, mode=mode, settings=settings)
        except Exception as error:
            LOG.info("W&B: %s; this run is kept offline", _one_line(error))
            return wb.init(**options | {"id": None}, mode="offline", settings=settings)


def _local_mode() -> str | None:
    """Return "offline" or "disabled" from the wandb/settings of the current directory, or None."""
    file, text = Path("wandb", "settings"), ""
    with suppress(OSError):
        text = file.read_text(errors="replace") if file.is_file() else ""
    match = re.search(r"^mode\s*[=:]\s*(offline|disabled)\s*$", text, re.MULTILINE)
    return match[1] if match else None


def has_failed(logger: object) -> bool:
    """Return True if `logger` is disabled after an error."""
    return bool(vars(logger).get("failed"))


def _one_line(error: Exception) -> str:
    return escape_control(" ".join(str(error).split())[:200] or type(error).__name__)


class CSVHistory(CSVLogger):
    """metrics.csv with all rows in memory. Saves replace the file; a failed save loses no rows."""

    @property
    def text(self) -> str:
        """Content of the file after a save."""
        rows = csv_rows(self)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()

    @rank_zero_only
    def save(self) -> None:
        try:
            write_text(Path(self.log_dir, "metrics.csv"), self.text)
        except OSError as error:
            message = "metrics.csv could not be written (%s); the next save will include all rows"
            LOG.warning(message, error.strerror)

    def rewind(self, text: str) -> None:
        """Replace all rows by those of `text`, a previous value of `self.text`."""
        rows = csv.DictReader(io.StringIO(text))
        csv_rows(self)[:] = [{key: value for key, value in row.items() if value} for row in rows]
        self.save()


def finish() -> None:
    """End the process's W&B run, if any, so that the next job of a sweep starts its own."""
    wb = sys.modules.get("wandb")
    if wb is not None and wb.run is not None:
        try:
            wb.finish()
        except Exception as error:
            message = "W&B: %s; data not uploaded is in the run's folder wandb"
            LOG.warning(message, _one_line(error))
