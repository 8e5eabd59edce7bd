"""Images of images, and of numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    """(N, C, H, W) uint8 as a PNG, row by row; small images are enlarged to `least` pixels a side or more."""
    scale = -(-least // pixels.shape[-1])
    enlarged = pixels.cpu().repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    file.parent.mkdir(parents=True, exist_ok=True)
    image: Image.Image = to_pil_image(
        make_grid(enlarged, nrow=columns, padding=max(2, scale // 2), pad_value=40)
    )
    image.save(file)
    return file


def save_scatter(panels: Mapping[str, tuple[Tensor, Tensor | None]], file: Path) -> Path:
    """Named panels of points (N, 2), coloured by their labels (N,), side by side as a PNG; all show [-1.1, 1.1], but
    for noise, which does not fit.
    """
    figure = Figure(figsize=(2.4 * len(panels), 2.7), layout="constrained", dpi=120)
    for axes, (name, (points, labels)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        colours = None if labels is None else labels[: len(points)].cpu() % 10
        axes.scatter(
            *points.cpu().T,
            color=None if colours is None else colormaps["tab10"](colours.numpy()),
            s=1.5,
            linewidths=0,
        )
        reach = 1.1 if points.abs().quantile(0.99) < 1.1 else 3.3
        axes.set(
            title=plot_label(name),
            xlim=(-reach, reach),
            ylim=(-reach, reach),
            xticks=(),
            yticks=(),
            aspect="equal",
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file


def save_bound(terms: Sequence[Mapping[str, float]], file: Path) -> Path:
    """The terms of a bound against t, and the rate-distortion curve, side by side as a PNG."""
    t, bits, rate, rmse = ([term[key] for term in terms] for key in ("t", "bits", "rate", "rmse"))
    figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    few = "o" if len(terms) < 60 else None
    left.plot(t, bits, marker=few, markersize=3)
    left.set(
        xlabel="t (the step from t towards the data)",
        ylabel="bits/dim of the term",
        xscale="log",
        yscale="log",
        title="terms of the bound",
    )
    right.plot(rate, rmse, marker=few, markersize=3)
    right.set(
        xlabel="rate: bits/dim spent when x_t is known",
        ylabel="distortion: RMSE of x_0, of 255",
        title="rate and distortion",
    )
    for axes in (left, right):
        axes.grid(which="both", alpha=0.2)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file


def save_lines(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    file: Path,
    *,
    x: str,
    y: Mapping[str, str],
    log_x: Sequence[str] = (),
    log_y: Sequence[str] = (),
) -> Path:
    """Named panels of named lines (xs, ys), side by side as a PNG; `y` has the unit of each panel, `log_x` and `log_y`
    name those with logarithmic axes.
    """
    figure = Figure(figsize=(5.2 * len(panels), 4.6), layout="constrained", dpi=120)
    shared = len({tuple(lines) for lines in panels.values()}) == 1
    for axes, (title, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for name, (xs, ys) in lines.items():
            axes.plot(
                [plot_label(x) if isinstance(x, str) else x for x in xs],
                ys,
                label=plot_label(name),
                marker="o" if len(xs) < 20 else None,
                markersize=3,
                linewidth=1.4,
            )
        axes.set(title=plot_label(title), xlabel=plot_label(x), ylabel=plot_label(y[title]))
        axes.set(
            xscale="log" if title in log_x else "linear",
            yscale="log" if title in log_y else "linear",
        )
        axes.grid(which="both", alpha=0.2)
        if not shared:
            axes.legend(
                frameon=False,
                fontsize="small",
                loc="upper center",
                bbox_to_anchor=(0.5, -0.16),
                ncols=2,
            )
    if shared:
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside right upper")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file


def save_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], file: Path, x: str = "step"
) -> Path:
    """Named curves of (x, y > 0) points as a PNG, y on a logarithmic scale."""
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
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file
