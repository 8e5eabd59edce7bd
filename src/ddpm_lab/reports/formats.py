"""Tables as Markdown, CSV and LaTeX."""

import csv as csv_module
import re
import unicodedata
from collections.abc import Iterator, Sequence
from io import StringIO
from os.path import relpath
from pathlib import Path

from ddpm_lab.reports import number_format
from ddpm_lab.reports.table import Column, Entry, Table
from ddpm_lab.utils.errors import escape_control

CSV_HEADER = (
    "table,tier,row,column,metric,paper,recalled,ours,std,seeds,difference,status,marks,configs,"
    "files,commands\n"
)
MAX_ROWS = 25
"""Rows of one `tabular`, so that it fits a page"""


def relative(file: Path, root: Path) -> str:
    """Return `file` relative to `root`, so that reports are equal on all machines."""
    return Path(relpath(file, root)).as_posix()


def png(table: Table, panel: int) -> str:
    """Return the file name of a plot."""
    return f"{table.name}-{panel + 1}.png"


def markdown(tables: Sequence[Table]) -> str:
    """Format tables as sections, with links to the plots next to the file."""
    first = tables[0]
    counts = "; ".join(f"{count} {text}" for count, text in number_format.summary(tables))
    source = ". ".join(text for text in (first.source, counts) if text)
    parts = [f"## {_md(first.title)}", f"{_md(source)}."]
    for table in tables:
        parts += _markdown_section(table, first)
    return "\n\n".join(filter(None, parts)) + "\n"


def _markdown_section(table: Table, first: Table) -> list[str]:
    titles, source = [number_format.tier(table).capitalize()], ""
    if table.title != first.title:
        titles, source = [table.title, *titles], table.source
    parts = [f"### {_md(': '.join(filter(None, titles)) or table.title)}", _md(source)]
    if table.skip_reason:
        return [*parts, f"Not available: {_md(table.skip_reason)}"]
    head, *rows = number_format.grid(table)
    plots = [f"![{_md(panel.title)}]({png(table, i)})" for i, panel in enumerate(table.panels)]
    rule = "|---|" + "---:|" * (len(head) - 1)
    return [
        *parts,
        *map(_md, number_format.above(table)),
        "\n".join([_markdown_row(head), rule, *map(_markdown_row, rows)]),
        *map(_md, number_format.below(table)),
        "\n".join(f"- {_md(line)}" for line in number_format.claims(table)),
        *map(_md, number_format.claims_legend(table)),
        "\n".join(plots),
        f"    {escape_control(table.command)}" if table.command else "",
    ]


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
    writer.writerow(["table", "tier", "claim", "verdict", "detail", "reason"])
    for table in tables:
        claims = [
            *([each.text, each.verdict, each.detail, each.reason] for each in table.claims),
            *([text, number_format.NOT_CLAIMED, "", why] for text, why in table.omitted.items()),
        ]
        writer.writerows(map(_without_formulas, ([table.name, table.tier, *c] for c in claims)))
    return stream.getvalue()


def _without_formulas(fields: Sequence[object]) -> list[object]:
    """Return fields that no spreadsheet reads as formulas."""
    return [f"'{field}" if _is_formula(field) else field for field in fields]


def _is_formula(field: object) -> bool:
    return isinstance(field, str) and field.startswith(("=", "+", "-", "@", "\t", "\r"))


def latex(tables: Sequence[Table]) -> str:
    """Format each table as a `table` with a booktabs `tabular`, long ones in several parts."""
    lines = [r"% \usepackage{booktabs}, \usepackage{graphicx}, \usepackage[T1]{fontenc}"]
    for table in tables:
        caption = ". ".join([*number_format.titles(table), *number_format.above(table)])
        for part in _tabulars(table):
            lines += ["", r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption)}}}"]
            lines += [*part, r"\end{table}"]
            caption = f"{table.title}, continued"
    return "\n".join(lines) + "\n"


def _tabulars(table: Table) -> Iterator[list[str]]:
    """Yield the lines of each part: at most `MAX_ROWS` rows, no wider than the text."""
    if table.skip_reason:
        yield [f"Not available: {_tex(table.skip_reason)}"]
        return
    lines = number_format.grid(table)
    head, *rows = [" & ".join(map(_tex, line)) + r" \\" for line in lines]
    alignment = "l" + "r" * (len(lines[0]) - 1)
    for start in range(0, len(rows), MAX_ROWS):
        notes = number_format.below(table) if start + MAX_ROWS >= len(rows) else ()
        yield [
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            head,
            r"\midrule",
            *rows[start : start + MAX_ROWS],
            r"\bottomrule",
            r"\end{tabular}}",
            *(rf"\par\smallskip{{\footnotesize\raggedright {_tex(note)}\par}}" for note in notes),
        ]


def _tex(text: str) -> str:
    """Escape text as ASCII LaTeX; a character without a LaTeX form becomes its code point."""
    parts: list[str] = []
    for sign in unicodedata.normalize("NFD", " ".join(text.split())):
        if sign in ACCENTS and parts:
            mathematical, accent = ACCENTS[sign]
            letter = parts.pop()
            if letter.startswith("$") and mathematical:
                parts.append(f"${mathematical}{{{letter.strip('$')}}}$")
            else:
                parts.append(f"\\{accent}{{{letter}}}")
        elif sign in TEX or (sign.isascii() and sign.isprintable()):
            parts.append(TEX.get(sign, sign))
        elif not unicodedata.combining(sign):
            parts.append(rf"{{\footnotesize U+{ord(sign):04X}}}")
    return "".join(parts)


def _greek_command(letter: str) -> str:
    word = unicodedata.name(letter).split()[-1].lower().replace("lamda", "lambda")
    return f"$\\{word.capitalize() if letter.isupper() else word}$"


def _commands(pairs: str) -> Iterator[tuple[str, str]]:
    """Yield (character, LaTeX command) of a list in which they alternate."""
    words = pairs.split()
    return zip(words[::2], words[1::2], strict=True)


COMMANDS = r"""\ textbackslash  ~ textasciitilde  ^ textasciicircum  < textless  > textgreater
| textbar  " textquotedbl  ` textasciigrave  § S  ¶ P  … ldots
ß ss  ø o  Ø O  æ ae  Æ AE  ł l"""
MATH_COMMANDS = """± pm  × times  ≤ leq  ≥ geq  ≈ approx  ∞ infty  → to  ↓ downarrow  ↑ uparrow
· cdot  √ surd  † dagger  ‡ ddagger  ✓ surd  ✗ times  ‖ Vert  ∈ in  ≠ neq  ∑ sum  ′ prime
µ mu  ℓ ell"""
GREEK = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ"
SUPERSCRIPTS = ("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
SUBSCRIPTS = ("₀₁₂₃₄₅₆₇₈₉₋₊ₜₙ", "0123456789-+tn")
TEX = {
    **{sign: f"\\{command}{{}}" for sign, command in _commands(COMMANDS)},
    **{sign: f"$\\{command}$" for sign, command in _commands(MATH_COMMANDS)},
    **{letter: _greek_command(letter) for letter in GREEK},
    **{sign: f"$^{{{plain}}}$" for sign, plain in zip(*SUPERSCRIPTS, strict=True)},
    **{sign: f"$_{{{plain}}}$" for sign, plain in zip(*SUBSCRIPTS, strict=True)},
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{sign: f"{{{sign}}}" for sign in "[]*-'"},
    **{"−": "$-$", "–": "--", "—": "---", "‘": "`{}", "’": "'{}", "“": "``{}", "”": "''{}"},
}
"""LaTeX for characters that it would treat as commands, join to ligatures, or cannot print"""
ACCENTS = {
    "\u0300": (r"\grave", "`"),
    "\u0301": (r"\acute", "'"),
    "\u0302": (r"\hat", "^"),
    "\u0303": (r"\tilde", "~"),
    "\u0304": (r"\bar", "="),
    "\u0306": (r"\breve", "u"),
    "\u0307": (r"\dot", "."),
    "\u0308": (r"\ddot", '"'),
    "\u030a": (r"\mathring", "r"),
    "\u030c": (r"\check", "v"),
    "\u0327": ("", "c"),
}
"""Accents by combining character: of Greek letters in mathematics, and of others in text"""
