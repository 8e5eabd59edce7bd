"""Images made on the spot, of any size: for tests, benchmarks and shapes that no data set at hand has."""

import math

import torch

from ddpm_lab.data.datasets import Images
from ddpm_lab.data.module import DataModule


def synthetic(
    resolution: int = 16,
    channels: int = 3,
    classes: int = 10,
    count: int = 512,
    batch_size: int = 64,
    seed: int = 0,
) -> DataModule:
    """A bright spot on a dark ground: the class says where on a circle, chance adds jitter and a colour.

    `count` training images and a quarter as many held out (at least 2), (channels, resolution, resolution).
    """
    for name, value in {
        "resolution": resolution,
        "channels": channels,
        "classes": classes,
        "count": count,
    }.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1 (got {value})")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB) (got {channels})")
    generator = torch.Generator().manual_seed(0)
    total = count + max(count // 4, 2)
    labels = torch.arange(total) % classes
    angle = 2 * math.pi * labels / classes
    centre = (
        0.5
        + 0.3 * torch.stack([angle.sin(), angle.cos()], 1)
        + 0.03 * torch.randn(total, 2, generator=generator)
    )
    grid = (torch.arange(resolution) + 0.5) / resolution
    squared = (grid[None, :, None] - centre[:, 0, None, None]) ** 2 + (
        grid[None, None] - centre[:, 1, None, None]
    ) ** 2
    spot = torch.exp(-squared / (2 * 0.12**2))
    colour = 0.5 + 0.5 * torch.rand(total, channels, 1, 1, generator=generator)
    pixels = (255 * colour * spot[:, None]).round().byte()
    return DataModule(
        "synthetic",
        Images(pixels[:count], labels[:count]),
        Images(pixels[count:], labels[count:]),
        classes=classes,
        batch_size=batch_size,
        seed=seed,
    )
