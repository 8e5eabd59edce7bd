"""python report.py ablation=NAME"""

import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ddpm_lab.ablations.plan import Plan
from ddpm_lab.ablations.spec import TIERS, select_tiers
from ddpm_lab.ablations.tables import from_plan, from_sweep
from ddpm_lab.config.instantiate import check_settings
from ddpm_lab.reports.number_format import entries
from ddpm_lab.reports.page import write
from ddpm_lab.reports.table import Table
from ddpm_lab.reports.terminal import terminal
from ddpm_lab.runs import provenance
from ddpm_lab.utils.atomic_io import make_directory
from ddpm_lab.utils.errors import UserError

LOG = logging.getLogger(__name__)


def report(config: DictConfig) -> None:
    """Print the tables of ablations or of a sweep.

    Writes them to `config.out` as a page, Markdown, CSV, LaTeX and plots.
    """
    check_settings(config, {"wandb": bool})
    if (config.ablations is None) == (config.dir is None):
        raise UserError("give either ablation=NAME, or dir=DIR, the directory of a sweep")
    if config.dir is not None:
        tables = [from_sweep(Path(config.dir))]
        name = Path(config.dir).resolve().name
    else:
        tables = _ablation_tables(config)
        names = config.ablations
        name = names if isinstance(names, str) else "-".join(names)
    out = make_directory(config.out or f"runs/reports/{name}")
    files = write(tables, out, Path.cwd(), provenance.version())
    LOG.info("%s\n  saved in %s", "\n\n".join(map(terminal, tables)), ", ".join(map(str, files)))
    LOG.info("  open     %s", out / "report.html")
    if config.wandb:
        _log_to_wandb(tables, name)


def _ablation_tables(config: DictConfig) -> list[Table]:
    """Return the tables of `config.tier`; if None, of all tiers with results, else of all tiers.

    The tier `published` is shown on request only, because it downloads weights.
    """
    tables = []
    for name, ablation in select_tiers(config.ablations, config.tier).items():
        tiers = [config.tier] if config.tier else [tier for tier in TIERS if tier != "published"]
        candidates = [from_plan(Plan(name, ablation, tier, config)) for tier in tiers]
        with_results = [
            table for table in candidates if any(entry.values for entry in entries(table))
        ]
        tables += candidates if config.tier else with_results or candidates
    return tables


def _log_to_wandb(tables: list[Table], name: str) -> None:
    import wandb

    from ddpm_lab.callbacks.loggers import start_wandb

    title, project = f"report {name}", "ddpm-lab"
    run = start_wandb(dir=os.getcwd(), project=project, name=title, group=name, job_type="report")
    for table in tables:
        columns: list[str | int] = ["row", *(column.name for column in table.columns)]
        rows: list[Any] = [[name, *(each.ours for each in row)] for name, row in table.rows.items()]
        run.log({table.name: wandb.Table(columns=columns, data=rows)})
    run.finish()
