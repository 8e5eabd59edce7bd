"""Plots and images of an ablation's report."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ddpm_lab.ablations.plan import JobKey, Plan
from ddpm_lab.ablations.results import last_number, last_sample_grid, numbers, read_losses
from ddpm_lab.ablations.spec import Plot
from ddpm_lab.reports.table import Panel, Table
from ddpm_lab.sweeps.job import Job, get_nested
from ddpm_lab.utils.safe_load import read_json

Line = tuple[list[Any], list[float]]
T = TypeVar("T")
MAX_CURVES = 14
"""Maximum number of training curves in one plot, so that they remain distinguishable"""


def build_panels(plan: Plan, table: Table, plot: Plot) -> list[Panel]:
    """Build the panels of a plot: one for `bars` and `curve`, else ours and the paper's.

    Lines without numbers and panels without lines are omitted.
    """
    names = [column.name for column in table.columns]
    index = names.index(plot.column) if plot.column in names else 0
    metric = plot.y or table.columns[index].metric
    if plot.kind == "curve":
        return _panel(plot, plot.title, plot.y, _curves(plan, table, plot, names[index]))
    if plot.kind == "bars":
        bars = _bars(table, index)
        return _panel(plot, plot.title, metric, bars if bars["ours"][0] else {}, bars=True)
    axis = _columns if plot.kind == "columns" else _rows
    paper_number = numbers().get(plan.paper_metric(names[index]))
    paper_metric = paper_number.label if paper_number else ""
    paper_title, our_title = f"{plot.title}: the paper", f"{plot.title}: ours, {plan.tier}"
    return [
        *_panel(plot, paper_title, plot.y or paper_metric, axis(table, plot, "theirs")),
        *_panel(plot, our_title, metric, axis(table, plot, "ours")),
    ]


def _panel(
    plot: Plot, title: str, y: str, lines: Mapping[str, Line], bars: bool = False
) -> list[Panel]:
    lines = {name: line for name, line in lines.items() if line[0]}
    return [Panel(title, plot.x, y, lines, plot.log_x, plot.log_y, bars)] if lines else []


def _bars(table: Table, index: int) -> dict[str, Line]:
    entries = {row: entries[index] for row, entries in table.rows.items()}
    return {
        "ours": _line((row, entry.ours) for row, entry in entries.items()),
        # Omitted if this tier measures another metric.
        "paper": _line((row, entry.theirs) for row, entry in entries.items() if entry.comparable),
    }


def _columns(table: Table, plot: Plot, source: str) -> dict[str, Line]:
    """Return a line per row; `source` is "ours" or "theirs"."""
    ours = source == "ours"
    xs = [column.x if ours else last_number(column.name) for column in table.columns]
    return {
        row: _line((x, getattr(entry, source)) for x, entry in zip(xs, entries, strict=True))
        for row, entries in table.rows.items()
    }


def _rows(table: Table, plot: Plot, source: str) -> dict[str, Line]:
    """Return a line per column; `source` is "ours" or "theirs"."""
    rows = [(last_number(row), entries) for row, entries in table.rows.items()]
    return {
        column.name: _line((x, getattr(entries[i], source)) for x, entries in rows)
        for i, column in enumerate(table.columns)
        if column.name.startswith(plot.column or "")
    }


def _line(points: Iterable[tuple[Any, float | None]]) -> Line:
    complete = [(x, y) for x, y in points if x is not None and y is not None]
    return [x for x, _ in complete], [y for _, y in complete]


def _curves(plan: Plan, table: Table, plot: Plot, column: str) -> dict[str, Line]:
    """Return a line per row, for its first seed."""
    lines: dict[str, Line] = {}
    for row in table.rows:
        job = plan.by_key.get(JobKey(row, column, plan.spec.seeds[0]))
        if job is not None and job.done():
            items = get_nested(read_json(job.metrics), plot.path) or []
            points = [(item[plot.x_key], item[plot.y_key]) for item in items]
            lines[row] = _line(
                (x, y) for x, y in points if (x > 0 or not plot.log_x) and (y > 0 or not plot.log_y)
            )
    return lines


def training_panels(jobs: Mapping[str, Job]) -> list[Panel]:
    """Plot the training losses, equal curves once; plot none for more than `MAX_CURVES`."""
    lines = _read_distinct(jobs, read_losses)
    if not 0 < len(lines) <= MAX_CURVES:
        return []
    return [Panel("training loss", "step", "loss", lines, log_y=True)]


def sample_images(jobs: Mapping[str, Job]) -> dict[str, Path]:
    """Return the last sample grids of training runs, each file once."""
    return _read_distinct(jobs, last_sample_grid)


def _read_distinct(jobs: Mapping[str, Job], read: Callable[[Path], T | None]) -> dict[str, T]:
    """Read a value from the folder of each finished job, and return the distinct values."""
    values: dict[str, T] = {}
    for name, job in jobs.items():
        if job.done() and (value := read(job.folder)) and value not in values.values():
            values[name] = value
    return values
