"""Hydra looks for plugins in this package only, and imports it at every start: so nothing heavy."""

from collections.abc import Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class JobLauncher(Launcher):
    """Each job a cell: in a process of its own, `jobs` at a time, done once, and failing alone.

    `cluster`: null, processes of this machine; or "slurm", or "local", which does as if; with `parameters` for
    submitit. `dry`: only the plan. Of a grid there may be `limit` cells.
    """

    def __init__(
        self,
        jobs: int = 1,
        dry: bool = False,
        cluster: str | None = None,
        parameters: dict[str, Any] | None = None,
        limit: int = 1000,
    ) -> None:
        self.jobs, self.dry, self.cluster, self.parameters, self.limit = (
            jobs,
            dry,
            cluster,
            parameters,
            limit,
        )

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from ddpm_lab.cli import main

        self.context, self.config = hydra_context, config
        self.check()
        main.SWEEPS.append(Path(config.hydra.sweep.dir))
        if not config.hydra.sweeper._target_.endswith(".OptunaSweeper"):
            self.count(config.hydra.overrides.task)

    def count(self, overrides: Sequence[str]) -> None:
        """Raises UserError for a grid without cells, or of more than `limit`, before all are composed."""
        from ddpm_lab.utils.errors import UserError

        parsed = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(
            [*overrides]
        )
        swept = [one for one in parsed if one.is_discrete_sweep()]
        counts = [
            sum(1 for _ in islice(one.sweep_string_iterator(), self.limit + 1)) for one in swept
        ]
        for one, count in zip(swept, counts, strict=True):
            if not count:
                raise UserError(
                    f"{one.input_line} holds no value, so that this sweep has no job; try "
                    f"{one.get_key_element()}=A,B"
                )
        if prod(counts) > self.limit:
            said = " x ".join(
                f"{count}" if count <= self.limit else f"more than {self.limit}" for count in counts
            )
            raise UserError(
                f"this sweep has {said} jobs, and at most hydra.launcher.limit={self.limit} are done; "
                "sweep over fewer values, or set hydra.launcher.limit"
            )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        self.run_jobs(self.plan(job_overrides), Path(self.config.hydra.sweep.dir))
        return [
            JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
            for overrides in job_overrides
        ]

    def plan(self, job_overrides: Sequence[Sequence[str]]) -> list[Any]:
        """The cell of each job. Composes them, so that a slip is told before anything runs."""
        from ddpm_lab.config.overrides import config_hash, format_override, slug
        from ddpm_lab.sweeps.job import Job, estimate_work

        root, verb = Path(self.config.hydra.sweep.dir), self.config.hydra.job.name
        typed = {*self.config.hydra.overrides.task}
        cells = []
        for overrides in job_overrides:
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            cascade = any(
                word.startswith("cascade=") for word in overrides
            )  # says which run is the last
            left = ("search=", "run=") if cascade else ("search=",)
            overrides = [word for word in overrides if not word.startswith(left)]
            own = [word for word in overrides if word not in typed] or overrides
            logger = OmegaConf.select(config, "logger.wandb")
            if logger is not None and logger.group is None:
                overrides.append(format_override("logger.wandb.group", root.name))
            del config.hydra
            digits = config_hash(config, root)
            folder = root / slug(own, digits[:8])
            cells.append(
                Job(
                    ", ".join(own) or "default",
                    verb,
                    tuple(overrides),
                    folder,
                    digits,
                    estimate_work(verb, config),
                )
            )
        return cells

    def check(self) -> None:
        """Raises UserError."""
        from ddpm_lab.utils.errors import UserError

        if type(self.jobs) is not int or self.jobs < 1:
            raise UserError(f"jobs={self.jobs} must be a whole number of at least 1; try jobs=2")
        if type(self.dry) is not bool:
            raise UserError(f"dry={self.dry} is not one of true, false")
        if type(self.limit) is not int or self.limit < 1:
            raise UserError(
                f"hydra.launcher.limit={self.limit} must be a whole number of at least 1; try 1000"
            )

    def run_jobs(self, cells: Sequence[Any], root: Path) -> None:
        """Runs `cells`, whose folders lie in `root`. Raises CellsFailed."""
        from ddpm_lab.cli.main import run_job
        from ddpm_lab.sweeps.executors import Executor, ProcessExecutor, SlurmExecutor
        from ddpm_lab.sweeps.scheduler import run_jobs

        preload = [f"ddpm_lab.cli.{verb}" for verb in ("train", "sample", "evaluate", "analytic")]
        pool: Executor = ProcessExecutor(self.jobs, run_job, preload)
        if self.cluster is not None and not self.dry:
            pool = SlurmExecutor(root / "submitit", self.cluster, run_job, self.parameters)
        run_jobs(cells, pool, root, jobs=self.jobs, dry=self.dry)


class OptunaSweeper(Sweeper):
    """Trials that Optuna proposes, as many at a time as the launcher runs. With the same seed the same are proposed, so
    that a search that is started again goes on where it was.
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

        parsed = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(
            arguments
        )
        if not isinstance(self.launcher, JobLauncher):
            raise UserError("search=optuna runs cells; try hydra/launcher=processes, or slurm")
        root = Path(self.launcher.config.hydra.sweep.dir)
        return search(
            parsed, self.launcher, root, self.trials, self.metric, self.direction, self.seed
        )
