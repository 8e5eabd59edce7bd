"""Tables as Markdown and CSV."""

import csv as csv_module
import re
from collections.abc import Iterator, Sequence
from io import StringIO
from os.path import relpath
from pathlib import Path

from ddpm_lab import __version__
from ddpm_lab.reports import number_format
from ddpm_lab.reports.findings import findings
from ddpm_lab.reports.table import Column, Entry, Table
from ddpm_lab.utils.errors import escape_control

CSV_HEADER = (
    "table,tier,row,column,metric,paper_metric,paper,recalled,ours,std,seeds,difference,status,"
    "marks,configs,files,commands\n"
)


def relative(file: Path, root: Path) -> str:
    """Return `file` relative to `root`, so that reports are equal on all machines."""
    return Path(relpath(file, root)).as_posix()


def png(table: Table, panel: int) -> str:
    """Return the file name of a plot."""
    return f"{table.name}-{panel + 1}.png"


def markdown(tables: Sequence[Table], version: str = __version__) -> str:
    """Format tables as sections, with links to the plots next to the file.

    `version` of ddpm-lab is in the last line.
    """
    first = tables[0]
    counts = "; ".join(f"{count} {text}" for count, text in number_format.summary(tables))
    source = ". ".join(text for text in (first.source, counts) if text)
    parts = [f"## {_md(first.title)}", f"{_md(source)}."]
    for table in tables:
        parts += _markdown_section(table, first)
    parts.append(_md(f"Report: ddpm-lab {version}"))
    return "\n\n".join(filter(None, parts)) + "\n"


def _markdown_section(table: Table, first: Table) -> list[str]:
    titles, source = [number_format.tier(table).capitalize()], ""
    if table.title != first.title:
        titles, source = [table.title, *titles], table.source
    parts = [f"### {_md(': '.join(filter(None, titles)) or table.title)}", _md(source)]
    if table.skip_reason:
        return [*parts, f"Not available: {_md(table.skip_reason)}"]
    plots = [f"![{_md(panel.title)}]({png(table, i)})" for i, panel in enumerate(table.panels)]
    return [
        *parts,
        _md(" ".join(findings(table))),
        *map(_md, number_format.protocols(table)),
        *_markdown_tables(table),
        *map(_md, number_format.below(table)),
        "\n".join(f"- {_md(line)}" for line in number_format.claims(table)),
        *map(_md, number_format.claims_legend(table)),
        "\n".join(plots),
        _md(f"Runs: {table.provenance}") if table.provenance else "",
        f"    {escape_control(table.command)}" if table.command else "",
    ]


def _markdown_tables(table: Table) -> Iterator[str]:
    for block in number_format.blocks(table):
        head, *rows = number_format.grid(table, block)
        yield _md(block.caption)
        rule = "|---|" + "---:|" * (len(head) - 1)
        yield "\n".join([_markdown_row(head), rule, *map(_markdown_row, rows)])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_md, cells))} |"


def _md(text: str) -> str:
    """Escape text for Markdown, including numbers and signs that would start a list."""
    escaped = re.sub(r"([\\`*_{}\[\]<>|$~&#])", r"\\\1", " ".join(text.split()))
    escaped = re.sub(r"^(?=[-+=])", r"\\", escaped)
    return re.sub(r"^(\d+)(?=[.)] )", r"\1\\", escaped)


def csv(tables: Sequence[Table], root: Path = Path()) -> str:
    """Format tables as one line per number, unrounded, with paths relative to `root`.

    Values of several seeds are joined by "; ". An apostrophe precedes text that a spreadsheet would
    read as a formula.
    """
    stream = StringIO()
    stream.write(CSV_HEADER)
    writer = csv_module.writer(stream, lineterminator="\n")
    for table in tables:
        for name, row in table.rows.items():
            for column, entry in zip(table.columns, row, strict=True):
                fields = _csv_fields(table, name, column, entry, root)
                writer.writerow(_without_formulas(fields))
    return stream.getvalue()


def _csv_fields(table: Table, row: str, column: Column, entry: Entry, root: Path) -> list[object]:
    paper = entry.paper
    return [
        table.name,
        table.tier,
        row,
        column.name,
        column.metric,
        column.paper_metric or column.metric,
        paper.value if paper else "",
        ("yes" if paper.recalled else "no") if paper else "",
        entry.ours,
        entry.std,
        len(entry.sources),
        entry.difference,
        entry.status,
        " ".join(entry.marks),
        "; ".join(source.config_hash for source in entry.sources),
        "; ".join(relative(source.file, root) for source in entry.sources),
        "; ".join(source.command for source in entry.sources),
    ]


def claims_csv(tables: Sequence[Table]) -> str:
    """Format the claims of tables as one line per claim."""
    stream = StringIO()
    writer = csv_module.writer(stream, lineterminator="\n")
    writer.writerow(["table", "tier", "claim", "verdict", "numbers", "reason"])
    for table in tables:
        claims = [
            *(
                [each.text, each.verdict, "; ".join(each.details), each.reason]
                for each in table.claims
            ),
            *([text, number_format.NOT_CLAIMED, "", why] for text, why in table.omitted.items()),
        ]
        writer.writerows(map(_without_formulas, ([table.name, table.tier, *c] for c in claims)))
    return stream.getvalue()


def _without_formulas(fields: Sequence[object]) -> list[object]:
    """Return fields that no spreadsheet reads as formulas."""
    return [f"'{field}" if _is_formula(field) else field for field in fields]


def _is_formula(field: object) -> bool:
    return isinstance(field, str) and field.startswith(("=", "+", "-", "@", "\t", "\r"))
