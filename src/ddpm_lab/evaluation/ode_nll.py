"""The exact likelihood of points under the probability-flow ODE (Song et al., 2021, SDE)."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from tqdm import tqdm

from ddpm_lab.data.datasets import Points, to_batch
from ddpm_lab.data.module import Data
from ddpm_lab.diffusion.analytic_denoisers import MixtureDenoiser
from ddpm_lab.diffusion.denoiser import eval_mode
from ddpm_lab.diffusion.ode_likelihood import log_prob
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.evaluation.metrics import (
    Metric,
    Number,
    Results,
    Rows,
    SplitName,
    first_samples,
    standard_error,
)
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.utils.errors import UserError, pluralize
from ddpm_lab.utils.ranges import check_ranges

STEPS = 200


@check_ranges
@dataclass(frozen=True)
class OdeNLL(Metric):
    """-log p(x_0) in nats of the first `count` points of a split, without guidance.

    A model that takes labels receives those of the points. "data" is -log of the density of the
    data at the same points, for data with a density.
    """

    numbers = (Number("ode_nll.nll", "NLL, nats", "lower"),)
    split: SplitName = "test"
    count: Annotated[int, Ge(2)] = 1000

    def check(self, cascade: Cascade) -> None:
        super().check(cascade)
        pipeline = cascade.stages[-1]
        if pipeline.bin_width is not None:
            raise UserError(
                "metrics=[ode_nll] is for points; images have too many dimensions for "
                "determinants; try metrics=[nll]"
            )

    def compute(self, cascade: Cascade, data: Data, weights: str) -> Results:
        pipeline = cascade.stages[-1]
        denoiser, process = pipeline.denoiser, pipeline.process
        points = first_samples(data, self.split, self.count, pipeline.device)
        assert isinstance(points, Points)
        times = timesteps(process.steps, min(STEPS, process.steps), "quadratic_full")
        cond = pipeline.condition(to_batch(points))
        bar = tqdm(total=len(times) - 1, desc="likelihood", unit="step", disable=None, leave=False)
        with eval_mode(denoiser), bar:
            nll = -log_prob(denoiser, points.x0, times, cond, bar)
        results = {"nll": nll.mean().item(), "standard_error": standard_error(nll)}
        if data.mixture is not None:
            exact = MixtureDenoiser(process.cpu(), denoiser.variance, data.mixture)
            labels = None if points.labels is None else points.labels.cpu()
            labels = None if denoiser.classes is None else labels
            results["data"] = -exact.log_prob(points.x0.cpu(), labels).mean().item()
        protocol = {
            "weights": weights,
            "split": self.split,
            "count": len(nll),
            "steps": len(times) - 1,
            "solver": "Heun",
            "spacing": "quadratic_full",
            "labels": "the points'" if denoiser.classes else "none",
        }
        return {**results, "protocol": protocol}

    def rows(self, results: Results) -> Rows:
        protocol = results["protocol"]
        remark = f"+- {results['standard_error']:.3f}"
        if "data" in results:
            remark += f"; the distribution of the data: {results['data']:.3f}"
        steps = pluralize(protocol["steps"], f"{protocol['solver']} step")
        solver = f"probability-flow ODE in {steps}"
        points = f"{protocol['count']} points of {protocol['split']}"
        return [("NLL, nats", f"{results['nll']:.3f}", remark), ("", "", f"{points}, {solver}")]
