"""python evaluate.py model=exact"""

import logging
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from ddpm_lab.config.instantiate import build, check_settings
from ddpm_lab.data.module import Data
from ddpm_lab.diffusion.analytic_denoisers import MixtureClassifier
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import Sampler
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.diffusion.variances import Variance
from ddpm_lab.evaluation.analytic_case import analytic_case_rows, evaluate_case
from ddpm_lab.evaluation.analytic_tables import (
    AnalyticData,
    exact_sampler_tables,
    gaussian_data,
    mixture_data,
    sampled_sampler_table,
    spectral_data,
    vlb_table,
)
from ddpm_lab.reports.figures import save_panels
from ddpm_lab.reports.table import Line, Panel
from ddpm_lab.reports.terminal import format_grid, key_value_table
from ddpm_lab.utils.atomic_io import make_directory, write_json
from ddpm_lab.utils.errors import UserError, choice_name, prefix_errors
from ddpm_lab.utils.ranges import NonNegativeInt
from ddpm_lab.utils.shell import quiet_libraries

LOG = logging.getLogger(__name__)
SETTINGS = {"count": Annotated[int, Ge(2)], "seed": NonNegativeInt, "conditional": bool}
"""Types and ranges of keys"""
CASE_GROUPS = ("variance", "guidance", "nll", "conditional")
"""Keys that apply to one sampler only"""


def evaluate_exact(config: DictConfig) -> None:
    """Measure `config.sampler`, or tables of samplers, on data with a closed-form denoiser."""
    quiet_libraries()
    check_settings(config, SETTINGS)
    process = ForwardProcess(build(config, "schedule"))
    data = build(config, "data") if "data" in config else None
    (_case if "sampler" in config else _tables)(config, process, data)


def _analytic_data(
    config: DictConfig, process: ForwardProcess, data: Data | None, **options: Any
) -> AnalyticData:
    covariance: Any = OmegaConf.to_container(config.covariance)
    plain = (list(config.mean), covariance) == ([0.0], [[0.25]])
    if config.spectrum is not None and (data is not None or not plain):
        key = "data" if data is not None else "mean and covariance"
        raise UserError(f"spectrum={config.spectrum} replaces {key}; give one of them")
    try:
        if data is not None:
            return mixture_data(process, data, config.count, config.seed, **options)
        if config.spectrum is not None:
            return spectral_data(process, config.spectrum, config.dims)
        return gaussian_data(process, list(config.mean), covariance)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def _case(config: DictConfig, process: ForwardProcess, data: Data | None) -> None:
    """Measure one sampler, with the keys that evaluate.py has for a run."""
    if config.steps is not None:
        raise UserError(
            f"steps={config.steps} is for tables of samplers; try sampler.steps=N, or sampler=null"
        )
    sampler, variance = build(config, "sampler"), build(config, "variance")
    if data is None or data.bin_width is None:  # only pixels are bounded
        sampler = replace(sampler, clip=None, dynamic_threshold=None)
    with prefix_errors("sampler"):
        visited = sampler.timesteps(process)
        process.warn_nonzero_terminal_snr("sampler.spacing begins", visited[0])
    nll: Any = OmegaConf.to_container(config.nll)
    with prefix_errors("nll"):
        times = timesteps(process.steps, **nll)
    needed = {
        *(int(t) for t in visited if t == int(t)),
        *(times if data is not None and data.mixture is not None else ()),
    }
    analytic = _analytic_data(config, process, data, times=needed, conditional=config.conditional)
    guidance = _guidance(config, process, analytic)
    fixed = isinstance(variance, Variance)
    guide = _checked_guidance(guidance, sampler)
    options = {"times": times, "count": config.count, "seed": config.seed}
    with torch.inference_mode():
        metrics = evaluate_case(analytic, sampler, variance if fixed else None, guide, **options)
    name = type(variance).__name__ if fixed else "Analytic"
    learned = fixed and variance.outputs > 1
    data_keys = ("data",) if data is not None else _gaussian_keys(config)
    keywords = {key: getattr(value, "origin", value) for key, value in guidance.keywords.items()}
    metrics["protocol"] = {
        "law": analytic.name,
        **{key: _plain(config[key]) for key in (*data_keys, "schedule")},
        "T": process.steps,
        "sampler": {"name": type(sampler).__name__, **asdict(sampler)},
        "steps": len(visited) - 1,
        "variance": f"{name}, at its optimum" if learned else name,
        "guidance": {"name": guidance.func.__name__, **keywords},
        "nll": nll,
    }
    if data is not None:
        metrics["protocol"] |= {key: config[key] for key in ("conditional", "count", "seed")}
    file = make_directory(config.out) / "metrics.json"
    write_json(file, metrics)
    rows = key_value_table(analytic_case_rows(metrics))
    LOG.info("%s\n%s\n  saved in %s", analytic.name, rows, file)


def _gaussian_keys(config: DictConfig) -> tuple[str, ...]:
    return ("mean", "covariance") if config.spectrum is None else ("spectrum", "dims")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _checked_guidance(guidance: "partial[Any]", sampler: Sampler) -> Callable[[Any], Any]:
    """Return `guidance` with errors named by key, for denoisers that fit `sampler`."""

    def guide(denoiser: Any) -> Any:
        with prefix_errors("guidance"):
            guided = guidance(denoiser)
            message = getattr(guided, "requires_reverse", "")
            if message and not sampler.uses_reverse:
                raise ValueError(message.format(sampler=f"sampler={choice_name(sampler)}"))
        return guided

    return guide


def _guidance(
    config: DictConfig, process: ForwardProcess, analytic: AnalyticData
) -> "partial[Any]":
    """Return the guidance of the configuration, with the exact classifier if it takes one."""
    if "classifier" not in config.guidance:
        guidance: partial[Any] = build(config, "guidance")
        return guidance
    mixture = analytic.mixture
    if mixture is None or mixture.labels is None:
        raise UserError(
            "guidance=classifier needs labels, which this data does not have; "
            "try data=gaussian_mixture"
        )
    settings = config.copy()
    with open_dict(settings):
        del settings.guidance["classifier"]
    guidance = build(settings, "guidance")
    classifier = MixtureClassifier(process, mixture)
    return partial(guidance.func, **guidance.keywords, classifier=classifier)


def _tables(config: DictConfig, process: ForwardProcess, data: Data | None) -> None:
    """Measure samplers and variances against the number of steps, as tables and a plot."""
    overrides = HydraConfig.get().overrides.task
    if unused := [text for text in overrides if re.split("[.=]", text)[0] in CASE_GROUPS]:
        raise UserError(f"{unused[0]} needs one sampler; try sampler=ddim")
    steps = _steps(config, process, data)
    analytic = _analytic_data(config, process, data)
    metrics: dict[str, Any] = {
        "data": analytic.name,
        "steps": steps,
        "schedule": OmegaConf.to_container(config.schedule),
    }
    tables = []

    def add_table(title: str, rows: dict[str, list[float]]) -> None:
        text = {name: [f"{value:.4f}" for value in row] for name, row in rows.items()}
        tables.append(format_grid(title, "steps", steps, text))

    if data is None:
        std = (analytic.second_moment - sum(m * m for m in config.mean) / len(config.mean)) ** 0.5
        numbers = exact_sampler_tables(analytic, steps)
        metrics |= {**numbers, "std_of_data": std}
        if config.spectrum is None:
            add_table(f"standard deviation of samples, exactly (data: {std:.4f})", numbers["std"])
            distances = numbers["wasserstein"]
        else:
            distances = numbers["frechet"]
            add_table("whitened Fréchet distance of samples, exactly", distances)
    else:
        distances = sampled_sampler_table(analytic, steps, config.count, config.seed)
        metrics |= {"sliced_wasserstein": distances, "count": config.count, "seed": config.seed}
        title = f"sliced Wasserstein distance of {config.count} samples to the data"
        add_table(title, distances)
    lines = {"distance to the data": distances}
    if (entropy := analytic.entropy) is not None:
        bounds = vlb_table(analytic, steps)
        metrics |= {"bits_per_dim": bounds, "entropy": entropy}
        add_table(f"bound in bits/dim (entropy of the data: {entropy:.4f})", bounds)
        gaps = {name: [value - entropy for value in row] for name, row in bounds.items()}
        lines["bound over entropy"] = gaps
    out = make_directory(config.out)
    write_json(out / "metrics.json", metrics)
    units = {"distance to the data": "Wasserstein distance", "bound over entropy": "bits/dim"}
    panels = []
    for title, rows in lines.items():
        curves = {name: Line(steps, row) for name, row in rows.items()}
        panels.append(Panel(title, "steps", units[title], curves, log_x=True, log_y=True))
    plot = save_panels(panels, out / "exact.png")
    text = "\n".join(tables)
    LOG.info("%s\n%s\n  saved in %s, %s", analytic.name, text, out / "metrics.json", plot)


def _steps(config: DictConfig, process: ForwardProcess, data: Data | None) -> list[int]:
    if config.steps is None:
        defaults = [10, 20, 50, 100] + ([1000] if data is None else [])
        return [count for count in defaults if count <= process.steps]
    steps = [config.steps] if isinstance(config.steps, int) else list(config.steps)
    if not steps or any(type(n) is not int or not 1 <= n <= process.steps for n in steps):
        raise UserError(
            f"steps={config.steps} must be a list of numbers in 1..{process.steps}, the T of the "
            "schedule"
        )
    return steps
