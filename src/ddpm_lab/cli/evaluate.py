"""python evaluate.py run=DIR"""

import json
import logging
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ddpm_lab.cli.evaluate_sweep import sweep
from ddpm_lab.config.instantiate import at_least, build
from ddpm_lab.data.module import Data
from ddpm_lab.diffusion.variances import Analytic
from ddpm_lab.evaluation.nll import assess_likelihood
from ddpm_lab.evaluation.ode_nll import assess_density
from ddpm_lab.evaluation.reconstruction import assess_round_trip
from ddpm_lab.evaluation.sample_quality import assess
from ddpm_lab.reports.figures import save_bound
from ddpm_lab.reports.terminal import density_rows, nll_rows, quality_rows, round_trip_rows, table
from ddpm_lab.runs import data_check, record
from ddpm_lab.runs.load import before, load, without_noise
from ddpm_lab.runs.partial_results import unfinished
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.atomic_io import alone, output, write
from ddpm_lab.utils.distributed import first, join
from ddpm_lab.utils.errors import UserError, naming
from ddpm_lab.utils.shell import quiet

LOG = logging.getLogger(__name__)
METRICS = ("fid", "kid", "prc", "nll", "density", "round_trip")
THOROUGH = ("kid", "prc")
Rows = list[tuple[str, str, str]]


def evaluate(config: DictConfig) -> None:
    """What `config.metrics` names, of samples or weights of a run, in `metrics.json` in `config.out`; with
    `config.against`, how the quality of samples depends on one choice.
    """
    quiet()
    _check(config)
    join()
    if (
        config.against is None
        and config.metrics is not None
        and {*config.metrics} == {"round_trip"}
    ):
        without_noise(config)
    stages = [*before(config), load(config)]
    Cascade(stages)
    system = stages.pop()
    metrics = config.metrics or (["density"] if system.bin_width is None else ["fid"])
    judged = config.against is not None or not {"fid", *THOROUGH}.isdisjoint(metrics)
    if judged:
        if system.bin_width is None:
            raise UserError(
                "metrics=[fid] judges pictures, and this run drew points; try metrics=[density]"
            )
        with naming("extractor"):
            extractor = build(config, "extractor")()
        extractor.check(system.shape)
    else:
        extractor = None
    if first():
        output(config.out)  # before any work
    with alone(Path(config.out), "evaluating") if first() else nullcontext():
        if config.against is not None:
            sweep(config, stages, system, extractor)
        else:
            _measure(config, stages, system, extractor, metrics)


def _measure(
    config: DictConfig,
    stages: list[Diffusion],
    system: Diffusion,
    extractor: Any,
    metrics: Collection[str],
) -> None:
    """Each of `metrics`; what is finished is kept, and the same command goes on with the next."""
    data = data_check.data(config)
    finished = unfinished(config, [*stages, system], data)
    common = {"weights": config.weights}
    rows = []

    def density() -> dict[str, Any]:
        return assess_density(system, system.denoiser, data, **common, **config.density)

    def quality() -> dict[str, Any]:
        return next(
            assess(
                system,
                system.denoiser,
                data,
                extractor,
                **common,
                before=stages,
                thorough={*THOROUGH} & {*metrics},
                split=config.split,
                count=config.count,
                seed=config.seed,
                batch_size=config.batch_size,
            )
        )

    def likelihood() -> dict[str, Any]:
        return _likelihood(config, system, data)

    def returned() -> dict[str, Any]:
        with naming("sampler"):
            return assess_round_trip(
                system,
                system.denoiser,
                data,
                **common,
                **config.round_trip,
                batch_size=config.batch_size,
            )

    measured = "+".join(
        sorted({"fid"} | ({*THOROUGH} & {*metrics}))
    )  # together, of the same samples
    ways: list[tuple[str, bool, Callable[[], dict[str, Any]], Callable[[dict[str, Any]], Rows]]] = [
        ("round_trip", "round_trip" in metrics, returned, round_trip_rows),
        ("nll", "nll" in metrics, likelihood, nll_rows),
        ("density", "density" in metrics, density, density_rows),
        (measured, extractor is not None, quality, quality_rows),
    ]
    result: dict[str, Any] = {"run": str(config.run), "run_id": record.read(config.run).id}
    try:
        for name, wanted, measure, shown in ways:
            if wanted:
                found = (
                    finished.parts[name]
                    if name in finished.parts
                    else finished.keep(name, measure())
                )
                result |= found if name == measured else {name: found}
                rows += shown(found)
                if first():
                    write(output(config.out) / "metrics.json", json.dumps(result, indent=2) + "\n")
    except BaseException:
        if first() and rows:
            tqdm.write(
                f"{table(rows)}\n  finished before the end, in {config.out}; the same command goes on"
            )
        finished.end(kept=True)
        raise
    if not first():
        return
    out = output(config.out)
    saved = [out / "metrics.json"]
    if "nll" in metrics:
        saved.append(save_bound(result["nll"]["terms"], out / "bound.png"))
    finished.end()
    LOG.info("%s\n  saved in %s", table(rows), ", ".join(map(str, saved)))


def _likelihood(config: DictConfig, system: Diffusion, data: Data) -> dict[str, Any]:
    bounded = (config.nll.clip, None) == (system.sampler.clip, system.sampler.dynamic_threshold)
    if isinstance(system.denoiser.variance, Analytic) and not bounded:
        raise UserError(
            f"nll.clip={config.nll.clip} bounds guesses in another way than sampler.clip="
            f"{system.sampler.clip}, for which variance=analytic was estimated; make them equal, with "
            "sampler.dynamic_threshold=null"
        )
    options: dict[str, Any] = OmegaConf.to_container(config.nll)  # type: ignore[assignment]
    with naming("nll"):
        return assess_likelihood(
            system,
            system.denoiser,
            data,
            weights=config.weights,
            **options,
            seed=config.seed,
            batch_size=config.batch_size,
        )


def _check(config: DictConfig) -> None:
    """What can be seen before anything is loaded."""
    metrics = config.metrics
    if metrics is not None and (
        not OmegaConf.is_list(metrics) or not metrics or not {*metrics} <= {*METRICS}
    ):
        raise UserError(
            f"metrics={metrics} must be a list of {', '.join(METRICS)}; try metrics=[nll]"
        )
    if config.against is not None and metrics is not None:
        raise UserError(
            f"metrics={metrics} cannot be chosen with against={config.against}, which measures FID, "
            "precision and recall; try metrics=null"
        )
    if config.cascade is not None and not {"fid", *THOROUGH} >= {*(metrics or [])}:
        raise UserError(
            f"metrics={metrics} looks at one model, and cascade={config.cascade} has several; try "
            "metrics=[fid], or run=DIR"
        )
    if config.against is None and config["values"] is not None:
        raise UserError(f"values={config['values']} are values of nothing; try against=guidance.w")
    for key in ("split", "nll.split", "density.split", "round_trip.split"):
        if (split := OmegaConf.select(config, key)) not in ("train", "test"):
            raise UserError(f"{key}={split} is not one of train, test")
    counts = [
        key
        for key in ("nll.count", "round_trip.count")
        if OmegaConf.select(config, key) is not None
    ]
    thorough = config.against is not None or not {*THOROUGH}.isdisjoint(metrics or [])
    at_least(
        config,
        {"count": 4 if thorough else 2, "batch_size": 1, "seed": 0, "density.count": 2}
        | dict.fromkeys(counts, 2),
    )
    clip = config.nll.clip
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise UserError(f"nll.clip={clip} must be above 0, or null")
