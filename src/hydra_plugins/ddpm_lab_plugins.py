"""Hydra's launcher and sweeper. Hydra imports this package at every start, so imports are lazy."""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

# Undocumented parts of Hydra: this parser, `Plugins.instantiate_launcher` and, on the config
# loader of the context, `load_sweep_config`. The sweepers that Hydra ships use them too.
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class JobLauncher(Launcher):
    """Run each job of a sweep once, `jobs` at a time, in its own process.

    `cluster` is null for processes on this machine; "slurm" (or "local", for testing) uses submitit
    with `parameters`. `dry` prints the plan only. A sweep may have at most `limit` jobs.
    """

    def __init__(
        self,
        jobs: int = 1,
        dry: bool = False,
        cluster: str | None = None,
        parameters: dict[str, Any] | None = None,
        limit: int = 1000,
    ) -> None:
        self.max_workers, self.dry, self.limit = jobs, dry, limit
        self.cluster, self.parameters = cluster, parameters

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from ddpm_lab.cli import main

        self.context, self.config = hydra_context, config
        self.check()
        main.SWEEPS.append(Path(config.hydra.sweep.dir))
        if not config.hydra.sweeper._target_.endswith(".OptunaSweeper"):
            self.check_size(config.hydra.overrides.task)

    def check(self) -> None:
        """Raise UserError if a setting is invalid."""
        from ddpm_lab.utils.errors import UserError

        if type(self.max_workers) is not int or self.max_workers < 1:
            raise UserError(
                f"jobs={self.max_workers} must be a whole number of at least 1; try jobs=2"
            )
        if type(self.dry) is not bool:
            raise UserError(f"dry={self.dry} is not one of true, false")
        if type(self.limit) is not int or self.limit < 1:
            raise UserError(
                f"hydra.launcher.limit={self.limit} must be a whole number of at least 1; try 1000"
            )

    def check_size(self, overrides: Sequence[str]) -> None:
        """Raise UserError for a grid of no jobs or more than `limit`, before composing them."""
        from ddpm_lab.utils.errors import UserError

        sweeps = [each for each in _parse(self.context, overrides) if each.is_discrete_sweep()]
        counts = [
            sum(1 for _ in islice(sweep.sweep_string_iterator(), self.limit + 1))
            for sweep in sweeps
        ]
        for sweep, count in zip(sweeps, counts, strict=True):
            if not count:
                raise UserError(
                    f"{sweep.input_line} has no values, so this sweep has no jobs; try "
                    f"{sweep.get_key_element()}=A,B"
                )
        if prod(counts) > self.limit:
            factors = [
                f"{count}" if count <= self.limit else f"more than {self.limit}" for count in counts
            ]
            raise UserError(
                f"this sweep has {' x '.join(factors)} jobs, but at most "
                f"hydra.launcher.limit={self.limit} are allowed; try fewer values, or set "
                "hydra.launcher.limit"
            )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from ddpm_lab.config.overrides import format_override
        from ddpm_lab.utils.shell import script_command

        root = Path(self.config.hydra.sweep.dir)
        self.run_jobs(self.plan(job_overrides), root)
        if not self.dry:
            print(f"  next     {script_command('report')} {format_override('dir', root)}")
        return [
            JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
            for overrides in job_overrides
        ]

    def plan(self, job_overrides: Sequence[Sequence[str]]) -> list[Any]:
        """Return the jobs of these overrides, composed, so that errors precede all runs."""
        from ddpm_lab.config.overrides import config_hash, format_override, slug
        from ddpm_lab.sweeps.job import Job, estimate_cost

        root, verb = Path(self.config.hydra.sweep.dir), self.config.hydra.job.name
        constants = {*self.config.hydra.overrides.task}
        jobs = []
        for overrides in job_overrides:
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            implied = ["search="]
            if any(override.startswith("cascade=") for override in overrides):
                implied += ["run="]  # the last stage of the cascade
            overrides = [each for each in overrides if not each.startswith((*implied,))]
            varied = [each for each in overrides if each not in constants] or overrides
            logger = OmegaConf.select(config, "logger.wandb")
            if logger is not None and logger.group is None:
                overrides.append(format_override("logger.wandb.group", root.name))
            del config.hydra
            digest = config_hash(config, root)
            name = re.sub(r"\\(.)", r"\1", ", ".join(varied)) or "default"  # as typed to Hydra
            folder = root / slug(varied, digest[:8])
            cost = estimate_cost(verb, config)
            jobs.append(Job(name, verb, tuple(overrides), folder, digest, cost))
        return jobs

    def run_jobs(
        self, jobs: Sequence[Any], root: Path, columns: Mapping[str, str] | None = None
    ) -> None:
        """Run jobs in folders below `root`; `columns` are keys of metrics.json by label.

        Raises JobsFailedError if a job fails.
        """
        from ddpm_lab.cli.main import run_job
        from ddpm_lab.sweeps.executors import Executor, ProcessExecutor, SlurmExecutor
        from ddpm_lab.sweeps.scheduler import COLUMNS, run_jobs

        executor: Executor
        if self.cluster is None or self.dry:
            preload = [
                f"ddpm_lab.cli.{verb}" for verb in ("train", "sample", "evaluate", "analytic")
            ]
            executor = ProcessExecutor(self.max_workers, run_job, preload)
        else:
            executor = SlurmExecutor(root / "submitit", self.cluster, run_job, self.parameters)
        run_jobs(
            jobs,
            executor,
            root,
            max_workers=self.max_workers,
            dry=self.dry,
            columns=columns or COLUMNS,
        )


class OptunaSweeper(Sweeper):
    """Run trials that Optuna suggests, as many at a time as the launcher allows.

    The same seed gives the same trials, so that a repeated search continues.
    """

    def __init__(
        self, trials: int = 20, metric: str = "fid", direction: str = "minimize", seed: int = 0
    ) -> None:
        self.trials, self.metric, self.direction, self.seed = trials, metric, direction, seed

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from ddpm_lab.sweeps.search import search
        from ddpm_lab.utils.errors import UserError

        if not isinstance(self.launcher, JobLauncher):
            raise UserError("search=optuna needs hydra/launcher=processes or slurm")
        return search(
            _parse(self.context, arguments),
            self.launcher,
            Path(self.launcher.config.hydra.sweep.dir),
            self.trials,
            self.metric,
            self.direction,
            self.seed,
        )


def _parse(context: HydraContext, overrides: Sequence[str]) -> Any:
    parser = OverridesParser.create(config_loader=context.config_loader)
    return parser.parse_overrides([*overrides])
