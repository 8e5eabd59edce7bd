"""The page of the explorer: its modules, styles and data in one file of HTML."""

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ddpm_lab import __version__
from ddpm_lab.diffusion import schedules
from ddpm_lab.diffusion.process import ForwardProcess

FOLDER = Path(__file__).parent
MODULES = (
    "noise",
    "process",
    "samplers",
    "mixture",
    "charts",
    "controls",
    "analytic",
    "model",
    "main",
)
"""Each module after those that it imports"""
COLUMNS = ("alpha", "sigma", "log_snr", "scale")


def render_page(run: Mapping[str, Any] | None = None) -> str:
    """Return the page of exact diffusion, with the sections of `run` if there is one.

    `run` has what `modelSections` of model.mjs reads.
    """
    processes = {
        "linear": ForwardProcess(schedules.linear()),
        "cosine": ForwardProcess(schedules.cosine()),
        "sigmoid": ForwardProcess(schedules.sigmoid()),
        "flow": ForwardProcess(schedules.flow()),
    }
    tables = {name: schedule_tables(process) for name, process in processes.items()}
    data = json.dumps({"schedules": tables, "run": run})
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        (FOLDER / "page.html.j2").read_text("utf-8")
    )
    return template.render(
        title=f"Explore {run['name']}" if run else "Explore diffusion",
        version=__version__,
        run=run,
        css=Markup((FOLDER / "page.css").read_text("utf-8")),
        script=Markup(bundle()),
        data=Markup(data.replace("<", "\\u003c")),  # no text can close the script element
    )


def schedule_tables(process: ForwardProcess) -> dict[str, str]:
    """Return the columns of the table for t = 0..T, as base64 of little-endian float64."""
    columns = process.table.cpu().numpy().astype("<f8").T
    return {
        name: b64encode(column.tobytes()).decode()
        for name, column in zip(COLUMNS, columns, strict=True)
    }


def bundle() -> str:
    """Return the modules as one, without their imports, which a page of one file cannot load."""
    sources = [(FOLDER / f"{name}.mjs").read_text("utf-8") for name in MODULES]
    bodies = [re.sub(r"^import .*?;\n", "", source, flags=re.M | re.S) for source in sources]
    return "\n".join(re.sub(r"^export ", "", body, flags=re.M) for body in bodies)
