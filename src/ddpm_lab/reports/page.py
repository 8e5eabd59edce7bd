"""Write a report: an HTML page, and the same tables in other formats."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ddpm_lab import __version__
from ddpm_lab.reports import formats, number_format
from ddpm_lab.reports.figures import render
from ddpm_lab.reports.findings import findings
from ddpm_lab.reports.grids import read_caption
from ddpm_lab.reports.latex import latex
from ddpm_lab.reports.table import Table
from ddpm_lab.utils.atomic_io import atomic_write


def write(tables: Sequence[Table], out: Path, root: Path, version: str = __version__) -> list[Path]:
    """Write the page, table.csv, .md and .tex, claims.csv and the plots to `out`; return the files.

    Paths in them are relative to `root`. Equal tables give equal bytes. `version` of ddpm-lab is in
    the footer of the page and of table.md.
    """
    out.mkdir(parents=True, exist_ok=True)
    plots = {
        formats.png(table, i): render(panel)
        for table in tables
        for i, panel in enumerate(table.panels)
    }
    contents = plots | {
        "table.csv": formats.csv(tables, root).encode(),
        "claims.csv": formats.claims_csv(tables).encode(),
        "table.md": formats.markdown(tables, version).encode(),
        "table.tex": latex(tables).encode(),
        "report.html": page(tables, root, plots, version).encode(),
    }
    for name, content in contents.items():
        with atomic_write(out / name) as part:
            part.write_bytes(content)
    return [out / name for name in contents]


def page(tables: Sequence[Table], root: Path, plots: Mapping[str, bytes], version: str) -> str:
    """Render a self-contained HTML page; `plots` are PNGs by file name."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folder = Path(__file__).parent
    template = environment.from_string((folder / "page.html.j2").read_text("utf-8"))
    return template.render(
        tables=tables,
        plots=plots,
        version=version,
        css=(folder / "page.css").read_text("utf-8"),
        numbers=number_format,
        findings=findings,
        read_caption=read_caption,
        common_protocol=_common_protocol,
        png=formats.png,
        data_url=lambda png: f"data:image/png;base64,{b64encode(png).decode()}",
        relative=lambda file: formats.relative(file, root),
    )


def _common_protocol(table: Table) -> dict[str, Any]:
    """Return the settings that all numbers of a table share."""
    first, *rest = [entry.protocol.items() for entry in number_format.entries(table)] or [
        {}.items()
    ]
    return dict(item for item in first if all(item in other for other in rest))
