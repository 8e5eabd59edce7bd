"""The variational bound on -log p(x_0) in bits/dim: L_T + sum of L_{t-1} + L_0.

Ho et al. (2020, eq. 5). `Vlb` and `Hybrid` train on the same `vlb_term` that evaluation sums over a
chain, so the two cannot differ.
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
    """Convert nats per dimension, (B, ...), to mean bits/dim, (B,)."""
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
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) for any pair s < t, in bits/dim, (B,).

    For s = 0 it is -log p(x_0 | x_t). `bin_width` is the width of the bins to which x_0 in [-1, 1]
    was quantized, 2 / 255 for bytes; None: x_0 is continuous, and the last term is a density.
    """
    reverse = denoiser.reverse(estimate, x_t, t, s)
    kl = denoiser.process.posterior(x0, x_t, t, s).kl(reverse)
    if bin_width is None:
        decoder = reverse.log_prob(x0)
    else:
        decoder = reverse.discretized_log_likelihood(x0, bin_width)
    return bits(torch.where(per_pixel(s == 0, s.new_empty(x0.shape)).bool(), -decoder, kl))


def prior_term(process: ForwardProcess, x0: Tensor, t: Tensor) -> Tensor:
    """L_T = KL(q(x_t | x_0) || prior) in bits/dim, (B,), for a chain that starts at `t`."""
    alpha, sigma = process.alpha_sigma(t)
    posterior = Gaussian(per_pixel(alpha, x0) * x0, per_pixel(2 * sigma.log(), x0))
    prior = Gaussian(torch.zeros_like(x0), per_pixel(2 * process.scale(t).log(), x0))
    return bits(posterior.kl(prior))


class VLBTerm(NamedTuple):
    """One term of the bound for a batch of images."""

    t: int
    """Timestep of x_t"""
    s: int
    """Timestep below t, 0 in the last term"""
    bits: Tensor
    """(B,) bits/dim"""
    square_error: Tensor
    """(B,) mean over dimensions of (x_0 - estimate)^2, the distortion at rate t"""


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
    """Yield the terms of the chain `times`, which ends at 0, at one x_t per image x0 (B, ...).

    The network runs in the dtype of `x0`, all else in float64. `clip` bounds the x_0 estimates.
    """
    exact = x0.double()
    for t, s in pairwise(times):
        at_t, at_s = (torch.full((len(x0),), time, device=x0.device) for time in (t, s))
        x_t = denoiser.process.diffuse(x0, noise(x0), at_t)
        output = denoiser(x_t, at_t, cond)
        x0_estimate, variance_output = output.x0.double(), output.variance_output
        estimate = Estimate(
            x0_estimate if clip is None else x0_estimate.clamp(-clip, clip),
            None if variance_output is None else variance_output.double(),
        )
        term = vlb_term(denoiser, estimate, exact, x_t.double(), at_t, at_s, bin_width)
        yield VLBTerm(t, s, term, (exact - estimate.x0).square().flatten(1).mean(1))
