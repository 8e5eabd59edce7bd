"""Tables on the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def key_value_table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Return a table of label, value and remark."""
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
    """Return a table with a title, column headers and a line for each of `rows`."""
    lines = [[row_header, *map(str, columns)], *([name, *cells] for name, cells in rows.items())]
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    widths = [max(10, width + 2) for width in widths]
    head, *body = (
        f"  {name:<{first}}"
        + "".join(f"{text:>{w}}" for text, w in zip(cells, widths, strict=True))
        for name, *cells in lines
    )
    rule = "  " + "─" * (len(head) - 2)
    return "\n".join([f"  {title}", rule, head, *body, rule])


def format_with_error(value: float, error: float | None) -> str:
    """Return `value` with three digits, and its standard error, if there is one, with as many."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")
