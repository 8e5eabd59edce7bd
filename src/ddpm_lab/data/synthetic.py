"""Generated images of any size, for tests and benchmarks."""

import math

import torch

from ddpm_lab.data.datasets import Images, Splits
from ddpm_lab.data.image_transform import Resolution, image_size
from ddpm_lab.data.module import dataset
from ddpm_lab.utils.ranges import Count


@dataset
def synthetic(
    resolution: Resolution = 16, channels: Count = 3, classes: Count = 10, count: Count = 512
) -> Splits:
    """Return images (channels, *`resolution`) of a bright spot on a dark background.

    The class is the position of the spot on a circle; jitter and color are random. There are
    `count` training images and a quarter as many held-out images, at least 2.
    """
    generator = torch.Generator().manual_seed(0)
    total = count + max(count // 4, 2)
    labels = torch.arange(total) % classes
    angle = 2 * math.pi * labels / classes
    jitter = torch.randn(total, 2, generator=generator)
    center = 0.5 + 0.3 * torch.stack([angle.sin(), angle.cos()], 1) + 0.03 * jitter
    rows, columns = ((torch.arange(side) + 0.5) / side for side in image_size(resolution))
    squared_y = (rows[:, None] - center[:, 0, None, None]) ** 2
    squared_x = (columns[None] - center[:, 1, None, None]) ** 2
    spot = torch.exp(-(squared_y + squared_x) / (2 * 0.12**2))
    color = 0.5 + 0.5 * torch.rand(total, channels, 1, 1, generator=generator)
    pixels = (255 * color * spot[:, None]).round().byte()
    train, test = Images(pixels[:count], labels[:count]), Images(pixels[count:], labels[count:])
    return Splits("synthetic", train, test, [[str(label)] for label in range(classes)])
