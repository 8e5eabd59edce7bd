"""Image grids and plots as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ddpm_lab.utils.errors import plot_label

BACKGROUND = 40
"""Grey level between the images of a grid"""
Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""x and y of each line, by name"""


def save_grid(pixels: Tensor, file: Path, columns: int, min_side: int = 64) -> Path:
    """Save uint8 images (N, C, H, W) as a PNG, row by row, each side at least `min_side` pixels."""
    count, channels, height, width = pixels.shape
    scale = -(-min_side // width)
    padding = max(2, scale // 2)
    columns = min(columns, count)
    rows = -(-count // columns)
    height, width = height * scale + padding, width * scale + padding
    shape = (height * rows + padding, width * columns + padding, channels)
    grid = np.full(shape, BACKGROUND, np.uint8)
    images = pixels.cpu().repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        y, x = i // columns * height + padding, i % columns * width + padding
        grid[y : y + height - padding, x : x + width - padding] = image
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(grid, (*shape[:2], 3)) if channels == 1 else grid).save(file)
    return file


def save_scatter(panels: Mapping[str, tuple[Tensor, Tensor | None]], file: Path) -> Path:
    """Save panels of points (N, 2), colored by labels (N,), side by side.

    The axes show [-1.1, 1.1], or [-3.3, 3.3] for noise.
    """
    figure = Figure(figsize=(2.4 * len(panels), 2.7), layout="constrained", dpi=120)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, (points, labels)) in zip(row, panels.items(), strict=True):
        colors = None
        if labels is not None:
            colors = colormaps["tab10"]((labels[: len(points)].cpu() % 10).numpy())
        axes.scatter(*points.cpu().T, color=colors, s=1.5, linewidths=0)
        limit = 1.1 if points.abs().quantile(0.99) < 1.1 else 3.3
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
        axes.set(title=plot_label(name), xticks=(), yticks=(), aspect="equal")
    return _save(figure, file)


def save_bound(terms: Sequence[Mapping[str, float]], file: Path) -> Path:
    """Save the terms of the variational bound against t, and the rate-distortion curve."""
    t, bits, rate, rmse = ([term[key] for term in terms] for key in ("t", "bits", "rate", "rmse"))
    figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=120)
    bound_axes, rate_axes = figure.subplots(1, 2)
    marker = "o" if len(terms) < 60 else None
    bound_axes.plot(t, bits, marker=marker, markersize=3)
    bound_axes.set(
        xlabel="t (the step from t towards the data)",
        ylabel="bits/dim of the term",
        xscale="log",
        yscale="log",
        title="terms of the bound",
    )
    rate_axes.plot(rate, rmse, marker=marker, markersize=3)
    rate_axes.set(
        xlabel="rate: bits/dim spent when x_t is known",
        ylabel="distortion: RMSE of x_0, of 255",
        title="rate and distortion",
    )
    for axes in (bound_axes, rate_axes):
        axes.grid(which="both", alpha=0.2)
    return _save(figure, file)


def save_lines(
    panels: Mapping[str, Lines],
    file: Path,
    *,
    x: str,
    y: Mapping[str, str],
    log_x: Sequence[str] = (),
    log_y: Sequence[str] = (),
) -> Path:
    """Save panels of named lines side by side.

    `y` has the unit of each panel; `log_x` and `log_y` name the panels with logarithmic axes.
    """
    figure = Figure(figsize=(5.2 * len(panels), 4.6), layout="constrained", dpi=120)
    same_names = len({tuple(lines) for lines in panels.values()}) == 1
    row: Sequence[Axes] = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, lines) in zip(row, panels.items(), strict=True):
        for name, (xs, ys) in lines.items():
            marker = "o" if len(xs) < 20 else None
            labels = [plot_label(value) if isinstance(value, str) else value for value in xs]
            (line,) = axes.plot(labels, ys, label=plot_label(name), marker=marker)
            line.set(markersize=3, linewidth=1.4)
        axes.set(title=plot_label(title), xlabel=plot_label(x), ylabel=plot_label(y[title]))
        axes.set_xscale("log" if title in log_x else "linear")
        axes.set_yscale("log" if title in log_y else "linear")
        axes.grid(which="both", alpha=0.2)
        if not same_names:
            place = (0.5, -0.16)
            axes.legend(
                frameon=False,
                fontsize="small",
                loc="upper center",
                bbox_to_anchor=place,
                ncols=2,
            )
    if same_names:
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside right upper")
    return _save(figure, file)


def save_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], file: Path, x: str = "step"
) -> Path:
    """Save named curves of (x, y) points with y > 0 on a logarithmic axis."""
    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=120)
    axes = figure.subplots()
    for name, points in sorted(curves.items()):
        bold = not name[-1:].isdigit()
        axes.plot(
            *zip(*points, strict=True),
            label=plot_label(name),
            linewidth=2 if bold else 1,
            alpha=1 if bold else 0.7,
            marker="o" if len(points) < 8 else None,
        )
    axes.set(xlabel=plot_label(x), ylabel="loss", yscale="log")
    axes.grid(which="both", alpha=0.2)
    axes.legend(frameon=False)
    return _save(figure, file)


def _save(figure: Figure, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file
