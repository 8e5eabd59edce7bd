"""Pictures of pictures, and of numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid


def save_grid(pixels: Tensor, file: Path, columns: int, least: int = 64) -> Path:
    """(N, C, H, W) uint8 as a PNG, row by row; small pictures are enlarged to `least` pixels a side or more."""
    scale = -(-least // pixels.shape[-1])
    enlarged = pixels.cpu().repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    file.parent.mkdir(parents=True, exist_ok=True)
    picture: Image.Image = to_pil_image(make_grid(enlarged, nrow=columns, padding=max(2, scale // 2), pad_value=40))
    picture.save(file)
    return file


def save_curves(curves: Mapping[str, Sequence[tuple[float, float]]], file: Path, x: str = "step") -> Path:
    """Named curves of (x, y > 0) points as a PNG, y on a logarithmic scale."""
    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=120)
    axes = figure.subplots()
    for name, points in sorted(curves.items()):
        bold = not name[-1].isdigit()
        axes.plot(*zip(*points, strict=True), label=name, linewidth=2 if bold else 1, alpha=1 if bold else 0.7,
                  marker="o" if len(points) < 8 else None)  # fmt: skip
    axes.set(xlabel=x, ylabel="loss", yscale="log")
    axes.grid(which="both", alpha=0.2)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file
