"""Image grids and plots, as PNGs."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogFormatter, NullLocator
from PIL import Image

from ddpm_lab.reports.table import Panel
from ddpm_lab.utils.errors import plot_label

if TYPE_CHECKING:
    from torch import Tensor

BACKGROUND = 40
"""Gray level between the images of a grid"""
Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""x and y of each line, by name"""
PAPER = " (paper)"
"""Suffix of the name of a paper's line"""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Color-blind safe palette of Okabe and Ito, without yellow, which is too faint on white"""
MARKERS = "osD^vP"
"""One fewer than colors, so that (color, marker) pairs repeat after 42 lines, not after 7"""


def grid_image(pixels: "Tensor", columns: int) -> Image.Image:
    """Return uint8 images (N, C, H, W) row by row, each channel at least 64 pixels wide.

    Four channels are RGB with alpha, over white. Of 2 or more than 4 channels, each is a gray
    image, side by side.
    """
    scale = -(-64 // pixels.shape[3])
    pixels = _visible(pixels)
    count, _, height, width = pixels.shape
    padding = max(2, scale // 2)
    columns = min(columns, count)
    rows = -(-count // columns)
    height, width = height * scale + padding, width * scale + padding
    grid = np.full((height * rows + padding, width * columns + padding, 3), BACKGROUND, np.uint8)
    images = pixels.cpu().repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        y, x = i // columns * height + padding, i % columns * width + padding
        grid[y : y + height - padding, x : x + width - padding] = image
    return Image.fromarray(grid)


def _visible(pixels: "Tensor") -> "Tensor":
    """Map images of any number of channels to gray or RGB: (N, C, H, W) to (N, 1 or 3, H, W')."""
    match pixels.shape[1]:
        case 1 | 3:
            return pixels
        case 4:
            alpha = pixels[:, 3:].float() / 255
            return (pixels[:, :3] * alpha + 255 * (1 - alpha)).round().byte()
        case _:
            count, channels, height, width = pixels.shape
            row = pixels.new_full((count, height, channels, width + 1), BACKGROUND)
            row[..., :width] = pixels.transpose(1, 2)
            return row.flatten(2)[:, None, :, :-1]


def save_image(pixels: "Tensor", file: Path) -> None:
    """Save an image (C, H, W) uint8 as a PNG: gray or RGB, with alpha for 2 or 4 channels.

    Of more than 4 channels, each is a gray image, side by side.
    """
    if len(pixels) > 4:
        pixels = _visible(pixels[None])[0]
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).cpu().numpy()).save(file)


def save_grid(pixels: "Tensor", file: Path, columns: int) -> Path:
    """Save the grid of `grid_image` as a PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    grid_image(pixels, columns).save(file)
    return file


def save_pairs(pixels: "Tensor", distances: Sequence[float], median: float, file: Path) -> Path:
    """Save N samples, each above its nearest training image, with their distances.

    `pixels` (2N, C, H, W) are the samples, and then the training images. The caption has the
    `median` distance of held-out images.
    """
    count = len(distances)
    grid = grid_image(pixels, columns=count)
    width = 0.9 * count
    figure, (axes,) = _create_figure(width + 1.5, width * grid.height / grid.width + 0.9)
    axes.imshow(grid)
    centers = [(i + 0.5) * grid.width / count for i in range(count)]
    axes.set_xticks(centers, [f"{distance:.3g}" for distance in distances])
    axes.set_yticks([grid.height / 4, 3 * grid.height / 4], ["sample", "training image"])
    axes.tick_params(length=0)
    x = "distance of pixels in [0, 1]; median of held-out images:"
    axes.set(title="samples nearest to training images", xlabel=f"{x} {median:.3g}")
    return _save(figure, file)


def draw_scatter(panels: Mapping[str, tuple["Tensor", "Tensor | None"]]) -> Figure:
    """Draw panels of points (N, 2), colored by labels (N,), side by side.

    The axes show [-1.1, 1.1], or [-3.3, 3.3] for noise.
    """
    figure, row = _create_figure(2.4 * len(panels), 2.7, len(panels))
    for axes, (name, (points, labels)) in zip(row, panels.items(), strict=True):
        colors = None
        if labels is not None:
            colors = colormaps["tab10"]((labels[: len(points)].cpu() % 10).numpy())
        x, y = points.cpu().T.numpy()
        axes.scatter(x, y, color=colors, s=1.5, linewidths=0)
        limit = 1.1 if points.abs().quantile(0.99) < 1.1 else 3.3
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
        axes.set(title=plot_label(name), xticks=(), yticks=(), aspect="equal")
    return figure


def save_scatter(panels: Mapping[str, tuple["Tensor", "Tensor | None"]], file: Path) -> Path:
    """Save the panels of `draw_scatter` as a PNG."""
    return _save(draw_scatter(panels), file)


def save_bound(terms: Sequence[Mapping[str, float]], file: Path) -> Path:
    """Save the terms of the variational bound against t, and the rate-distortion curve."""
    t, bits, rate, rmse = ([term[key] for term in terms] for key in ("t", "bits", "rate", "rmse"))
    figure, (bound_axes, rate_axes) = _create_figure(11, 4.2, columns=2)
    marker = "o" if len(terms) < 60 else None
    bound_axes.plot(t, bits, marker=marker, markersize=3)
    rate_axes.plot(rate, rmse, marker=marker, markersize=3)
    x, y = "t (the step from t towards the data)", "bits/dim of the term"
    _label_axes(bound_axes, x, y, "terms of the bound", log_x=True, log_y=True)
    x, y = "rate: bits/dim spent when x_t is known", "distortion: RMSE of x_0, of 255"
    _label_axes(rate_axes, x, y, "rate and distortion")
    bound_axes.grid(which="both", alpha=0.2)
    rate_axes.grid(which="both", alpha=0.2)
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
    figure, row = _create_figure(5.2 * len(panels), 4.6, len(panels))
    same_names = len({tuple(lines) for lines in panels.values()}) == 1
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
    for axes, (title, lines) in zip(row, panels.items(), strict=True):
        for name, (xs, ys) in lines.items():
            marker = "o" if len(xs) < 20 else None
            labels = [plot_label(value) if isinstance(value, str) else value for value in xs]
            (line,) = axes.plot(labels, ys, label=plot_label(name), marker=marker)
            line.set(markersize=3, linewidth=1.4)
        _label_axes(axes, x, y[title], title, log_x=title in log_x, log_y=title in log_y)
        axes.grid(which="both", alpha=0.2)
        if not same_names:
            axes.legend(frameon=False, fontsize="small", **below)
    if same_names:
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside right upper")
    return _save(figure, file)


def save_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], file: Path, x: str = "step"
) -> Path:
    """Save named curves of (x, y) points with y > 0 on a logarithmic axis."""
    figure, (axes,) = _create_figure(7, 4.5)
    for name, points in sorted(curves.items()):
        bold = not name[-1:].isdigit()
        marker = "o" if len(points) < 8 else None
        (line,) = axes.plot(*zip(*points, strict=True), label=plot_label(name), marker=marker)
        line.set(linewidth=2 if bold else 1, alpha=1 if bold else 0.7)
    _label_axes(axes, x, "loss", log_y=True)
    axes.grid(which="both", alpha=0.2)
    figure.legend(frameon=False, loc="outside right upper")
    return _save(figure, file)


def render(panel: Panel) -> bytes:
    """Render a PNG without date and software version."""
    stream = BytesIO()
    draw(panel).savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def draw(panel: Panel) -> Figure:
    """Draw lines or bars; those of a paper are dashed or hatched, and grayish."""
    figure, (axes,) = _create_figure(6.4, 4.2, dpi=150)
    (_draw_bars if panel.bars else _draw_lines)(axes, panel)
    axes.set_title(plot_label(panel.title), loc="left", fontsize="medium", fontweight="bold")
    if panel.log_y:
        axes.yaxis.set_major_formatter(_PlainLogFormatter())
        axes.yaxis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.spines[["top", "right"]].set_visible(False)
    if len(panel.lines) > 1:
        below: dict[str, Any] = {"loc": "outside lower center", "ncols": min(4, len(panel.lines))}
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, fontsize="small", **below)
    return figure


def _draw_lines(axes: Axes, panel: Panel) -> None:
    for name, (color, marker) in _styles([*panel.lines]).items():
        xs, ys = panel.lines[name]
        marker = marker if len(xs) < 20 else ""
        (line,) = axes.plot(xs, ys, label=plot_label(name), color=color, marker=marker)
        line.set(linewidth=1.5, markersize=5, zorder=3)
        if _is_paper(name):
            line.set(color=_greyish(color), linestyle="--", markerfacecolor="white", zorder=2)
    _label_axes(axes, panel.x, panel.y, log_x=panel.log_x, log_y=panel.log_y)
    ticks = sorted({x for xs, _ in panel.lines.values() for x in xs})
    if panel.log_x and 0 < len(ticks) < 9:
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{x:g}" for x in ticks])
    axes.grid(alpha=0.25, linewidth=0.6)


def _draw_bars(axes: Axes, panel: Panel) -> None:
    groups = list(dict.fromkeys(x for xs, _ in panel.lines.values() for x in xs))
    width = 0.8 / len(panel.lines)
    for i, (name, (color, _)) in enumerate(_styles([*panel.lines]).items()):
        xs, ys = panel.lines[name]
        centers = [groups.index(x) + (i - (len(panel.lines) - 1) / 2) * width for x in xs]
        style: dict[str, Any] = {"color": color, "edgecolor": color}
        if _is_paper(name):
            style = {"color": "#d9d9d9", "edgecolor": _greyish(color), "hatch": "///"}
        axes.bar(centers, ys, width * 0.92, label=plot_label(name), zorder=3, **style)
    _label_axes(axes, panel.x, panel.y, log_y=panel.log_y)
    long = max(map(len, groups), default=0) * len(groups) > 60
    turn: dict[str, Any] = {"rotation": 30, "ha": "right"} if long else {}
    axes.set_xticks(range(len(groups)), [plot_label(group) for group in groups], **turn)
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)


def _styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return (color, marker) by name; a paper's line shares those of our line."""
    ours = dict.fromkeys(name.removesuffix(PAPER) for name in names)
    styles = dict(zip(ours, zip(cycle(COLORS), cycle(MARKERS), strict=False), strict=False))
    return {name: styles[name.removesuffix(PAPER)] for name in names}


def _is_paper(name: str) -> bool:
    return name.endswith(PAPER) or name == "paper"


def _greyish(color: str) -> tuple[float, ...]:
    return tuple(0.45 * part + 0.55 * 0.62 for part in to_rgb(color))


class _PlainLogFormatter(LogFormatter):
    """Format tick labels as 0.1, not as 1e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _create_figure(
    width: float, height: float, columns: int = 1, dpi: int = 120
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=dpi)
    return figure, [*figure.subplots(1, columns, squeeze=False)[0]]


def _label_axes(
    axes: Axes,
    x: str,
    y: str,
    title: str = "",
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    axes.set(title=plot_label(title), xlabel=plot_label(x), ylabel=plot_label(y))
    axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")


def _save(figure: Figure, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file
