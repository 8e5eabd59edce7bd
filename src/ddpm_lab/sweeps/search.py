"""Search for hyperparameters: python train.py search=optuna"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

# Undocumented parts of Hydra, which its Optuna sweeper uses too.
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
from ddpm_lab.utils.safe_load import read_json
from ddpm_lab.utils.shell import optional_package

LOG = logging.getLogger(__name__)


def search(
    parsed: Sequence[Override],
    launcher: Any,
    root: Path,
    trials: int,
    metric: str,
    direction: str,
    seed: int,
) -> dict[str, Any]:
    """Return the best parameters of `trials` trials by `metric`, a dotted key of metrics.json.

    The `JobLauncher` runs the jobs. A failed job is a failed trial, and the search continues.
    Raises UserError for invalid settings, JobsFailedError if no trial has a value.
    """
    study = _create_study(trials, direction, seed)
    parameters = {
        override.get_key_element(): _suggestion(override)
        for override in parsed
        if override.is_sweep_override()
    }
    constants = [str(each.input_line) for each in parsed if not each.is_sweep_override()]
    if not parameters:
        raise UserError(
            "search=optuna has nothing to search for; try 'optimizer.lr=interval(1e-3,1e-2)'"
        )
    rows: dict[str, list[str]] = {}
    for start in range(0, trials, launcher.max_workers):
        batch = [study.ask() for _ in range(min(launcher.max_workers, trials - start))]
        values = [
            [str(suggest(trial, key)) for key, suggest in parameters.items()] for trial in batch
        ]
        overrides = [
            [*constants, *map("=".join, zip(parameters, row, strict=True))] for row in values
        ]
        jobs = launcher.plan(overrides)
        with suppress(JobsFailedError):
            launcher.run_jobs(jobs, root)
        if launcher.dry:
            return {}
        _check_metric(jobs, metric)
        for trial, row, job in zip(batch, values, jobs, strict=True):
            result = _finish_trial(study, trial, job, metric)
            rows[f"{trial.number}"] = [*row, result, job.folder.name]
    columns = [*parameters, metric, "folder"]
    LOG.info("%s", format_grid(f"{trials} trials", "trial", columns, rows))
    if all(trial.value is None for trial in study.trials):
        raise JobsFailedError(f"no trial has a finite {metric} in its metrics.json")
    best = " ".join(f"{key}={value}" for key, value in study.best_params.items())
    LOG.info("  best: %s, with %s=%.4g", best, metric, study.best_value)
    return dict(study.best_params)


def _check_metric(jobs: Sequence[Job], metric: str) -> None:
    """Raise UserError if finished jobs have other numbers than `metric`, as every trial will."""
    finished = [job for job in jobs if job.done()]
    if finished and all(read_number(job.metrics, metric) is None for job in finished):
        content = read_json(finished[0].metrics)
        own = [key for key, value in content.items() if isinstance(value, float)]
        nested = content.get("training", {})
        own += [f"training.{key}" for key, value in nested.items() if isinstance(value, float)]
        raise UserError(
            f"hydra.sweeper.metric={metric} is not a number of {finished[0].metrics}; "
            f"it has {', '.join(own)}"
        )


def _create_study(trials: int, direction: Any, seed: int) -> Any:
    with optional_package("optuna", "search=optuna", UserError):
        import optuna
    if direction not in ("minimize", "maximize"):
        raise UserError(f"hydra.sweeper.direction={direction} is not one of minimize, maximize")
    for key, value, least in (("trials", trials, 1), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            text = f"hydra.sweeper.{key}={value}"
            raise UserError(f"{text} must be a whole number of at least {least}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed)
    return optuna.create_study(direction=direction, sampler=sampler)


def _finish_trial(study: Any, trial: Any, job: Job, metric: str) -> str:
    """Report the metric of a job to Optuna, and return it formatted."""
    from optuna.trial import TrialState

    value = read_number(job.metrics, metric) if job.done() else None
    valid = value is not None and isfinite(value)
    study.tell(trial, value if valid else None, state=None if valid else TrialState.FAIL)
    return "failed" if not job.done() else "no value" if value is None else f"{value:.4g}"


def _suggestion(override: Override) -> Callable[[Any, str], Any]:
    """Return (trial, key) -> value for a sweep in Hydra's grammar. Raises UserError."""
    match sweep := override.value():
        case IntervalSweep(start=int() | float() as low, end=int() | float() as high) if (
            low < high and (low > 0 or "log" not in sweep.tags)
        ):
            log = "log" in sweep.tags
            if type(low) is type(high) is int:
                return lambda trial, key: trial.suggest_int(key, low, high, log=log)
            return lambda trial, key: trial.suggest_float(key, low, high, log=log)
        case RangeSweep(start=int(start), stop=int(stop), step=int(step)) if (
            start < stop and step > 0
        ):
            return lambda trial, key: trial.suggest_int(key, start, stop - 1, step=step)
        case ChoiceSweep():
            choices = [*override.sweep_iterator(Transformer.encode)]
            return lambda trial, key: trial.suggest_categorical(key, choices)
    raise UserError(
        f"{override.input_line} cannot be searched; try choice(a,b), range(1,4), or "
        "interval(low,high) with low < high, in tag(log,...) above 0"
    )
