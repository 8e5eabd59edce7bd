"""Plots of a table's panels as PNGs, and the axis style that all plots share."""

from collections.abc import Sequence
from io import BytesIO
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogFormatter, NullLocator

from ddpm_lab.reports.table import Panel
from ddpm_lab.utils.errors import plot_label

PAPER = " (paper)"
"""Suffix of the name of a paper's line"""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Color-blind safe palette of Okabe and Ito, without yellow, which is too faint on white"""
MARKERS = "osD^vP"
"""One fewer than colors, so that the pairs repeat after 42 lines, not after 7"""


def create_figure(
    width: float, height: float, columns: int = 1, dpi: int = 120
) -> tuple[Figure, list[Axes]]:
    """Create a figure of `width` x `height` inches with one row of axes."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=dpi)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def label_axes(
    axes: Axes, x: str = "", y: str = "", *, log_x: bool = False, log_y: bool = False
) -> None:
    """Set the axes' labels, escaped for matplotlib, and scales."""
    axes.set(xlabel=plot_label(x), ylabel=plot_label(y))
    axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")


def draw(panel: Panel) -> Figure:
    """Draw lines or bars; those of a paper are dashed or hatched, and greyish."""
    figure, (axes,) = create_figure(6.4, 4.2, dpi=150)
    if panel.bars:
        _draw_bars(axes, panel)
    else:
        _draw_lines(axes, panel)
    axes.set_title(plot_label(panel.title), loc="left", fontsize="medium", fontweight="bold")
    if panel.log_y:
        axes.yaxis.set_major_formatter(_PlainLogFormatter())
        axes.yaxis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.spines[["top", "right"]].set_visible(False)
    if len(panel.lines) > 1:
        figure.legend(
            *axes.get_legend_handles_labels(),
            frameon=False,
            fontsize="small",
            loc="outside lower center",
            ncols=min(4, len(panel.lines)),
        )
    return figure


def render(panel: Panel) -> bytes:
    """Render a PNG without date and software version."""
    stream = BytesIO()
    draw(panel).savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _draw_lines(axes: Axes, panel: Panel) -> None:
    for name, (color, marker) in _styles([*panel.lines]).items():
        xs, ys = panel.lines[name]
        paper = _is_paper(name)
        axes.plot(
            xs,
            ys,
            label=plot_label(name),
            color=_greyish(color) if paper else color,
            linewidth=1.5,
            linestyle="--" if paper else "-",
            marker=marker if len(xs) < 20 else None,
            markersize=5,
            markerfacecolor="white" if paper else color,
            zorder=2 if paper else 3,
        )
    label_axes(axes, panel.x, panel.y, log_x=panel.log_x, log_y=panel.log_y)
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
        paper = _is_paper(name)
        axes.bar(
            centers,
            ys,
            width * 0.92,
            label=plot_label(name),
            color="#d9d9d9" if paper else color,
            edgecolor=_greyish(color) if paper else color,
            hatch="///" if paper else None,
            zorder=3,
        )
    label_axes(axes, panel.x, panel.y, log_y=panel.log_y)
    long = max(map(len, groups), default=0) * len(groups) > 60
    axes.set_xticks(
        range(len(groups)),
        [plot_label(group) for group in groups],
        rotation=30 if long else 0,
        ha="right" if long else "center",
    )
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
