"""The variational bound on -log p(x_0) of images, in bits/dim, and its terms."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import InMemorySplit, to_batch
from ddpm_lab.data.module import Data
from ddpm_lab.diffusion.denoiser import eval_mode
from ddpm_lab.diffusion.likelihood import prior_term, vlb_terms
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.diffusion.variances import Analytic
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
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.utils.errors import UserError, choice_name
from ddpm_lab.utils.ranges import Count, NonNegativeInt, Positive, check_ranges


@check_ranges
@dataclass(frozen=True)
class NLL(Metric):
    """Bits/dim of the first `count` images of a split (None: all), without guidance.

    Every term is computed at one x_t per image, given the image's label if the model takes labels.
    Standard errors are over images.

    Args:
        steps: Number of steps of the bound (None: all T).
        spacing: Spacing of the timesteps.
        clip: Bound of the x_0 estimate, or None.
    """

    numbers = (
        Number("nll.bits_per_dim", "bits/dim", "lower"),
        Number("nll.L_T.bits", "bits/dim", "lower"),
        Number("nll.L_0.bits", "bits/dim", "lower"),
    )
    split: SplitName = "test"
    count: Annotated[int, Ge(2)] | None = None
    steps: int | None = None
    spacing: str | list[int] = "uniform"
    clip: Positive | None = 1.0
    seed: NonNegativeInt = 0
    batch_size: Count = 250

    def check(self, cascade: Cascade) -> None:
        super().check(cascade)
        pipeline = cascade.stages[-1]
        if pipeline.codec.bin_width is None:
            is_points = pipeline.bin_width is None
            subject, metric = ("points", "ode_nll") if is_points else ("latents", "fid")
            raise UserError(
                "metrics=[nll] is in bits of 8-bit pixels: its last term is the probability of a "
                f"bin, but {subject} have no bins; try metrics=[{metric}]"
            )
        sampler = pipeline.sampler
        same_bounds = (self.clip, None) == (sampler.clip, sampler.dynamic_threshold)
        if isinstance(pipeline.denoiser.variance, Analytic) and not same_bounds:
            raise UserError(
                f"nll.clip={self.clip} bounds x_0 differently from sampler.clip={sampler.clip}, "
                "for which variance=analytic was estimated; make them equal, with "
                "sampler.dynamic_threshold=null"
            )
        timesteps(pipeline.process.steps, self.steps, self.spacing)  # raises ValueError

    def compute(self, cascade: Cascade, data: Data, weights: str) -> Results:
        pipeline = cascade.stages[-1]
        images = first_samples(data, self.split, self.count, pipeline.device)
        times = timesteps(pipeline.process.steps, self.steps, self.spacing)
        results = _summarize(times, *self.terms(pipeline, images))
        protocol = {
            "weights": weights,
            "split": self.split,
            "count": images.size,
            "seed": self.seed,
            "clip": self.clip,
            "steps": len(times) - 1,
            "spacing": self.spacing,
            "T": pipeline.process.steps,
            "variance": type(pipeline.denoiser.variance).__name__,
            "guidance": "none",
            "given": choice_name(pipeline.denoiser.conditioner),
            "labels": "none" if pipeline.denoiser.classes is None else "the images'",
            "bins": 256,
        }
        return {**results, "protocol": protocol}

    def terms(
        self, pipeline: SamplingPipeline, images: InMemorySplit
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return L_T (N,), the terms (K, N) in bits/dim and mean square errors (K, N) of images."""
        times = timesteps(pipeline.process.steps, self.steps, self.spacing)
        index = torch.arange(images.size).split(self.batch_size)
        total = len(index) * (len(times) - 1)
        with tqdm(total=total, desc="bits/dim", unit="step", disable=None, leave=False) as bar:
            batches = [
                _terms(
                    pipeline,
                    images.select(part).to(pipeline.device),
                    times,
                    PerSampleGenerator(self.seed, part.tolist()),
                    self.clip,
                    bar,
                )
                for part in index
            ]
        prior, terms, errors = (torch.cat(part, -1).cpu() for part in zip(*batches, strict=True))
        return prior, terms, errors

    def rows(self, results: Results) -> Rows:
        protocol, prior, last = results["protocol"], results["L_T"], results["L_0"]
        images = f"{protocol['count']} images of {protocol['split']}"
        remark = f"{images}, {protocol['weights']} weights, {protocol['variance']}"
        chain = f"{protocol['steps']} of {protocol['T']} steps, {protocol['spacing']}"
        between = results["bits_per_dim"] - prior["bits"] - last["bits"]
        error = f"+- {results['standard_error']:.3f}"
        decoder = f"the pixels, given x_{results['terms'][-1]['t']}"
        return [
            ("NLL, bits/dim", f"<= {results['bits_per_dim']:.3f}", f"{error}; {remark}"),
            ("  L_T", f"{prior['bits']:.4f}", "the prior: information about the image in x_T"),
            ("  L_t", f"{between:.3f}", chain),
            ("  L_0", f"{last['bits']:.3f}", f"+- {last['standard_error']:.3f}; {decoder}"),
        ]

    def save_figures(self, results: Results, folder: Path) -> list[Path]:
        from ddpm_lab.reports.figures import save_bound

        return [save_bound(results["terms"], folder / "bound.png")]


def _summarize(times: list[int], prior: Tensor, terms: Tensor, errors: Tensor) -> Results:
    """Return means and standard errors over images of L_T (N,) and of the terms (K, N)."""
    bits = prior + terms.sum(0)
    means = terms.mean(1)
    rate = prior.mean() + means.cumsum(0) - means  # bits spent when x_t is known
    rmse = 127.5 * errors.mean(1).sqrt()
    return {
        "bits_per_dim": bits.mean().item(),
        "standard_error": standard_error(bits),
        "L_T": {"bits": prior.mean().item(), "standard_error": standard_error(prior)},
        "L_0": {"bits": means[-1].item(), "standard_error": standard_error(terms[-1])},
        "terms": [
            {
                "t": times[i],
                "s": times[i + 1],
                "bits": term.mean().item(),
                "standard_error": standard_error(term),
                "rate": rate[i].item(),
                "rmse": rmse[i].item(),
            }
            for i, term in enumerate(terms)
        ],
    }


def _terms(
    pipeline: SamplingPipeline,
    images: InMemorySplit,
    times: list[int],
    noise: PerSampleGenerator,
    clip: float | None,
    bar: "tqdm[None]",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return L_T (B,), the terms (K, B) and mean squared errors (K, B)."""
    terms = []
    with eval_mode(pipeline.denoiser):
        cond = pipeline.condition(to_batch(images), noise)
        for term in vlb_terms(
            pipeline.denoiser,
            images.x0,
            times,
            bin_width=pipeline.bin_width,
            cond=cond,
            noise=noise,
            clip=clip,
        ):
            terms.append(term)
            bar.update()
    first = torch.full((len(images.x0),), times[0], device=pipeline.device)
    prior = prior_term(pipeline.process, images.x0.double(), first)
    bits, errors = ([getattr(term, name) for term in terms] for name in ("bits", "square_error"))
    return prior, torch.stack(bits), torch.stack(errors)
