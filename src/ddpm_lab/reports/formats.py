"""Tables as text: for a terminal, a README, a spreadsheet, a paper."""

import csv as csv_module
import re
from collections.abc import Iterator, Sequence
from io import StringIO
from os.path import relpath
from pathlib import Path
from textwrap import wrap
from unicodedata import combining, normalize

from ddpm_lab.reports import number_format
from ddpm_lab.reports.table import Table
from ddpm_lab.utils.errors import escape_control

FIELDS = (
    "table",
    "tier",
    "row",
    "column",
    "metric",
    "paper",
    "recalled",
    "ours",
    "spread",
    "seeds",
    "difference",
    "status",
    "marks",
    "configs",
    "files",
    "commands",
)


def relative(file: Path, root: Path) -> str:
    """As a report shows it: never absolute, so that it is the same on every machine."""
    return Path(relpath(file, root)).as_posix()


def tier(table: Table) -> str:
    return f"{table.tier} tier" if table.tier else ""


def _grid(table: Table) -> list[list[str]]:
    """The head, then the rows; beside ours a column of the paper's numbers, where it has any."""
    shared = number_format.common(table.columns) is not None
    with_paper = [
        any(row[i].paper for row in table.rows.values()) for i in range(len(table.columns))
    ]
    lines = [[table.row_header]] + [[name] for name in table.rows]
    for i, column in enumerate(table.columns):
        lines[0] += [number_format.head(column, shared)] + ["paper"] * with_paper[i]
        for line, row in zip(lines[1:], table.rows.values(), strict=True):
            line += [number_format.cell(row[i])] + [number_format.paper(row[i].paper)] * with_paper[
                i
            ]
    return lines


def _above(table: Table) -> Iterator[str]:
    if column := number_format.common(table.columns):
        yield number_format.metric(column)
    if table.paper_protocol:
        yield f"paper: {table.paper_protocol}"
    if table.our_protocol:
        yield f"ours: {table.our_protocol}"


def _below(table: Table) -> Iterator[str]:
    yield from (f"{mark} {note}" for mark, note in table.notes.items())
    yield from number_format.legend(table)


def _wrapped(line: str) -> list[str]:
    return wrap(line, 100, initial_indent="  ", subsequent_indent="    ", break_long_words=False)


def terminal(table: Table) -> str:
    """A line for each row, its notes and its claims."""
    titles = [title for title in (table.title, table.source, tier(table)) if title]
    if table.skip_reason:
        return "\n".join(f"  {line}" for line in (*titles, f"no such table: {table.skip_reason}"))
    lines = _grid(table)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    drawn = [
        f"  {line[0]:<{widths[0]}}"
        + "".join(f"  {x:>{n}}" for x, n in zip(line[1:], widths[1:], strict=True))
        for line in lines
    ]
    rule = "  " + "─" * (len(drawn[0]) - 2)
    claims = [
        f"{number_format.TICKS[claim.passed]} {claim.text} ({claim.detail})"
        for claim in table.claims
    ]
    claims += [f"not claimed: {text} ({why})" for text, why in table.omitted.items()]
    rest = [part for line in (*_below(table), *claims) for part in _wrapped(line)]
    above = [part for line in (*titles, *_above(table)) for part in _wrapped(line)]
    return "\n".join(
        line.rstrip() for line in [*above, rule, drawn[0], rule, *drawn[1:], rule, *rest]
    )


def _md(words: str) -> str:
    escaped = re.sub(r"([\\`*_{}\[\]<>|$~&#])", r"\\\1", " ".join(words.split()))
    return re.sub(
        r"^([-+=]|\d+(?=[.)] ))",
        lambda found: found[0] + "\\" if found[0].isdigit() else "\\" + found[0],
        escaped,
    )


def png(table: Table, panel: int) -> str:
    """The name of the file of a plot."""
    return f"{table.name}-{panel + 1}.png"


def markdown(tables: Sequence[Table]) -> str:
    """A heading for each tier, its table, notes, claims and plots, which `write` puts beside it, and its command."""
    counts = "; ".join(f"{count} {words}" for count, words in number_format.summary(tables))
    parts = [
        f"## {_md(tables[0].title)}",
        _md(". ".join(x for x in (tables[0].source, counts) if x)) + ".",
    ]
    for table in tables:
        own = [table.title, table.source] if table.title != tables[0].title else []
        parts.append(
            f"### {_md(': '.join(filter(None, [*own[:1], tier(table).capitalize()])) or table.title)}"
        )
        parts += map(_md, filter(None, own[1:]))
        if table.skip_reason:
            parts.append(f"No such table: {_md(table.skip_reason)}")
            continue
        first, *rest = [f"| {' | '.join(map(_md, line))} |" for line in _grid(table)]
        rule = "|---|" + "---:|" * (len(_grid(table)[0]) - 1)
        claims = [
            f"- {number_format.TICKS[claim.passed]} {_md(f'{claim.text} ({claim.detail})')}"
            for claim in table.claims
        ]
        claims += [
            f"- not claimed: {_md(f'{text} ({why})')}" for text, why in table.omitted.items()
        ]
        parts += [
            *map(_md, _above(table)),
            "\n".join([first, rule, *rest]),
            *map(_md, _below(table)),
            "\n".join(claims),
            "\n".join(
                f"![{_md(panel.title)}]({png(table, i)})" for i, panel in enumerate(table.panels)
            ),
            f"    {escape_control(table.command)}" if table.command else "",
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def csv(tables: Sequence[Table], root: Path = Path()) -> str:
    """A line for each number, unrounded; what several seeds have each is joined by "; ", files are relative to `root`.
    A tier that has no such table has no line. A text that a spreadsheet would take for a formula begins with an
    apostrophe.
    """

    def text(words: str) -> str:
        return f"'{words}" if words[:1] in "=+-@\t\r" and words else words

    stream = StringIO()
    writer = csv_module.writer(stream, lineterminator="\n")
    writer.writerow(FIELDS)
    for table in tables:
        for name, row in table.rows.items():
            for column, entry in zip(table.columns, row, strict=True):
                paper = entry.paper
                fields = [
                    table.name,
                    table.tier,
                    name,
                    column.name,
                    column.metric,
                    paper.value if paper else "",
                    ("yes" if paper.recalled else "no") if paper else "",
                    entry.ours,
                    entry.spread,
                    len(entry.sources),
                    entry.difference,
                    entry.status,
                    " ".join(entry.marks),
                    "; ".join(source.config for source in entry.sources),
                    "; ".join(relative(source.file, root) for source in entry.sources),
                    "; ".join(source.command for source in entry.sources),
                ]
                writer.writerow(
                    [text(field) if isinstance(field, str) else field for field in fields]
                )
    return stream.getvalue()


GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ",
        (
            "alpha",
            "beta",
            "gamma",
            "delta",
            "epsilon",
            "zeta",
            "eta",
            "theta",
            "iota",
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "pi",
            "rho",
            "sigma",
            "tau",
            "upsilon",
            "phi",
            "chi",
            "psi",
            "omega",
            "Gamma",
            "Delta",
            "Theta",
            "Lambda",
            "Xi",
            "Pi",
            "Sigma",
            "Upsilon",
            "Phi",
            "Psi",
            "Omega",
        ),
        strict=True,
    )
)
TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "-": "{-}",
    "`": r"\textasciigrave{}",
    "'": "{'}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "→": r"$\to$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "·": r"$\cdot$",
    "√": r"$\surd$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "§": r"\S{}",
    "¶": r"\P{}",
    "✓": r"$\surd$",
    "✗": r"$\times$",
    "…": r"\ldots{}",
    "‖": r"$\Vert$",
    "∈": r"$\in$",
    "≠": r"$\neq$",
    "∑": r"$\sum$",
    "′": r"$\prime$",
    "‘": "`{}",
    "’": "'{}",
    "“": "``{}",
    "”": "''{}",
    "ß": r"\ss{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ł": r"\l{}",
    "µ": r"$\mu$",
    "ℓ": r"$\ell$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{sign: f"$\\{name}$" for sign, name in GREEK.items()},
    **{
        sign: f"$^{{{plain}}}$"
        for sign, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True)
    },
    **{
        sign: f"$_{{{plain}}}$"
        for sign, plain in zip("₀₁₂₃₄₅₆₇₈₉₋₊ₜₙ", "0123456789-+tn", strict=True)
    },
}
"""What LaTeX would take for a command, drop, join to a ligature, or has no glyph for"""
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
"""Of a Greek letter, in mathematics, and of another one"""
ROWS = 25
"""In one `tabular`, so that it fits a page"""


def _tex(words: str) -> str:
    """`words` in ASCII, as LaTeX prints them; a character that it has no way to print as its number."""
    found: list[str] = []
    for sign in normalize("NFD", " ".join(words.split())):
        if sign in ACCENTS and found:
            mathematical, accent = ACCENTS[sign]
            letter = found.pop()
            greek = letter.startswith("$") and mathematical
            found.append(
                f"${mathematical}{{{letter.strip('$')}}}$" if greek else f"\\{accent}{{{letter}}}"
            )
        elif sign in TEX or (sign.isascii() and sign.isprintable()):
            found.append(TEX.get(sign, sign))
        elif not combining(sign):
            found.append(rf"{{\footnotesize U+{ord(sign):04X}}}")
    return "".join(found)


def _tabulars(table: Table) -> Iterator[list[str]]:
    """The lines of each part: a `tabular` of at most `ROWS` rows that is no wider than a line of text."""
    if table.skip_reason:
        yield [f"No such table: {_tex(table.skip_reason)}"]
        return
    first, *rest = [" & ".join(map(_tex, line)) + r" \\" for line in _grid(table)]
    columns = "l" + "r" * (len(_grid(table)[0]) - 1)
    for start in range(0, len(rest), ROWS):
        last = start + ROWS >= len(rest)
        yield [
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            *(
                r"\toprule",
                first,
                r"\midrule",
                *rest[start : start + ROWS],
                r"\bottomrule",
                r"\end{tabular}}",
            ),
            *(
                rf"\par\smallskip{{\footnotesize\raggedright {_tex(line)}\par}}"
                for line in _below(table)
                if last
            ),
        ]


def latex(tables: Sequence[Table]) -> str:
    """A `table` with a booktabs `tabular` for each tier, in ASCII; long ones in several parts."""
    lines = [r"% \usepackage{booktabs}, \usepackage{graphicx}, \usepackage[T1]{fontenc}"]
    for table in tables:
        caption = ". ".join(
            [*(x for x in (table.title, table.source, tier(table)) if x), *_above(table)]
        )
        for i, part in enumerate(_tabulars(table)):
            lines += [
                "",
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_tex(caption if i == 0 else f'{table.title}, continued')}}}",
                *part,
                r"\end{table}",
            ]
    return "\n".join(lines) + "\n"
