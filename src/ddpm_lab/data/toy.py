"""Points, the fastest playground: laws that are known exactly, and toys of two dimensions. All lie well within [-1, 1],
as pixels do.
"""

import math

import torch
from torch import Tensor

from ddpm_lab.data.datasets import Points
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.analytic_denoisers import Mixture
from ddpm_lab.diffusion.rng import make_generator


def gaussian_mixture(
    modes: int = 8,
    radius: float = 0.7,
    std: float = 0.05,
    count: int = 8000,
    batch_size: int = 512,
    seed: int = 0,
) -> DataModule:
    """`modes` round Gaussians on a circle, each a class of its own: (2,), its density known.

    `count` training points and a quarter as many held out.
    """
    if modes < 1:
        raise ValueError(f"modes must be at least 1 (got {modes})")
    if not 0 < std < math.inf or not 0 <= radius < math.inf:
        raise ValueError(
            f"std={std:g} must be above 0, and radius={radius:g} at least 0; try std=0.05 radius=0.7"
        )
    angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    mixture = Mixture(
        means, torch.full((modes,), 1 / modes, dtype=torch.float64), std, torch.arange(modes)
    )
    x0, component = mixture.sample(_total(count), make_generator(0))
    return _data("gaussian_mixture", x0, component, count, modes, batch_size, seed, mixture)


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


def toy(
    shape: str = "moons", count: int = 8000, batch_size: int = 512, seed: int = 0
) -> DataModule:
    """Two classes of points in the shape of moons, spirals, rings or a checkerboard: (2,)."""
    if shape not in SHAPES:
        raise ValueError(f"shape={shape} is not one of {', '.join(SHAPES)}")
    stream = make_generator(0)
    total = _total(count)
    u, z = torch.rand(total, 2, generator=stream), torch.randn(total, 2, generator=stream)
    x0, label = SHAPES[shape](u, z)
    return _data(f"toy {shape}", x0, label, count, 2, batch_size, seed, None)


def _total(count: int) -> int:
    if count < 8:
        raise ValueError(f"count must be at least 8 (got {count})")
    return count + count // 4


def _data(
    name: str,
    x0: Tensor,
    labels: Tensor,
    count: int,
    classes: int,
    batch_size: int,
    seed: int,
    mixture: Mixture | None,
) -> DataModule:
    train, test = (
        Points(x0[part].float(), labels[part]) for part in (slice(count), slice(count, None))
    )
    return DataModule(
        name, train, test, classes=classes, batch_size=batch_size, seed=seed, mixture=mixture
    )
