"""The bound on -log p(x_0) of images, term by term, and what it says of rate and distortion."""

from typing import Any

import torch
from tqdm import tqdm

from ddpm_lab.data.datasets import InMemorySplit, to_batch
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.likelihood import prior_term, vlb_terms
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.sampling.pipeline import SamplingPipeline, eval_mode
from ddpm_lab.utils.errors import UserError, choice_name


def evaluate_nll(
    pipeline: SamplingPipeline,
    data: DataModule,
    *,
    weights: str,
    split: str,
    count: int | None,
    steps: int | None,
    spacing: str | list[int],
    clip: float | None,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """Bits/dim of the first `count` images of a split (None: all), each term at one draw of x_t per image, without
    guidance and given their labels where the model hears any. Standard errors are over images.

    Raises UserError for data that was not rounded to 8 bits.
    """
    if pipeline.codec.bin_width is None:
        what, instead = ("points", "ode_nll") if pipeline.bin_width is None else ("latents", "fid")
        raise UserError(
            "metrics=[nll] counts the bits of 8-bit pixels: its last term is the probability of a bin, "
            f"and {what} have no bins; try metrics=[{instead}]"
        )
    times = timesteps(pipeline.process.steps, steps, spacing)
    images = (
        {"train": data.train, "test": data.test}[split].select(slice(count)).to(pipeline.device)
    )
    index = torch.arange(images.size).split(batch_size)
    with tqdm(
        total=len(index) * (len(times) - 1), desc="bits/dim", unit="step", disable=None, leave=False
    ) as bar:
        parts = [
            _terms(
                pipeline,
                images.select(some),
                times,
                clip,
                PerSampleGenerator(seed, some.tolist()),
                bar,
            )
            for some in index
        ]
    prior, terms, errors = (torch.cat(part, dim=-1).cpu() for part in zip(*parts, strict=True))
    total = prior + terms.sum(0)
    left = terms.mean(1)
    known = prior.mean() + left.cumsum(0) - left  # bits spent when x_t is known
    rmse = 127.5 * errors.mean(1).sqrt()
    return {
        "bits_per_dim": total.mean().item(),
        "standard_error": _standard_error(total),
        "L_T": {"bits": prior.mean().item(), "standard_error": _standard_error(prior)},
        "L_0": {"bits": left[-1].item(), "standard_error": _standard_error(terms[-1])},
        "terms": [
            {
                "t": t,
                "s": s,
                "bits": bits.mean().item(),
                "standard_error": _standard_error(bits),
                "rate": rate.item(),
                "rmse": distortion.item(),
            }
            for t, s, bits, rate, distortion in zip(
                times, times[1:], terms, known, rmse, strict=False
            )
        ],
        "protocol": {
            "weights": weights,
            "split": split,
            "count": total.numel(),
            "seed": seed,
            "clip": clip,
            "steps": len(times) - 1,
            "spacing": spacing,
            "T": pipeline.process.steps,
            "variance": type(pipeline.denoiser.variance).__name__,
            "guidance": "none",
            "given": choice_name(pipeline.denoiser.conditioner),
            "labels": "none" if pipeline.denoiser.classes is None else "the images'",
            "bins": 256,
        },
    }


def _terms(
    pipeline: SamplingPipeline,
    images: InMemorySplit,
    times: list[int],
    clip: float | None,
    noise: PerSampleGenerator,
    bar: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L_T (B,), the terms (K, B) and the mean square errors (K, B)."""
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
    return (
        prior,
        torch.stack([term.bits for term in terms]),
        torch.stack([term.square_error for term in terms]),
    )


def _standard_error(values: torch.Tensor) -> float:
    return values.std().item() / len(values) ** 0.5
