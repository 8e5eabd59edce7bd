"""The condition of super-resolution: a smaller picture, made noisy (Ho et al., 2022, cascaded diffusion models)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lab.conditioners.base import Spec, share
from ddpm_lab.diffusion.conditioning import Condition, Conditioner, Noise
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.diffusion.rng import uniform
from ddpm_lab.utils.errors import UserError


class LowRes(Conditioner):
    """The same picture at 1 / `factor` of the resolution, and with `label` its class (None: where there are classes):
    super-resolution, and a stage of a cascade.

    It is made noisy, cos(pi/2 l) z + sin(pi/2 l) eps, and the network hears the level l: drawn from [0, `highest`] in
    training, `level` at sampling, so that a model is not thrown by what another model drew. With `truncated`, what the
    stage before draws is noisy because it stops early, not because noise is added. `blur`: half of the training's small
    pictures are blurred, by a standard deviation drawn from [low, high] pixels (all of this in their section 4). Raises
    ValueError where the pictures cannot be divided, or a level is out of range.
    """

    def __init__(
        self,
        spec: Spec,
        factor: int = 2,
        highest: float = 0.5,
        blur: Sequence[float] | None = None,
        level: float = 0.0,
        truncated: bool = False,
        label: bool | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(spec.shape) != 3:
            raise UserError(
                "conditioner=low_res is for pictures, and this data has none; try conditioner=label"
            )
        channels, *sides = spec.shape
        if factor < 2 or any(side % factor for side in sides):
            fits = [n for n in range(2, 1 + min(sides)) if not any(side % n for side in sides)]
            raise ValueError(
                f"factor={factor} must be at least 2 and divide pictures of {sides[0]}x{sides[1]}; "
                + (f"try factor={fits[0]}" if fits else "none does")
            )
        label = spec.classes is not None if label is None else label
        if label and spec.classes is None:
            raise ValueError("label=true needs labels, which this data has not; try label=false")
        if blur is not None and not (len(blur) == 2 and 0 < blur[0] <= blur[1] < math.inf):
            raise ValueError(
                f"blur must be [low, high], standard deviations above 0, or null (got {list(blur)}); "
                "try [0.4,0.6]"
            )
        self.small = (channels, *(side // factor for side in sides))
        self.factor, self.highest, self.blur = factor, _level(highest=highest), blur
        self.classes, self.dropout = spec.classes if label else None, share(dropout)
        self.doors = {"image": channels} | (
            {} if self.classes is None else {"classes": self.classes}
        )
        self.stream = math.prod(self.small)
        self.choose(level, truncated)

    def choose(self, level: float, truncated: bool) -> None:
        """These, from now on, at sampling. Raises ValueError for a level above what training saw."""
        if _level(level=level) > self.highest:
            raise ValueError(
                f"level must be at most highest={self.highest:g}, that of training (got {level:g})"
            )
        self.level, self.truncated = level, truncated

    @property
    def chosen(self) -> dict[str, Any]:
        return {"level": self.level, "truncated": self.truncated}

    def forward(self, batch: dict[str, Tensor], noise: Noise = torch.randn_like) -> Condition:
        z = self._small(batch)
        if "level" in batch:  # it is as noisy as that already
            level, noisy = batch["level"], z
        else:
            level = torch.full((len(z),), self.level, device=z.device)
            if self.training:
                level = self.highest * uniform(noise, level)
                z = (
                    z
                    if self.blur is None
                    else _blurred(z, self.blur, uniform(noise, level), uniform(noise, level))
                )
            angle = per_pixel(math.pi / 2 * level, z)
            noisy = angle.cos() * z + angle.sin() * noise(z)
        image = F.interpolate(noisy, scale_factor=float(self.factor), mode="bilinear")
        return Condition(batch["label"] if self.classes else None, image=image, level=1000 * level)

    def settle(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"low_res": self._small(batch), **super().settle(batch)}

    def _small(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["low_res"] if "low_res" in batch else F.avg_pool2d(batch["x0"], self.factor)


def _blurred(x: Tensor, stds: Sequence[float], chance: Tensor, share: Tensor) -> Tensor:
    """(B, C, H, W), of which half has been through a Gaussian filter of 3x3 pixels, by two numbers in [0, 1) each."""
    low, high = stds
    std = low + (high - low) * share
    side = per_pixel((chance < 0.5) * torch.exp(-1 / (2 * std**2)), x)
    for axis in (2, 3):
        near = F.pad(x, (1, 1, 1, 1), mode="replicate").narrow(5 - axis, 1, x.shape[5 - axis])
        x = (
            x + side * (near.narrow(axis, 0, x.shape[axis]) + near.narrow(axis, 2, x.shape[axis]))
        ) / (1 + 2 * side)
    return x


def _level(**levels: float) -> float:
    ((name, value),) = levels.items()
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a level of noise and must lie in [0, 1] (got {value:g})")
    return value
