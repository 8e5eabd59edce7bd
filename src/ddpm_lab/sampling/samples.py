"""Samples of a model: images or points, shown, saved and read by name."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_lab.data.datasets import Batch, Images, InMemorySplit, Points, to_uint8
from ddpm_lab.reports.grids import grid_image, save_image
from ddpm_lab.sampling.conditions import format_size
from ddpm_lab.utils.arguments import check_call
from ddpm_lab.utils.atomic_io import make_directory
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.ranges import Count

ARRAYS: dict[str, tuple[str, int, str, type]] = {
    "label": ("labels", 1, "iu", np.int64),
    "text": ("text", 2, "u", np.uint8),
    "low_res": ("low_res", 4, "f", np.float32),
}
"""Conditions: name in an .npz, number of dimensions, kinds in a file, and type for the model"""
GRID = 400
"""Largest number of images in a grid"""


@check_call
@dataclass(frozen=True, eq=False)
class Samples:
    """Images or points, with their labels. A notebook shows them as a picture.

    Raises UserError for other shapes and types.
    """

    tensor: Tensor
    """(N, C, H, W) uint8 for images, (N, d) float32 for points"""
    labels: Tensor | None = None
    """(N,) int64, or None"""
    class_names: Sequence[str] | None = None
    """The name of each class"""

    def __post_init__(self) -> None:
        if (self.tensor.ndim, self.tensor.dtype) not in ((4, torch.uint8), (2, torch.float32)):
            raise UserError(
                "samples must be images (N, C, H, W) uint8, or points (N, d) float32 (got "
                f"{describe(self.tensor)}); try Samples.from_x0(x0)"
            )
        if self.labels is None:
            return
        if self.labels.shape != self.tensor.shape[:1] or self.labels.dtype != torch.int64:
            count, text = len(self), describe(self.labels)
            raise UserError(f"labels must be ({count},) int64 for {count} samples (got {text})")

    @classmethod
    def from_x0(cls, x0: Tensor, labels: Tensor | None = None) -> "Samples":
        """Return images (N, C, H, W) in [-1, 1] as uint8, or points (N, d) as float32."""
        return cls(x0.float() if x0.ndim == 2 else to_uint8(x0), labels)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int | slice | Tensor) -> "Samples":
        """Return one sample, a slice, or the samples at an index tensor. Raises IndexError."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} is out of range for {len(self)} samples")
            index = slice(index, index + 1 or None)
        labels = None if self.labels is None else self.labels[index]
        return Samples(self.tensor[index], labels, self.class_names)

    def __repr__(self) -> str:
        kind, shape = "points" if self.is_points else "images", format_size(self.tensor.shape[1:])
        return f"Samples({len(self)} {kind} of {shape})"

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.grid().save(stream, "png")
        return stream.getvalue()

    @property
    def is_points(self) -> bool:
        return self.tensor.ndim == 2

    @property
    def split(self) -> InMemorySplit:
        """The samples as data."""
        return (Points if self.is_points else Images)(self.tensor, self.labels)

    @property
    def x0(self) -> Tensor:
        """(N, ...) float32; images in [-1, 1]"""
        return self.split.x0

    @check_call
    def grid(self, columns: Count = 10) -> Image.Image:
        """Return a grid of the first 400 images, row by row, or a scatter plot of the points."""
        if not self.is_points:
            return grid_image(self.tensor[:GRID], columns)
        from ddpm_lab.reports.figures import draw_scatter

        stream = io.BytesIO()
        draw_scatter({"samples": (self.tensor, self.labels)}).savefig(stream, format="png")
        return Image.open(stream)

    @check_call
    def save(self, folder: str | Path, columns: Count = 10) -> dict[str, Path]:
        """Write a grid, each image, and samples.npz; return the files by "plot", "grid", ...

        Raises ResourceError if `folder` cannot be created.
        """
        out = make_directory(str(folder))
        kind, name = ("plot", "scatter.png") if self.is_points else ("grid", "grid.png")
        files = {kind: out / name}
        self.grid(columns).save(files[kind])
        if not self.is_points:
            files["images"] = out / "images"
            files["images"].mkdir(exist_ok=True)
            for i, pixels in enumerate(self.tensor):
                save_image(pixels, files["images"] / f"{i:06d}.png")
        files["arrays"] = out / "samples.npz"
        np.savez_compressed(files["arrays"], **self.arrays())
        return files

    def arrays(self) -> dict[str, Any]:
        """Return the arrays of samples.npz: images (N, H, W, C) or points (N, d), and labels with
        the names of the classes, which data=array reads.
        """
        values = self.tensor if self.is_points else self.tensor.permute(0, 2, 3, 1)
        arrays = {"points" if self.is_points else "images": values.numpy()}
        if self.labels is not None:
            arrays["labels"] = self.labels.cpu().numpy()
            if self.class_names:
                arrays["class_names"] = np.array(self.class_names)
        return arrays


def to_split(
    images: "Samples | Tensor", shape: Sequence[int | str], is_points: bool
) -> InMemorySplit:
    """Return samples or images as data.

    Raises UserError unless there are some and they have `shape`; "C", "H", "W" fit any number.
    """
    dtype = torch.float32 if is_points else torch.uint8
    match images:
        case Samples():
            tensor, labels = images.tensor, images.labels
        case _:
            tensor, labels = images, None
    check_tensor("images", tensor, shape, dtype)
    return Samples(tensor, labels).split


def check_tensor(name: str, tensor: Tensor, shape: Sequence[int | str], dtype: torch.dtype) -> None:
    """Raise UserError unless `tensor` is (N, *shape) of `dtype`, N > 0, without NaN and infinity.

    Texts in `shape` stand for any size.
    """
    fits = tensor.ndim == len(shape) + 1 and len(tensor) and tensor.dtype == dtype
    sizes = zip(tensor.shape[1:], shape, strict=False)
    if not fits or not all(isinstance(size, str) or size == actual for actual, size in sizes):
        kind = str(dtype).removeprefix("torch.")
        need = f"({', '.join(map(str, ('N', *shape)))}) {kind}"
        raise UserError(f"{name} must be {need} (got {describe(tensor)})")
    if not tensor.isfinite().all():
        raise UserError(f"{name} has non-finite numbers")


def describe(tensor: Tensor) -> str:
    """Return shape and type as text, such as (2, 1, 8, 8) float32."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def to_arrays(name: str, values: Tensor, conditions: Batch) -> dict[str, Any]:
    """Return the arrays of an .npz: `values` and their conditions."""
    return {name: values.numpy()} | {
        ARRAYS[condition][0]: value.cpu().numpy() for condition, value in conditions.items()
    }
