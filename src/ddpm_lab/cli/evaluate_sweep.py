"""python evaluate.py run=DIR sweep=guidance.w"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ddpm_lab.config.instantiate import build
from ddpm_lab.data.datasets import InMemorySplit
from ddpm_lab.evaluation.sample_quality import SampleQuality
from ddpm_lab.reports.figures import save_panels
from ddpm_lab.reports.grids import save_grid
from ddpm_lab.reports.table import Line, Panel
from ddpm_lab.reports.terminal import format_grid
from ddpm_lab.runs.partial_results import open_partial_results
from ddpm_lab.runs.run_dir import RunDir
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.utils.atomic_io import make_directory, write_json
from ddpm_lab.utils.distributed import all_gather, is_rank_zero
from ddpm_lab.utils.errors import UserError, prefix_errors

LOG = logging.getLogger(__name__)
Results = Mapping[str, dict[str, Any]]
"""Metrics by value of the swept key"""


def evaluate_sweep(
    config: DictConfig, run: RunDir, cascade: Cascade, quality: SampleQuality
) -> None:
    """Measure `quality` for each of `config.values` of the key `config.sweep`.

    Saves a table, a plot and a row of samples per value. Every value starts from the same noise. A
    repeated command resumes with the next value.
    """
    values = {
        str(value) if value is not None else "null": value for value in _values(config, cascade)
    }
    configurations = _configurations(config, cascade)
    data = run.data
    results = open_partial_results(config, cascade.stages, data)
    conditions = cascade.stages[0].make_conditions(10, images=data.test)
    options = {"seed": config.seed, "batch_size": config.batch_size}
    samples: dict[str, InMemorySplit] = {}

    def sample_row(name: str) -> None:
        _, last = cascade.sample_earlier_stages(conditions, 10, **options)
        batches = list(cascade.stages[-1].sample(10, conditions=last, **options))
        samples[name] = all_gather(batches)[0]

    for name, configure in configurations.items():
        if name in results.parts:
            configure()
            sample_row(name)
    missing = [name for name in values if name not in results.parts]
    names = [*values]
    metrics = quality.compute_each(
        cascade,
        data,
        config.weights,
        {
            f"{config.sweep}={name} ({names.index(name) + 1} of {len(names)})": configurations[name]
            for name in missing
        },
    )
    try:
        for name in missing:
            results.keep(name, next(metrics))
            sample_row(name)  # metrics are lazy: the cascade still has this configuration
            if name != missing[-1]:
                _save(config, quality, values, results.parts, samples)
    except BaseException:
        if is_rank_zero() and (done := [name for name in values if name in results.parts]):
            tqdm.write(_table(config, quality, done, results.parts))
            tqdm.write(
                f"  {len(done)} of {len(values)} values are saved in {config.out}; repeat the "
                "command to resume with the next"
            )
        results.close(keep_results=True)
        raise
    if not is_rank_zero():
        return
    files = _save(config, quality, values, results.parts, samples)
    results.close()
    table = _table(config, quality, names, results.parts)
    LOG.info("%s\n  saved in %s (a row of samples per value)", table, ", ".join(map(str, files)))


def _save(
    config: DictConfig,
    quality: SampleQuality,
    values: Mapping[str, Any],
    results: Results,
    samples: Mapping[str, InMemorySplit],
) -> list[Path]:
    """Write metrics.json, the plot and a row of samples per value; list "unfinished" values."""
    if not is_rank_zero():
        return []
    out = make_directory(config.out)
    done = [name for name in values if name in results and name in samples]
    report = {
        "run": str(config.run),
        "sweep": config.sweep,
        "values": [{"value": values[name], **results[name]} for name in done],
    }
    if unfinished := [value for name, value in values.items() if name not in done]:
        report["unfinished"] = unfinished
    write_json(out / "metrics.json", report)
    values_so_far = {name: values[name] for name in done}
    plot = _plot(quality, config.sweep, values_so_far, results, out / "sweep.png")
    rows = torch.cat([samples[name][0].cpu() for name in done])
    caption = f"Rows: {config.sweep} = {', '.join(done)}. All rows have the same noise and labels."
    return [out / "metrics.json", plot, save_grid(rows, out / "rows.png", 10, caption)]


def _table(
    config: DictConfig, quality: SampleQuality, names: Sequence[str], results: Results
) -> str:
    numbers = quality.all_numbers
    baselines = results[names[0]]
    all_results = {name: results[name] for name in names}
    all_results |= {"held-out": baselines["real"], "noise": baselines["noise"]}
    rows = {
        name: [
            number.format.format(metrics[number.key]) if number.key in metrics else "-"
            for number in numbers
        ]
        for name, metrics in all_results.items()
    }
    weights, features = f"{config.weights} weights", f"(features: {quality.loaded_extractor.name})"
    title = f"{config.count} samples per value, {weights} {features}"
    return format_grid(title, config.sweep, [number.label for number in numbers], rows)


def _values(config: DictConfig, cascade: Cascade) -> list[Any]:
    """Return the values of the swept key. Raises UserError for an invalid key or values."""
    key, values = config.sweep, config["values"]
    keys = [
        f"{group}.{name}"
        for group in ("sampler", "guidance")
        for name, value in config[group].items()
        if not str(name).startswith("_") and not OmegaConf.is_dict(value)
    ]
    options = cascade.stages[-1].denoiser.conditioner.sampling_options
    keys += [f"conditioner.{name}" for name in options]
    if key not in keys:
        raise UserError(
            f"sweep={key} is not a sampling option of this run; options: {', '.join(keys)}"
        )
    if not OmegaConf.is_list(values) or not values:
        text = "null" if values is None else values
        raise UserError(
            f"values={text} must be a list of values of {key}; "
            f"try 'values=[{OmegaConf.select(config, key)},...]'"
        )
    if any(map(OmegaConf.is_dict, values)) or len({*map(str, values)}) < len(values):
        raise UserError(f"values={values} must be distinct numbers, words or lists")
    container: list[Any] = OmegaConf.to_container(values)  # type: ignore[assignment]
    return container


def _configurations(config: DictConfig, cascade: Cascade) -> dict[str, Callable[[], None]]:
    """Return functions that set each value in `cascade`, after trying each. Raises UserError."""
    group = config.sweep.partition(".")[0]
    configurations: dict[str, Callable[[], None]] = {}
    for value in config["values"]:
        settings = config.copy()
        OmegaConf.update(settings, config.sweep, value)
        part = build(settings, group)
        configure = partial(_configure, cascade.stages[-1], group, part)
        configurations["null" if value is None else str(value)] = configure
    with prefix_errors(group):
        for set_value in configurations.values():
            set_value()
            Cascade(cascade.stages)
    return configurations


def _configure(pipeline: SamplingPipeline, group: str, part: Any) -> None:
    """Set the sampler, the guidance or the sampling options of the conditioner to `part`."""
    if group == "sampler":
        pipeline.set_sampler(part, pipeline.guidance)
    elif group == "guidance":
        pipeline.set_sampler(pipeline.sampler, part)
    else:
        conditioner = pipeline.denoiser.conditioner
        options = {name: part.keywords[name] for name in conditioner.sampling_options}
        conditioner.set_sampling_options(**options)


def _plot(
    quality: SampleQuality, key: str, values: Mapping[str, Any], results: Results, file: Path
) -> Path:
    """Plot FID and shares against the values, or against their names if they are not numbers."""
    numbers = all(type(value) in (int, float) for value in values.values())
    x: Sequence[Any] = [*values.values()] if numbers else [*values]
    metrics = [results[name] for name in values]
    labels = {number.key: number.label for number in quality.all_numbers}
    names = (("fid", "intra_fid"), ("class_accuracy", "precision", "recall"))
    fid, shares = (
        {
            labels[name]: Line(x, [one[name] for one in metrics])
            for name in group
            if name in metrics[0]
        }
        for group in names
    )
    fid["FID of held-out images"] = Line(x, [one["real"]["fid"] for one in metrics])
    return save_panels([Panel("FID", key, "FID", fid), Panel("Shares", key, "share", shares)], file)
