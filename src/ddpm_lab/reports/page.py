"""Write a report: an HTML page, and the same tables in other formats."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ddpm_lab.reports import formats, number_format, plots
from ddpm_lab.reports.table import Table
from ddpm_lab.utils.atomic_io import atomic_write


def write(tables: Sequence[Table], out: Path, root: Path) -> list[Path]:
    """Write report.html, table.csv, .md and .tex, and the plots to `out`, and return the files.

    Paths in them are relative to `root`. Equal tables give equal bytes.
    """
    out.mkdir(parents=True, exist_ok=True)
    pngs = [[plots.render(panel) for panel in table.panels] for table in tables]
    contents = {
        formats.png(table, i): png
        for table, images in zip(tables, pngs, strict=True)
        for i, png in enumerate(images)
    }
    texts = {
        "table.csv": formats.csv(tables, root),
        "table.md": formats.markdown(tables),
        "table.tex": formats.latex(tables),
        "report.html": page(tables, root, pngs),
    }
    contents |= {name: text.encode() for name, text in texts.items()}
    for name, content in contents.items():
        with atomic_write(out / name) as part:
            part.write_bytes(content)
    return [out / name for name in contents]


def page(tables: Sequence[Table], root: Path, pngs: Sequence[Sequence[bytes]]) -> str:
    """Render a self-contained HTML page; `pngs` are the plots of each table."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_url"] = _data_url
    folder = Path(__file__).parent
    template = environment.from_string((folder / "page.html.j2").read_text("utf-8"))
    return template.render(
        tables=list(zip(tables, pngs, strict=True)),
        css=(folder / "page.css").read_text("utf-8"),
        numbers=number_format,
        common_protocol=_common_protocol,
        tier=formats.tier,
        relative=lambda file: formats.relative(file, root),
    )


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + b64encode(png).decode()


def _common_protocol(table: Table) -> dict[str, Any]:
    """Return the settings that all numbers of a table share."""
    first, *rest = [entry.protocol for entry in number_format.entries(table)] or [{}]
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in rest)
    }
