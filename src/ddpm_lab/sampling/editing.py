"""Editing and interpolation of images at an intermediate time."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import Batch, InMemorySplit
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.diffusion.samplers import slerp
from ddpm_lab.sampling.conditions import Label
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.sampling.samples import Samples
from ddpm_lab.utils.errors import UserError, choice_name

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

    SDEdit (Meng et al., 2022). The noise of row i depends on the seed and on i only. Conditions are
    resolved. The sampler makes those of its steps that are below t.
    """
    x_t = _add_noise(pipeline, data, strength, seed, batch_size)
    rows = range(len(data))
    return _sample_from(pipeline, x_t, conditions, rows, strength, seed, batch_size, "editing")


@torch.no_grad()
def interpolate_images(
    pipeline: SamplingPipeline,
    start: Tensor,
    end: Tensor,
    conditions: Batch,
    frames: int,
    strength: float,
    seed: int = 0,
    batch_size: int = 256,
) -> Samples:
    """Return N rows of `frames` samples between images `start` and `end` (N, *shape).

    Interpolates x_t at t = strength T linearly (Ho et al., 2020, section 4.3). Both ends of a row
    have the same noise, so that x_t has its variance. Conditions have N rows.
    """
    a, b = (_add_noise(pipeline, data, strength, seed, batch_size) for data in (start, end))
    share = torch.linspace(0, 1, frames, device=a.device)
    x_t = torch.cat([x + per_pixel(share, y[None]) * (y - x) for x, y in zip(a, b, strict=True)])
    rows = [row for row in range(len(a)) for _ in range(frames)]
    conditions = repeat_rows(conditions, frames)
    return _sample_from(
        pipeline, x_t, conditions, rows, strength, seed, batch_size, "interpolating"
    )


def edit_conditions(
    pipeline: SamplingPipeline,
    data: InMemorySplit,
    label: Label = None,
    text: str | list[str] | None = None,
) -> Batch:
    """Return the resolved conditions of `data`, or no class for data without labels."""
    has_class = any(each is not None for each in (label, text, data.labels))
    if not has_class and pipeline.denoiser.supports_cfg:
        label = "none"
    return pipeline.data_conditions(data, label, text)


def interpolate_latents(
    pipeline: SamplingPipeline, start: Tensor, end: Tensor, frames: int
) -> Tensor:
    """Return (N * frames, ...) on the sphere between x_T `start` and `end` (N, ...).

    Raises UserError for a sampler that adds noise, with which x_T does not determine the samples.
    """
    if not pipeline.sampler.deterministic:
        raise UserError(
            f"sampler={choice_name(pipeline.sampler)} adds noise, so its samples do not follow "
            "x_T; try sampler=ddim sampler.eta=0, or input=IMAGES strength=0.5"
        )
    share = torch.linspace(0, 1, frames)
    return torch.cat([slerp(a, b, share) for a, b in zip(start, end, strict=True)])


def repeat_rows(conditions: Batch, frames: int) -> Batch:
    """Return conditions of N rows for `frames` samples in each row."""
    return {name: value.repeat_interleave(frames, dim=0) for name, value in conditions.items()}


def _start(pipeline: SamplingPipeline, strength: float) -> int:
    return max(1, round(strength * pipeline.process.steps))


def _add_noise(
    pipeline: SamplingPipeline, data: Tensor, strength: float, seed: int, batch_size: int
) -> Tensor:
    """Return x_t of `data` at t = strength T, (N, *codec.shape)."""
    t, parts = torch.tensor(_start(pipeline, strength)), []
    for index in torch.arange(len(data)).split(batch_size):
        x0 = pipeline.codec.encode(data[index].to(pipeline.device), torch.zeros_like)
        noise = PerSampleGenerator(seed, index.tolist(), STREAM)
        parts.append(pipeline.process.diffuse(x0, noise(x0), t))
    return torch.cat(parts)


def _sample_from(
    pipeline: SamplingPipeline,
    x_t: Tensor,
    conditions: Batch,
    streams: Sequence[int],
    strength: float,
    seed: int,
    batch_size: int,
    desc: str,
) -> Samples:
    """Sample from `x_t` (N, ...) at t = strength T."""
    pipeline = copy.copy(pipeline)
    pipeline.sampler = pipeline.sampler.starting_at(pipeline.process, _start(pipeline, strength))
    total = pipeline.num_steps * -(-len(x_t) // batch_size)
    options = {"seed": seed, "batch_size": batch_size}
    with tqdm(total=total, desc=desc, unit="step", disable=None, leave=False) as bar:
        return pipeline.decode_samples(x_t, conditions, streams, **options, bar=bar)
