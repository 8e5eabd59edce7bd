"""Cascaded diffusion (Ho et al., 2022): each pipeline upsamples the previous one's images."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Unpack

import torch
from torch import Tensor

from ddpm_lab.data.datasets import Batch, Images, InMemorySplit
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.sampling.class_names import captions_differ
from ddpm_lab.sampling.conditions import format_size
from ddpm_lab.sampling.pipeline import SamplingOptions, SamplingPipeline
from ddpm_lab.utils.distributed import all_gather, shard
from ddpm_lab.utils.errors import UserError


class Cascade:
    """Pipelines in order of resolution; a single pipeline is a cascade of one stage.

    Each stage has its own sampler, guidance and weights. Raises UserError for incompatible stages.
    """

    def __init__(self, stages: Sequence[SamplingPipeline]) -> None:
        self.stages = stages
        for number, (stage, following) in enumerate(pairwise(stages), 1):
            _check_pair(number, stage, following)
            _check_classes(number + 1, stages[0], following)

    def check_conditions(self, conditions: Batch) -> None:
        """Raise UserError if `conditions` of the first stage lack labels that a later one needs."""
        for number, stage in enumerate(self.stages[1:], 2):
            if "label" not in conditions and stage.classes is not None:
                raise UserError(
                    f"text= sets no label, but stage {number} of the cascade needs one; try "
                    "label=, or train that stage with conditioner.label=false"
                )

    def num_steps(self, count: int, batch_size: int) -> int:
        """Return the number of steps that this process takes for `count` samples in batches."""
        steps = sum(
            len(stage.sampler.timesteps(stage.process, _t_end(stage, following))) - 1
            for stage, following in zip(self.stages, [*self.stages[1:], None], strict=True)
        )
        return steps * len(shard(range(math.ceil(count / batch_size))))

    def sample_earlier_stages(
        self, conditions: Batch, count: int, **options: Unpack[SamplingOptions]
    ) -> tuple[list[InMemorySplit], Batch]:
        """Sample all stages but the last from the `conditions` of the first.

        Returns the samples of each stage and the conditions of the last stage. Without truncated
        conditioning, a stage takes 8-bit images, as in a saved file.
        """
        samples: list[InMemorySplit] = []
        for stage, following in pairwise(self.stages):
            t_end = _t_end(stage, following)
            latents = stage.sample_latents(count, conditions=conditions, t_end=t_end, **options)
            batches = [x.to(stage.device) for x in all_gather([x.cpu() for x, _ in latents])]
            pixels = torch.cat([stage.to_images(x, None)[0] for x in batches])
            label = conditions.get("label")
            samples.append(Images(pixels, label).to(stage.device))
            conditions = following.make_conditions(count, images=samples[-1])
            if _is_truncated(following):
                x, time = torch.cat(batches), torch.full((count,), t_end, device=stage.device)
                conditions["low_res"] = x / per_pixel(stage.process.scale(time), x)
                conditions["noise_level"] = _noise_levels(stage)[time]
        return samples, conditions

    def protocol(self) -> dict[str, Any]:
        """Return everything that samples depend on except weights and seed."""
        earlier = [{"run": stage.denoiser.origin, **stage.protocol()} for stage in self.stages[:-1]]
        return {**self.stages[-1].protocol(), **({"after": earlier} if earlier else {})}


def _t_end(stage: SamplingPipeline, following: SamplingPipeline | None) -> int:
    """Return the timestep at which the chain of `stage` ends.

    That is 0 or, before a stage with truncated conditioning, the nearest to its noise level.
    """
    if following is None or not _is_truncated(following):
        return 0
    level = following.denoiser.conditioner.sampling_options["noise_level"]
    return int((_noise_levels(stage) - level).abs().argmin())


def _is_truncated(stage: SamplingPipeline) -> bool:
    return bool(stage.denoiser.conditioner.sampling_options.get("truncated_conditioning"))


def _noise_levels(stage: SamplingPipeline) -> Tensor:
    """Return the noise level 2/pi atan(sigma_t / alpha_t) of every t, (T + 1,), as in `LowRes`."""
    t = torch.arange(stage.process.steps + 1, device=stage.device)
    alpha, sigma = stage.process.alpha_sigma(t)
    return (2 / math.pi * torch.atan2(sigma, alpha)).float()


def _check_pair(number: int, stage: SamplingPipeline, following: SamplingPipeline) -> None:
    low_res_shape = following.denoiser.conditioner.low_res_shape
    if low_res_shape is None:
        raise UserError(
            f"cascade: stage {number + 1} does not upsample; it must be trained with "
            "conditioner=low_res"
        )
    if stage.shape != low_res_shape:
        raise UserError(
            f"cascade: stage {number} samples images of {format_size(stage.shape)}, but stage "
            f"{number + 1} upsamples {format_size(low_res_shape)} to "
            f"{format_size(following.shape)}; the sizes must agree"
        )
    if _is_truncated(following) and stage.codec.space:
        raise UserError(
            f"conditioner.truncated_conditioning=true passes on noisy images, but stage {number} "
            "of this cascade samples latents; try false"
        )


def _check_classes(number: int, first: SamplingPipeline, stage: SamplingPipeline) -> None:
    if stage.classes not in (None, first.classes):
        labels = "has no labels" if first.classes is None else f"has {first.classes} labels"
        raise UserError(
            f"cascade: stage 1 {labels}, but stage {number} needs one of {stage.classes}; train "
            f"stage {number} with conditioner.label=false"
        )
    if stage.classes is not None and captions_differ(first.captions, stage.captions):
        raise UserError(
            f"cascade: stages 1 and {number} have the same classes under different labels; train "
            "them on the same data"
        )
