"""Weights & Biases that never blocks, and a history that goes on where a checkpoint was."""

import csv
import io
import logging
import re
from pathlib import Path
from typing import Any

import wandb as wb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lab.writing import write

LOG = logging.getLogger(__name__)


def wandb(save_dir: str, project: str = "ddpm-lab", name: str | None = None, group: str | None = None) -> WandbLogger:
    """Lightning's logger of a run that `begin` begins."""
    mark = Path(save_dir, "wandb", "id.txt")  # a run that goes on is the same run there
    known = re.fullmatch(r"[a-z0-9]{4,64}", mark.read_text()) if mark.is_file() else None
    run = begin(dir=save_dir, project=project, name=name or Path(save_dir).name, group=group,
                id=known and known[0], resume="allow")  # fmt: skip
    if run.id and not known:
        mark.parent.mkdir(exist_ok=True)
        mark.write_text(run.id)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(save_dir=save_dir, project=project, offline=run.offline, experiment=run)


def begin(**options: Any) -> wb.Run:
    """wandb.init: online where a key exists, else offline, with a line that says how to log in.

    A key is looked for in WANDB_API_KEY and where `wandb login` puts it; WANDB_MODE is obeyed. If the server does not
    answer within 30 seconds the run goes on offline.
    """
    settings = wb.Settings(init_timeout=30, silent=True, console="off")
    mode: Any = wb.setup().settings.mode
    if mode == "online" and not wb.login(prompt=False, verify=False):
        LOG.info("W&B: no key found, so this run is kept offline; to log in: wandb login")
        mode = "offline"
    try:
        return wb.init(**options, mode=mode, settings=settings)
    except Exception as error:  # they have no class in common
        LOG.info("W&B: %s; this run is kept offline", str(error).splitlines()[0])
        return wb.init(**options | {"id": None}, mode="offline", settings=settings)


class History(CSVLogger):
    """metrics.csv, whose rows all stay in memory: each save replaces the file, and one that fails costs no row."""

    @property
    def text(self) -> str:
        """What the file says after a save."""
        rows = self.experiment.metrics
        stream = io.StringIO()
        writer = csv.DictWriter(stream, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()

    @rank_zero_only
    def save(self) -> None:
        try:
            write(Path(self.log_dir, self.experiment.NAME_METRICS_FILE), self.text)
        except OSError as error:
            LOG.warning("metrics.csv could not be written (%s); its next save has all rows", error.strerror)

    def rewind(self, text: str) -> None:
        """Goes back to when it said `text`."""
        rows = csv.DictReader(io.StringIO(text))
        self.experiment.metrics[:] = [{key: value for key, value in row.items() if value} for row in rows]
        self.save()


def finish() -> None:
    """Ends the process's W&B run, if there is one, so that the next job of a sweep begins its own."""
    if wb.run is not None:
        wb.finish()
