"""Models in a row, each of which enlarges what the one before drew (Ho et al., 2022, cascaded diffusion models)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.splits import Split
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.errors import UserError
from ddpm_lab.low_res import LowRes
from ddpm_lab.systems.asking import by
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.systems.training import Batch


class Cascade:
    """A single model is a cascade of one stage. Each stage draws with its own sampler, guidance and weights. Raises
    UserError where stages do not fit one another.
    """

    def __init__(self, stages: Sequence[Diffusion]) -> None:
        self.stages = stages
        for number, (stage, following) in enumerate(pairwise(stages), 1):
            _check(number, stage, following)

    def steps(self, count: int, batch_size: int) -> int:
        """How many there are in drawing `count` samples in batches."""
        each = [stage.sampler.times(stage.process.steps).index(until) for stage, until in self._ends()]
        return sum(each) * math.ceil(count / batch_size)

    def lead(
        self, asked: Batch, count: int, *, seed: int, batch_size: int, bar: "tqdm[NoReturn] | None" = None
    ) -> tuple[list[Split], Batch]:
        """What `count` samples of the stages before the last are, and what the last is then asked; `asked` is for the
        first.

        A sample i of a seed is the same in any company. Without truncation a stage is given pictures in 8 bits, as if
        the stage before had been drawn and saved alone.
        """
        hearing = [number for number, stage in enumerate(self.stages, 1) if stage.denoiser.conditioner.classes]
        if "label" not in asked and hearing and hearing[-1] > 1:
            raise UserError(f"text= says no class, which stage {hearing[-1]} of the cascade must hear; try label=, or "
                            "train that stage with conditioner.label=false")  # fmt: skip
        drawn = []
        for (stage, until), following in zip(self._ends(), self.stages[1:], strict=False):
            ends = list(stage.ends(stage.denoiser, count, asked=asked, seed=seed, batch_size=batch_size, bar=bar,
                                   until=until))  # fmt: skip
            x = torch.cat([end for end, _ in ends])
            drawn.append(stage.show(x, asked.get("label")))
            asked = following.ask(count, given=drawn[-1])
            if until:
                time = torch.full((count,), until, device=x.device)
                asked |= {"low_res": x / per_pixel(stage.process.scale(time), x), "level": _levels(stage, time)}
        return drawn, asked

    def protocol(self) -> dict[str, Any]:
        """What samples depend on beside weights and seed."""
        after = [{"run": stage.denoiser.origin, **stage.protocol()} for stage in self.stages[:-1]]
        return {**self.stages[-1].protocol(), **({"after": after} if after else {})}

    def _ends(self) -> list[tuple[Diffusion, int]]:
        """Each stage, and the time at which it ends: 0 or, truncated, that of its stops whose level of noise is nearest
        to what the next stage wants.
        """
        found = []
        for stage, following in zip(self.stages, [*self.stages[1:], None], strict=True):
            until = 0
            told = following and following.denoiser.conditioner
            if isinstance(told, LowRes) and told.truncated:
                times = torch.tensor(stage.sampler.times(stage.process.steps))
                until = int(times[(_levels(stage, times) - told.level).abs().argmin()])
            found.append((stage, until))
        return found


def _levels(stage: Diffusion, times: Tensor) -> Tensor:
    """(B,), of noise in x_t as `LowRes` counts them."""
    signal, noise = stage.process.scales(times.to(stage.device))
    return (2 / math.pi * torch.atan2(noise, signal)).float().to(times.device)


def _check(number: int, stage: Diffusion, following: Diffusion) -> None:
    """Raises UserError unless `following`, the stage after stage `number`, can enlarge what that one draws."""
    told = following.denoiser.conditioner
    if not isinstance(told, LowRes):
        raise UserError(f"cascade: stage {number + 1} enlarges nothing; it must be trained with conditioner=low_res")
    if stage.shape != told.small:
        raise UserError(f"cascade: stage {number} draws pictures of {by(stage.shape)}, and stage {number + 1} enlarges "
                        f"those of {by(told.small)} to {by(following.shape)}; they must agree")  # fmt: skip
    if told.classes is not None and told.classes != stage.classes:
        knows = "no labels" if stage.classes is None else f"{stage.classes} labels"
        raise UserError(f"cascade: stage {number} knows {knows}, and stage {number + 1} must hear one of "
                        f"{told.classes}; train that with conditioner.label=false")  # fmt: skip
    if told.truncated and stage.codec.shape != stage.shape:
        raise UserError(f"conditioner.truncated=true hands over noisy pictures, and stage {number} of this cascade "
                        "draws latents; try false")  # fmt: skip
