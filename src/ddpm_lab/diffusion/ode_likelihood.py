"""The exact likelihood under the probability-flow ODE, for data of few dimensions."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike

if TYPE_CHECKING:
    from tqdm import tqdm


@torch.no_grad()
def log_prob(
    denoiser: DenoiserLike,
    x0: Tensor,
    times: Sequence[int],
    cond: Condition = Condition(),
    bar: "tqdm[NoReturn] | None" = None,
) -> Tensor:
    """log p(x_0) in nats, (B,), of points `x0` (B, d) under the ODE.

    Song et al. (2021, SDE, eq. 13). Heun steps carry the points up the chain `times` (descending,
    as `timesteps` returns it). Each step adds the log determinant of its exact Jacobian. The first
    step takes the data for x_1, because the network was not trained at t = 0: details finer than
    sigma_1 are not resolved.
    `bar` is updated once per step.
    """
    process = denoiser.process

    def heun_step(x: Tensor, s: Tensor, t: Tensor, cond: Condition) -> Tensor:
        eps = process.eps(x, denoiser(x, s, cond).x0, s)
        x_t = process.diffuse(process.x0(x, eps, s), eps, t)
        mean = (eps + process.eps(x_t, denoiser(x_t, t, cond).x0, t)) / 2
        return process.diffuse(process.x0(x, mean, s), mean, t)

    def sample_step(x: Tensor, s: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        rows = Condition() if label is None else Condition(label[None])
        return heun_step(x[None], s[None], t[None], rows)[0]

    labels = cond.label
    jacobian = vmap(jacfwd(sample_step), in_dims=(0, 0, 0, None if labels is None else 0))
    ascending = [max(t, 1) for t in reversed(times)]
    at_1 = torch.full((len(x0),), 1, device=x0.device)
    x = process.diffuse(x0, torch.zeros_like(x0), at_1)
    log_volume = x0.shape[1] * process.alpha_sigma(at_1)[0].log()
    for s, t in pairwise(ascending):
        if bar is not None:
            bar.update()
        if s == t:
            continue
        at_s, at_t = (torch.full((len(x),), time, device=x.device) for time in (s, t))
        matrix = jacobian(x, at_s, at_t, labels).double()
        log_volume = log_volume + torch.linalg.slogdet(matrix).logabsdet
        x = heun_step(x, at_s, at_t, cond)
    scale = process.scale(torch.full((len(x),), ascending[-1], device=x.device))[:, None]
    log_prior = -0.5 * (x.double() / scale).square() - 0.5 * math.log(2 * math.pi) - scale.log()
    return log_prior.sum(1) + log_volume
