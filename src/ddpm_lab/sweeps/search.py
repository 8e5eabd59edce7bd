"""python train.py search=optuna"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Transformer,
)

from ddpm_lab.reports.terminal import format_grid
from ddpm_lab.sweeps.job import Job, read_number
from ddpm_lab.utils.errors import JobsFailedError, UserError
from ddpm_lab.utils.shell import install_command

DIRECTIONS: dict[str, Any] = {"minimize": "minimize", "maximize": "maximize"}
LOG = logging.getLogger(__name__)


class JobLauncherLike(Protocol):
    """A launcher of cells."""

    jobs: int
    dry: bool

    def plan(self, job_overrides: Sequence[Sequence[str]]) -> list[Job]:
        """A cell for each."""

    def run_jobs(self, cells: Sequence[Job], root: Path) -> None:
        """Raises CellsFailed."""


def search(
    parsed: Sequence[Override],
    launcher: JobLauncherLike,
    root: Path,
    trials: int,
    metric: str,
    direction: str,
    seed: int,
) -> dict[str, Any]:
    """The best of `trials` by `metric`, a key of metrics.json. A trial that fails is told so to Optuna, and the search
    goes on. Raises UserError, and CellsFailed if none succeeds.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"search=optuna needs optuna; try {install_command('optuna')}") from error
    if direction not in DIRECTIONS:
        raise UserError(
            f"hydra.sweeper.direction={direction} is not one of {', '.join(DIRECTIONS)}"
        )
    for name, given, least in (("trials", trials, 1), ("seed", seed, 0)):
        if type(given) is not int or given < least:
            raise UserError(
                f"hydra.sweeper.{name}={given} must be a whole number of at least {least}"
            )
    free = {one.get_key_element(): _suggestion(one) for one in parsed if one.is_sweep_override()}
    fixed = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
    if not free:
        raise UserError(
            "search=optuna has nothing to search for; try 'optimizer.lr=interval(1e-3,1e-2)'"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction=DIRECTIONS[direction], sampler=optuna.samplers.TPESampler(seed=seed)
    )
    rows: dict[str, list[str]] = {}
    for first in range(0, trials, launcher.jobs):
        asked = [study.ask() for _ in range(min(launcher.jobs, trials - first))]
        overrides = [
            [*fixed, *(f"{key}={suggest(trial, key)}" for key, suggest in free.items())]
            for trial in asked
        ]
        cells = launcher.plan(overrides)
        with suppress(JobsFailedError):
            launcher.run_jobs(cells, root)
        if launcher.dry:
            return {}
        for trial, said, cell in zip(asked, overrides, cells, strict=True):
            value = read_number(cell.metrics, metric) if cell.done() else None
            if value is not None and isfinite(value):
                study.tell(trial, value)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            shown = "failed" if not cell.done() else "no value" if value is None else f"{value:.4g}"
            chosen = [word.partition("=")[2] for word in said[len(fixed) :]]
            rows[f"{trial.number}"] = [*chosen, shown, cell.folder.name]
    LOG.info("%s", format_grid(f"{trials} trials", "trial", [*free, metric, "folder"], rows))
    if all(trial.value is None for trial in study.trials):
        raise JobsFailedError(f"no trial has a finite {metric} in its metrics.json")
    LOG.info(
        "  best: %s, with %s=%.4g",
        " ".join(f"{key}={value}" for key, value in study.best_params.items()),
        metric,
        study.best_value,
    )
    return dict(study.best_params)


def _suggestion(override: Override) -> Callable[[Any, str], Any]:
    """What Optuna proposes for a sweep of Hydra's grammar; tags: log. Raises UserError."""
    value = override.value()
    refused = UserError(
        f"{override.input_line} cannot be searched; try choice(a,b), range(1,4), or interval(low,high) "
        "with low < high, in tag(log,...) above 0"
    )
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        if low is None or high is None or not low < high or (log and low <= 0):
            raise refused
        if isinstance(low, int) and isinstance(high, int):
            return lambda trial, key: trial.suggest_int(key, low, high, log=log)
        return lambda trial, key: trial.suggest_float(key, low, high, log=log)
    if isinstance(value, RangeSweep):
        start, stop, step = value.start, value.stop, value.step
        if (
            not isinstance(start, int)
            or not isinstance(stop, int)
            or not isinstance(step, int)
            or not (start < stop and step > 0)
        ):
            raise refused
        return lambda trial, key: trial.suggest_int(key, start, stop - 1, step=step)
    if not isinstance(value, ChoiceSweep):
        raise refused
    choices = [*override.sweep_iterator(Transformer.encode)]
    return lambda trial, key: trial.suggest_categorical(key, choices)
