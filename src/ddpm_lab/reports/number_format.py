"""How the numbers of a table are written, everywhere but in a CSV."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from math import isfinite

from ddpm_lab.reports.table import Column, Entry, Published, Table

ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}
RECALLED = "In brackets: the paper's number from memory, not checked against its text"
TICKS = {True: "✓", False: "✗", None: "–"}
VERDICTS = {True: "passed", False: "failed", None: "not run"}


def exponent(value: float, digits: int) -> int:
    """Of ten, once rounded to so many significant digits."""
    return int(f"{value:.{digits - 1}e}".split("e")[1])


def decimals(value: float, like: float | str | None = None) -> int:
    """As many as `like` shows if it shows some, but at least three significant digits."""
    shown = (
        -int(Decimal(repr(like)).as_tuple().exponent)
        if isinstance(like, float) and isfinite(like)
        else 0
    )
    if shown > 0:
        return max(shown, 2 - exponent(value, 3)) if value else shown
    return max(0, 2 - exponent(value, 3))


def text(value: float, places: int | None = None, sign: str = "") -> str:
    """Whole numbers stay whole; what is too small or too large to read is written with an exponent."""
    if isinstance(value, int) or not isfinite(value):
        written = f"{value:{sign}}"
    else:
        places = decimals(value) if places is None else places
        how = ".2e" if places > 6 or abs(value) >= 1e6 else f".{places}f"
        written = f"{value:{sign}{how}}"
    return written.replace("-", "−")


def paper(published: Published | None) -> str:
    """As the paper has it; in brackets where it is recalled."""
    if published is None:
        return ""
    value = published.value
    if isinstance(value, float) and isfinite(value):
        value = format(Decimal(repr(value)), "f").replace("-", "−")
    return f"({value})" if published.recalled else str(value)


def like(entry: Entry) -> float | str | None:
    return entry.paper.value if entry.paper else None


def ours(entry: Entry) -> str:
    """The number, or why there is none."""
    if entry.ours is None:
        return "no value" if entry.status == "done" else entry.status
    return text(entry.ours, decimals(entry.ours, like(entry)) if isfinite(entry.ours) else None)


def spread(entry: Entry) -> str:
    """With the decimals of the number, or one significant digit."""
    if entry.spread is None or entry.ours is None:
        return ""
    places = decimals(entry.ours, like(entry))
    return text(entry.spread, max(places, -exponent(entry.spread, 1)) if entry.spread else places)


def difference(entry: Entry) -> str:
    if entry.difference is None or entry.ours is None:
        return ""
    if not isfinite(entry.difference):
        return text(entry.difference, sign="+")
    places = decimals(entry.ours, like(entry))
    return text(
        entry.difference, places if places <= 6 else decimals(entry.difference, like(entry)), "+"
    )


def cell(entry: Entry) -> str:
    """Ours, its spread and its marks; the status alone where there is no number."""
    if entry.ours is None:
        return ours(entry)
    return ours(entry) + (f" ± {spread(entry)}" if spread(entry) else "") + "".join(entry.marks)


def common(columns: Sequence[Column]) -> Column | None:
    """The first column, if all are of one metric, which then need not be said in each."""
    return columns[0] if len({(column.metric, column.better) for column in columns}) == 1 else None


def head(column: Column, shared: bool) -> str:
    """Of a column; its metric is left out where it is `shared`, or what the column's name begins with."""
    if shared:
        return column.name
    own = "" if column.name.startswith(column.metric) else f" ({column.metric})"
    return column.name + own + ARROWS[column.better]


def metric(column: Column) -> str:
    return column.metric + (f", {column.better} is better" if column.better else "")


def entries(table: Table) -> list[Entry]:
    return [entry for row in table.rows.values() for entry in row]


def published(table: Table) -> bool:
    return any(entry.paper for entry in entries(table))


def recalled(table: Table) -> bool:
    return any(entry.paper and entry.paper.recalled for entry in entries(table))


def seeds(table: Table) -> str:
    """What ± is, if the table has any."""
    counts = sorted({len(entry.sources) for entry in entries(table) if entry.spread is not None})
    return f"±: the standard deviation over {' or '.join(map(str, counts))} seeds" if counts else ""


def legend(table: Table) -> list[str]:
    """What must be known to read the numbers."""
    return [line for line in (seeds(table), RECALLED if recalled(table) else "") if line]


def summary(tables: Iterable[Table]) -> list[tuple[str, str]]:
    """How many of the numbers and of the claims there are, and why not more: (count, words)."""
    tables, lines = list(tables), []
    measured = [
        "done" if entry.ours is not None else ours(entry)
        for table in tables
        for entry in entries(table)
    ]
    claimed = [VERDICTS[claim.passed] for table in tables for claim in table.claims]
    omitted = sum(len(table.omitted) for table in tables)
    for what, wanted, found in (
        ("numbers measured", "done", measured),
        ("claims passed", "passed", claimed),
    ):
        rest = ", ".join(
            f"{found.count(word)} {word}"
            for word in ("failed", "not run", "no value")
            if word in found
        )
        if what == "claims passed" and omitted:
            rest = ", ".join(filter(None, [rest, f"{omitted} not claimed"]))
        if found or rest:
            lines.append(
                (f"{found.count(wanted)} of {len(found)}", f"{what} ({rest})" if rest else what)
            )
    return lines
