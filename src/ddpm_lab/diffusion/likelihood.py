"""The variational bound on -log p(x_0), in bits per dimension: L_T + sum of L_{t-1} + L_0 (Ho et al., 2020, eq. 5).

The same `bound_term` is what `Vlb` and `Hybrid` train on and what, summed over a chain, is reported: they cannot
differ.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike, Estimate
from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.process import ForwardProcess, per_pixel
from ddpm_lab.diffusion.rng import NoiseSampler


def bits(nats: Tensor) -> Tensor:
    """Nats of each dimension, (B, ...), to mean bits per dimension, (B,)."""
    return nats.flatten(1).mean(1) / math.log(2)


def vlb_term(
    denoiser: DenoiserLike,
    estimate: Estimate,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    bin_width: float | None,
) -> Tensor:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) in bits/dim, (B,); where s = 0, -log p(x_0 | x_t).

    `bin_width` is that of the bins that x_0 in [-1, 1] was rounded to, 2 / 255 for bytes; None: x_0 is a real number
    and the last term a density. For strided chains t and s are any pair.
    """
    reverse = denoiser.reverse(estimate, x_t, t, s)
    kl = denoiser.process.posterior(x0, x_t, t, s).kl(reverse)
    decoder = (
        reverse.log_prob(x0)
        if bin_width is None
        else reverse.discretized_log_likelihood(x0, bin_width)
    )
    return bits(torch.where(per_pixel(s == 0, s.new_empty(x0.shape)).bool(), -decoder, kl))


def prior_term(process: ForwardProcess, x0: Tensor, t: Tensor) -> Tensor:
    """L_T = KL(q(x_t | x_0) || prior), in bits/dim, (B,), for a chain that begins at `t`."""
    alpha, noise = process.alpha_sigma(t)
    reached = Gaussian(per_pixel(alpha, x0) * x0, per_pixel(2 * noise.log(), x0))
    return bits(
        reached.kl(Gaussian(torch.zeros_like(x0), per_pixel(2 * process.scale(t).log(), x0)))
    )


class VLBTerm(NamedTuple):
    """One term of the bound, of each image."""

    t: int
    s: int
    bits: Tensor
    """(B,) bits/dim"""
    square_error: Tensor
    """(B,) mean over dimensions of (x_0 - guess)^2, the distortion of what is known at t"""


@torch.no_grad()
def vlb_terms(
    denoiser: DenoiserLike,
    x0: Tensor,
    times: Sequence[int],
    *,
    bin_width: float | None,
    cond: Condition = Condition(),
    noise: NoiseSampler = torch.randn_like,
    clip: float | None = 1.0,
) -> Iterator[VLBTerm]:
    """Each term of the chain `times` (from its first time to 0) at one draw of x_t for each image x0, (B, ...).

    The network runs in the type of `x0`; what follows is computed in float64. `clip` bounds its guesses.
    """
    exact = x0.double()
    for t, s in pairwise(times):
        at_t, at_s = (torch.full((len(x0),), time, device=x0.device) for time in (t, s))
        x_t = denoiser.process.diffuse(x0, noise(x0), at_t)
        x0_guess, variance_output = denoiser(x_t, at_t, cond)
        estimate = Estimate(
            x0_guess.double() if clip is None else x0_guess.double().clamp(-clip, clip),
            None if variance_output is None else variance_output.double(),
        )
        term = vlb_term(denoiser, estimate, exact, x_t.double(), at_t, at_s, bin_width)
        yield VLBTerm(t, s, term, (exact - estimate.x0).square().flatten(1).mean(1))
