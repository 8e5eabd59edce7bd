"""Plan and run the jobs of an ablation: python train.py ablation=NAME"""

import re
import shlex
from itertools import product, starmap
from pathlib import Path
from typing import NamedTuple

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.ablations.results import numbers
from ddpm_lab.ablations.spec import TIERS, Ablation, Tier, select_tiers
from ddpm_lab.config import messages
from ddpm_lab.config.overrides import CONFIGS, config_hash, format_override
from ddpm_lab.interop.conversion import import_once
from ddpm_lab.runs.run_config import expand_cascade, load_config, register_run_choices
from ddpm_lab.sweeps.job import Job, estimate_cost
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.shell import script_command

ANALYTIC_KEYS = ("schedule", "variance", "sampler", "guidance", "nll", "conditional")
"""Keys of rows and columns that apply without a network, in the analytic tier"""


class JobKey(NamedTuple):
    """Position of a number in a table, and its seed."""

    row: str
    column: str
    seed: int


class Plan:
    """The jobs of an ablation in a tier.

    Composes all configurations. Raises UserError if one does not compose.
    """

    def __init__(self, name: str, ablation: Ablation, tier: Tier, settings: DictConfig) -> None:
        self.name, self.ablation, self.tier = name, ablation, tier
        self.root = Path(settings.jobs_dir)
        self.spec = ablation.tier(tier)
        self.user_overrides = [*settings.overrides]
        self.user_evaluate = [*settings.evaluate]
        self.command = command_line("train", name, tier, settings)
        self.jobs: dict[Path, Job] = {}
        self.by_command: dict[tuple[str, ...], Job] = {}
        self.by_key: dict[JobKey, Job] = {}
        self.configs: dict[str, DictConfig] = {}
        self.training: dict[tuple[str, str], list[Job]] = {}
        """Training jobs by row and column, one per seed"""
        if self.spec.skip_reason:
            return
        if any(override.startswith("seed=") for override in self.user_overrides):
            raise UserError(f"seed= cannot be set, because {name} sets it: {self.spec.seeds}")
        source = settings.weights or self.spec.weights
        self.published: Path | None = None
        """Run of the published weights, imported into the cache"""
        if source is not None and self.spec.weights is not None:
            self.published, _ = import_once(source, [*self.spec.train, *self.user_overrides])
        rows = [
            name
            for name, row in ablation.rows.items()
            if tier in row.tiers and name in (self.spec.rows or ablation.rows)
        ]
        for key in starmap(JobKey, product(rows, ablation.columns, self.spec.seeds)):
            self.by_key[key] = self._job(key)

    def metric(self, column: str) -> str:
        """Return the dotted key of metrics.json that a column shows in this tier."""
        return self.spec.metrics.get(self.paper_metric(column), self.paper_metric(column))

    def paper_metric(self, column: str) -> str:
        """Return the dotted key of the paper's metric."""
        return self.ablation.columns[column].metric or self.ablation.metric

    def substitute(self, overrides: list[str]) -> list[str]:
        """Apply this tier's substitutions to overrides of a row or a column."""
        replaced = self.spec.substitutions
        return [
            word
            for override in overrides
            for word in (replaced[override].split() if override in replaced else [override])
        ]

    def _job(self, key: JobKey) -> Job:
        """Return the job whose metrics.json has the number of `key`, and add the jobs it needs."""
        row, column = self.ablation.rows[key.row], self.ablation.columns[key.column]
        label = f"{key.row}, {key.column}"
        train, evaluate, exact = (
            self.substitute([*getattr(row, verb), *getattr(column, verb)])
            for verb in ("train", "evaluate", "exact")
        )
        if self.tier == "analytic":
            common = [
                override
                for override in (*train, *evaluate)
                if re.split("[.=]", override)[0] in ANALYTIC_KEYS and "{" not in override
            ]
            overrides = ["model=exact", *self.spec.evaluate, *common, *exact]
            return self._add(label, "evaluate", overrides, key.seed)
        if self.published is not None:
            overrides = [format_override("run", self.published), *self.spec.evaluate, *evaluate]
            return self._add(label, "evaluate", overrides, key.seed)
        overrides = [*self.substitute(self.spec.train), *train]
        training = self._add(f"{key.row} (training)", "train", overrides, key.seed)
        self.training.setdefault((key.row, key.column), []).append(training)
        overrides = [*self.spec.evaluate, *evaluate]
        if not overrides:
            return training
        if not any(override.startswith("cascade=") for override in overrides):
            overrides = [format_override("run", training.folder), *overrides]
        return self._add(label, "evaluate", overrides, key.seed, training)

    def _add(self, label: str, verb: str, overrides: list[str], seed: int, *needs: Job) -> Job:
        """Return the job of a command; equal configurations share one job.

        "{train}" in an override is the folder of `needs[0]`, any other "{name}" that of
        `runs.name`, whose training is added. Raises UserError if the overrides do not compose.
        """
        auxiliary: dict[str, Job] = {}

        def folder(match: re.Match[str]) -> str:
            run = match[1]
            if run == "train":
                return str(needs[0].folder)
            auxiliary[run] = self._add(run, "train", self.spec.runs[run], seed)
            return str(auxiliary[run].folder)

        overrides = [re.sub(r"\{(\w+)\}", folder, override) for override in overrides]
        if seed and self.tier != "analytic":
            overrides.append(f"seed={seed}")
        overrides += self.user_overrides if verb == "train" else self.user_evaluate
        command = (verb, *overrides)
        if command in self.by_command:
            return self.by_command[command]
        name = f"{self.name} {label}" + (f", seed {seed}" if len(self.spec.seeds) > 1 else "")
        config = self._compose(name, verb, overrides)
        logger = OmegaConf.select(config, "logger.wandb")
        if verb == "train" and logger and logger.group is None:
            overrides.append(format_override("logger.wandb.group", self.name))
        digest = config_hash(config, self.root)
        path = self.root / f"{verb}-{digest}"
        cost, needs = estimate_cost(verb, config), (*needs, *auxiliary.values())
        job = Job(name, verb, tuple(overrides), path, digest, cost, needs)
        self.configs[str(path)] = config
        self.by_command[command] = self.jobs.setdefault(path, job)
        return self.by_command[command]

    def _compose(self, name: str, verb: str, overrides: list[str]) -> DictConfig:
        exact = verb == "evaluate" and "model=exact" in overrides
        command, expanded = "exact" if exact else verb, overrides
        try:
            if command == "evaluate":
                expanded = expand_cascade(overrides)
                register_run_choices(expanded, self._load_config)
            return compose(command, overrides=expanded)
        except UserError as error:
            raise type(error)(f"{name}: {error}") from error
        except HydraException as error:
            message = messages.explain_error(error, command, CONFIGS, overrides)
            raise UserError(f"{name}: {message}") from error

    def _load_config(self, run: str) -> DictConfig:
        return self.configs[run] if run in self.configs else load_config(run)


def run_ablation(settings: DictConfig) -> None:
    """Run the unfinished jobs of the ablations in `settings`.

    Raises UserError for invalid settings, JobsFailedError if a job fails.
    """
    if settings.tier is None:
        raise UserError(f"tier=null is not one of {', '.join(TIERS)}")
    if settings.weights is not None and settings.tier != "published":
        raise UserError(f"weights= is for tier=published (got tier={settings.tier})")
    launcher = instantiate(HydraConfig.get().launcher)
    launcher.check()
    ablations = select_tiers(settings.ablations, settings.tier)
    if settings.tier == "analytic" and settings.overrides:
        raise UserError(
            f"{settings.overrides[0]} applies to training, but tier=analytic trains nothing; try "
            "tier=tiny"
        )
    jobs: dict[Path, Job] = {}
    columns: dict[str, str] = {}
    for name, ablation in ablations.items():
        if reason := ablation.tier(settings.tier).skip_reason:
            print(f"  {name} has no tier={settings.tier}: {reason}")
        plan = Plan(name, ablation, settings.tier, settings)
        jobs |= plan.jobs
        keys = [plan.metric(column) for column in ablation.columns]
        columns |= {numbers()[key].label: key for key in keys if key in numbers()}
    if settings.evaluate and not any(job.verb == "evaluate" for job in jobs.values()):
        raise UserError(
            f"evaluate.{settings.evaluate[0]} applies to evaluations, but this ablation has none: "
            "its numbers are the final metrics of training"
        )
    if jobs:
        launcher.run_jobs([*jobs.values()], Path(settings.jobs_dir), columns)
        several = OmegaConf.is_list(settings.ablations)
        names = f"[{','.join(ablations)}]" if several else settings.ablations
        print(f"  next     {command_line('report', names, settings.tier, settings)}")


def command_line(verb: str, ablation: str, tier: str, settings: DictConfig) -> str:
    """Return the command of `verb` for an ablation, with the user's overrides in `settings`."""
    overrides = [f"ablation={ablation}", f"tier={tier}", *settings.overrides]
    if settings.weights is not None:
        overrides.append(format_override("weights", settings.weights))
    overrides += [f"evaluate.{override}" for override in settings.evaluate]
    if settings.jobs_dir != "runs/ablations":
        overrides.append(format_override("jobs_dir", settings.jobs_dir))
    return f"{script_command(verb)} {shlex.join(overrides)}"
