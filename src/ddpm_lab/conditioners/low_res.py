"""The condition of super-resolution: a smaller image, made noisy (Ho et al., 2022, cascaded diffusion models)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lab.conditioners.base import DataSpec, check_dropout
from ddpm_lab.diffusion.conditioning import Condition, Conditioner, NoiseSampler
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.diffusion.rng import uniform
from ddpm_lab.utils.errors import UserError


class LowRes(Conditioner):
    """The same image at 1 / `factor` of the resolution, and with `label` its class (None: where there are classes):
    super-resolution, and a stage of a cascade.

    It is made noisy, cos(pi/2 l) z + sin(pi/2 l) eps, and the network hears the noise_level l: drawn from [0, `max_noise_level`] in
    training, `noise_level` at sampling, so that a model is not thrown by what another model drew. With `truncated_conditioning`, what the
    stage before draws is noisy because it stops early, not because noise is added. `blur`: half of the training's small
    images are blurred, by a standard deviation drawn from [low, high] pixels (all of this in their section 4). Raises
    ValueError where the images cannot be divided, or a noise_level is out of range.
    """

    def __init__(
        self,
        spec: DataSpec,
        factor: int = 2,
        max_noise_level: float = 0.5,
        blur: Sequence[float] | None = None,
        noise_level: float = 0.0,
        truncated_conditioning: bool = False,
        label: bool | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(spec.shape) != 3:
            raise UserError(
                "conditioner=low_res is for images, and this data has none; try conditioner=label"
            )
        channels, *sides = spec.shape
        if factor < 2 or any(side % factor for side in sides):
            fits = [n for n in range(2, 1 + min(sides)) if not any(side % n for side in sides)]
            raise ValueError(
                f"factor={factor} must be at least 2 and divide images of {sides[0]}x{sides[1]}; "
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
        self.factor, self.max_noise_level, self.blur = (
            factor,
            _check_level(max_noise_level=max_noise_level),
            blur,
        )
        self.classes, self.dropout = spec.classes if label else None, check_dropout(dropout)
        self.cond_dims = {"image": channels} | (
            {} if self.classes is None else {"classes": self.classes}
        )
        self.stream = math.prod(self.small)
        self.set_sampling_options(noise_level, truncated_conditioning)

    def set_sampling_options(self, noise_level: float, truncated_conditioning: bool) -> None:
        """These, from now on, at sampling. Raises ValueError for a noise_level above what training saw."""
        if _check_level(noise_level=noise_level) > self.max_noise_level:
            raise ValueError(
                f"noise_level must be at most max_noise_level={self.max_noise_level:g}, that of training (got {noise_level:g})"
            )
        self.noise_level, self.truncated_conditioning = noise_level, truncated_conditioning

    @property
    def sampling_options(self) -> dict[str, Any]:
        return {
            "noise_level": self.noise_level,
            "truncated_conditioning": self.truncated_conditioning,
        }

    def forward(
        self, batch: dict[str, Tensor], noise: NoiseSampler = torch.randn_like
    ) -> Condition:
        z = self._small(batch)
        if "noise_level" in batch:  # it is as noisy as that already
            noise_level, noisy = batch["noise_level"], z
        else:
            noise_level = torch.full((len(z),), self.noise_level, device=z.device)
            if self.training:
                noise_level = self.max_noise_level * uniform(noise, noise_level)
                z = (
                    z
                    if self.blur is None
                    else _blurred(
                        z, self.blur, uniform(noise, noise_level), uniform(noise, noise_level)
                    )
                )
            angle = per_pixel(math.pi / 2 * noise_level, z)
            noisy = angle.cos() * z + angle.sin() * noise(z)
        image = F.interpolate(noisy, scale_factor=float(self.factor), mode="bilinear")
        return Condition(
            batch["label"] if self.classes else None, image=image, noise_level=1000 * noise_level
        )

    def resolve(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"low_res": self._small(batch), **super().resolve(batch)}

    def _small(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["low_res"] if "low_res" in batch else F.avg_pool2d(batch["x0"], self.factor)


def _blurred(x: Tensor, stds: Sequence[float], chance: Tensor, check_dropout: Tensor) -> Tensor:
    """(B, C, H, W), of which half has been through a Gaussian filter of 3x3 pixels, by two numbers in [0, 1) each."""
    low, high = stds
    std = low + (high - low) * check_dropout
    side = per_pixel((chance < 0.5) * torch.exp(-1 / (2 * std**2)), x)
    for axis in (2, 3):
        near = F.pad(x, (1, 1, 1, 1), mode="replicate").narrow(5 - axis, 1, x.shape[5 - axis])
        x = (
            x + side * (near.narrow(axis, 0, x.shape[axis]) + near.narrow(axis, 2, x.shape[axis]))
        ) / (1 + 2 * side)
    return x


def _check_level(**levels: float) -> float:
    ((name, value),) = levels.items()
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a noise level and must lie in [0, 1] (got {value:g})")
    return value
