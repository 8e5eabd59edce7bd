"""The data's properties that a model depends on, and checks that conditioners share."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ddpm_lab.utils.errors import UserError

Batch = dict[str, Tensor]
"""Tensors with one row per sample: "x0", "label", "text", "low_res" or "noise_level"."""


class DataSpec(NamedTuple):
    """Properties of the data that determine parts of a model."""

    shape: tuple[int, ...]
    """(C, H, W), or (d,) for points"""
    classes: int | None
    """Number of classes; None without labels"""
    bin_width: float | None
    """Width of the bins that x_0 is rounded to; None without rounding"""
    captions: Sequence[Sequence[str]] | None
    """Captions of each class; None without labels"""


def require_classes(spec: DataSpec) -> int:
    """Return the number of classes. Raises UserError for data without labels."""
    if spec.classes is None:
        raise UserError(
            "conditioner needs labels, which this data does not have; try conditioner=none, or "
            "data with labels"
        )
    return spec.classes


def check_dropout(dropout: float) -> float:
    """Return `dropout`. Raises ValueError unless it is a probability."""
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout is a probability and must lie in [0, 1] (got {dropout:g})")
    return dropout
