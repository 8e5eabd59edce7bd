"""Tables on the terminal."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any


def key_value_table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Format three columns: label, value, remark."""
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [
        f"  {label:<{widths[0]}}  {value:>{widths[1]}}  {remark}".rstrip()
        for label, value, remark in rows
    ]
    rule = "  " + "─" * max(len(line) - 2 for line in lines)
    return "\n".join([rule, *lines, rule])


def format_grid(
    title: str, row_header: str, columns: Sequence[Any], rows: Mapping[str, Sequence[str]]
) -> str:
    """Format a table with a title, column heads and a line of cells for each of `rows`."""
    width = max(map(len, [row_header, *rows]))
    widths = [
        max(10, *(2 + len(str(cells[i])) for cells in (columns, *rows.values())))
        for i in range(len(columns))
    ]
    head, *lines = (
        f"  {name:<{width}}"
        + "".join(f"{cell:>{size}}" for size, cell in zip(widths, cells, strict=True))
        for name, cells in {row_header: columns, **rows}.items()
    )
    rule = "  " + "─" * (len(head) - 2)
    return "\n".join([f"  {title}", rule, head, *lines, rule])


def __getattr__(name: str) -> Any:
    """Forward the rows of metrics, until their importers take them from `evaluation.metrics`."""
    if name.endswith("_rows"):
        return getattr(import_module("ddpm_lab.evaluation.metrics"), name)
    raise AttributeError(name)
