"""python evaluate.py model=exact"""

import json
import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.commands.build import at_least, build
from ddpm_lab.commands.output import grid, output, quiet
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.errors import UserError
from ddpm_lab.evaluation.exact import bounds, gaussian, mixture, samplers_exactly, samplers_measured
from ddpm_lab.evaluation.pictures import save_lines

LOG = logging.getLogger(__name__)


def evaluate_exact(config: DictConfig) -> None:
    """The analytic tier, as tables, in `metrics.json` and as a picture in `config.out`."""
    quiet()
    at_least(config, {"count": 2, "seed": 0})
    process = ForwardProcess(build(config, "schedule"))
    usual = [10, 20, 50, 100] if "data" in config else [10, 20, 50, 100, 1000]
    chosen = [count for count in usual if count <= process.steps] if config.steps is None else config.steps
    steps = [chosen] if isinstance(chosen, int) else list(chosen)
    if not steps or any(type(count) is not int or not 1 <= count <= process.steps for count in steps):
        raise UserError(f"steps={config.steps} must be numbers in 1..{process.steps}, the T of the schedule")
    try:
        if "data" in config:
            law = mixture(process, build(config, "data"), config.count, config.seed)
        else:
            covariance: Any = OmegaConf.to_container(config.covariance)
            law = gaussian(process, list(config.mean), covariance)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    result: dict[str, Any] = {"data": law.name, "steps": steps, "schedule": OmegaConf.to_container(config.schedule)}
    said = []
    if "data" not in config:
        std = (law.second_moment - sum(m * m for m in config.mean) / len(config.mean)) ** 0.5
        stds, distances = samplers_exactly(law, steps)
        result |= {"std": stds, "std_of_data": std, "wasserstein": distances}
        said.append(grid(f"standard deviation of samples, exactly (data: {std:.4f})", "steps", steps, _cells(stds)))
    else:
        distances = samplers_measured(law, steps, config.count, config.seed)
        result |= {"sliced_wasserstein": distances, "count": config.count, "seed": config.seed}
        said.append(
            grid(
                f"sliced Wasserstein distance of {config.count} samples to the data", "steps", steps, _cells(distances)
            )
        )
    panels = {"distance to the data": {name: (steps, row) for name, row in distances.items()}}
    if law.entropy is not None:
        rows = bounds(law, steps)
        result |= {"bits_per_dim": rows, "entropy": law.entropy}
        said.append(grid(f"bound in bits/dim (the data's entropy: {law.entropy:.4f})", "steps", steps, _cells(rows)))
        gaps = {name: (steps, [value - law.entropy for value in row]) for name, row in rows.items()}
        panels["bound over entropy"] = gaps
    out = output(config.out)
    (out / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
    units = {"distance to the data": "Wasserstein distance", "bound over entropy": "bits/dim"}
    picture = save_lines(panels, out / "exact.png", x="steps", y=units, log_x=[*panels], log_y=[*panels])
    LOG.info("%s\n%s\n  saved in %s, %s", law.name, "\n".join(said), out / "metrics.json", picture)


def _cells(rows: dict[str, list[float]]) -> dict[str, list[str]]:
    return {name: [f"{value:.4f}" for value in row] for name, row in rows.items()}
