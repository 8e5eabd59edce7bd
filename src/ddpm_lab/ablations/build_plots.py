"""The plots and images of an ablation's report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_lab.ablations.plan import JobKey, Plan
from ddpm_lab.ablations.results import METRICS, last_number, last_sample_grid, read_losses
from ddpm_lab.ablations.spec import Plot
from ddpm_lab.reports.table import Panel, Table
from ddpm_lab.sweeps.job import Job, get_nested
from ddpm_lab.utils.safe_load import read_json

Lines = dict[str, tuple[list[Any], list[float]]]

CURVES = 14
"""Curves of training in one plot, at most"""


def build_panels(plan: Plan, table: Table, plot: Plot) -> list[Panel]:
    """Those of one entry of an ablation's plots; none of what was not run. What a tier measures in place of the paper's
    metric is not drawn beside the paper's.
    """
    names = [column.name for column in table.columns]
    at_column = names.index(plot.column) if plot.column in names else 0
    metric = plot.y or table.columns[at_column].metric

    def panel(title: str, y: str, lines: Lines) -> list[Panel]:
        return [Panel(title, plot.x, y, lines, plot.log_x, plot.log_y)] if lines else []

    if plot.kind == "curve":
        return panel(plot.title, plot.y, _curves(plan, table, plot, names[at_column]))
    if plot.kind == "bars":
        shown = [(row, entries[at_column]) for row, entries in table.rows.items()]
        bars = {
            "ours": _points([(row, entry.ours) for row, entry in shown]),
            "paper": _points(
                [(row, entry.theirs if entry.comparable else None) for row, entry in shown]
            ),
        }
        return panel(
            plot.title,
            metric,
            {name: bar for name, bar in bars.items() if bar[0]} if bars["ours"][0] else {},
        )
    lines: dict[str, Lines] = {}
    for which in ("ours", "theirs"):
        if plot.kind == "columns":
            xs = [
                column.x if which == "ours" else last_number(column.name)
                for column in table.columns
            ]
            made = {
                row: _points(
                    [(x, getattr(entry, which)) for x, entry in zip(xs, entries, strict=True)]
                )
                for row, entries in table.rows.items()
            }
        else:
            made = {
                name: _points(
                    [
                        (last_number(row), getattr(entries[i], which))
                        for row, entries in table.rows.items()
                    ]
                )
                for i, name in enumerate(names)
                if name.startswith(plot.column or "")
            }
        lines[which] = {name: line for name, line in made.items() if line[0]}
    published = METRICS.get(plan.published(names[at_column]), ("", None))[0]
    return [
        *panel(f"{plot.title}: the paper", plot.y or published, lines["theirs"]),
        *panel(f"{plot.title}: ours, {plan.tier}", metric, lines["ours"]),
    ]


def _points(pairs: list[tuple[Any, float | None]]) -> tuple[list[Any], list[float]]:
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    return [x for x, _ in known], [y for _, y in known]


def _curves(plan: Plan, table: Table, plot: Plot, column: str) -> Lines:
    """Of the first seed."""
    lines: Lines = {}
    for row in table.rows:
        cell = plan.places.get(JobKey(row, column, plan.stage.seeds[0]))
        found = (
            get_nested(read_json(cell.metrics), plot.path)
            if cell is not None and cell.done()
            else None
        )
        both = [(one[plot.x_key], one[plot.y_key]) for one in found or []]
        if both := [
            (x, y) for x, y in both if (x > 0 or not plot.log_x) and (y > 0 or not plot.log_y)
        ]:
            lines[row] = ([x for x, _ in both], [y for _, y in both])
    return lines


def training_panels(cells: Mapping[str, Job]) -> list[Panel]:
    """The losses of those that train, each curve once; nothing where they are more than a reader can tell apart."""
    lines: Lines = {}
    for name, cell in cells.items():
        if cell.done() and (curve := read_losses(cell.folder)) and curve not in lines.values():
            lines[name] = curve
    return (
        [Panel("loss of training", "step", "loss", lines, log_y=True)]
        if 0 < len(lines) <= CURVES
        else []
    )


def sample_images(cells: Mapping[str, Job]) -> dict[str, Path]:
    """What those that train drew at the end, each image once."""
    found: dict[str, Path] = {}
    for name, cell in cells.items():
        if cell.done() and (last := last_sample_grid(cell.folder)) and last not in found.values():
            found[name] = last
    return found
