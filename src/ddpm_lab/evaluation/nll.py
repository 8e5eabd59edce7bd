"""Variational bound on -log p(x_0) of images, by term, with rate and distortion."""

from itertools import pairwise
from typing import Any

import torch
from tqdm import tqdm

from ddpm_lab.data.datasets import InMemorySplit, to_batch
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.likelihood import prior_term, vlb_terms
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.systems.base import eval_mode
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.errors import UserError, choice_name


def evaluate_nll(
    system: Diffusion,
    denoiser: Denoiser,
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
    """Return the bits/dim of the first `count` images of a split (None: all).

    Each term uses one sample of x_t per image. Sampling guidance is not used. Images are
    conditioned on their labels if the model is conditional. Standard errors are over images.

    Raises UserError if the data are not 8-bit pixels.
    """
    _check_bins(system)
    times = timesteps(denoiser.process.steps, steps, spacing)
    images = {"train": data.train, "test": data.test}[split].select(slice(count)).to(system.device)
    index = torch.arange(images.size).split(batch_size)
    with tqdm(
        total=len(index) * (len(times) - 1), desc="bits/dim", unit="step", disable=None, leave=False
    ) as bar:
        parts = []
        for some in index:
            noise = PerSampleGenerator(seed, some.tolist())
            parts.append(_terms(system, denoiser, images.select(some), times, clip, noise, bar))
    prior, terms, errors = (torch.cat(part, dim=-1).cpu() for part in zip(*parts, strict=True))
    total = prior + terms.sum(0)
    means = terms.mean(1)
    rates = prior.mean() + means.cumsum(0) - means  # bits spent to transmit x_t
    rmse = 127.5 * errors.mean(1).sqrt()
    return {
        "bits_per_dim": total.mean().item(),
        "standard_error": _standard_error(total),
        "L_T": {"bits": prior.mean().item(), "standard_error": _standard_error(prior)},
        "L_0": {"bits": means[-1].item(), "standard_error": _standard_error(terms[-1])},
        "terms": [
            {
                "t": t,
                "s": s,
                "bits": bits.mean().item(),
                "standard_error": _standard_error(bits),
                "rate": rate.item(),
                "rmse": distortion.item(),
            }
            for (t, s), bits, rate, distortion in zip(
                pairwise(times), terms, rates, rmse, strict=True
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
            "T": denoiser.process.steps,
            "variance": type(denoiser.variance).__name__,
            "guidance": "none",
            "given": choice_name(denoiser.conditioner),
            "labels": "none" if system.denoiser.classes is None else "the images'",
            "bins": 256,
        },
    }


def _check_bins(system: Diffusion) -> None:
    if system.codec.bin_width is None:
        kind, metric = ("points", "ode_nll") if system.bin_width is None else ("latents", "fid")
        raise UserError(
            "metrics=[nll] needs 8-bit pixels, because its last term is the probability of a bin; "
            f"{kind} have no bins; try metrics=[{metric}]"
        )


def _terms(
    system: Diffusion,
    denoiser: Denoiser,
    images: InMemorySplit,
    times: list[int],
    clip: float | None,
    noise: PerSampleGenerator,
    bar: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return L_T (B,), the terms (K, B) and the mean squared errors (K, B)."""
    terms = []
    with eval_mode(denoiser):
        cond = system.condition(denoiser, to_batch(images), noise)
        for term in vlb_terms(
            denoiser,
            images.x0,
            times,
            bin_width=system.bin_width,
            cond=cond,
            noise=noise,
            clip=clip,
        ):
            terms.append(term)
            bar.update()
    first = torch.full((len(images.x0),), times[0], device=system.device)
    prior = prior_term(denoiser.process, images.x0.double(), first)
    return (
        prior,
        torch.stack([term.bits for term in terms]),
        torch.stack([term.square_error for term in terms]),
    )


def _standard_error(values: torch.Tensor) -> float:
    return values.std().item() / len(values) ** 0.5
