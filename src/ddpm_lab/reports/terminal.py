"""Tables on the terminal."""

import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from ddpm_lab.reports import number_format
from ddpm_lab.reports.findings import findings
from ddpm_lab.reports.table import Table


def key_value_table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Return a table of label, value and remark."""
    lines, rule = _align(rows, "<><")
    return "\n".join([rule, *lines, rule])


def format_grid(
    title: str, row_header: str, columns: Sequence[Any], rows: Mapping[str, Sequence[str]]
) -> str:
    """Return a table with a title, column headers and a line for each of `rows`."""
    cells = [[row_header, *map(str, columns)], *([name, *texts] for name, texts in rows.items())]
    (head, *lines), rule = _align(cells, "<" + ">" * len(columns), min_width=8)
    return "\n".join([*([f"  {title}"] if title else []), rule, head, *lines, rule])


def _align(
    rows: Sequence[Sequence[str]], alignments: str, min_width: int = 0
) -> tuple[list[str], str]:
    """Return a line per row, in aligned columns, and a rule of their width."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    widths = [first, *(max(min_width, width) for width in others)]
    lines = []
    for row in rows:
        cells = zip(row, alignments, widths, strict=True)
        texts = [f"{text:{alignment}{width}}" for text, alignment, width in cells]
        lines.append(f"  {'  '.join(texts)}".rstrip())
    return lines, "  " + "─" * (max(map(len, lines)) - 2)


def format_with_error(value: float, error: float | None) -> str:
    """Return `value` with three digits; its standard error, if any, has as many decimals."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def terminal(table: Table) -> str:
    """Format a table of a report with its notes and claims."""
    titles = number_format.titles(table)
    if table.skip_reason:
        return "\n".join(f"  {line}" for line in (*titles, f"not available: {table.skip_reason}"))
    lines = [*titles, *findings(table), *number_format.protocols(table)]
    parts = [*map(_wrap, lines)]
    for block in number_format.blocks(table):
        (row_header, *columns), *rows = number_format.grid(table, block)
        cells = {name: texts for name, *texts in rows}
        parts.append(format_grid(block.caption, row_header, columns, cells))
    notes = [
        *number_format.below(table),
        *number_format.claims(table),
        *number_format.claims_legend(table),
        *([f"runs: {table.provenance}"] if table.provenance else []),
    ]
    return "\n".join([*parts, *map(_wrap, notes)])


def _wrap(line: str) -> str:
    return fill(line, 100, initial_indent="  ", subsequent_indent="    ", break_long_words=False)
