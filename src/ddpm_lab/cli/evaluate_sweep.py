"""python evaluate.py run=DIR sweep=guidance.w"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ddpm_lab.conditioners.low_res import LowRes
from ddpm_lab.config.instantiate import build
from ddpm_lab.data.datasets import InMemorySplit
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.sample_quality import evaluate_samples
from ddpm_lab.reports.figures import save_grid, save_lines
from ddpm_lab.reports.terminal import format_grid
from ddpm_lab.runs import data_check
from ddpm_lab.runs.partial_results import open_partial_results
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.atomic_io import make_directory, write_text
from ddpm_lab.utils.distributed import all_gather, is_rank_zero
from ddpm_lab.utils.errors import UserError, prefix_errors

LOG = logging.getLogger(__name__)
COLUMNS = {
    "fid": "FID",
    "intra_fid": "intra FID",
    "inception_score": "IS",
    "class_accuracy": "class accuracy",
    "precision": "precision",
    "recall": "recall",
}


def evaluate_sweep(
    config: DictConfig, stages: Sequence[Diffusion], system: Diffusion, extractor: Extractor
) -> None:
    """The quality of samples of `system`, after other `stages` of a cascade, for each of `config.values` of the key
    `config.sweep`: a table, lines, and a row of samples per value. Each value starts from the same noise. What
    is finished is kept, and the same command goes on with the next value.
    """
    configurations = _ways(config, stages, system)
    data = data_check.load_data(config)
    values = [
        OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for value in config["values"]
    ]
    named = ["null" if value is None else str(value) for value in values]
    finished = open_partial_results(config, [*stages, system], data)
    drawn: dict[str, InMemorySplit] = {}
    cascade = Cascade([*stages, system])
    ten = cascade.stages[0].make_conditions(10, given=data.test)
    common = {"seed": config.seed, "batch_size": config.batch_size}

    def draw(name: str) -> None:
        _, conditions = cascade.sample_earlier_stages(ten, 10, **common)
        (drawn[name],) = all_gather(
            list(system.sample(system.denoiser, 10, conditions=conditions, **common))
        )[:1]

    for name, way in configurations.items():
        if name in finished.parts:
            way()
            draw(name)
    left = {
        f"{config.sweep}={name} ({named.index(name) + 1} of {len(named)})": way
        for name, way in configurations.items()
        if name not in finished.parts
    }
    results = evaluate_samples(
        system,
        system.denoiser,
        data,
        extractor,
        before=stages,
        configurations=left,
        extra_metrics={"prc"},
        weights=config.weights,
        split=config.split,
        count=config.count,
        **common,
    )
    try:
        for name in [name for name in named if name not in finished.parts]:
            finished.keep(name, next(results))
            draw(name)  # lazily measured, so the system still draws in the way that was judged
            if not {*named} <= {*finished.parts}:
                _report(config, dict(zip(named, values, strict=True)), finished.parts, drawn)
    except BaseException:
        if is_rank_zero() and (done := [name for name in named if name in finished.parts]):
            tqdm.write(_table(config, extractor, done, finished.parts))
            tqdm.write(
                f"  {len(done)} of {len(named)} values are finished, in {config.out}; the same "
                "command goes on with the next"
            )
        finished.end(kept=True)
        raise
    if not is_rank_zero():
        return
    files = _report(config, dict(zip(named, values, strict=True)), finished.parts, drawn)
    finished.end()
    LOG.info(
        "%s\n  saved in %s (a row of samples per value)",
        _table(config, extractor, named, finished.parts),
        ", ".join(map(str, files)),
    )


def _report(
    config: DictConfig,
    values: Mapping[str, Any],
    found: Mapping[str, dict[str, Any]],
    drawn: Mapping[str, InMemorySplit],
) -> list[Path]:
    """Write what was found: the numbers, lines, and a row of samples for each value. Values without results are listed
    as "unfinished".
    """
    if not is_rank_zero():
        return []
    out = make_directory(config.out)
    done = [name for name in values if name in found and name in drawn]
    report = {
        "run": str(config.run),
        "sweep": config.sweep,
        "values": [{"value": values[name], **found[name]} for name in done],
    }
    if missing := [value for name, value in values.items() if name not in done]:
        report["unfinished"] = missing
    write_text(out / "metrics.json", json.dumps(report, indent=2) + "\n")
    image = _draw(
        config.sweep,
        [values[name] for name in done],
        done,
        [found[name] for name in done],
        out / "sweep.png",
    )
    rows = save_grid(
        torch.cat([drawn[name][0].cpu() for name in done]), out / "rows.png", columns=10
    )
    return [out / "metrics.json", image, rows]


def _table(
    config: DictConfig,
    extractor: Extractor,
    named: Sequence[str],
    found: Mapping[str, dict[str, Any]],
) -> str:
    rows = {name: _cells(found[name]) for name in named}
    some = found[named[0]]
    rows |= {"held-out": _cells(some["real"]), "noise": _cells(some["noise"])}
    title = (
        f"{config.count} samples per value, {config.weights} weights (features: {extractor.name})"
    )
    return format_grid(title, config.sweep, [*COLUMNS.values()], rows)


def _ways(
    config: DictConfig, stages: Sequence[Diffusion], system: Diffusion
) -> dict[str, Callable[[], None]]:
    """By value, what makes the system draw with each value, all of them tried. Raises UserError."""
    key, values = config.sweep, config["values"]
    keys = [
        f"{group}.{name}"
        for group in ("sampler", "guidance")
        for name, value in config[group].items()
        if not str(name).startswith("_") and not OmegaConf.is_dict(value)
    ]
    told = system.denoiser.conditioner
    keys += [f"conditioner.{name}" for name in told.sampling_options]
    if key not in keys:
        raise UserError(
            f"sweep={key} is not among what can be chosen of this run's samples: {', '.join(keys)}"
        )
    if not OmegaConf.is_list(values) or not values:
        said = "null" if values is None else values
        own = OmegaConf.select(config, key)
        raise UserError(
            f"values={said} must be a list of what {key} is to be; try 'values=[{own},...]'"
        )
    if any(map(OmegaConf.is_dict, values)) or len({*map(str, values)}) < len(values):
        raise UserError(f"values={values} must differ, and be numbers, words or lists")
    configurations: list[Callable[[], None]] = []
    group = key.partition(".")[0]
    for value in values:
        settings = config.copy()
        OmegaConf.update(settings, key, value)
        changed = build(settings, group)
        if group == "sampler":
            configurations.append(partial(system.set_sampler, changed, system.guidance))
        elif group == "guidance":
            configurations.append(partial(system.set_sampler, system.sampler, changed))
        elif isinstance(told, LowRes):  # no other conditioner has anything to choose
            configurations.append(
                partial(
                    told.set_sampling_options,
                    **{name: changed.keywords[name] for name in told.sampling_options},
                )
            )
    with prefix_errors(group):
        for way in configurations:
            way()
            Cascade([*stages, system])
    return {
        "null" if value is None else str(value): way
        for value, way in zip(values, configurations, strict=True)
    }


def _cells(result: dict[str, Any]) -> list[str]:
    """Those of `COLUMNS`."""
    shares = {"class_accuracy": "{:.1%}", "precision": "{:.3f}", "recall": "{:.3f}"}
    return [
        shares.get(name, "{:.3g}").format(result[name]) if name in result else "-"
        for name in COLUMNS
    ]


def _draw(
    key: str, values: list[Any], named: list[str], found: Sequence[dict[str, Any]], file: Any
) -> Any:
    """What was found against the values, or their names where they are no numbers."""
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
    xs: list[Any] = values if numbers else named
    panels: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}
    for title, names in {
        "FID": ("fid", "intra_fid"),
        "shares": ("class_accuracy", "precision", "recall"),
    }.items():
        have = [name for name in names if name in found[0]]
        panels[title] = {COLUMNS[name]: (xs, [result[name] for result in found]) for name in have}
    panels["FID"]["FID of held-out images"] = (xs, [result["real"]["fid"] for result in found])
    return save_lines(panels, file, x=key, y={"FID": "FID", "shares": "share"})
