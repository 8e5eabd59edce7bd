"""Docstrings in plain text for Sphinx: `code` in backticks, formulas such as x_t, |x| and a * b.

A hook turns code spans into reStructuredText literals and escapes everything else that
reStructuredText would interpret. Then napoleon reads the "Args:" sections.
"""

import re
from typing import Any

from sphinx.ext.napoleon import Config, GoogleDocstring

CODE = re.compile(r"`([^`]+)`")
SPECIAL = re.compile(r"[\\*|]|_(?!\w)")
GENERIC = re.compile("Define the computation performed at every call|Alias for field number")
"""Texts of torch and collections for members without a docstring"""
NO_SECTIONS = ("attribute", "data", "property")
"""Kinds whose docstrings are one text; napoleon would read "type: text" """
NAPOLEON: Any = Config(napoleon_numpy_docstring=False)
REPLACEMENTS = [
    (
        r"Annotated\[(\w+)(?:, (?:Ge|Gt|Le|Lt)\([^)]*\))+\]",
        r"\1",
    ),  # ranges
    (r"= Ellipsis", "= ..."),
    (r"<[\w.]*?(\w+) object>", r"\1()"),
    (r"<(?:built-in method|function) (?:\w+\.)*(\w+)[^>]*>", r"\1"),
    (r"(\w+)\((?:_?\w+=None(?:, )?)+\)", r"\1()"),  # dataclasses without values
]
"""Patterns of a signature, and shorter texts for them"""


def to_rst(text: str) -> str:
    """Return plain text with code spans as reStructuredText."""
    parts = CODE.split(text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = SPECIAL.sub(r"\\\g<0>", part)
            continue
        # Literals begin and end at a word boundary.
        before, after = parts[i - 1][-1:], parts[i + 1][:1]
        parts[i] = "\\ " * before.isalnum() + f"``{part}``" + "\\ " * after.isalnum()
    return "".join(parts)


def process_docstring(
    app: Any, kind: Any, name: str, target: Any, options: Any, lines: list[str]
) -> None:
    """Convert the lines of a docstring in place."""
    if any(map(GENERIC.match, lines)):
        lines.clear()
    lines[:] = to_rst("\n".join(lines)).split("\n")
    if kind not in NO_SECTIONS:
        lines[:] = GoogleDocstring(lines, NAPOLEON, app, kind, name, target, options).lines()


def process_signature(
    app: Any,
    kind: str,
    name: str,
    target: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Return the signature with short defaults and without ranges of numbers."""
    for pattern, text in REPLACEMENTS:
        signature = signature and re.sub(pattern, text, signature)
    return signature, returns


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-process-signature", process_signature)
    return {"parallel_read_safe": True}
