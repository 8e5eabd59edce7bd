"""Samples of a model: images or points, shown, saved and read by name."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ddpm_lab.data.datasets import Batch, Images, InMemorySplit, Points, to_uint8
from ddpm_lab.reports.figures import draw_scatter, grid_image, save_image

ARRAYS: dict[str, tuple[str, int, str, type]] = {
    "label": ("labels", 1, "iu", np.int64),
    "text": ("text", 2, "u", np.uint8),
    "low_res": ("low_res", 4, "f", np.float32),
}
"""Conditions: name in an .npz, number of dimensions, kinds in a file, and type for the model"""
GRID = 400
"""Largest number of images in a grid"""


@dataclass(frozen=True, eq=False)
class Samples:
    """Images or points, with their labels. A notebook shows them as a picture."""

    tensor: Tensor
    """(N, C, H, W) uint8 for images, (N, d) float32 for points"""
    labels: Tensor | None = None
    """(N,) int64, or None"""
    class_names: Sequence[str] | None = None
    """The name of each class"""

    @classmethod
    def from_x0(cls, x0: Tensor, labels: Tensor | None = None) -> "Samples":
        """Return images (N, C, H, W) in [-1, 1] as uint8, or points (N, d) unchanged."""
        return cls(x0 if x0.ndim == 2 else to_uint8(x0), labels)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int | slice | Tensor) -> "Samples":
        """Return one sample, a slice, or the samples at an index tensor."""
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        labels = None if self.labels is None else self.labels[index]
        return Samples(self.tensor[index], labels, self.class_names)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.tensor.shape[1:]))
        return f"Samples({len(self)} {'points' if self.is_points else 'images'} of {shape})"

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

    def grid(self, columns: int = 10) -> Image.Image:
        """Return a grid of the first 400 images, row by row, or a scatter plot of the points."""
        if not self.is_points:
            return grid_image(self.tensor[:GRID], columns)
        stream = io.BytesIO()
        draw_scatter({"samples": (self.tensor, self.labels)}).savefig(stream, format="png")
        return Image.open(stream)

    def save(self, folder: str | Path, columns: int = 10) -> dict[str, Path]:
        """Write a grid, each image, and samples.npz; return the files by "plot", "grid", ..."""
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
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


def to_arrays(name: str, values: Tensor, conditions: Batch) -> dict[str, Any]:
    """Return the arrays of an .npz: `values` and their conditions."""
    return {name: values.numpy()} | {
        ARRAYS[condition][0]: value.cpu().numpy() for condition, value in conditions.items()
    }
