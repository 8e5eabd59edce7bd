"""The optimal variance of a trained network, estimated from the data (Bao et al., 2022)."""

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import head, to_batch
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.diffusion.variances import Analytic
from ddpm_lab.sampling.pipeline import SamplingPipeline, eval_mode


@torch.no_grad()
def estimate_variance(
    pipeline: SamplingPipeline, data: DataModule, *, samples: int = 16, seed: int = 0
) -> Analytic:
    """`Analytic` from `samples` noised training images at every time; guesses are bounded as the sampler bounds
    them.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1 (got {samples}); try 16")
    steps, generator, device = pipeline.process.steps, make_generator(seed), pipeline.device

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    sums = torch.zeros(steps + 1, dtype=torch.float64)
    all_times = torch.arange(1, steps + 1).repeat(samples)
    train = head(data.train)
    index = torch.randint(train.size, (len(all_times),), generator=generator)
    with eval_mode(pipeline.denoiser):
        for t, some in zip(
            tqdm(all_times.split(256), desc="variance=analytic", leave=False, disable=None),
            index.split(256),
            strict=True,
        ):
            picked = train.select(some)
            x0 = pipeline.codec.encode(picked.x0.to(device), noise)
            cond = pipeline.condition(to_batch(picked), noise)
            eps, at = torch.randn(x0.shape, generator=generator).to(device), t.to(device)
            estimate = pipeline.sampler.estimate(
                pipeline.denoiser, pipeline.process.diffuse(x0, eps, at), at, cond
            )
            sums.index_add_(0, t, (estimate.x0 - x0).double().square().flatten(1).mean(1).cpu())
    return Analytic(sums / samples)
