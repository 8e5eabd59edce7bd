"""python train.py ablation=NAME"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.ablations.spec import Ablation, Tier, select_tiers
from ddpm_lab.config import messages
from ddpm_lab.config.overrides import CONFIGS, config_hash, format_override
from ddpm_lab.runs.run_config import expand_cascade, load_config, register_run_choices
from ddpm_lab.sweeps.job import Job, estimate_work
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.shell import script_command

EXACT = ("schedule", "variance", "sampler", "guidance", "nll", "conditional")
"""What a cell says of these holds in the analytic tier as well."""


class JobKey(NamedTuple):
    """Where a number stands: a row, a column, and the seed it is for."""

    row: str
    column: str
    seed: int


class Plan:
    """The cells of an ablation in a tier. Everything is composed, so that a slip is told before anything runs."""

    def __init__(self, name: str, ablation: Ablation, tier: Tier, settings: DictConfig) -> None:
        self.name, self.ablation, self.tier, self.root = (
            name,
            ablation,
            tier,
            Path(settings.jobs_dir),
        )
        self.stage = ablation.tiers[tier]
        self.extra, self.asked = [*settings.overrides], [*settings.evaluate]
        self.command = command_line("train", name, tier, settings)
        self.cells: dict[Path, Job] = {}
        self.known: dict[tuple[str, ...], Job] = {}
        self.configs: dict[str, DictConfig] = {}
        self.places: dict[JobKey, Job] = {}
        self.trained: dict[str, Job] = {}
        """By row, that of the first column and seed"""
        if self.stage.skip_reason:
            return
        if any(word.startswith("seed=") for word in self.extra):
            raise UserError(f"seed= is said by {name} itself, whose seeds are {self.stage.seeds}")
        for row, column, seed in self._runnable():
            self.places[JobKey(row, column, seed)] = self._place(row, column, seed)

    def metric(self, column: str) -> str:
        """In this tier, the keys of metrics.json joined by dots."""
        return self.stage.metrics.get(self.published(column), self.published(column))

    def published(self, column: str) -> str:
        """The same, in the paper."""
        return self.ablation.columns[column].metric or self.ablation.metric

    def here(self, overrides: list[str]) -> list[str]:
        """The words of the paper as this tier says them."""
        said = [self.stage.substitutions.get(word, word) for word in overrides]
        return [word for one in said for word in ([one] if isinstance(one, str) else one)]

    def _runnable(self) -> Iterator[JobKey]:
        for row, spec in self.ablation.rows.items():
            for column in self.ablation.columns if self.tier in spec.tiers else ():
                for seed in self.stage.seeds:
                    yield JobKey(row, column, seed)

    def _place(self, row: str, column: str, seed: int) -> Job:
        parts = (self.ablation.rows[row], self.ablation.columns[column])
        name = self._named(f"{row}, {column}", seed)
        train, evaluate, exact = (
            self.here([word for part in parts for word in getattr(part, verb)])
            for verb in ("train", "evaluate", "exact")
        )
        if self.tier == "analytic":
            common = [
                word
                for word in (*train, *evaluate)
                if re.split("[.=]", word)[0] in EXACT and "{" not in word
            ]
            return self._cell(
                name,
                "evaluate",
                ["model=exact", *self.stage.evaluate, *common, *exact, *self.asked],
            )
        seeds = [f"seed={seed}"] if seed else []
        overrides = [*self.here(self.stage.train), *train, *seeds, *self.extra]
        trained = self._cell(self._named(f"{row} (training)", seed), "train", overrides, seed)
        self.trained.setdefault(row, trained)
        overrides = [*self.stage.evaluate, *evaluate]
        if not overrides:
            return trained
        if not any(word.startswith("cascade=") for word in overrides):
            overrides = [format_override("run", trained.folder), *overrides]
        return self._cell(name, "evaluate", [*overrides, *seeds, *self.asked], seed, trained)

    def _named(self, what: str, seed: int) -> str:
        return f"{self.name} {what}" + (f", seed {seed}" if len(self.stage.seeds) > 1 else "")

    def _cell(self, name: str, verb: str, overrides: list[str], seed: int = 0, *needs: Job) -> Job:
        """Raises UserError if `words` are not what the verb takes."""
        others: dict[str, Job] = {}

        def other(found: re.Match[str]) -> str:
            if found[1] == "train":
                return str(needs[0].folder)
            seeds = [f"seed={seed}"] if seed else []
            own = [*self.stage.runs[found[1]], *seeds, *self.extra]
            others[found[1]] = self._cell(self._named(found[1], seed), "train", own, seed)
            return str(others[found[1]].folder)

        overrides = [
            word if word in self.extra else re.sub(r"\{(\w+)\}", other, word) for word in overrides
        ]
        said = (verb, *overrides)
        if said in self.known:
            return self.known[said]
        exact = "model=exact" in overrides
        try:
            if verb == "train":
                config = compose("train", overrides=overrides)
                if OmegaConf.select(config, "logger.wandb") and config.logger.wandb.group is None:
                    overrides = [*overrides, format_override("logger.wandb.group", self.name)]
            elif exact:
                config = compose("exact", overrides=overrides)
            else:
                command_line = expand_cascade(overrides)
                register_run_choices(
                    command_line,
                    lambda run: self.configs[run] if run in self.configs else load_config(run),
                )
                config = compose("evaluate", overrides=command_line)
        except (HydraException, UserError) as error:
            told = (
                messages.explain_error(error, "exact" if exact else verb, CONFIGS, overrides)
                if isinstance(error, HydraException)
                else str(error)
            )
            raise (type(error) if isinstance(error, UserError) else UserError)(
                f"{name}: {told}"
            ) from error
        digits = config_hash(config, self.root)
        folder = self.root / f"{verb}-{digits}"
        cell = Job(
            name,
            verb,
            tuple(overrides),
            folder,
            digits,
            estimate_work(verb, config),
            (*needs, *others.values()),
        )
        self.configs[str(folder)] = config
        self.known[said] = self.cells.setdefault(folder, cell)
        return self.known[said]


def run_ablation(settings: DictConfig) -> None:
    """Runs what is not done yet of the ablations that `settings` name. Raises CellsFailed if some of it failed."""
    if settings.tier is None:
        raise UserError("tier=null is not one of analytic, tiny, paper")
    launcher = instantiate(HydraConfig.get().launcher)
    launcher.check()
    found = select_tiers(settings.ablations, settings.tier)
    if settings.tier == "analytic" and settings.overrides:
        raise UserError(
            f"{settings.overrides[0]} is for training, and tier=analytic has none; try tier=tiny"
        )
    cells: dict[Path, Job] = {}
    for name, ablation in found.items():
        if why := ablation.tiers[settings.tier].skip_reason:
            print(f"  {name} has no tier={settings.tier}: {why}")
        cells |= Plan(name, ablation, settings.tier, settings).cells
    if settings.evaluate and not any(cell.verb == "evaluate" for cell in cells.values()):
        raise UserError(
            f"evaluate.{settings.evaluate[0]} is for evaluations, and this has none: its numbers are those "
            "that training ends with"
        )
    if cells:
        launcher.run_jobs([*cells.values()], Path(settings.jobs_dir))
        what = settings.ablations if isinstance(settings.ablations, str) else f"[{','.join(found)}]"
        print(f"  next     {command_line('report', what, settings.tier, settings)}")


def command_line(verb: str, ablation: str, tier: str, settings: DictConfig) -> str:
    """The command with all that `settings` have of the user's."""
    overrides = [*settings.overrides, *(f"evaluate.{word}" for word in settings.evaluate)]
    overrides += (
        []
        if settings.jobs_dir == "runs/ablations"
        else [format_override("jobs_dir", settings.jobs_dir)]
    )
    return (
        f"{script_command(verb)} {shlex.join([f'ablation={ablation}', f'tier={tier}', *overrides])}"
    )
