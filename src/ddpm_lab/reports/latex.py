"""Tables as LaTeX."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain

from ddpm_lab.reports import number_format
from ddpm_lab.reports.findings import findings
from ddpm_lab.reports.number_format import Block
from ddpm_lab.reports.table import Table

MAX_ROWS = 25
"""Rows of one `tabular`, so that it fits a page"""
MAX_COLUMNS = 10
"""Columns of numbers of one `tabular`, so that it is legible; more are below one another"""
Group = tuple[str, list[str], list[list[str]]]
"""Header, column headers and cells by row of adjacent columns"""


def latex(tables: Sequence[Table]) -> str:
    """Format each table as a `table` with a booktabs `tabular`, long ones in several parts."""
    lines = [r"% \usepackage{booktabs}, \usepackage{graphicx}, \usepackage[T1]{fontenc}"]
    for table in tables:
        texts = [*number_format.titles(table), *_captions(table), *number_format.protocols(table)]
        caption = ". ".join(texts)
        for part in _tabulars(table):
            lines += ["", r"\begin{table}", r"\centering", rf"\caption{{{tex(caption)}}}\smallskip"]
            lines += [*part, r"\end{table}"]
            caption = f"{table.title}, continued"
    return "\n".join(lines) + "\n"


def _captions(table: Table) -> list[str]:
    blocks = number_format.blocks(table)
    return [blocks[0].caption] if len(blocks) == 1 and blocks[0].caption else []


def _tabulars(table: Table) -> Iterator[list[str]]:
    """Yield the lines of each page: at most `MAX_ROWS` rows, no wider than the text."""
    if table.skip_reason:
        yield [f"Not available: {tex(table.skip_reason)}"]
        return
    groups = _groups(table)
    parts = max(1, -(-sum(len(heads) for _, heads, _ in groups) // MAX_COLUMNS))
    size = max(1, -(-len(groups) // parts))  # a sweep without numbers has no group
    names, step = [*table.rows], max(1, MAX_ROWS // parts)
    for start in range(0, len(names), step):
        lines: list[str] = []
        for i in range(0, len(groups), size):
            lines += [r"\par\medskip"] * bool(i)
            lines += _tabular(
                table.row_header, groups[i : i + size], names[start : start + step], start
            )
        notes = _notes(table) if start + step >= len(names) else ()
        for note in notes:
            lines.append(rf"\par\smallskip{{\footnotesize\raggedright {tex(note)}\par}}")
        yield lines


def _tabular(corner: str, groups: Sequence[Group], names: Sequence[str], start: int) -> list[str]:
    """Return a `tabular` of `groups` and the rows `names`, of which `start` is the first."""
    width = sum(len(heads) for _, heads, _ in groups)
    rows = [
        [name, *chain(*(cells[i] for *_, cells in groups))] for i, name in enumerate(names, start)
    ]
    return [
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * width}}}",
        r"\toprule",
        *_heads(corner, groups),
        r"\midrule",
        *(_row(cells) for cells in rows),
        r"\bottomrule",
        r"\end{tabular}}",
    ]


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(tex, cells)) + r" \\"


def _notes(table: Table) -> list[str]:
    claims = [
        f"{number_format.TICKS[claim.verdict]} {claim.verdict}: {claim.text}"
        for claim in table.claims
    ]
    return [
        *([" ".join(findings(table))] if findings(table) else []),
        *number_format.below(table),
        *claims,
        *number_format.claims_legend(table),
    ]


def _groups(table: Table) -> list[Group]:
    """Return a group per column, or one of our and one of the paper's if the metrics differ."""
    blocks = number_format.blocks(table)
    if len(blocks) > 1:
        grids = [(block.caption, number_format.grid(table, block)) for block in blocks]
        return [(caption, grid[0][1:], [row[1:] for row in grid[1:]]) for caption, grid in grids]
    return list(_pairs(table, blocks[0]))


def _pairs(table: Table, block: Block) -> Iterator[Group]:
    rows, start = number_format.grid(table, block)[1:], 1
    for i, column in block.columns.items():
        sides = block.sides[i]
        end = start + len(sides)
        heads: list[str] = [*sides] if block.pairs else [""]
        yield (
            number_format.header(column, block.shared),
            heads,
            [row[start:end] for row in rows],
        )
        start = end


def _heads(corner: str, groups: Sequence[Group]) -> list[str]:
    """Return the lines of the header: that of each group over those of its columns."""
    heads = [*chain(*(heads for _, heads, _ in groups))]
    if not any(heads):
        return [_row([corner, *(header for header, *_ in groups)])]
    spans, rules, start = [""], "", 2
    for header, columns, _ in groups:
        end = start + len(columns) - 1
        spans.append(rf"\multicolumn{{{len(columns)}}}{{c}}{{{tex(header)}}}")
        rules += rf"\cmidrule(lr){{{start}-{end}}}"
        start = end + 1
    return [" & ".join(spans) + r" \\", rules, _row([corner, *heads])]


def tex(text: str) -> str:
    """Escape text as ASCII LaTeX, with the symbols of the papers as mathematics.

    A character without a LaTeX form becomes its code point.
    """
    text = unicodedata.normalize("NFD", " ".join(text.split()))
    parts, end = [], 0
    for match in FORMULA.finditer(text):
        base, accent, index, number, power = match.groups()
        formula = _subscripted(base, accent, index) if base else _scientific(number, power)
        parts += [_characters(text[end : match.start()]), formula]
        end = match.end()
    return "".join([*parts, _characters(text[end:])])


def _scientific(number: str, power: str) -> str:
    return rf"${number} \times 10^{{{int(power.replace('−', '-'))}}}$"


def _subscripted(base: str, accent: str, index: str) -> str:
    """Return a symbol with an accent, if any, and a subscript; words are upright."""
    symbol, letters = (
        rf"\mathrm{{{word}}}" if len(word) > 1 and word.isalpha() else _characters(word).strip("$")
        for word in (base, index)
    )
    if accent:
        symbol = f"{ACCENTS[accent][0]}{{{symbol}}}"
    return f"${symbol}_{{{letters}}}$"


FORMULA = re.compile(
    r"(?<!\w)(?P<base>[LxzαβγεημσΣ]|mean)(?P<accent>[\u0302-\u0304]?)"
    r"_(?P<index>simple|hybrid|vlb|\d+|[tTsθ])(?![\w\u0300-\u036f])"
    r"|(?<![\w.])(?P<number>\d+\.\d+)e(?P<power>[−+]?\d+)(?!\w)"
)
"""Symbols with a subscript, such as L_simple, and numbers with an exponent, in normal form NFD"""


def _characters(text: str) -> str:
    """Translate text in normal form NFD character by character."""
    parts: list[str] = []
    for sign in text:
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
· cdot  √ surd  ✓ surd  ✗ times  ‖ Vert  ∈ in  ≠ neq  ∑ sum  ′ prime
µ mu  ℓ ell"""
GREEK = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ"
SUPERSCRIPTS = ("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
SUBSCRIPTS = ("₀₁₂₃₄₅₆₇₈₉₋₊ₜₙ", "0123456789-+tn")
TEX = {
    **{sign: f"\\{command}{{}}" for sign, command in _commands(COMMANDS)},
    **{sign: f"$\\{command}$" for sign, command in _commands(MATH_COMMANDS)},
    **{"†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$"},
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
