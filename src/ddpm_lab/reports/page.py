"""The page that shows a paper's table beside ours, and the files that go with it."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ddpm_lab.reports import formats, number_format, plots
from ddpm_lab.reports.table import Table


def _data(png: bytes) -> str:
    return "data:image/png;base64," + b64encode(png).decode()


def _shared(table: Table) -> dict[str, Any]:
    """What the protocols of all of a table's numbers agree on, which is then said once."""
    first, *rest = [entry.protocol for entry in number_format.entries(table)] or [{}]
    return {
        key: value
        for key, value in first.items()
        if all(key in x and x[key] == value for x in rest)
    }


def page(tables: Sequence[Table], root: Path, pngs: Sequence[Sequence[bytes]]) -> str:
    """One HTML file that needs no other; `pngs` has those of each table's panels, and files are relative to `root`."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data"] = _data
    here = Path(__file__)
    template = environment.from_string(here.with_name("page.html.j2").read_text("utf-8"))
    return template.render(
        tables=list(zip(tables, pngs, strict=True)),
        summary=number_format.summary,
        css=here.with_name("page.css").read_text("utf-8"),
        numbers=number_format,
        shared=_shared,
        tier=formats.tier,
        relative=lambda file: formats.relative(file, root),
    )


def _put(file: Path, content: bytes) -> Path:
    """Never half of it under its name."""
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content)
    return part.replace(file)


def write(tables: Sequence[Table], out: Path, root: Path) -> list[Path]:
    """Plots, `table.csv`, `.md`, `.tex` and `report.html` in `out`; the same bytes for the same tables. Files that are
    named in them are named relative to `root`.
    """
    out.mkdir(parents=True, exist_ok=True)
    pngs = [[plots.render(panel) for panel in table.panels] for table in tables]
    texts = {
        "table.csv": formats.csv(tables, root),
        "table.md": formats.markdown(tables),
        "table.tex": formats.latex(tables),
        "report.html": page(tables, root, pngs),
    }
    named = {
        formats.png(table, i): png
        for table, made in zip(tables, pngs, strict=True)
        for i, png in enumerate(made)
    }
    contents = named | {name: content.encode() for name, content in texts.items()}
    return [_put(out / name, content) for name, content in contents.items()]
