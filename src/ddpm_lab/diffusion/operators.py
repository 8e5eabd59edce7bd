"""Measurement operators y = A(x) of inverse problems, on images (B, C, H, W)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ddpm_lab.utils.errors import pluralize
from ddpm_lab.utils.ranges import OpenFraction, check_ranges


class Operator(ABC):
    """A measurement of an image, without its noise."""

    linear: ClassVar[bool] = False
    """True if there is an `inverse`"""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return A(x), (B, ...), of `x` (B, C, H, W)."""

    def inverse(self, y: Tensor, ratio: Tensor | float = 0.0) -> Tensor:
        """Return A^T (A A^T + ratio I)^-1 y, (B, C, H, W), of `y` (B, ...), if A is linear.

        A `ratio` of 0 gives the pseudo-inverse. A tensor broadcasts against y.
        """
        raise NotImplementedError(f"{type(self).__name__} is not linear")


class LinearOperator(Operator):
    """A matrix."""

    linear = True

    @abstractmethod
    def inverse(self, y: Tensor, ratio: Tensor | float = 0.0) -> Tensor: ...


class Mask(LinearOperator):
    """y = keep x: 0 in hidden pixels. `keep` broadcasts against x, 1 is visible and 0 is hidden."""

    def __init__(self, keep: Tensor) -> None:
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        return self.keep.to(x) * x

    def inverse(self, y: Tensor, ratio: Tensor | float = 0.0) -> Tensor:
        return self.keep.to(y) * y / (1 + ratio)


class Separable(LinearOperator):
    """y = rows x columns^T in every channel, for matrices (H', H) and (W', W) float64.

    The pseudo-inverse drops singular values up to 1e-3, which would amplify rounding errors.
    """

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns
        self.row_svd, self.column_svd = (
            torch.linalg.svd(matrix, full_matrices=False) for matrix in (rows, columns)
        )
        self.singular_values = torch.outer(self.row_svd.S, self.column_svd.S)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows.to(x) @ x @ self.columns.T.to(x)

    def inverse(self, y: Tensor, ratio: Tensor | float = 0.0) -> Tensor:
        s = self.singular_values.to(y)
        power = s**2 + ratio
        gain = torch.where(power > 1e-6, s / power, 0)
        coordinates = self.row_svd.U.T.to(y) @ y @ self.column_svd.U.to(y)
        return self.row_svd.Vh.T.to(y) @ (gain * coordinates) @ self.column_svd.Vh.to(y)


class Gray(LinearOperator):
    """The gray image (B, 1, H, W) of an RGB one, with Pillow's weights (ITU-R 601)."""

    weights = torch.tensor([[[0.299]], [[0.587]], [[0.114]]], dtype=torch.float64)
    """(3, 1, 1)"""

    def forward(self, x: Tensor) -> Tensor:
        return (self.weights.to(x) * x).sum(1, keepdim=True)

    def inverse(self, y: Tensor, ratio: Tensor | float = 0.0) -> Tensor:
        return self.weights.to(y) * y / (self.weights.square().sum().to(y) + ratio)


class Saturation(Operator):
    """Overexposure: `amount` x, clipped to [-1, 1]. It is not linear."""

    def __init__(self, amount: float) -> None:
        self.amount = amount

    def forward(self, x: Tensor) -> Tensor:
        return (self.amount * x).clamp(-1, 1)


@check_ranges
def box(shape: tuple[int, ...], amount: OpenFraction = 0.5) -> Mask:
    """Hide a rectangle in the center, with the share `amount` of both sides."""
    keep = torch.ones(1, *shape[1:], dtype=torch.float64)
    rows, columns = (max(1, round(amount * side)) for side in shape[1:])
    y, x = (shape[1] - rows) // 2, (shape[2] - columns) // 2
    keep[:, y : y + rows, x : x + columns] = 0
    return Mask(keep)


@check_ranges
def blur(shape: tuple[int, ...], amount: Annotated[float, Gt(0), Le(1000)] = 1.0) -> Separable:
    """Blur by a Gaussian with the standard deviation `amount` in pixels; borders are mirrored."""
    return Separable(*(_blur_matrix(side, amount) for side in shape[1:]))


def _blur_matrix(side: int, std: float) -> Tensor:
    offsets = torch.arange(-int(4 * std + 0.5), int(4 * std + 0.5) + 1)
    weights = torch.softmax(-0.5 * (offsets.double() / std) ** 2, 0)
    source = (torch.arange(side)[:, None] + offsets) % (2 * side)
    source = torch.minimum(source, 2 * side - 1 - source)  # d c b a | a b c d | d c b a
    matrix = torch.zeros(side, side, dtype=torch.float64)
    return matrix.scatter_add(1, source, weights.expand(side, -1))


@check_ranges
def downsample(shape: tuple[int, ...], amount: Annotated[float, Ge(2)] = 2) -> Separable:
    """Average square blocks. Raises ValueError unless the side `amount` divides those of images."""
    factor = int(amount)
    if factor != amount or any(side % factor for side in shape[1:]):
        raise ValueError(
            f"amount={amount:g} must divide the sides of the images, {shape[1]} and {shape[2]}"
        )
    matrices = (torch.eye(side // factor, dtype=torch.float64) for side in shape[1:])
    return Separable(*(matrix.repeat_interleave(factor, 1) / factor for matrix in matrices))


def gray(shape: tuple[int, ...], amount: None = None) -> Gray:
    """Remove the colors. Raises ValueError unless there are three channels."""
    if shape[0] != 3:
        channels = pluralize(shape[0], "channel")
        raise ValueError(f"operator=gray needs RGB images (this model has {channels})")
    if amount is not None:
        raise ValueError(f"amount={amount} is not for operator=gray; try guidance.amount=null")
    return Gray()


@check_ranges
def saturation(shape: tuple[int, ...], amount: Annotated[float, Gt(1)] = 2.0) -> Saturation:
    return Saturation(amount)


OPERATORS: dict[str, Callable[..., Operator]] = {
    builder.__name__: builder for builder in (box, blur, downsample, gray, saturation)
}
"""Functions of the shape (C, H, W) and an amount that build an operator, by name"""
