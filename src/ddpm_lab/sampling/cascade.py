"""Models in a row, each of which enlarges what the one before drew (Ho et al., 2022, cascaded diffusion models)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.conditioners.low_res import LowRes
from ddpm_lab.data.datasets import Batch, Held, Images
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.sampling.class_names import disagree
from ddpm_lab.sampling.conditions import by
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.distributed import everyones, mine
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
                    f"cascade: stage {number} draws pictures of {by(stage.shape)}, and stage {number + 1} "
                    f"enlarges those of {by(told.small)} to {by(following.shape)}; they must agree"
                )
            if told.truncated and stage.codec.space:
                raise UserError(
                    f"conditioner.truncated=true hands over noisy pictures, and stage {number} of this "
                    "cascade draws latents; try false"
                )
            if following.classes not in (None, known):
                knows = "no labels are known" if known is None else f"{known} labels are known"
                raise UserError(
                    f"cascade: {knows} before stage {number + 1}, which must hear one of "
                    f"{following.classes}; train that with conditioner.label=false"
                )
            if following.classes is not None and disagree(stages[0].captions, following.captions):
                raise UserError(
                    f"cascade: stages 1 and {number + 1} have the same classes under other labels; train "
                    "them on the same data"
                )

    def check(self, asked: Batch) -> None:
        """Raises UserError where what the first stage is asked leaves open what a later one must hear."""
        for number, stage in enumerate(self.stages[1:], 2):
            if "label" not in asked and stage.classes is not None:
                raise UserError(
                    f"text= says no class, which stage {number} of the cascade must hear; try label=, or "
                    "train that stage with conditioner.label=false"
                )

    def steps(self, count: int, batch_size: int) -> int:
        """How many this process takes in drawing `count` samples in batches."""
        each = [
            len(stage.sampler.times(stage.process.steps, until)) - 1
            for stage, until in self._ends()
        ]
        return sum(each) * len(mine(range(math.ceil(count / batch_size))))

    def lead(
        self,
        asked: Batch,
        count: int,
        *,
        seed: int,
        batch_size: int,
        bar: "tqdm[NoReturn] | None" = None,
    ) -> tuple[list[Held], Batch]:
        """What `count` samples of the stages before the last are, and what the last is then asked; `asked` is for the
        first.

        A sample i of a seed is the same in any company. Without truncation a stage is given pictures in 8 bits, as if
        the stage before had been drawn and saved alone.
        """
        drawn: list[Held] = []
        for (stage, until), following in zip(self._ends(), self.stages[1:], strict=False):
            walks = stage.ends(
                stage.denoiser,
                count,
                asked=asked,
                seed=seed,
                batch_size=batch_size,
                bar=bar,
                until=until,
            )
            ends = everyones([x.cpu() for x, _ in walks])
            x = torch.cat(ends).to(stage.device)
            shown = torch.cat([stage.show(some.to(stage.device), None)[0] for some in ends])
            label = asked.get("label")
            drawn.append(Images(shown, None if label is None else label.to(shown.device)))
            asked = following.ask(count, given=drawn[-1])
            told = following.denoiser.conditioner
            if isinstance(told, LowRes) and told.truncated:
                time = torch.full((count,), until, device=x.device)
                asked |= {
                    "low_res": x / per_pixel(stage.process.scale(time), x),
                    "level": _levels(stage)[time],
                }
        return drawn, asked

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
            until = 0
            told = following and following.denoiser.conditioner
            if isinstance(told, LowRes) and told.truncated:
                until = int((_levels(stage) - told.level).abs().argmin())
            found.append((stage, until))
        return found


def _levels(stage: Diffusion) -> Tensor:
    """(T + 1,), of noise in x_t as `LowRes` counts them."""
    signal, noise = stage.process.scales(torch.arange(stage.process.steps + 1, device=stage.device))
    return (2 / math.pi * torch.atan2(noise, signal)).float()
