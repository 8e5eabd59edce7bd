"""Plots of one style, as PNGs."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogFormatter, NullLocator

from ddpm_lab.reports.table import Line, Panel
from ddpm_lab.utils.errors import plot_label

if TYPE_CHECKING:
    from torch import Tensor

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Color-blind safe palette of Okabe and Ito, without yellow, which is too faint on white"""
MARKERS = "osD^vP"
"""One fewer than colors, so that (color, marker) pairs repeat after 42 lines, not after 7"""
CHARACTERS_PER_INCH = 14
"""Width of a legend's text"""
MAX_MARKERS = 20
"""Longer lines have no markers, and a band instead of error bars"""
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "errorbar.capsize": 3,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "hatch.linewidth": 0.8,
}
"""Settings of matplotlib for all plots"""


@rc_context(STYLE)
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
        axes.spines[["top", "right"]].set_visible(True)
    return figure


@rc_context(STYLE)
def save_scatter(panels: Mapping[str, tuple["Tensor", "Tensor | None"]], file: Path) -> Path:
    """Save the panels of `draw_scatter` as a PNG."""
    return _save(draw_scatter(panels), file)


def save_bound(terms: Sequence[Mapping[str, float]], file: Path) -> Path:
    """Save the terms of the variational bound against t, and the rate-distortion curve."""
    t, bits, rate, rmse = ([term[key] for term in terms] for key in ("t", "bits", "rate", "rmse"))
    x, y = "t (the step from t towards the data)", "bits/dim of the term"
    bound = Panel("Terms of the bound", x, y, {"": Line(t, bits)}, log_x=True, log_y=True)
    x, y = "rate: bits/dim spent when x_t is known", "distortion: RMSE of x_0, of 255"
    return save_panels([bound, Panel("Rate and distortion", x, y, {"": Line(rate, rmse)})], file)


def save_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], file: Path, x: str = "step"
) -> Path:
    """Save named curves of (x, y) points with y > 0 on a logarithmic axis."""
    lines = {
        name: Line(*map(list, zip(*points, strict=True)))
        for name, points in sorted(curves.items())
        if points
    }
    return save_panels([Panel("Losses", x, "loss", lines, log_y=True)], file)


@rc_context(STYLE)
def save_panels(panels: Sequence[Panel], file: Path) -> Path:
    """Save panels side by side as a PNG, or in the format of the suffix of `file`."""
    return _save(draw(panels), file)


@rc_context(STYLE)
def render(panel: Panel) -> bytes:
    """Render a PNG without date and software version."""
    stream = BytesIO()
    draw([panel]).savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


@rc_context(STYLE)
def draw(panels: Sequence[Panel]) -> Figure:
    """Draw panels of lines or bars side by side, with a legend below.

    Error bars and bands show the spread over seeds. The paper's bars are hatched. Numbers from
    memory have open markers and dotted lines, or lighter bars.
    """
    width = 6.4 if len(panels) == 1 else 5.2
    figure, row = _create_figure(width * len(panels), 4.2, len(panels))
    for axes, panel in zip(row, panels, strict=True):
        (_draw_bars if panel.bars else _draw_lines)(axes, panel)
        _label_axes(axes, panel)
    if len({tuple(panel.lines) for panel in panels}) == 1:
        _add_legend(figure, row[0], width * len(panels), {"loc": "outside lower center"})
    else:
        for axes in row:
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
            _add_legend(axes, axes, width, place)
    return figure


def _add_legend(parent: Figure | Axes, axes: Axes, width: float, place: dict[str, Any]) -> None:
    """Add the legend of `axes`, in as many columns as fit `width` in inches; none for one name."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1 or any(" (" in label for label in labels):
        columns = int(width * CHARACTERS_PER_INCH) // (max(map(len, labels)) + 6)
        parent.legend(handles, labels, ncols=max(1, min(5, columns)), **place)


def _draw_lines(axes: Axes, panel: Panel) -> None:
    styles = zip(panel.lines.items(), cycle(COLORS), cycle(MARKERS), strict=False)
    for (name, line), color, marker in styles:
        xs = [plot_label(x) if isinstance(x, str) else x for x in line.xs]
        short = len(xs) < MAX_MARKERS
        dotted = any(line.recalled)
        style: dict[str, Any] = {"color": color, "linestyle": ":" if dotted else "-", "zorder": 3}
        label = plot_label(name + _memory(line, "open"))
        axes.plot(xs, line.ys, label=label, marker=marker if short and not dotted else "", **style)
        if dotted:
            faces = ["white" if each else color for each in line.recalled]
            axes.scatter(xs, line.ys, c=faces, edgecolors=color, marker=marker, s=30, zorder=4)
        if line.low and short:
            pairs = zip(line.low, line.ys, line.high, strict=True)
            errors = [*zip(*((y - low, high - y) for low, y, high in pairs), strict=True)]
            axes.errorbar(xs, line.ys, errors, fmt="none", ecolor=color, elinewidth=1)
        elif line.low:
            axes.fill_between(xs, line.low, line.high, color=color, alpha=0.2, linewidth=0)
    axes.set(xscale="log" if panel.log_x else "linear", yscale="log" if panel.log_y else "linear")
    ticks = sorted({x for line in panel.lines.values() for x in line.xs}) if panel.log_x else []
    if 0 < len(ticks) < 9:
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{x:g}" for x in ticks])


def _draw_bars(axes: Axes, panel: Panel) -> None:
    groups = list(dict.fromkeys(x for line in panel.lines.values() for x in line.xs))
    width = 0.8 / len(panel.lines)
    for i, ((name, line), color) in enumerate(zip(panel.lines.items(), COLORS, strict=False)):
        centers = [groups.index(x) + (i - (len(panel.lines) - 1) / 2) * width for x in line.xs]
        style: dict[str, Any] = {"color": color, "edgecolor": color}
        if name == "paper":
            style = {"color": "#d9d9d9", "edgecolor": "#6d6d6d", "hatch": "///"}
        bars = axes.bar(
            centers, line.ys, width * 0.92, label=name + _memory(line, "lighter"), **style
        )
        for bar, recalled in zip(bars, line.recalled, strict=False):
            bar.set_alpha(0.4 if recalled else None)
        if line.low:
            pairs = zip(line.low, line.ys, line.high, strict=True)
            errors = [*zip(*((y - low, high - y) for low, y, high in pairs), strict=True)]
            axes.errorbar(centers, line.ys, errors, fmt="none", ecolor="black", elinewidth=1)
    axes.set(yscale="log" if panel.log_y else "linear")
    long = max(map(len, groups), default=0) * len(groups) > 60
    turn: dict[str, Any] = {"rotation": 30, "ha": "right"} if long else {}
    axes.set_xticks(range(len(groups)), [plot_label(group) for group in groups], **turn)
    axes.grid(visible=False, axis="x")


def _memory(line: Line, mark: str) -> str:
    """Return the suffix of a legend for numbers from memory: all of them, or those of a mark."""
    if not any(line.recalled):
        return ""
    return " (from memory)" if all(line.recalled) else f" ({mark}: from memory)"


def _label_axes(axes: Axes, panel: Panel) -> None:
    note = f"\n{panel.note}" if panel.note else ""
    axes.set(title=plot_label(panel.title), ylabel=plot_label(panel.y))
    axes.set_xlabel(plot_label(panel.x) + note)
    if panel.log_y:
        axes.yaxis.set_major_formatter(_PlainLogFormatter())
        axes.yaxis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(1.5, 0.5)))


class _PlainLogFormatter(LogFormatter):
    """Format tick labels as 0.1, not as 1e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _create_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    return figure, [*figure.subplots(1, columns, squeeze=False)[0]]


def _save(figure: Figure, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file
