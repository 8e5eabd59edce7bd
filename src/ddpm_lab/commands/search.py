"""python train.py search=optuna"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer

from ddpm_lab.commands.cells import CellsFailed
from ddpm_lab.commands.output import grid
from ddpm_lab.commands.readings import number
from ddpm_lab.errors import UserError

DIRECTIONS: dict[str, Any] = {"minimize": "minimize", "maximize": "maximize"}
LOG = logging.getLogger(__name__)


class Launches(Protocol):
    """A launcher of cells."""

    jobs: int
    dry: bool

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Its results' return values are the cells' folders."""


def search(
    parsed: Sequence[Override], launcher: Launches, trials: int, metric: str, direction: str, seed: int
) -> dict[str, Any]:
    """The best of `trials` by `metric`, a key of metrics.json. A trial that fails is told so to Optuna, and the search
    goes on. Raises UserError, and CellsFailed if none succeeds.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("search=optuna needs optuna; try: pip install optuna") from error
    if direction not in DIRECTIONS:
        raise UserError(f"hydra.sweeper.direction={direction} is not one of {', '.join(DIRECTIONS)}")
    if not isinstance(trials, int) or trials < 1:
        raise UserError(f"hydra.sweeper.trials={trials} must be a whole number of at least 1")
    free = {one.get_key_element(): _suggestion(one) for one in parsed if one.is_sweep_override()}
    fixed = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
    if not free:
        raise UserError("search=optuna has nothing to search for; try 'optimizer.lr=interval(1e-3,1e-2)'")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=DIRECTIONS[direction], sampler=optuna.samplers.TPESampler(seed=seed))
    rows: dict[str, list[str]] = {}
    for first in range(0, trials, launcher.jobs):
        asked = [study.ask() for _ in range(min(launcher.jobs, trials - first))]
        words = [[*fixed, *(f"{key}={suggest(trial, key)}" for key, suggest in free.items())] for trial in asked]
        try:
            folders = [found.return_value for found in launcher.launch(words, first)]
        except CellsFailed as error:
            folders = error.folders
        if launcher.dry:
            return {}
        for trial, said, folder in zip(asked, words, folders, strict=True):
            value = number(folder / "metrics.json", metric)
            study.tell(trial, value, optuna.trial.TrialState.COMPLETE if value is not None else
                       optuna.trial.TrialState.FAIL)  # fmt: skip
            rows[f"{trial.number}"] = [*(word.partition("=")[2] for word in said[len(fixed) :]),
                                       "failed" if value is None else f"{value:.4g}", folder.name]  # fmt: skip
    LOG.info("%s", grid(f"{trials} trials", "trial", [*free, metric, "folder"], rows))
    done = [trial for trial in study.trials if trial.value is not None]
    if not done:
        raise CellsFailed(f"no trial has {metric} in its metrics.json", [])
    LOG.info("  best: %s, with %s=%.4g", " ".join(f"{key}={value}" for key, value in study.best_params.items()), metric,
             study.best_value)  # fmt: skip
    return dict(study.best_params)


def _suggestion(override: Override) -> Callable[[Any, str], Any]:
    """What Optuna proposes for a sweep of Hydra's grammar; tags: log."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        if isinstance(low, int) and isinstance(high, int):
            return lambda trial, key: trial.suggest_int(key, low, high, log=log)
        return lambda trial, key: trial.suggest_float(key, low, high, log=log)
    if isinstance(value, RangeSweep):
        start, stop, step = value.start, value.stop, value.step
        assert isinstance(start, int) and isinstance(stop, int) and isinstance(step, int)
        return lambda trial, key: trial.suggest_int(key, start, stop - 1, step=step)
    assert isinstance(value, ChoiceSweep)
    choices = [*override.sweep_iterator(Transformer.encode)]
    return lambda trial, key: trial.suggest_categorical(key, choices)
