"""Optimal variance of a trained network, estimated from data (Bao et al., 2022)."""

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import head, to_batch
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.diffusion.variances import Analytic
from ddpm_lab.systems.base import eval_mode
from ddpm_lab.systems.diffusion import Diffusion


@torch.no_grad()
def estimate_variance(
    system: Diffusion, denoiser: Denoiser, data: DataModule, *, samples: int = 16, seed: int = 0
) -> Analytic:
    """Estimate `Analytic` from `samples` noised training images at every time.

    Estimates of x_0 are clipped as in sampling.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1 (got {samples}); try 16")
    steps, generator, device = denoiser.process.steps, make_generator(seed), system.device

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    sums = torch.zeros(steps + 1, dtype=torch.float64)
    all_times = torch.arange(1, steps + 1).repeat(samples)
    train = head(data.train)
    index = torch.randint(train.size, (len(all_times),), generator=generator)
    with eval_mode(denoiser):
        for t, some in zip(
            tqdm(all_times.split(256), desc="variance=analytic", leave=False, disable=None),
            index.split(256),
            strict=True,
        ):
            images = train.select(some)
            x0 = system.codec.encode(images.x0.to(device), noise)
            cond = system.condition(denoiser, to_batch(images), noise)
            eps, t_device = torch.randn(x0.shape, generator=generator).to(device), t.to(device)
            x_t = denoiser.process.diffuse(x0, eps, t_device)
            estimate = system.sampler.estimate(denoiser, x_t, t_device, cond)
            sums.index_add_(0, t, (estimate.x0 - x0).double().square().flatten(1).mean(1).cpu())
    return Analytic(sums / samples)
