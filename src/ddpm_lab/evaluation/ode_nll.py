"""The exact likelihood of points under the probability-flow ODE (Song et al., 2021)."""

from tqdm import tqdm

from ddpm_lab.data.datasets import Points, to_batch
from ddpm_lab.data.module import Data
from ddpm_lab.diffusion.analytic_denoisers import MixtureDenoiser
from ddpm_lab.diffusion.ode_likelihood import log_prob
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.evaluation.metrics import Results, Rows
from ddpm_lab.sampling.pipeline import SamplingPipeline, eval_mode
from ddpm_lab.utils.errors import UserError

STEPS = 200


def evaluate_ode_nll(
    pipeline: SamplingPipeline, data: Data, *, weights: str, split: str, count: int
) -> Results:
    """Compute -log p(x_0) in nats of the first `count` points of a split, without guidance.

    Labels are given to a model that takes them. "data" is -log of the
    density of the data at the same points, for data with a density. Raises UserError for images.
    """
    if data.bin_width is not None:
        raise UserError(
            "metrics=[ode_nll] is for points; images have too many dimensions for determinants; "
            "try metrics=[nll]"
        )
    denoiser, process = pipeline.denoiser, pipeline.process
    points = {"train": data.train, "test": data.test}[split].select(slice(count))
    points = points.to(pipeline.device)
    assert isinstance(points, Points)
    times = timesteps(process.steps, min(STEPS, process.steps), "quadratic_full")
    cond = pipeline.condition(to_batch(points))
    bar = tqdm(total=len(times) - 1, desc="likelihood", unit="step", disable=None, leave=False)
    with eval_mode(denoiser), bar:
        nll = -log_prob(denoiser, points.x0, times, cond, bar)
    results = {"nll": nll.mean().item(), "standard_error": nll.std().item() / len(nll) ** 0.5}
    if data.mixture is not None:
        exact = MixtureDenoiser(process.cpu(), denoiser.variance, data.mixture)
        labels = None if points.labels is None else points.labels.cpu()
        labels = None if denoiser.classes is None else labels
        results["data"] = -exact.log_prob(points.x0.cpu(), labels).mean().item()
    protocol = {
        "weights": weights,
        "split": split,
        "count": len(nll),
        "steps": len(times) - 1,
        "solver": "Heun",
        "spacing": "quadratic_full",
        "labels": "the points'" if denoiser.classes else "none",
    }
    return {**results, "protocol": protocol}


def ode_nll_rows(results: Results) -> Rows:
    """Format the results of `evaluate_ode_nll`."""
    protocol = results["protocol"]
    remark = f"+- {results['standard_error']:.3f}"
    if "data" in results:
        remark += f"; the distribution of the data: {results['data']:.3f}"
    solver = f"probability-flow ODE in {protocol['steps']} {protocol['solver']} steps"
    points = f"{protocol['count']} points of {protocol['split']}"
    return [("NLL, nats", f"{results['nll']:.3f}", remark), ("", "", f"{points}, {solver}")]
