"""The panels of a table as PNGs."""

from collections.abc import Sequence
from io import BytesIO
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogFormatter, NullLocator

from ddpm_lab.reports.table import Panel
from ddpm_lab.utils.errors import plot_label
from ddpm_lab.utils.safe_load import default_plot_style

default_plot_style()

PAPER = " (paper)"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which no colour-blind reader confuses; yellow, too faint on white, left out"""
MARKERS = "osD^vP"
"""One fewer than colors, so that a pair repeats after 42 lines, not after 7"""


class _Plain(LogFormatter):
    """0.1 rather than 1e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _greyed(colour: str) -> tuple[float, ...]:
    return tuple(0.45 * part + 0.55 * 0.62 for part in to_rgb(colour))


def _published(name: str) -> bool:
    return name.endswith(PAPER) or name == "paper"


def _styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each; a paper's line has those of ours that it stands beside."""
    ours = dict.fromkeys(name.removesuffix(PAPER) for name in names)
    styles = dict(zip(ours, zip(cycle(COLOURS), cycle(MARKERS), strict=False), strict=False))
    return {name: styles[name.removesuffix(PAPER)] for name in names}


def _lines(axes: Axes, panel: Panel) -> None:
    for name, (colour, marker) in _styles(list(panel.lines)).items():
        xs, ys = panel.lines[name]
        paper = _published(name)
        axes.plot(
            xs,
            ys,
            label=plot_label(name),
            color=_greyed(colour) if paper else colour,
            linewidth=1.5,
            linestyle="--" if paper else "-",
            marker=marker if len(xs) < 20 else None,
            markersize=5,
            markerfacecolor="white" if paper else colour,
            zorder=2 if paper else 3,
        )
    axes.set(xscale="log" if panel.log_x else "linear", yscale="log" if panel.log_y else "linear")
    places = sorted({x for xs, _ in panel.lines.values() for x in xs})
    if panel.log_x and 0 < len(places) < 9:
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{x:g}" for x in places])
    axes.grid(alpha=0.25, linewidth=0.6)


def _bars(axes: Axes, panel: Panel) -> None:
    words = list(dict.fromkeys(x for xs, _ in panel.lines.values() for x in xs))
    width = 0.8 / len(panel.lines)
    for i, (name, (colour, _)) in enumerate(_styles(list(panel.lines)).items()):
        xs, ys = panel.lines[name]
        middles = [words.index(x) + (i - (len(panel.lines) - 1) / 2) * width for x in xs]
        paper = _published(name)
        axes.bar(
            middles,
            ys,
            width * 0.92,
            label=plot_label(name),
            color="#d9d9d9" if paper else colour,
            edgecolor=_greyed(colour) if paper else colour,
            hatch="///" if paper else None,
            zorder=3,
        )
    long = max(map(len, words), default=0) * len(words) > 60
    axes.set_xticks(
        range(len(words)),
        [plot_label(word) for word in words],
        rotation=30 if long else 0,
        ha="right" if long else "center",
    )
    axes.set_yscale("log" if panel.log_y else "linear")
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)


def draw(panel: Panel) -> Figure:
    """Bars where the xs are words, else lines; dashed and greyish what a paper says (names in " (paper)")."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    first: Any = next((x for xs, _ in panel.lines.values() for x in xs), 0)
    (_bars if isinstance(first, str) else _lines)(axes, panel)
    axes.set_title(plot_label(panel.title), loc="left", fontsize="medium", fontweight="bold")
    axes.set(xlabel=plot_label(panel.x), ylabel=plot_label(panel.y))
    if panel.log_y:
        axes.yaxis.set_major_formatter(_Plain())
        axes.yaxis.set_minor_formatter(_Plain(minor_thresholds=(1.5, 0.5)))
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
    """A PNG, with neither a date nor the name of what made it."""
    stream = BytesIO()
    draw(panel).savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
