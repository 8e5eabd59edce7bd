"""SDEdit: images are noised up to an intermediate time and denoised (Meng et al., 2022)."""

import copy

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import Batch
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.sampling.samples import Samples

STREAM = 2**31
"""Random stream of the noise in x_t, which is not that of the sampler"""


@torch.no_grad()
def edit(
    pipeline: SamplingPipeline,
    data: Tensor,
    conditions: Batch,
    strength: float,
    seed: int = 0,
    batch_size: int = 256,
) -> Samples:
    """Sample from x_t of `data` (N, *shape) in [-1, 1] at t = strength T, strength in (0, 1].

    The noise of row i depends on the seed and on i only. Conditions are resolved.
    """
    T = pipeline.process.steps
    t = torch.tensor(max(1, round(strength * T)))
    pipeline = copy.copy(pipeline)
    pipeline.sampler = pipeline.sampler.starting_at(pipeline.process, int(t))
    starts = []
    batches = torch.arange(len(data)).split(batch_size)
    for index in batches:
        x0 = pipeline.codec.encode(data[index].to(pipeline.device), torch.zeros_like)
        noise = PerSampleGenerator(seed, index.tolist(), STREAM)
        starts.append(pipeline.process.diffuse(x0, noise(x0), t))
    total, options = pipeline.num_steps * len(batches), {"seed": seed, "batch_size": batch_size}
    with tqdm(total=total, desc="editing", unit="step", disable=None, leave=False) as bar:
        x_t, streams = torch.cat(starts), range(len(data))
        return pipeline.decode_samples(x_t, conditions, streams, **options, bar=bar)
