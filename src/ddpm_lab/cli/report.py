"""python report.py ablation=NAME"""

import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ddpm_lab.ablations.plan import Plan
from ddpm_lab.ablations.spec import TIERS, select_tiers
from ddpm_lab.ablations.tables import from_plan, from_sweep
from ddpm_lab.config.instantiate import check_booleans
from ddpm_lab.reports.formats import terminal
from ddpm_lab.reports.page import write
from ddpm_lab.reports.table import Table
from ddpm_lab.utils.atomic_io import make_directory
from ddpm_lab.utils.errors import UserError

LOG = logging.getLogger(__name__)


def report(settings: DictConfig) -> None:
    """Tables of what has been run, on the terminal and in `settings.out`: a page, Markdown, CSV, LaTeX and plots."""
    check_booleans(settings, "wandb")
    if (settings.ablations is None) == (settings.dir is None):
        raise UserError(
            "a report is of one thing: ablation=NAME, or dir=DIR, the folder of a sweep"
        )
    if settings.dir is not None:
        tables = [from_sweep(Path(settings.dir))]
        name = Path(settings.dir).resolve().name
    else:
        tables = _tables(settings)
        name = (
            settings.ablations
            if isinstance(settings.ablations, str)
            else "-".join(settings.ablations)
        )
    out = make_directory(settings.out or f"runs/reports/{name}")
    files = write(tables, out, Path.cwd())
    LOG.info("%s\n  saved in %s", "\n\n".join(map(terminal, tables)), ", ".join(map(str, files)))
    LOG.info("  look at  %s", out / "report.html")
    if settings.wandb:
        _log(tables, name)


def _tables(settings: DictConfig) -> list[Table]:
    """Of each ablation those tiers that were asked for; else those of which something was run, or all."""
    found = []
    for name, ablation in select_tiers(settings.ablations, settings.tier).items():
        wanted = [settings.tier] if settings.tier else TIERS
        made = [from_plan(Plan(name, ablation, tier, settings)) for tier in wanted]
        begun = [
            table
            for table in made
            if any(entry.values for row in table.rows.values() for entry in row)
        ]
        found += made if settings.tier else begun or made
    return found


def _log(tables: list[Table], name: str) -> None:
    """A W&B run beside those of the sweep, with every table."""
    import wandb

    from ddpm_lab.callbacks.loggers import start_wandb

    run = start_wandb(
        dir=os.getcwd(), project="ddpm-lab", name=f"report {name}", group=name, job_type="report"
    )
    for table in tables:
        heads: list[str | int] = ["row", *(column.name for column in table.columns)]
        rows: list[list[Any]] = [
            [row, *(entry.ours for entry in entries)] for row, entries in table.rows.items()
        ]
        run.log({table.name: wandb.Table(columns=heads, data=rows)})
    run.finish()
