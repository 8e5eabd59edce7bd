"""Sphinx configuration; `make docs` builds the site into docs/_build/html."""

import os
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent / "src")]

import ddpm_lab  # noqa: E402

project = "ddpm-lab"
author = "The ddpm-lab developers"
project_copyright = author
release = ddpm_lab.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "plain_docstrings",
    "config_groups",
    "api_pages",
]
exclude_patterns = ["_build", "_ext", "conf.py", "**/__pycache__"]
suppress_warnings = [
    "myst-nb.lexer",  # of tutorials that are not executed
    "myst.header",  # tables of report.py begin at the second level
]

highlight_language = "none"  # blocks without a language are commands and output

html_theme = "furo"
html_title = f"ddpm-lab {release}"
html_theme_options = {
    "source_repository": "https://github.com/ddpm-lab/ddpm-lab/",
    "source_branch": "main",
    "source_directory": "docs/",
}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Tutorials are scripts in jupytext's percent format. DDPM_LAB_DOCS_EXECUTION=off skips them.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = os.environ.get("DDPM_LAB_DOCS_EXECUTION", "auto")
nb_execution_timeout = 120  # seconds per cell
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "show-inheritance": True,
    "special-members": "__call__",
}
add_module_names = False
python_maximum_signature_line_length = 88


def remove_empty_globs(app: Any, page: str, source: list[str]) -> None:
    """Remove patterns such as tutorials/* without matches, about which Sphinx warns."""
    lines = source[0].split("\n")
    source[0] = "\n".join(
        line for line in lines if not re.fullmatch(r"[\w/]+\*", line) or [*DOCS.glob(f"{line}.*")]
    )


def hide_source_links(app: Any, page: str, template: str, context: Any, tree: Any) -> None:
    """Hide the links to the source of generated pages, which is not in the repository."""
    if page.startswith(("reference/api/", "reference/configs/")):
        context["page_source_suffix"] = ""


def write_explorer(app: Any, error: Exception | None) -> None:
    """Write the page of exact diffusion beside those of the documentation."""
    from ddpm_lab.explorer.page import render_page

    Path(app.outdir, "explorer.html").write_text(render_page(), "utf-8")


def setup(app: Any) -> None:
    app.connect("build-finished", write_explorer)
    app.connect("html-page-context", hide_source_links)
    app.connect("source-read", remove_empty_globs)
