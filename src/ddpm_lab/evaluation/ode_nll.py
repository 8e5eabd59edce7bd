"""The likelihood of points, and the entropy of their law where it is known."""

from typing import Any

from tqdm import tqdm

from ddpm_lab.data.datasets import Points, to_batch
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.analytic_denoisers import MixtureDenoiser
from ddpm_lab.diffusion.ode_likelihood import log_prob
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.sampling.pipeline import SamplingPipeline, eval_mode
from ddpm_lab.utils.errors import UserError

STEPS = 200


def evaluate_ode_nll(
    pipeline: SamplingPipeline, data: DataModule, *, weights: str, split: str, count: int
) -> dict[str, Any]:
    """-log p(x_0), in nats per point, under the probability-flow ODE without guidance, of the first `count` points of a
    split, given their labels where the model hears any; beside it, where the law of the data is known, what that says
    of the same points.
    """
    if data.bin_width is not None:
        raise UserError(
            "metrics=[ode_nll] is of points; images have far too many dimensions for its determinants; "
            "try metrics=[nll]"
        )
    points = (
        {"train": data.train, "test": data.test}[split].select(slice(count)).to(pipeline.device)
    )
    assert isinstance(points, Points)
    times = timesteps(pipeline.process.steps, min(STEPS, pipeline.process.steps), "quadratic_full")
    with (
        eval_mode(pipeline.denoiser),
        tqdm(
            total=len(times) - 1, desc="likelihood", unit="step", disable=None, leave=False
        ) as bar,
    ):
        nll = -log_prob(
            pipeline.denoiser, points.x0, times, pipeline.condition(to_batch(points)), bar
        )
    found = {"nll": nll.mean().item(), "standard_error": nll.std().item() / len(nll) ** 0.5}
    if data.mixture is not None:
        exact = MixtureDenoiser(pipeline.process.cpu(), pipeline.denoiser.variance, data.mixture)
        told = (
            None
            if points.labels is None or pipeline.denoiser.classes is None
            else points.labels.cpu()
        )
        found["data"] = -exact.log_prob(points.x0.cpu(), told).mean().item()
    protocol = {
        "weights": weights,
        "split": split,
        "count": len(nll),
        "steps": len(times) - 1,
        "solver": "Heun",
        "spacing": "quadratic_full",
        "labels": "the points'" if pipeline.denoiser.classes else "none",
    }
    return {**found, "protocol": protocol}
