"""Points in the plane, within [-1, 1]: Gaussian mixtures with an exact density, and toy shapes."""

import math
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ddpm_lab.data.datasets import Points, Splits
from ddpm_lab.data.module import dataset
from ddpm_lab.diffusion.analytic_denoisers import Mixture
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.utils.ranges import Count, NonNegative, Positive

Size = Annotated[int, Ge(8)]


@dataset
def gaussian_mixture(
    modes: Count = 8, radius: NonNegative = 0.7, std: Positive = 0.05, count: Size = 8000
) -> Splits:
    """Return points (2,) of `modes` isotropic Gaussians on a circle, one class each.

    There are `count` training points and a quarter as many held-out points.
    """
    angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    weights = torch.full((modes,), 1 / modes, dtype=torch.float64)
    mixture = Mixture(means, weights, std, torch.arange(modes))
    x0, component = mixture.sample(count + count // 4, make_generator(0))
    return _split("gaussian_mixture", x0, component, count, modes, mixture)


def _moons(u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    label = (u[:, 0] < 0.5).long()
    angle = math.pi * u[:, 1]
    x = torch.stack(
        [angle.cos() + label - 0.5, angle.sin() * (1 - 2 * label) + 0.5 * label - 0.25], dim=1
    )
    return (x / 1.7 + 0.04 * z), label


def _spirals(u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    label = (u[:, 0] < 0.5).long()
    angle = 3 * math.pi * u[:, 1].sqrt()
    radius = 0.85 * angle / (3 * math.pi) * (1 - 2 * label)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1) + 0.02 * z, label


def _rings(u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    label = (u[:, 0] < 2 / 3).long()
    angle = 2 * math.pi * u[:, 1]
    radius = (0.4 + 0.4 * label)[:, None]
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.03 * z, label


def _checkerboard(u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    column, row = (u[:, 0] * 4).long(), (u[:, 1] * 2).long() * 2
    row = row + column % 2
    inside = torch.frac(torch.stack([u[:, 0] * 4, u[:, 1] * 2], dim=1))
    return (torch.stack([column, row], dim=1) + inside) * 0.45 - 0.9, column % 2


SHAPES = {shape.__name__[1:]: shape for shape in (_moons, _spirals, _rings, _checkerboard)}


@dataset
def toy(shape: str = "moons", count: Size = 8000) -> Splits:
    """Return points (2,) of two classes: moons, spirals, rings or a checkerboard."""
    if shape not in SHAPES:
        raise ValueError(f"shape={shape} is not one of {', '.join(SHAPES)}")
    generator, total = make_generator(0), count + count // 4
    u = torch.rand(total, 2, generator=generator)
    z = torch.randn(total, 2, generator=generator)
    x0, labels = SHAPES[shape](u, z)
    return _split(f"toy {shape}", x0, labels, count, classes=2)


def _split(
    name: str, x0: Tensor, labels: Tensor, count: int, classes: int, mixture: Mixture | None = None
) -> Splits:
    x0, captions = x0.float(), [[str(label)] for label in range(classes)]
    train, test = Points(x0[:count], labels[:count]), Points(x0[count:], labels[count:])
    return Splits(name, train, test, captions, mixture)
