"""The optimal variance of a trained network, estimated from the data (Bao et al., 2022)."""

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import batch, known
from ddpm_lab.data.module import Data
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.rng import generator
from ddpm_lab.diffusion.variances import Analytic
from ddpm_lab.systems.base import evaluating
from ddpm_lab.systems.diffusion import Diffusion


@torch.no_grad()
def estimate(
    system: Diffusion, denoiser: Denoiser, data: Data, *, samples: int = 16, seed: int = 0
) -> Analytic:
    """`Analytic` from `samples` noised training pictures at every time; guesses are bounded as the sampler bounds
    them.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1 (got {samples}); try 16")
    steps, stream, device = denoiser.process.steps, generator(seed), system.device

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=stream).to(like)

    sums = torch.zeros(steps + 1, dtype=torch.float64)
    all_times = torch.arange(1, steps + 1).repeat(samples)
    train = known(data.train)
    index = torch.randint(train.size, (len(all_times),), generator=stream)
    with evaluating(denoiser):
        for t, some in zip(
            tqdm(all_times.split(256), desc="variance=analytic", leave=False, disable=None),
            index.split(256),
            strict=True,
        ):
            picked = train.at(some)
            x0 = system.codec.encode(picked.x0.to(device), noise)
            cond = system.condition(denoiser, batch(picked), noise)
            eps, at = torch.randn(x0.shape, generator=stream).to(device), t.to(device)
            guess = system.sampler.guess(denoiser, denoiser.process.diffuse(x0, eps, at), at, cond)
            sums.index_add_(0, t, (guess.x0 - x0).double().square().flatten(1).mean(1).cpu())
    return Analytic(sums / samples)
