"""The plots and pictures of an ablation's report."""

from pathlib import Path
from typing import Any

from ddpm_lab.commands.ablation import Place, Plan
from ddpm_lab.commands.readings import METRICS, at, losses, read, samples
from ddpm_lab.commands.spec import Plot
from ddpm_lab.reports.table import Panel, Table

Lines = dict[str, tuple[list[Any], list[float]]]


def panels(plan: Plan, table: Table, plot: Plot) -> list[Panel]:
    names = [column.name for column in table.columns]
    metric = table.columns[names.index(plot.column or names[0])].metric
    at_column = names.index(plot.column or names[0])

    def panel(title: str, y: str, lines: Lines) -> list[Panel]:
        return [Panel(title, plot.x, y, lines, plot.log_x, plot.log_y)] if lines else []

    if plot.kind == "columns":
        ours, theirs = (_across(table, which) for which in ("ours", "theirs"))
        metric = table.columns[at_column].metric
        published = METRICS.get(plan.ablation.metric, (plan.ablation.metric, None))[0]
        return [*panel(f"{plot.title}: the paper", plot.y or published, theirs),
                *panel(f"{plot.title}: ours, {plan.tier}", plot.y or metric, ours)]  # fmt: skip
    lines: Lines = {}
    if plot.kind == "bars":
        for name, which in (("ours", "ours"), ("paper", "theirs")):
            known = [(row, getattr(entries[at_column], which)) for row, entries in table.rows.items()]
            if points := [(row, y) for row, y in known if y is not None]:
                lines[name] = ([row for row, _ in points], [y for _, y in points])
        return panel(plot.title, table.columns[at_column].metric, lines) if "ours" in lines else []
    for row in table.rows:
        cell = plan.places.get(Place(row, names[at_column], plan.stage.seeds[0]))
        if cell is None or not cell.done() or not (found := at(read(cell.metrics), plot.path)):
            continue
        both = [(one[plot.x_key], one[plot.y_key]) for one in found]
        both = [(x, y) for x, y in both if (x > 0 or not plot.log_x) and (y > 0 or not plot.log_y)]
        lines[row] = ([x for x, _ in both], [y for _, y in both])
    return panel(plot.title, plot.y, lines)


def _across(table: Table, which: str) -> Lines:
    """A line for each row, over the columns that lie somewhere: in the paper, where their names say."""
    lines: Lines = {}
    for row, entries in table.rows.items():
        points = [(column.x if which == "ours" else float(column.name), getattr(entry, which))
                  for column, entry in zip(table.columns, entries, strict=True)
                  if column.x is not None and column.name.isdigit() and getattr(entry, which) is not None]  # fmt: skip
        if points:
            lines[row] = ([x for x, _ in points], [y for _, y in points])
    return lines


def training(plan: Plan) -> list[Panel]:
    """The training losses of the rows' first seed."""
    lines: dict[str, tuple[list[Any], list[float]]] = {}
    for row, cell in plan.trained.items():
        if cell.done() and (curve := losses(cell.folder)) and curve not in lines.values():
            lines[row] = curve
    return [Panel("loss of training", "step", "loss", lines, log_y=True)] if lines else []


def pictures(plan: Plan) -> dict[str, Path]:
    found = {row: last for row, cell in plan.trained.items() if cell.done() and (last := samples(cell.folder))}
    return {row: file for i, (row, file) in enumerate(found.items()) if file not in [*found.values()][:i]}
