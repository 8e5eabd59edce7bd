"""The analytic optimal variance of a trained network (Bao et al., 2022)."""

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import head, to_batch
from ddpm_lab.data.module import Data
from ddpm_lab.diffusion.denoiser import eval_mode
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.diffusion.variances import Analytic
from ddpm_lab.sampling.pipeline import SamplingPipeline


@torch.no_grad()
def estimate_variance(
    pipeline: SamplingPipeline, data: Data, *, samples: int = 16, seed: int = 0
) -> Analytic:
    """Estimate the mean squared error of x_0 from `samples` noised training images at every t.

    Estimates are clipped as by the sampler. Raises ValueError if samples < 1.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1 (got {samples}); try 16")
    steps, generator, device = pipeline.process.steps, make_generator(seed), pipeline.device

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    sums = torch.zeros(steps + 1, dtype=torch.float64)
    times = torch.arange(1, steps + 1).repeat(samples)
    train = head(data.train)
    index = torch.randint(train.size, (len(times),), generator=generator)
    bar = tqdm(times.split(256), desc="variance=analytic", leave=False, disable=None)
    with eval_mode(pipeline.denoiser):
        for t, numbers in zip(bar, index.split(256), strict=True):
            images = train.select(numbers)
            x0 = pipeline.codec.encode(images.x0.to(device), noise)
            cond = pipeline.condition(to_batch(images), noise)
            eps, time = torch.randn(x0.shape, generator=generator).to(device), t.to(device)
            x_t = pipeline.process.diffuse(x0, eps, time)
            estimate = pipeline.sampler.estimate(pipeline.denoiser, x_t, time, cond)
            error = (estimate.x0 - x0).double().square().flatten(1).mean(1)
            sums.index_add_(0, t, error.cpu())
    return Analytic(sums / samples)
