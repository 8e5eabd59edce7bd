"""Weights & Biases that never blocks."""

import logging
from pathlib import Path
from typing import Any

import wandb as wb
from lightning.pytorch.loggers import WandbLogger

LOG = logging.getLogger(__name__)


def wandb(save_dir: str, project: str = "ddpm-lab", name: str | None = None, group: str | None = None) -> WandbLogger:
    """Lightning's logger of a run that `begin` begins."""
    run = begin(dir=save_dir, project=project, name=name or Path(save_dir).name, group=group)
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
    except wb.errors.Error as error:
        LOG.info("W&B: %s; this run is kept offline", str(error).splitlines()[0])
        return wb.init(**options, mode="offline", settings=settings)


def finish() -> None:
    """Ends the process's W&B run, if there is one, so that the next job of a sweep begins its own."""
    if wb.run is not None:
        wb.finish()
