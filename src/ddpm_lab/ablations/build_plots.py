"""Plots and images of an ablation's report."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ddpm_lab.ablations.plan import JobKey, Plan
from ddpm_lab.ablations.results import last_number, numbers, read_losses, sample_grid
from ddpm_lab.ablations.spec import Plot
from ddpm_lab.reports.number_format import SIDES, Side, our_name
from ddpm_lab.reports.table import Entry, Line, Panel, Table
from ddpm_lab.sweeps.job import Job, get_nested
from ddpm_lab.utils.safe_load import read_json

MAX_CURVES = 14
"""Maximum number of training curves in one plot, so that they remain distinguishable"""
Curve = dict[Any, float]
"""y by x"""
ERROR_BARS = "error bars: standard deviation over seeds"
RANGE = "mean and range over seeds"


def build_panels(plan: Plan, table: Table, plot: Plot) -> list[Panel]:
    """Build the panels of a plot: one for `bars` and `curve`, else ours and the paper's.

    Lines without numbers and panels without lines are omitted. Two metrics share no panel.
    """
    names = [column.name for column in table.columns]
    index = names.index(plot.column) if plot.column in names else 0
    column = table.columns[index]
    if plot.kind == "curve":
        return _panel(plot, plot.title, plot.y, _curves(plan, table, plot, names[index]))
    metric = column.metric if column.paper_metric else plot.y or column.metric
    title = our_name(plot.title, column)
    if plot.kind == "bars":
        bars = _bars(table, index)
        return _panel(plot, title, metric, bars if bars["ours"].xs else {}, bars=True)
    axis = _columns if plot.kind == "columns" else _rows
    paper_number = numbers().get(plan.paper_metric(names[index]))
    paper_metric = paper_number.label if paper_number else ""
    paper_title, our_title = f"{plot.title}: the paper", f"{title}: ours, {plan.tier}"
    return [
        *_panel(plot, paper_title, plot.y or paper_metric, axis(table, plot, "paper")),
        *_panel(plot, our_title, metric, axis(table, plot, "ours")),
    ]


def _panel(
    plot: Plot, title: str, y: str, lines: Mapping[str, Line], bars: bool = False
) -> list[Panel]:
    lines = {name: line for name, line in lines.items() if line.xs}
    note = RANGE if plot.kind == "curve" else ERROR_BARS
    note = note if any(line.low for line in lines.values()) else ""
    if not lines:
        return []
    return [Panel(title, plot.x, y, lines, plot.log_x, plot.log_y, bars, note)]


def _bars(table: Table, index: int) -> dict[str, Line]:
    """Return our bars and, unless this tier measures another metric, the paper's."""
    sides = SIDES[:1] if table.columns[index].paper_metric else SIDES
    return {
        side: _line(side, ((row, entries[index]) for row, entries in table.rows.items()))
        for side in sides
    }


def _columns(table: Table, plot: Plot, side: Side) -> dict[str, Line]:
    """Return a line per row."""
    ours = side == "ours"
    xs = [column.x if ours else last_number(column.name) for column in table.columns]
    return {row: _line(side, zip(xs, entries, strict=True)) for row, entries in table.rows.items()}


def _rows(table: Table, plot: Plot, side: Side) -> dict[str, Line]:
    """Return a line per column."""
    rows = [(last_number(row), entries) for row, entries in table.rows.items()]
    return {
        our_name(column.name, column) if side == "ours" else column.name: _line(
            side, ((x, entries[i]) for x, entries in rows)
        )
        for i, column in enumerate(table.columns)
        if column.name.startswith(plot.column or "")
    }


def _line(side: Side, points: Iterable[tuple[Any, Entry]]) -> Line:
    """Return the numbers of one side, ours with their standard deviation over seeds."""
    if side == "paper":
        published = [
            (x, entry.theirs, entry.paper.recalled)
            for x, entry in points
            if x is not None and entry.paper is not None and entry.theirs is not None
        ]
        recalled = [each for *_, each in published]
        xs, ys = [x for x, *_ in published], [y for _, y, _ in published]
        return Line(xs, ys, recalled=recalled if any(recalled) else ())
    measured = [
        (x, entry.ours, entry.std or 0.0)
        for x, entry in points
        if x is not None and entry.ours is not None
    ]
    xs, ys = [x for x, *_ in measured], [y for _, y, _ in measured]
    if not any(std for *_, std in measured):
        return Line(xs, ys)
    return Line(xs, ys, [y - std for _, y, std in measured], [y + std for _, y, std in measured])


def _curves(plan: Plan, table: Table, plot: Plot, column: str) -> dict[str, Line]:
    """Return a line per row: the mean over seeds, and their range."""
    lines: dict[str, Line] = {}
    for row in table.rows:
        keys = [JobKey(row, column, seed) for seed in plan.spec.seeds]
        jobs = [plan.by_key[key] for key in keys if key in plan.by_key]
        curves = [_read_curve(job, plot) for job in jobs if job.done()]
        if curves := [curve for curve in curves if curve]:
            lines[row] = mean_curve(curves)
    return lines


def _read_curve(job: Job, plot: Plot) -> Curve:
    items = get_nested(read_json(job.metrics), plot.path) or []
    points = [(item[plot.x_key], item[plot.y_key]) for item in items]
    return {
        x: y
        for x, y in points
        if x is not None
        and y is not None
        and (x > 0 or not plot.log_x)
        and (y > 0 or not plot.log_y)
    }


def mean_curve(curves: Sequence[Curve]) -> Line:
    """Return the mean and the range of curves, at the x that all have."""
    xs = [x for x in curves[0] if all(x in curve for curve in curves)]
    values = [[curve[x] for curve in curves] for x in xs]
    if len(curves) == 1:
        return Line(xs, [y for (y,) in values])
    return Line(xs, [*map(mean, values)], [*map(min, values)], [*map(max, values)])


def models(plan: Plan) -> dict[str, list[Job]]:
    """Return the training jobs of each model, one per seed, by its rows and columns."""
    return _by_place(plan.training)


def cells(plan: Plan) -> dict[str, list[Job]]:
    """Return the jobs of each number, one per seed, by its rows and columns."""
    jobs: dict[tuple[str, str], list[Job]] = {}
    for key, job in plan.by_key.items():
        jobs.setdefault((key.row, key.column), []).append(job)
    return _by_place(jobs)


def _by_place(jobs: Mapping[tuple[str, str], list[Job]]) -> dict[str, list[Job]]:
    """Name distinct jobs by their rows and columns; omit rows of a job of all, and columns."""
    places: dict[Path, list[tuple[str, str]]] = {}
    for place, (first, *_) in jobs.items():
        places.setdefault(first.folder, []).append(place)
    everywhere = [len({place[i] for place in jobs}) for i in range(2)]
    by_name = {}
    for group in places.values():
        parts = [[*dict.fromkeys(place[i] for place in group)] for i in range(2)]
        names = [
            "; ".join(part) for part, n in zip(parts, everywhere, strict=True) if len(part) < n
        ]
        by_name[", ".join(names) or "all numbers"] = jobs[group[0]]
    return by_name


def training_panels(jobs: Mapping[str, Sequence[Job]]) -> list[Panel]:
    """Plot the training losses by name: the mean over jobs, and their range.

    Equal curves are plotted once. Returns none for more than `MAX_CURVES`.
    """
    lines: dict[str, Line] = {}
    for name, seeds in jobs.items():
        curves = [read_losses(job.folder) for job in seeds if job.done()]
        if curves := [curve for curve in curves if curve]:
            line = mean_curve(curves)
            if line not in lines.values():
                lines[name] = line
    if not 0 < len(lines) <= MAX_CURVES:
        return []
    note = RANGE if any(line.low for line in lines.values()) else ""
    return [Panel("Training loss", "step", "loss", lines, log_y=True, note=note)]


def sample_grids(jobs: Mapping[str, Sequence[Job]]) -> dict[str, Path]:
    """Return the sample grid by name, of the first of the jobs that is finished and has one."""
    grids: dict[str, Path] = {}
    for name, seeds in jobs.items():
        files = (sample_grid(job.folder) for job in seeds if job.done())
        if file := next(filter(None, files), None):
            grids[name] = file
    return grids
