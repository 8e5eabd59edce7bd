"""python evaluate.py run=DIR"""

import logging
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ddpm_lab.cli.evaluate_sweep import evaluate_sweep
from ddpm_lab.config.instantiate import build, check_minimum
from ddpm_lab.diffusion.variances import Analytic
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.metrics import Results, Rows
from ddpm_lab.evaluation.nll import evaluate_nll, nll_rows
from ddpm_lab.evaluation.ode_nll import evaluate_ode_nll, ode_nll_rows
from ddpm_lab.evaluation.reconstruction import evaluate_reconstruction, reconstruction_mse_rows
from ddpm_lab.evaluation.sample_quality import evaluate_samples, fid_rows
from ddpm_lab.reports.figures import save_bound
from ddpm_lab.reports.terminal import key_value_table
from ddpm_lab.runs.partial_results import open_partial_results
from ddpm_lab.runs.run_config import make_deterministic
from ddpm_lab.runs.run_dir import RunDir, load_cascade
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.utils.atomic_io import directory_lock, make_directory, write_json
from ddpm_lab.utils.distributed import init_process_group, is_rank_zero
from ddpm_lab.utils.errors import UserError, prefix_errors
from ddpm_lab.utils.shell import quiet_libraries

LOG = logging.getLogger(__name__)
METRICS = ("fid", "kid", "prc", "nll", "ode_nll", "reconstruction")
SAMPLE_METRICS = ("fid", "kid", "prc")
"""Metrics of samples, measured together"""


class Measurement(NamedTuple):
    """Metrics that are computed together."""

    name: str
    """Key in metrics.json; FID and its relatives are at the top level"""
    compute: Callable[[], Results]
    rows: Callable[[Results], Rows]


def evaluate(config: DictConfig) -> None:
    """Write `config.metrics` of a run to metrics.json in `config.out`.

    With `config.sweep`, measure sample quality for each of `config.values` of one key.
    """
    quiet_libraries()
    _check(config)
    init_process_group()
    if config.sweep is None and {*(config.metrics or [])} == {"reconstruction"}:
        make_deterministic(config)
    run = RunDir(config.run, config)
    cascade = load_cascade(run)
    is_points = run.pipeline.bin_width is None
    metrics = config.metrics or (["ode_nll"] if is_points else ["fid"])
    extractor = None
    if config.sweep is not None or not {*SAMPLE_METRICS}.isdisjoint(metrics):
        if is_points:
            raise UserError(
                "metrics=[fid] compares images, and this run samples points; try metrics=[ode_nll]"
            )
        with prefix_errors("extractor"):
            extractor = build(config, "extractor")()
        extractor.check(run.pipeline.shape)
    if is_rank_zero():
        make_directory(config.out)  # an error comes before any work
    with directory_lock(Path(config.out), "evaluating") if is_rank_zero() else nullcontext():
        if config.sweep is not None:
            evaluate_sweep(config, run, cascade, extractor)
        else:
            _measure(config, run, cascade, extractor, metrics)


def _measure(
    config: DictConfig,
    run: RunDir,
    cascade: Cascade,
    extractor: Extractor | None,
    metrics: Collection[str],
) -> None:
    """Compute `metrics` one after another, each saved at once; a repeated command resumes."""
    partial_results = open_partial_results(config, cascade.stages, run.data)
    measurements = _measurements(config, run, cascade, extractor, metrics)
    results: Results = {"run": str(config.run), "run_id": run.record.id}
    rows = []
    try:
        for name, compute, format_rows in measurements:
            if name not in partial_results.parts:
                partial_results.keep(name, compute())
            metric = partial_results.parts[name]
            results |= metric if name.startswith("fid") else {name: metric}
            rows += format_rows(metric)
            if is_rank_zero():
                file = make_directory(config.out) / "metrics.json"
                write_json(file, results)
    except BaseException:
        if is_rank_zero() and rows:
            tqdm.write(
                f"{key_value_table(rows)}\n  these metrics are saved in {config.out}; repeat the "
                "command to resume"
            )
        partial_results.close(keep_results=True)
        raise
    if not is_rank_zero():
        return
    out = make_directory(config.out)
    saved = [out / "metrics.json"]
    if "nll" in metrics:
        saved.append(save_bound(results["nll"]["terms"], out / "bound.png"))
    partial_results.close()
    LOG.info("%s\n  saved in %s", key_value_table(rows), ", ".join(map(str, saved)))


def _measurements(
    config: DictConfig,
    run: RunDir,
    cascade: Cascade,
    extractor: Extractor | None,
    metrics: Collection[str],
) -> list[Measurement]:
    pipeline, data = run.pipeline, run.data
    common: dict[str, Any] = {"weights": config.weights}

    def reconstruction() -> Results:
        options = {**config.reconstruction, "batch_size": config.batch_size}
        with prefix_errors("sampler"):
            return evaluate_reconstruction(pipeline, data, **common, **options)

    def nll() -> Results:
        sampler = pipeline.sampler
        same_bounds = (config.nll.clip, None) == (sampler.clip, sampler.dynamic_threshold)
        if isinstance(pipeline.denoiser.variance, Analytic) and not same_bounds:
            raise UserError(
                f"nll.clip={config.nll.clip} bounds x_0 in another way than sampler.clip="
                f"{sampler.clip}, for which variance=analytic was estimated; make them equal, with "
                "sampler.dynamic_threshold=null"
            )
        options: Any = OmegaConf.to_container(config.nll)
        options |= {"seed": config.seed, "batch_size": config.batch_size}
        with prefix_errors("nll"):
            return evaluate_nll(pipeline, data, **common, **options)

    def ode_nll() -> Results:
        return evaluate_ode_nll(pipeline, data, **common, **config.ode_nll)

    extra = {*metrics} & {"kid", "prc"}

    def sample_metrics() -> Results:
        assert extractor is not None
        return next(
            evaluate_samples(
                cascade,
                data,
                extractor,
                **common,
                extra_metrics=extra,
                split=config.split,
                count=config.count,
                seed=config.seed,
                batch_size=config.batch_size,
            )
        )

    measurements = [
        Measurement("reconstruction", reconstruction, reconstruction_mse_rows),
        Measurement("nll", nll, nll_rows),
        Measurement("ode_nll", ode_nll, ode_nll_rows),
    ]
    measurements = [one for one in measurements if one.name in metrics]
    if extractor is not None:
        name = "+".join(sorted({"fid"} | extra))
        measurements.append(Measurement(name, sample_metrics, fid_rows))
    return measurements


def _check(config: DictConfig) -> None:
    """Check what needs no run."""
    metrics = config.metrics
    if metrics is not None and (
        not OmegaConf.is_list(metrics) or not metrics or not {*metrics} <= {*METRICS}
    ):
        raise UserError(
            f"metrics={metrics} must be a list of {', '.join(METRICS)}; try metrics=[nll]"
        )
    if config.sweep is not None and metrics is not None:
        raise UserError(
            f"metrics={metrics} cannot be combined with sweep={config.sweep}, which measures FID, "
            "precision and recall; try metrics=null"
        )
    if config.cascade is not None and not {*SAMPLE_METRICS} >= {*(metrics or [])}:
        raise UserError(
            f"metrics={metrics} is for one model, and cascade={config.cascade} has several; try "
            "metrics=[fid], or run=DIR"
        )
    if config.sweep is None and config["values"] is not None:
        raise UserError(f"values={config['values']} needs sweep=KEY; try sweep=guidance.w")
    for key in ("split", "nll.split", "ode_nll.split", "reconstruction.split"):
        if (split := OmegaConf.select(config, key)) not in ("train", "test"):
            raise UserError(f"{key}={split} is not one of train, test")
    neighbours = config.sweep is not None or not {"kid", "prc"}.isdisjoint(metrics or [])
    minimum = {"count": 4 if neighbours else 2, "batch_size": 1, "seed": 0, "ode_nll.count": 2}
    for key in ("nll.count", "reconstruction.count"):
        if OmegaConf.select(config, key) is not None:
            minimum[key] = 2
    check_minimum(config, minimum)
    clip = config.nll.clip
    if clip is not None and not (type(clip) in (int, float) and clip > 0):
        raise UserError(f"nll.clip={clip} must be above 0, or null")
