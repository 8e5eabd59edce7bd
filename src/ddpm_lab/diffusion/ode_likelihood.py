"""The exact density of the probability-flow ODE, for data of few dimensions."""

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
    """log p(x_0) in nats, (B,), of points `x0`, (B, d), under the ODE of Song et al. (2021, eq. 13).

    Heun's steps carry the points up the chain `times` (from T down to 0, as `Sampler.times` gives it), and the log
    determinant of each step is that of its exact Jacobian. The first step takes the data for x_1, where the network was
    trained, so details finer than noise_1 are not seen. `bar` hears of every step.
    """
    process = denoiser.process

    def rise(x: Tensor, at: Tensor, to: Tensor, cond: Condition) -> Tensor:
        eps = process.eps(x, denoiser(x, at, cond).x0, at)
        x_to = process.diffuse(process.x0(x, eps, at), eps, to)
        mean = (eps + process.eps(x_to, denoiser(x_to, to, cond).x0, to)) / 2
        return process.diffuse(process.x0(x, mean, at), mean, to)

    def alone(x: Tensor, at: Tensor, to: Tensor, label: Tensor | None) -> Tensor:
        rows = Condition() if label is None else Condition(label[None])
        return rise(x[None], at[None], to[None], rows)[0]

    labels = cond.label
    jacobian = vmap(jacfwd(alone), in_dims=(0, 0, 0, None if labels is None else 0))
    up = [max(t, 1) for t in reversed(times)]
    at = torch.full((len(x0),), 1, device=x0.device)
    x = process.diffuse(x0, torch.zeros_like(x0), at)
    log_volume = x0.shape[1] * process.alpha_sigma(at)[0].log()
    for s, t in pairwise(up):
        if bar is not None:
            bar.update()
        if s == t:
            continue
        at_s, at_t = (torch.full((len(x),), time, device=x.device) for time in (s, t))
        log_volume = (
            log_volume + torch.linalg.slogdet(jacobian(x, at_s, at_t, labels).double()).logabsdet
        )
        x = rise(x, at_s, at_t, cond)
    scale = process.scale(torch.full((len(x),), up[-1], device=x.device))[:, None]
    log_prior = -0.5 * (x.double() / scale).square() - 0.5 * math.log(2 * math.pi) - scale.log()
    return log_prior.sum(1) + log_volume
