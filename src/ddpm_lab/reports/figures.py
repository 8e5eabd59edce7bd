"""PNG files: image grids, scatter plots and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from ddpm_lab.utils.errors import plot_label
from ddpm_lab.utils.safe_load import default_plot_style

default_plot_style()


def save_grid(pixels: Tensor, file: Path, columns: int, least: int = 64) -> Path:
    """Save (N, C, H, W) uint8 as a PNG, row by row.

    Small images are enlarged to at least `least` pixels a side.
    """
    scale = -(-least // pixels.shape[-1])
    enlarged = pixels.cpu().repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    file.parent.mkdir(parents=True, exist_ok=True)
    grid = make_grid(enlarged, nrow=columns, padding=max(2, scale // 2), pad_value=40)
    image: Image.Image = to_pil_image(grid)
    image.save(file)
    return file


def save_scatter(panels: Mapping[str, tuple[Tensor, Tensor | None]], file: Path) -> Path:
    """Save panels of points (N, 2), colored by their labels (N,), side by side as a PNG.

    Panels show [-1.1, 1.1], or a wider range for noise.
    """
    figure, all_axes = _panels(len(panels), (2.4 * len(panels), 2.7))
    for axes, (name, (points, labels)) in zip(all_axes, panels.items(), strict=True):
        colors = (
            None
            if labels is None
            else colormaps["tab10"]((labels[: len(points)].cpu() % 10).numpy())
        )
        axes.scatter(*points.cpu().T, color=colors, s=1.5, linewidths=0)
        reach = 1.1 if points.abs().quantile(0.99) < 1.1 else 3.3
        axes.set(
            title=plot_label(name),
            xlim=(-reach, reach),
            ylim=(-reach, reach),
            xticks=(),
            yticks=(),
            aspect="equal",
        )
    return _save(figure, file)


def save_bound(terms: Sequence[Mapping[str, float]], file: Path) -> Path:
    """Save the terms of a bound against t, and the rate-distortion curve, as a PNG."""
    t, bits, rate, rmse = ([term[key] for term in terms] for key in ("t", "bits", "rate", "rmse"))
    figure, (left, right) = _panels(2, (11, 4.2))
    marker = "o" if len(terms) < 60 else None
    left.plot(t, bits, marker=marker, markersize=3)
    left.set(
        xlabel="t (the step from t towards the data)",
        ylabel="bits/dim of the term",
        xscale="log",
        yscale="log",
        title="terms of the bound",
    )
    right.plot(rate, rmse, marker=marker, markersize=3)
    right.set(
        xlabel="rate: bits/dim spent to transmit x_t",
        ylabel="distortion: RMSE of x_0, of 255",
        title="rate and distortion",
    )
    for axes in (left, right):
        axes.grid(which="both", alpha=0.2)
    return _save(figure, file)


def save_lines(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    file: Path,
    *,
    x: str,
    y: Mapping[str, str],
    log_x: Sequence[str] = (),
    log_y: Sequence[str] = (),
) -> Path:
    """Save panels of named lines (xs, ys), side by side as a PNG.

    `y` maps each panel to its unit. `log_x` and `log_y` are the panels with logarithmic axes.
    """
    figure, all_axes = _panels(len(panels), (5.2 * len(panels), 4.6))
    common_legend = len({tuple(lines) for lines in panels.values()}) == 1
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
        for name, (xs, ys) in lines.items():
            axes.plot(
                [plot_label(x) if isinstance(x, str) else x for x in xs],
                ys,
                label=plot_label(name),
                marker="o" if len(xs) < 20 else None,
                markersize=3,
                linewidth=1.4,
            )
        axes.set(
            title=plot_label(title),
            xlabel=plot_label(x),
            ylabel=plot_label(y[title]),
            xscale="log" if title in log_x else "linear",
            yscale="log" if title in log_y else "linear",
        )
        axes.grid(which="both", alpha=0.2)
        if not common_legend:
            below = (0.5, -0.16)
            axes.legend(
                frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=below, ncols=2
            )
    if common_legend:
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside right upper")
    return _save(figure, file)


def save_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], file: Path, x: str = "step"
) -> Path:
    """Save named curves of (x, y > 0) points as a PNG, y on a logarithmic scale."""
    figure, (axes,) = _panels(1, (7, 4.5))
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


def _panels(count: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _save(figure: Figure, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file
