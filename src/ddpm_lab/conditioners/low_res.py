"""The conditioner of super-resolution: a smaller, noisy image (Ho et al., 2022)."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Batch, Condition, Conditioner, DataSpec, NoiseSampler
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.diffusion.rng import uniform
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.ranges import Fraction, check_ranges


@check_ranges
class LowRes(Conditioner):
    """The image at 1 / `factor` of the resolution, for super-resolution and cascades. The image z
    becomes cos(pi/2 l) z + sin(pi/2 l) eps, and the network takes the noise level l as well.
    Training draws l, so that the model is robust to errors of the previous stage (Ho et al., 2022,
    section 4). Raises ValueError if a value is out of range, UserError for points.

    Args:
        max_noise_level: Training draws l uniformly from [0, max_noise_level].
        noise_level: l at sampling.
        blur: [low, high], standard deviations in pixels of a Gaussian blur of half of the images in
            training; None for no blur.
        truncated_conditioning: Stop the previous stage at the noise level instead of adding noise.
        label: Also condition on the class; None: if the data has classes.
    """

    def __init__(
        self,
        spec: DataSpec,
        factor: Annotated[int, Ge(2)] = 2,
        max_noise_level: Fraction = 0.5,
        blur: Sequence[float] | None = None,
        noise_level: Fraction = 0.0,
        truncated_conditioning: bool = False,
        label: bool | None = None,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.low_res_shape = _downsampled_shape(spec.shape, factor)
        if label and spec.classes is None:
            raise ValueError(
                "label=true needs labels, which this data does not have; try label=false"
            )
        if blur is not None and not (len(blur) == 2 and 0 < blur[0] <= blur[1] < math.inf):
            raise ValueError(
                "blur must be [low, high], standard deviations above 0, or null "
                f"(got {list(blur)}); try [0.4,0.6]"
            )
        self.factor, self.max_noise_level, self.blur = factor, max_noise_level, blur
        self.classes, self.dropout = None if label is False else spec.classes, dropout
        self.cond_dims = {"image": spec.shape[0]}
        if self.classes is not None:
            self.cond_dims["classes"] = self.classes
        self.noise_stream = math.prod(self.low_res_shape)
        self.set_sampling_options(noise_level, truncated_conditioning)

    @check_ranges
    def set_sampling_options(self, noise_level: Fraction, truncated_conditioning: bool) -> None:
        """Set the sampling options. Raises ValueError for a level above `max_noise_level`."""
        if noise_level > self.max_noise_level:
            raise ValueError(
                f"noise_level must be at most max_noise_level={self.max_noise_level:g}, the limit "
                f"of training (got {noise_level:g})"
            )
        self.noise_level, self.truncated_conditioning = noise_level, truncated_conditioning

    @property
    def sampling_options(self) -> dict[str, Any]:
        options = ("noise_level", "truncated_conditioning")
        return {name: getattr(self, name) for name in options}

    def forward(self, batch: Batch, noise: NoiseSampler = torch.randn_like) -> Condition:
        z = self._low_res(batch)
        if "noise_level" in batch:  # z is noisy already
            noise_level = batch["noise_level"]
        else:
            noise_level = torch.full((len(z),), self.noise_level, device=z.device)
            if self.training:
                noise_level = self.max_noise_level * uniform(noise, noise_level)
                if self.blur is not None:
                    blur_half = uniform(noise, noise_level) < 0.5
                    z = _blur(z, blur_half, self.blur, uniform(noise, noise_level))
            angle = per_pixel(math.pi / 2 * noise_level, z)
            z = angle.cos() * z + angle.sin() * noise(z)
        image = F.interpolate(z, scale_factor=float(self.factor), mode="bilinear")
        label = batch["label"] if self.classes else None
        return Condition(label, image=image, noise_level=1000 * noise_level)

    def resolve(self, batch: Batch) -> Batch:
        return {"low_res": self._low_res(batch), **super().resolve(batch)}

    def _low_res(self, batch: Batch) -> Tensor:
        return batch["low_res"] if "low_res" in batch else F.avg_pool2d(batch["x0"], self.factor)


def _blur(x: Tensor, mask: Tensor, stds: Sequence[float], chance: Tensor) -> Tensor:
    """Apply a Gaussian filter of 3x3 pixels to the images (B, C, H, W) of `mask` (B,).

    `chance` (B,) in [0, 1) sets the standard deviation between the two `stds`.
    """
    low, high = stds
    std = low + (high - low) * chance
    side = per_pixel(mask * torch.exp(-1 / (2 * std**2)), x)
    for axis in (2, 3):
        size = x.shape[axis]
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate").narrow(5 - axis, 1, x.shape[5 - axis])
        neighbors = padded.narrow(axis, 0, size) + padded.narrow(axis, 2, size)
        x = (x + side * neighbors) / (1 + 2 * side)
    return x


def _downsampled_shape(shape: tuple[int, ...], factor: int) -> tuple[int, ...]:
    if len(shape) != 3:
        raise UserError(
            "conditioner=low_res is for images, but this data set has points; try conditioner=label"
        )
    channels, height, width = shape
    divisors = [n for n in range(2, 1 + min(height, width)) if height % n == width % n == 0]
    if factor not in divisors:
        advice = f"try factor={divisors[0]}" if divisors else "none does"
        raise ValueError(f"factor={factor} must divide images of {height}x{width}; {advice}")
    return channels, height // factor, width // factor
