"""python evaluate.py run=DIR against=guidance.w"""

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.commands import datasets
from ddpm_lab.commands.build import build
from ddpm_lab.commands.output import grid, output
from ddpm_lab.data.splits import Held
from ddpm_lab.errors import UserError, naming
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.pictures import save_grid, save_lines
from ddpm_lab.evaluation.quality import assess
from ddpm_lab.low_res import LowRes
from ddpm_lab.ranks import everyones, first
from ddpm_lab.systems.cascade import Cascade
from ddpm_lab.systems.diffusion import Diffusion

LOG = logging.getLogger(__name__)
COLUMNS = {"fid": "FID", "fid_within": "FID within class", "inception_score": "IS", "recognised": "recognised",
           "precision": "precision", "recall": "recall"}  # fmt: skip


def sweep(config: DictConfig, stages: Sequence[Diffusion], system: Diffusion, extractor: Extractor) -> None:
    """The quality of samples of `system`, after other `stages` of a cascade, for each of `config.values` of the key
    `config.against`: a table, lines, and a row of samples per value. Each value starts from the same noise.
    """
    ways = _ways(config, stages, system)
    data = datasets.data(config)
    if first():
        output(config.out)  # before any work
    found: list[dict[str, Any]] = []
    drawn: list[Held] = []
    cascade = Cascade([*stages, system])
    ten = cascade.stages[0].ask(10, given=data.test)
    common = {"seed": config.seed, "batch_size": config.batch_size}
    for result in assess(system, system.denoiser, data, extractor, before=stages, ways=ways, thorough={"prc"},
                         weights=config.weights, split=config.split, count=config.count, **common):  # fmt: skip
        found.append(result)
        # Lazily measured, so the system still draws in the way that was judged.
        _, asked = cascade.lead(ten, 10, **common)
        drawn += everyones(list(system.sample(system.denoiser, 10, asked=asked, **common)))
    if not first():
        return
    out = output(config.out)
    values = [OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for value in config["values"]]
    report = {"run": str(config.run), "against": config.against,
              "values": [{"value": value, **result} for value, result in zip(values, found, strict=True)]}  # fmt: skip
    (out / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    named = ["null" if value is None else str(value) for value in values]
    rows = {name: _cells(result) for name, result in zip(named, found, strict=True)}
    rows |= {"held-out": _cells(found[0]["real"]), "noise": _cells(found[0]["noise"])}
    title = f"{config.count} samples per value, {config.weights} weights (features: {extractor.name})"
    picture = _draw(config.against, values, named, found, out / "sweep.png")
    LOG.info("%s\n  saved in %s, %s, %s (a row of samples per value)",
             grid(title, config.against, [*COLUMNS.values()], rows), out / "metrics.json", picture,
             save_grid(torch.cat([split[0].cpu() for split in drawn]), out / "rows.png", columns=10))  # fmt: skip


def _ways(config: DictConfig, stages: Sequence[Diffusion], system: Diffusion) -> list[Callable[[], None]]:
    """What makes the system draw with each value, all of them tried. Raises UserError."""
    key, values = config.against, config["values"]
    keys = [f"{group}.{name}" for group in ("sampler", "guidance") for name, value in config[group].items()
            if not str(name).startswith("_") and not OmegaConf.is_dict(value)]  # fmt: skip
    told = system.denoiser.conditioner
    keys += [f"conditioner.{name}" for name in told.chosen]
    if key not in keys:
        raise UserError(f"against={key} is not among what can be chosen of this run's samples: {', '.join(keys)}")
    if not OmegaConf.is_list(values) or not values:
        said = "null" if values is None else values
        own = OmegaConf.select(config, key)
        raise UserError(f"values={said} must be a list of what {key} is to be; try 'values=[{own},...]'")
    if any(map(OmegaConf.is_dict, values)) or len({*map(str, values)}) < len(values):
        raise UserError(f"values={values} must differ, and be numbers, words or lists")
    ways: list[Callable[[], None]] = []
    group = key.partition(".")[0]
    for value in values:
        settings = config.copy()
        OmegaConf.update(settings, key, value)
        changed = build(settings, group)
        if group == "sampler":
            ways.append(partial(system.draw_with, changed, system.guidance))
        elif group == "guidance":
            ways.append(partial(system.draw_with, system.sampler, changed))
        elif isinstance(told, LowRes):  # no other conditioner has anything to choose
            ways.append(partial(told.choose, **{name: changed.keywords[name] for name in told.chosen}))
    with naming(group):
        for way in ways:
            way()
            Cascade([*stages, system])
    return ways


def _cells(result: dict[str, Any]) -> list[str]:
    """Those of `COLUMNS`."""
    shares = {"recognised": "{:.1%}", "precision": "{:.3f}", "recall": "{:.3f}"}
    return [shares.get(name, "{:.3g}").format(result[name]) if name in result else "-" for name in COLUMNS]


def _draw(key: str, values: list[Any], named: list[str], found: Sequence[dict[str, Any]], file: Any) -> Any:
    """What was found against the values, or their names where they are no numbers."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    xs: list[Any] = values if numbers else named
    panels: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}
    for title, names in {"FID": ("fid", "fid_within"), "shares": ("recognised", "precision", "recall")}.items():
        have = [name for name in names if name in found[0]]
        panels[title] = {COLUMNS[name]: (xs, [result[name] for result in found]) for name in have}
    panels["FID"]["FID of held-out pictures"] = (xs, [result["real"]["fid"] for result in found])
    return save_lines(panels, file, x=key, y={"FID": "FID", "shares": "share"})
