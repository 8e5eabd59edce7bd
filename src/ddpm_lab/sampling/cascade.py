"""Models in a row, each of which enlarges what the one before drew (Ho et al., 2022, cascaded diffusion models)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.conditioners.low_res import LowRes
from ddpm_lab.data.datasets import Batch, Images, InMemorySplit
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.sampling.class_names import captions_differ
from ddpm_lab.sampling.conditions import format_size
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.distributed import all_gather, shard
from ddpm_lab.utils.errors import UserError


class Cascade:
    """A single model is a cascade of one stage. Each stage draws with its own sampler, guidance and weights. Raises
    UserError where stages do not fit one another.
    """

    def __init__(self, stages: Sequence[Diffusion]) -> None:
        self.stages = stages
        known = stages[0].classes
        for number, (stage, following) in enumerate(pairwise(stages), 1):
            told = following.denoiser.conditioner
            if not isinstance(told, LowRes):
                raise UserError(
                    f"cascade: stage {number + 1} enlarges nothing; it must be trained with "
                    "conditioner=low_res"
                )
            if stage.shape != told.small:
                raise UserError(
                    f"cascade: stage {number} draws images of {format_size(stage.shape)}, and stage {number + 1} "
                    f"enlarges those of {format_size(told.small)} to {format_size(following.shape)}; they must agree"
                )
            if told.truncated_conditioning and stage.codec.space:
                raise UserError(
                    f"conditioner.truncated_conditioning=true hands over noisy images, and stage {number} of this "
                    "cascade draws latents; try false"
                )
            if following.classes not in (None, known):
                knows = "no labels are known" if known is None else f"{known} labels are known"
                raise UserError(
                    f"cascade: {knows} before stage {number + 1}, which must hear one of "
                    f"{following.classes}; train that with conditioner.label=false"
                )
            if following.classes is not None and captions_differ(
                stages[0].captions, following.captions
            ):
                raise UserError(
                    f"cascade: stages 1 and {number + 1} have the same classes under other labels; train "
                    "them on the same data"
                )

    def check(self, conditions: Batch) -> None:
        """Raises UserError where what the first stage is asked leaves open what a later one must hear."""
        for number, stage in enumerate(self.stages[1:], 2):
            if "label" not in conditions and stage.classes is not None:
                raise UserError(
                    f"text= says no class, which stage {number} of the cascade must hear; try label=, or "
                    "train that stage with conditioner.label=false"
                )

    def steps(self, count: int, batch_size: int) -> int:
        """How many this process takes in drawing `count` samples in batches."""
        each = [
            len(stage.sampler.timesteps(stage.process.steps, t_end)) - 1
            for stage, t_end in self._ends()
        ]
        return sum(each) * len(shard(range(math.ceil(count / batch_size))))

    def sample_earlier_stages(
        self,
        conditions: Batch,
        count: int,
        *,
        seed: int,
        batch_size: int,
        bar: "tqdm[NoReturn] | None" = None,
    ) -> tuple[list[InMemorySplit], Batch]:
        """What `count` samples of the stages before the last are, and what the last is then asked; `asked` is for the
        first.

        A sample i of a seed is the same in any company. Without truncation a stage is given images in 8 bits, as if
        the stage before had been drawn and saved alone.
        """
        drawn: list[InMemorySplit] = []
        for (stage, t_end), following in zip(self._ends(), self.stages[1:], strict=False):
            walks = stage.sample_latents(
                stage.denoiser,
                count,
                conditions=conditions,
                seed=seed,
                batch_size=batch_size,
                bar=bar,
                t_end=t_end,
            )
            ends = all_gather([x.cpu() for x, _ in walks])
            x = torch.cat(ends).to(stage.device)
            shown = torch.cat([stage.to_images(some.to(stage.device), None)[0] for some in ends])
            label = conditions.get("label")
            drawn.append(Images(shown, None if label is None else label.to(shown.device)))
            conditions = following.make_conditions(count, given=drawn[-1])
            told = following.denoiser.conditioner
            if isinstance(told, LowRes) and told.truncated_conditioning:
                time = torch.full((count,), t_end, device=x.device)
                conditions |= {
                    "low_res": x / per_pixel(stage.process.scale(time), x),
                    "noise_level": _levels(stage)[time],
                }
        return drawn, conditions

    def protocol(self) -> dict[str, Any]:
        """What samples depend on beside weights and seed."""
        after = [{"run": stage.denoiser.origin, **stage.protocol()} for stage in self.stages[:-1]]
        return {**self.stages[-1].protocol(), **({"after": after} if after else {})}

    def _ends(self) -> list[tuple[Diffusion, int]]:
        """Each stage, and the time at which it ends: 0 or, truncated, that whose level of noise is nearest to what the
        next stage wants.
        """
        found = []
        for stage, following in zip(self.stages, [*self.stages[1:], None], strict=True):
            t_end = 0
            told = following and following.denoiser.conditioner
            if isinstance(told, LowRes) and told.truncated_conditioning:
                t_end = int((_levels(stage) - told.noise_level).abs().argmin())
            found.append((stage, t_end))
        return found


def _levels(stage: Diffusion) -> Tensor:
    """(T + 1,), of noise in x_t as `LowRes` counts them."""
    alpha, noise = stage.process.alpha_sigma(
        torch.arange(stage.process.steps + 1, device=stage.device)
    )
    return (2 / math.pi * torch.atan2(noise, alpha)).float()
