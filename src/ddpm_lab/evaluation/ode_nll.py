"""Likelihood of points under the probability-flow ODE."""

from typing import Any

from tqdm import tqdm

from ddpm_lab.data.datasets import Points, to_batch
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.analytic_denoisers import MixtureDenoiser
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.ode_likelihood import log_prob
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.systems.base import eval_mode
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.errors import UserError

STEPS = 200


def evaluate_ode_nll(
    system: Diffusion, denoiser: Denoiser, data: DataModule, *, weights: str, split: str, count: int
) -> dict[str, Any]:
    """Return -log p(x_0) of the first `count` points of a split, in nats per point.

    Sampling guidance is not used. Points are conditioned on their labels if the model is
    conditional. For mixture data, "data" is the exact value of the same points.

    Raises UserError for images.
    """
    if data.bin_width is not None:
        raise UserError(
            "metrics=[ode_nll] is of points: images have too many dimensions for its "
            "determinants; try metrics=[nll]"
        )
    points = {"train": data.train, "test": data.test}[split].select(slice(count)).to(system.device)
    assert isinstance(points, Points)
    times = timesteps(denoiser.process.steps, min(STEPS, denoiser.process.steps), "quadratic_full")
    bar = tqdm(total=len(times) - 1, desc="likelihood", unit="step", disable=None, leave=False)
    with eval_mode(denoiser), bar:
        cond = system.condition(denoiser, to_batch(points))
        nll = -log_prob(denoiser, points.x0, times, cond, bar)
    metrics = {"nll": nll.mean().item(), "standard_error": nll.std().item() / len(nll) ** 0.5}
    if data.mixture is not None:
        exact = MixtureDenoiser(denoiser.process.cpu(), denoiser.variance, data.mixture)
        labels = None if points.labels is None or denoiser.classes is None else points.labels.cpu()
        metrics["data"] = -exact.log_prob(points.x0.cpu(), labels).mean().item()
    protocol = {
        "weights": weights,
        "split": split,
        "count": len(nll),
        "steps": len(times) - 1,
        "solver": "Heun",
        "spacing": "quadratic_full",
        "labels": "the points'" if denoiser.classes else "none",
    }
    return {**metrics, "protocol": protocol}
