"""python evaluate.py run=DIR"""

import json
import logging
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ddpm_lab.cli.evaluate_sweep import evaluate_sweep
from ddpm_lab.config.instantiate import build, check_minimum
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.variances import Analytic
from ddpm_lab.evaluation.nll import evaluate_nll
from ddpm_lab.evaluation.ode_nll import evaluate_ode_nll
from ddpm_lab.evaluation.reconstruction import evaluate_reconstruction
from ddpm_lab.evaluation.sample_quality import evaluate_samples
from ddpm_lab.reports.figures import save_bound
from ddpm_lab.reports.terminal import (
    fid_rows,
    key_value_table,
    nll_rows,
    ode_nll_rows,
    reconstruction_mse_rows,
)
from ddpm_lab.runs import data_check, run_record
from ddpm_lab.runs.load import load_earlier_stages, load_system, make_deterministic
from ddpm_lab.runs.partial_results import open_partial_results
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.atomic_io import directory_lock, make_directory, write_text
from ddpm_lab.utils.distributed import init_process_group, is_rank_zero
from ddpm_lab.utils.errors import UserError, prefix_errors
from ddpm_lab.utils.shell import quiet_libraries

LOG = logging.getLogger(__name__)
METRICS = ("fid", "kid", "prc", "nll", "ode_nll", "reconstruction")
THOROUGH = ("kid", "prc")
Rows = list[tuple[str, str, str]]


def evaluate(config: DictConfig) -> None:
    """What `config.metrics` names, of samples or weights of a run, in `metrics.json` in `config.out`; with
    `config.sweep`, how the quality of samples depends on one choice.
    """
    quiet_libraries()
    _check(config)
    init_process_group()
    if (
        config.sweep is None
        and config.metrics is not None
        and {*config.metrics} == {"reconstruction"}
    ):
        make_deterministic(config)
    stages = [*load_earlier_stages(config), load_system(config)]
    Cascade(stages)
    system = stages.pop()
    metrics = config.metrics or (["ode_nll"] if system.bin_width is None else ["fid"])
    judged = config.sweep is not None or not {"fid", *THOROUGH}.isdisjoint(metrics)
    if judged:
        if system.bin_width is None:
            raise UserError(
                "metrics=[fid] judges images, and this run drew points; try metrics=[ode_nll]"
            )
        with prefix_errors("extractor"):
            extractor = build(config, "extractor")()
        extractor.check(system.shape)
    else:
        extractor = None
    if is_rank_zero():
        make_directory(config.out)  # before any work
    with directory_lock(Path(config.out), "evaluating") if is_rank_zero() else nullcontext():
        if config.sweep is not None:
            evaluate_sweep(config, stages, system, extractor)
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
    data = data_check.load_data(config)
    finished = open_partial_results(config, [*stages, system], data)
    common = {"weights": config.weights}
    rows = []

    def density() -> dict[str, Any]:
        return evaluate_ode_nll(system, system.denoiser, data, **common, **config.ode_nll)

    def quality() -> dict[str, Any]:
        return next(
            evaluate_samples(
                system,
                system.denoiser,
                data,
                extractor,
                **common,
                before=stages,
                extra_metrics={*THOROUGH} & {*metrics},
                split=config.split,
                count=config.count,
                seed=config.seed,
                batch_size=config.batch_size,
            )
        )

    def likelihood() -> dict[str, Any]:
        return _likelihood(config, system, data)

    def returned() -> dict[str, Any]:
        with prefix_errors("sampler"):
            return evaluate_reconstruction(
                system,
                system.denoiser,
                data,
                **common,
                **config.reconstruction,
                batch_size=config.batch_size,
            )

    measured = "+".join(
        sorted({"fid"} | ({*THOROUGH} & {*metrics}))
    )  # together, of the same samples
    configurations: list[
        tuple[str, bool, Callable[[], dict[str, Any]], Callable[[dict[str, Any]], Rows]]
    ] = [
        ("reconstruction", "reconstruction" in metrics, returned, reconstruction_mse_rows),
        ("nll", "nll" in metrics, likelihood, nll_rows),
        ("ode_nll", "ode_nll" in metrics, density, ode_nll_rows),
        (measured, extractor is not None, quality, fid_rows),
    ]
    result: dict[str, Any] = {
        "run": str(config.run),
        "run_id": run_record.read_record(config.run).id,
    }
    try:
        for name, wanted, measure, shown in configurations:
            if wanted:
                found = (
                    finished.parts[name]
                    if name in finished.parts
                    else finished.keep(name, measure())
                )
                result |= found if name == measured else {name: found}
                rows += shown(found)
                if is_rank_zero():
                    write_text(
                        make_directory(config.out) / "metrics.json",
                        json.dumps(result, indent=2) + "\n",
                    )
    except BaseException:
        if is_rank_zero() and rows:
            tqdm.write(
                f"{key_value_table(rows)}\n  finished before the end, in {config.out}; the same command goes on"
            )
        finished.end(kept=True)
        raise
    if not is_rank_zero():
        return
    out = make_directory(config.out)
    saved = [out / "metrics.json"]
    if "nll" in metrics:
        saved.append(save_bound(result["nll"]["terms"], out / "bound.png"))
    finished.end()
    LOG.info("%s\n  saved in %s", key_value_table(rows), ", ".join(map(str, saved)))


def _likelihood(config: DictConfig, system: Diffusion, data: DataModule) -> dict[str, Any]:
    bounded = (config.nll.clip, None) == (system.sampler.clip, system.sampler.dynamic_threshold)
    if isinstance(system.denoiser.variance, Analytic) and not bounded:
        raise UserError(
            f"nll.clip={config.nll.clip} bounds guesses in another way than sampler.clip="
            f"{system.sampler.clip}, for which variance=analytic was estimated; make them equal, with "
            "sampler.dynamic_threshold=null"
        )
    options: dict[str, Any] = OmegaConf.to_container(config.nll)  # type: ignore[assignment]
    with prefix_errors("nll"):
        return evaluate_nll(
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
    if config.sweep is not None and metrics is not None:
        raise UserError(
            f"metrics={metrics} cannot be chosen with sweep={config.sweep}, which measures FID, "
            "precision and recall; try metrics=null"
        )
    if config.cascade is not None and not {"fid", *THOROUGH} >= {*(metrics or [])}:
        raise UserError(
            f"metrics={metrics} looks at one model, and cascade={config.cascade} has several; try "
            "metrics=[fid], or run=DIR"
        )
    if config.sweep is None and config["values"] is not None:
        raise UserError(f"values={config['values']} are values of nothing; try sweep=guidance.w")
    for key in ("split", "nll.split", "ode_nll.split", "reconstruction.split"):
        if (split := OmegaConf.select(config, key)) not in ("train", "test"):
            raise UserError(f"{key}={split} is not one of train, test")
    counts = [
        key
        for key in ("nll.count", "reconstruction.count")
        if OmegaConf.select(config, key) is not None
    ]
    extra_metrics = config.sweep is not None or not {*THOROUGH}.isdisjoint(metrics or [])
    check_minimum(
        config,
        {"count": 4 if extra_metrics else 2, "batch_size": 1, "seed": 0, "ode_nll.count": 2}
        | dict.fromkeys(counts, 2),
    )
    clip = config.nll.clip
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise UserError(f"nll.clip={clip} must be above 0, or null")
