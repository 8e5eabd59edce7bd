"""Formatting of a table's numbers, for all formats except CSV."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from math import isfinite

from ddpm_lab.reports.table import Column, Entry, Published, Table

ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}
RECALLED = "In parentheses: the paper's number from memory, not checked against its text"
TICKS = {True: "✓", False: "✗", None: "–"}
VERDICTS = {True: "passed", False: "failed", None: "not run"}


def exponent(value: float, digits: int) -> int:
    """Return the decimal exponent of `value` rounded to `digits` significant digits."""
    return int(f"{value:.{digits - 1}e}".split("e")[1])


def decimals(value: float, like: float | None = None) -> int:
    """Return the number of decimals of `like`, if any, but at least three significant digits."""
    places = -_exponent_of_last_digit(like) if like is not None and isfinite(like) else 0
    if places > 0:
        return max(places, 2 - exponent(value, 3)) if value else places
    return max(0, 2 - exponent(value, 3))


def _exponent_of_last_digit(value: float) -> int:
    return int(Decimal(repr(value)).as_tuple().exponent)


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
    return text(
        entry.difference, places if places <= 6 else decimals(entry.difference, entry.theirs), "+"
    )


def cell(entry: Entry) -> str:
    """Format our number with its standard deviation and marks, or the status."""
    if entry.ours is None:
        return ours(entry)
    return ours(entry) + (f" ± {std(entry)}" if std(entry) else "") + "".join(entry.marks)


def common(columns: Sequence[Column]) -> Column | None:
    """Return the first column if all columns have the same metric, else None."""
    return columns[0] if len({(column.metric, column.better) for column in columns}) == 1 else None


def head(column: Column, shared: bool) -> str:
    """Format a column's header; a `shared` metric, or one in the name, is not repeated."""
    if shared:
        return column.name
    metric = "" if column.name.startswith(column.metric) else f" ({column.metric})"
    return column.name + metric + ARROWS[column.better]


def metric(column: Column) -> str:
    return column.metric + (f", {column.better} is better" if column.better else "")


def entries(table: Table) -> list[Entry]:
    return [entry for row in table.rows.values() for entry in row]


def published(table: Table) -> bool:
    return any(entry.paper for entry in entries(table))


def legend(table: Table) -> list[str]:
    """Explain the symbols that the table uses."""
    lines = []
    counts = {len(entry.sources) for entry in entries(table) if entry.std is not None}
    if counts:
        seeds = " or ".join(map(str, sorted(counts)))
        lines.append(f"±: the standard deviation over {seeds} seeds")
    if any(entry.paper and entry.paper.recalled for entry in entries(table)):
        lines.append(RECALLED)
    return lines


def summary(tables: Iterable[Table]) -> list[tuple[str, str]]:
    """Count the measured numbers and the passed claims, as (count, description)."""
    tables = list(tables)
    numbers = [
        "done" if entry.ours is not None else ours(entry)
        for table in tables
        for entry in entries(table)
    ]
    claims = [VERDICTS[claim.holds] for table in tables for claim in table.claims]
    omitted = sum(len(table.omitted) for table in tables)
    return [
        *_count("numbers measured", "done", numbers),
        *_count("claims passed", "passed", claims, [f"{omitted} not claimed"] if omitted else []),
    ]


def _count(
    text: str, success: str, statuses: Sequence[str], others: Sequence[str] = ()
) -> list[tuple[str, str]]:
    rest = [
        f"{statuses.count(status)} {status}"
        for status in ("failed", "not run", "no value")
        if status in statuses
    ]
    rest += others
    if not statuses and not rest:
        return []
    count = f"{statuses.count(success)} of {len(statuses)}"
    return [(count, f"{text} ({', '.join(rest)})" if rest else text)]
