"""Batches, and the data's properties that a model depends on."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

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
