"""python evaluate.py run=DIR"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ddpm_lab.cli.evaluate_sweep import evaluate_sweep
from ddpm_lab.config.instantiate import build, check_settings
from ddpm_lab.config.messages import suggest
from ddpm_lab.evaluation.metrics import FeatureMetric, ImageMetric, Metric, Results
from ddpm_lab.evaluation.sample_quality import SampleQuality
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


def evaluate(config: DictConfig) -> None:
    """Write `config.metrics` of a run to metrics.json in `config.out`.

    With `config.sweep`, measure sample quality for each of `config.values` of one key.
    """
    quiet_libraries()
    available = available_metrics(config)
    init_process_group()
    if config.sweep is None and {*(config.metrics or [])} == {"reconstruction"}:
        make_deterministic(config, HydraConfig.get().overrides.task)
    run = RunDir(config.run, config)
    cascade = load_cascade(run)
    if any(stage.references for stage in cascade.stages):
        raise UserError(
            "guidance: evaluate.py measures samples of the model, and this guidance restores given "
            "images; try guidance=none, or sample.py"
        )
    names = ["fid", "prc"] if config.sweep is not None else config.metrics
    metrics = select_metrics(available, names, cascade)
    if is_rank_zero():
        make_directory(config.out)  # errors precede any work
    with directory_lock(Path(config.out), "evaluating") if is_rank_zero() else nullcontext():
        if config.sweep is None:
            _measure(config, run, cascade, metrics)
        else:
            (quality,) = metrics.values()
            evaluate_sweep(config, run, cascade, quality)


def select_metrics(
    available: Mapping[str, Any], names: Sequence[str] | None, cascade: Cascade
) -> dict[str, Any]:
    """Return metrics for `cascade` by name (None: ode_nll for points, fid for images).

    Those of samples share one `SampleQuality`, the last. Raises UserError.
    """
    names = names or (["ode_nll"] if cascade.stages[-1].bin_width is None else ["fid"])
    features, images = (
        {name: available[name] for name in names if isinstance(available[name], kind)}
        for kind in (FeatureMetric, ImageMetric)
    )
    shared = {"fid", *features, *images}
    metrics = {name: available[name] for name in names if name not in shared}
    if len(metrics) < len({*names}):
        metrics["+".join(sorted(shared))] = replace(
            available["fid"],
            feature_metrics=(*features.values(),),
            image_metrics=(*images.values(),),
        )
    for name, metric in metrics.items():
        with prefix_errors(name):
            metric.check(cascade)
    return metrics


def as_json(name: str, metric: Metric, result: Results) -> Results:
    """Return the results of a metric as in metrics.json, in which those of samples come first."""
    return result if isinstance(metric, SampleQuality) else {name: result}


def _measure(
    config: DictConfig, run: RunDir, cascade: Cascade, metrics: Mapping[str, Metric]
) -> None:
    """Compute `metrics` in turn and save each at once, so that a repeated command resumes."""
    partial_results = open_partial_results(config, cascade.stages, run.data)
    out = Path(config.out)
    results: Results = {"run": str(config.run), "run_id": run.record.id}
    rows, files = [], [out / "metrics.json"]
    try:
        for name, metric in metrics.items():
            if name not in partial_results.parts:
                partial_results.keep(name, metric.compute(cascade, run.data, config.weights))
            result = partial_results.parts[name]
            results |= as_json(name, metric, result)
            rows += metric.rows(result)
            if is_rank_zero():
                write_json(make_directory(config.out) / "metrics.json", results)
    except BaseException:
        if is_rank_zero() and rows:
            tqdm.write(
                f"{key_value_table(rows)}\n  these metrics are saved in {config.out}; repeat the "
                "command to resume"
            )
        partial_results.close(keep_results=True)
        raise
    if is_rank_zero():
        for name, metric in metrics.items():
            files += metric.save_figures(partial_results.parts[name], out)
        partial_results.close()
        LOG.info("%s\n  saved in %s", key_value_table(rows), ", ".join(map(str, files)))
        if config.wandb:
            _log_to_wandb(config, run, results)


def _log_to_wandb(config: DictConfig, run: RunDir, results: Results) -> None:
    """Add the metrics to the summary of the W&B run of the training, or of a new W&B run."""
    from ddpm_lab.callbacks import loggers

    settings = run.config.logger.get("wandb") or {}
    wandb_run = loggers.start_wandb(
        dir=config.out,
        project=settings.get("project", "ddpm-lab"),
        id=loggers.read_wandb_id(config.run),
        resume="allow",
    )
    wandb_run.summary.update({f"evaluate/{key}": value for key, value in results.items()})
    loggers.finish()


def available_metrics(config: DictConfig) -> dict[str, Any]:
    """Return all metrics by name. Raises UserError for settings that fit no run."""
    metrics, names = config.metrics, config.metric.names
    is_list = OmegaConf.is_list(metrics)
    if metrics is not None and (not is_list or not {*metrics} or not {*metrics} <= {*names}):
        unknown = [str(name) for name in metrics if name not in names] if is_list else []
        hint = next(filter(None, (suggest(name, names) for name in unknown)), "; try metrics=[nll]")
        raise UserError(f"metrics={metrics} must be a list of {', '.join(names)}{hint}")
    if config.sweep is not None and metrics is not None:
        raise UserError(
            f"metrics={metrics} cannot be combined with sweep={config.sweep}, which measures FID, "
            "precision and recall; try metrics=null"
        )
    check_settings(config, {"wandb": bool})
    if config.wandb and config.sweep is not None:
        raise UserError(
            f"wandb=true is for one evaluation, not for sweep={config.sweep}; try wandb=false"
        )
    if config.sweep is None and config["values"] is not None:
        raise UserError(f"values={config['values']} needs sweep=KEY; try sweep=guidance.w")
    return {name: build(config, name) for name in names}
