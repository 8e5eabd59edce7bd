"""python evaluate.py model=exact"""

import json
import logging
import re
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from ddpm_lab.config.instantiate import build, check_booleans, check_minimum
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.analytic_denoisers import MixtureClassifier
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.diffusion.variances import Variance
from ddpm_lab.evaluation.analytic_case import evaluate_case
from ddpm_lab.evaluation.analytic_tables import (
    AnalyticData,
    exact_sampler_tables,
    gaussian_data,
    mixture_data,
    sampled_sampler_table,
    vlb_table,
)
from ddpm_lab.reports.figures import save_lines
from ddpm_lab.reports.terminal import analytic_case_rows, format_grid, key_value_table
from ddpm_lab.utils.atomic_io import make_directory
from ddpm_lab.utils.errors import UserError, choice_name, prefix_errors
from ddpm_lab.utils.shell import quiet_libraries

LOG = logging.getLogger(__name__)
OF_A_CASE = ("variance", "guidance", "nll", "conditional")


def evaluate_exact(config: DictConfig) -> None:
    """The analytic tier, of the sampler that was chosen or as tables of many, in `metrics.json` in `config.out`."""
    quiet_libraries()
    check_minimum(config, {"count": 2, "seed": 0})
    check_booleans(config, "conditional")
    process = ForwardProcess(build(config, "schedule"))
    data = build(config, "data") if "data" in config else None
    (_case if "sampler" in config else _tables)(config, process, data)


def _law(
    config: DictConfig, process: ForwardProcess, data: DataModule | None, **options: Any
) -> AnalyticData:
    try:
        if data is not None:
            return mixture_data(process, data, config.count, config.seed, **options)
        covariance: Any = OmegaConf.to_container(config.covariance)
        return gaussian_data(process, list(config.mean), covariance)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def _case(config: DictConfig, process: ForwardProcess, data: DataModule | None) -> None:
    """One sampler, with the keys by which evaluate.py measures a run."""
    if config.steps is not None:
        raise UserError(
            f"steps={config.steps} are of the tables of many samplers; try sampler.steps, or sampler=null"
        )
    sampler, variance = build(config, "sampler"), build(config, "variance")
    if data is None or data.bin_width is None:  # only pixels have bounds
        sampler = replace(sampler, clip=None, dynamic_threshold=None)
    with prefix_errors("sampler"):
        visited = sampler.timesteps(process.steps)
        process.warn_nonzero_terminal_snr("sampler.spacing begins", visited[0])
    nll: Any = OmegaConf.to_container(config.nll)
    with prefix_errors("nll"):
        times = timesteps(process.steps, **nll)
    needed = {*visited, *(times if data is not None and data.mixture is not None else ())}
    law = _law(config, process, data, times=needed, conditional=config.conditional)
    guidance = _guidance(config, process, law)
    learned = isinstance(variance, Variance) and variance.outputs > 1
    name = type(variance).__name__ if isinstance(variance, Variance) else "Analytic"

    def checked(denoiser: Any) -> Any:
        with prefix_errors("guidance"):
            guided = guidance(denoiser)
            if getattr(guided, "reversing", False) and not sampler.uses_reverse:
                raise ValueError(
                    f"form=mean moves the means of steps that are drawn with the variance, which sampler="
                    f"{choice_name(sampler)} does not; try sampler=ddpm or guidance.form=score"
                )
        return guided

    with torch.inference_mode():
        found = evaluate_case(
            law,
            sampler,
            variance if isinstance(variance, Variance) else None,
            checked,
            times=times,
            count=config.count,
            seed=config.seed,
        )
    of_law = ("mean", "covariance", "schedule") if data is None else ("data", "schedule")
    options = {key: getattr(value, "origin", value) for key, value in guidance.keywords.items()}
    found["protocol"] = {
        "law": law.name,
        **{key: OmegaConf.to_container(config[key], resolve=True) for key in of_law},
        "T": process.steps,
        "sampler": {"name": type(sampler).__name__, **asdict(sampler)},
        "steps": len(visited) - 1,
        "variance": f"{name}, at its optimum" if learned else name,
        "guidance": {"name": guidance.func.__name__, **options},
        "nll": nll,
        **(
            {}
            if data is None
            else {"conditional": config.conditional, "count": config.count, "seed": config.seed}
        ),
    }
    out = make_directory(config.out)
    (out / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")
    LOG.info(
        "%s\n%s\n  saved in %s",
        law.name,
        key_value_table(analytic_case_rows(found)),
        out / "metrics.json",
    )


def _guidance(config: DictConfig, process: ForwardProcess, law: AnalyticData) -> "partial[Any]":
    """That of the configuration, a classifier replaced by the exact one."""
    if "classifier" not in config.guidance:
        own: partial[Any] = build(config, "guidance")
        return own
    if law.mixture is None or law.mixture.labels is None:
        raise UserError(
            "guidance=classifier needs labels, and this data has none; try data=gaussian_mixture"
        )
    settings = config.copy()
    with open_dict(settings):
        del settings.guidance["classifier"]
    chosen = build(settings, "guidance")
    return partial(
        chosen.func, **chosen.keywords, classifier=MixtureClassifier(process, law.mixture)
    )


def _tables(config: DictConfig, process: ForwardProcess, data: DataModule | None) -> None:
    """Many samplers and variances against numbers of steps, and a image."""
    overrides = [
        word for word in HydraConfig.get().overrides.task if re.split("[.=]", word)[0] in OF_A_CASE
    ]
    if overrides:
        raise UserError(
            f"{overrides[0]} is measured of one sampler, and none was chosen; try sampler=ddim"
        )
    usual = [10, 20, 50, 100] if data is not None else [10, 20, 50, 100, 1000]
    chosen = (
        [count for count in usual if count <= process.steps]
        if config.steps is None
        else config.steps
    )
    steps = [chosen] if isinstance(chosen, int) else list(chosen)
    if not steps or any(
        type(count) is not int or not 1 <= count <= process.steps for count in steps
    ):
        raise UserError(
            f"steps={config.steps} must be numbers in 1..{process.steps}, the T of the schedule"
        )
    law = _law(config, process, data)
    result: dict[str, Any] = {
        "data": law.name,
        "steps": steps,
        "schedule": OmegaConf.to_container(config.schedule),
    }
    said = []
    if data is None:
        std = (law.second_moment - sum(m * m for m in config.mean) / len(config.mean)) ** 0.5
        stds, distances = exact_sampler_tables(law, steps)
        result |= {"std": stds, "std_of_data": std, "wasserstein": distances}
        said.append(
            format_grid(
                f"standard deviation of samples, exactly (data: {std:.4f})",
                "steps",
                steps,
                _cells(stds),
            )
        )
    else:
        distances = sampled_sampler_table(law, steps, config.count, config.seed)
        result |= {"sliced_wasserstein": distances, "count": config.count, "seed": config.seed}
        said.append(
            format_grid(
                f"sliced Wasserstein distance of {config.count} samples to the data",
                "steps",
                steps,
                _cells(distances),
            )
        )
    panels = {"distance to the data": {name: (steps, row) for name, row in distances.items()}}
    if law.entropy is not None:
        rows = vlb_table(law, steps)
        result |= {"bits_per_dim": rows, "entropy": law.entropy}
        said.append(
            format_grid(
                f"bound in bits/dim (the data's entropy: {law.entropy:.4f})",
                "steps",
                steps,
                _cells(rows),
            )
        )
        gaps = {name: (steps, [value - law.entropy for value in row]) for name, row in rows.items()}
        panels["bound over entropy"] = gaps
    out = make_directory(config.out)
    (out / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
    units = {"distance to the data": "Wasserstein distance", "bound over entropy": "bits/dim"}
    image = save_lines(
        panels, out / "exact.png", x="steps", y=units, log_x=[*panels], log_y=[*panels]
    )
    LOG.info("%s\n%s\n  saved in %s, %s", law.name, "\n".join(said), out / "metrics.json", image)


def _cells(rows: dict[str, list[float]]) -> dict[str, list[str]]:
    return {name: [f"{value:.4f}" for value in row] for name, row in rows.items()}
