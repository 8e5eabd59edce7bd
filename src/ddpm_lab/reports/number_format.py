"""Text of a table's numbers, headers, notes and claims, for all formats except CSV."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from math import isfinite
from typing import Literal

from ddpm_lab.reports.table import Claim, Column, Entry, Published, Table

Side = Literal["ours", "paper"]
SIDES: tuple[Side, Side] = ("ours", "paper")
ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}
RECALLED = "In parentheses: the paper's number from memory, not checked against its text"
TICKS = {"passed": "✓", "failed": "✗", "not resolved": "≈", "not run": "–"}
NOT_CLAIMED = "not claimed"
NOT_RESOLVED = "≈ not resolved: the difference is within two standard errors over seeds"


def exponent(value: float, digits: int) -> int:
    """Return the decimal exponent of `value` rounded to `digits` significant digits."""
    return int(f"{value:.{digits - 1}e}".split("e")[1])


def decimals(value: float, like: float | None = None) -> int:
    """Return the number of decimals of `like`, if any, but at least three significant digits."""
    places = 0
    if like is not None and isfinite(like):
        places = max(0, -int(Decimal(repr(like)).as_tuple().exponent))
    return places if places and not value else max(places, 2 - exponent(value, 3))


def text(value: float, places: int | None = None, sign: str = "") -> str:
    """Format a number; integers stay integers, very small or large ones have an exponent."""
    if isinstance(value, int) or not isfinite(value):
        digits = f"{value:{sign}}"
    else:
        places = decimals(value) if places is None else places
        style = ".2e" if places > 6 or abs(value) >= 1e6 else f".{places}f"
        digits = f"{value:{sign}{style}}"
    return digits.replace("-", "−")


def paper(published: Published | None) -> str:
    """Format the paper's number with its own digits, in parentheses if recalled."""
    if published is None:
        return ""
    number, value = published.number, str(published.value)
    if number is not None and isfinite(number):
        value = format(Decimal(repr(number)), "f").replace("-", "−")
    return f"({value})" if published.recalled else value


def ours(entry: Entry) -> str:
    """Format our number, or the reason why there is none."""
    if entry.ours is None:
        return "no value" if entry.status == "done" else entry.status
    return text(entry.ours, decimals(entry.ours, entry.theirs) if isfinite(entry.ours) else None)


def std(entry: Entry) -> str:
    """Format the standard deviation with the decimals of the mean, or one significant digit."""
    if entry.std is None or entry.ours is None:
        return ""
    places = decimals(entry.ours, entry.theirs)
    return text(entry.std, max(places, -exponent(entry.std, 1)) if entry.std else places)


def difference(entry: Entry) -> str:
    if entry.difference is None or entry.ours is None:
        return ""
    if not isfinite(entry.difference):
        return text(entry.difference, sign="+")
    places = decimals(entry.ours, entry.theirs)
    if places > 6:
        places = decimals(entry.difference, entry.theirs)
    return text(entry.difference, places, "+")


def cell(entry: Entry) -> str:
    """Format our number with its standard deviation and marks, or the status."""
    if entry.ours is None:
        return ours(entry)
    return ours(entry) + (f" ± {std(entry)}" if std(entry) else "") + "".join(entry.marks)


def common(columns: Sequence[Column]) -> Column | None:
    """Return the first column if all columns have the same metric, else None."""
    metrics = {(column.metric, column.better, column.paper_metric) for column in columns}
    return columns[0] if len(metrics) == 1 else None


def entries(table: Table) -> list[Entry]:
    return [entry for row in table.rows.values() for entry in row]


def has_differences(table: Table) -> bool:
    return any(entry.difference is not None for entry in entries(table))


def titles(table: Table) -> list[str]:
    return [title for title in (table.title, table.source, tier(table)) if title]


def tier(table: Table) -> str:
    return f"{table.tier} tier" if table.tier else ""


@dataclass(frozen=True)
class Block:
    """A part of a table, in which no column has numbers of two metrics."""

    caption: str
    """The metric, if all columns share it"""
    columns: Mapping[int, Column]
    """Columns by index in the table, with the metric of this block"""
    sides: Mapping[int, Sequence[Side]]
    """Ours, the paper's or both, by index of the column"""

    @property
    def shared(self) -> bool:
        """True if all columns have the same metric."""
        return common([*self.columns.values()]) is not None

    @property
    def pairs(self) -> bool:
        """True if columns have our numbers and the paper's."""
        return any(len(each) > 1 for each in self.sides.values())


def blocks(table: Table) -> list[Block]:
    """Return one block, or two with our and the paper's numbers if their metrics differ."""
    columns = dict(enumerate(table.columns))
    with_paper = [i for i in columns if any(row[i].paper for row in table.rows.values())]
    if not any(columns[i].paper_metric for i in with_paper):
        sides = {i: SIDES[: 2 if i in with_paper else 1] for i in columns}
        return [Block(_caption(columns), columns, sides)]
    theirs = {i: columns[i] for i in with_paper}
    for i, column in theirs.items():
        metric = column.paper_metric or column.metric
        theirs[i] = replace(column, metric=metric, paper_metric="")
    columns = {
        i: replace(column, name=our_name(column.name, column)) for i, column in columns.items()
    }
    return [
        Block(_caption(columns, "ours"), columns, dict.fromkeys(columns, SIDES[:1])),
        Block(_caption(theirs, "paper"), theirs, dict.fromkeys(theirs, SIDES[1:])),
    ]


def our_name(name: str, column: Column) -> str:
    """Return a name or a title with our metric in place of the paper's."""
    if not column.paper_metric:
        return name
    return re.sub(rf"\b{re.escape(column.paper_metric)}\b", column.metric, name)


def _caption(columns: Mapping[int, Column], side: str = "") -> str:
    shared, suffix = common([*columns.values()]), f" ({side})" if side else ""
    if shared is None:
        return side and f"numbers{suffix}"
    return f"{shared.metric}{suffix}" + (f", {shared.better} is better" if shared.better else "")


def header(column: Column, shared: bool) -> str:
    """Format a column's header; a `shared` metric or one in the name is not repeated."""
    if shared:
        return column.name
    metric = "" if column.name.startswith(column.metric) else f" ({column.metric})"
    return column.name + metric + ARROWS[column.better]


def grid(table: Table, block: Block) -> list[list[str]]:
    """Return the header and the rows; the second column of a pair is headed "paper"."""
    lines = [[table.row_header], *([name] for name in table.rows)]
    for i, column in block.columns.items():
        sides = block.sides[i]
        lines[0] += [header(column, block.shared), "paper"][: len(sides)]
        for line, row in zip(lines[1:], table.rows.values(), strict=True):
            line += [cell(row[i]) if side == "ours" else paper(row[i].paper) for side in sides]
    return lines


def protocols(table: Table) -> list[str]:
    texts = {"paper": table.paper_protocol, "ours": table.our_protocol}
    return [f"{name}: {text}" for name, text in texts.items() if text]


def below(table: Table) -> list[str]:
    """Return the notes and the legend."""
    notes = [f"{mark} {note}" for mark, note in table.notes.items()]
    return [*notes, *legend(table)]


def legend(table: Table) -> list[str]:
    """Explain the symbols that the table uses."""
    lines = []
    if counts := {len(entry.sources) for entry in entries(table) if entry.std is not None}:
        seeds = " or ".join(map(str, sorted(counts)))
        root = f"√{seeds}" if len(counts) == 1 else "√n"
        lines.append(
            f"±: the standard deviation over {seeds} seeds; the standard error of the mean is "
            f"1/{root} of it"
        )
    if any(entry.paper and entry.paper.recalled for entry in entries(table)):
        lines.append(RECALLED)
    return lines


def claims_legend(table: Table) -> list[str]:
    """Explain the verdicts and the errors of the claims."""
    if table.exact or all(claim.verdict == "not run" for claim in table.claims):
        return []
    if max(len(entry.sources) for entry in entries(table)) < 2:
        return ["One seed, no errors: the claims compare the numbers as they are"]
    lines = [
        "In the claims, numbers are means, and brackets have the mean difference over seeds ± two "
        "standard errors"
    ]
    if any(claim.verdict == "not resolved" for claim in table.claims):
        lines.append(NOT_RESOLVED)
    return lines


def details(claim: Claim) -> str:
    return "; ".join(claim.details) or "numbers are missing"


def claims(table: Table) -> Iterator[str]:
    for claim in table.claims:
        reason = f" Reason: {claim.reason}" if claim.reason else ""
        yield f"{TICKS[claim.verdict]} {claim.verdict}: {claim.text} ({details(claim)}).{reason}"
    for claim_text, reason in table.omitted.items():
        yield f"{NOT_CLAIMED}: {claim_text} ({reason})"


def summary(tables: Sequence[Table]) -> list[tuple[str, str]]:
    """Count the measured numbers and the passed claims, as (count, description)."""
    numbers = Counter(
        "done" if entry.ours is not None else ours(entry)
        for table in tables
        for entry in entries(table)
    )
    verdicts = Counter(str(claim.verdict) for table in tables for claim in table.claims)
    verdicts[NOT_CLAIMED] = sum(len(table.omitted) for table in tables)
    counts = (("numbers measured", "done", numbers), ("claims passed", "passed", verdicts))
    return [_count(*arguments) for arguments in counts if arguments[2].total()]


def _count(text: str, success: str, counts: Counter[str]) -> tuple[str, str]:
    others = ("failed", "not resolved", "not run", "no value", NOT_CLAIMED)
    rest = ", ".join(f"{counts[status]} {status}" for status in others if counts[status])
    total = counts.total() - counts[NOT_CLAIMED]
    return f"{counts[success]} of {total}", f"{text} ({rest})" if rest else text
