"""Findings: sentences on a table, generated from its claims and numbers."""

from collections.abc import Sequence
from math import isfinite

from ddpm_lab.reports import number_format
from ddpm_lab.reports.table import Table, Verdict

NOT_SHOWN: dict[Verdict, str] = {
    "failed": "the numbers contradict it",
    "not resolved": "within two standard errors",
    "not run": "numbers are missing",
}


def findings(table: Table) -> list[str]:
    """Return at most two sentences: the claims that the numbers show, and the others.

    Without other claims, the second sentence names the best number of each metric.
    """
    tested = [claim for claim in table.claims if claim.verdict != "not run"]
    texts = [claim.text for claim in table.claims if claim.verdict == "passed"]
    if not tested:
        return _best_numbers(table)
    if texts:
        total = f"{len(texts)} of {len(table.claims)} claims"
        first = f"As in the paper{_where(table)} ({total}): {_enumerate(texts)}."
    else:
        where = _where(table).removeprefix(",")
        first = f"None of the paper's claims shows{where} (0 of {len(table.claims)})."
    others = [
        f"{claim.text} ({NOT_SHOWN[claim.verdict]})"
        for claim in table.claims
        if claim.verdict != "passed"
    ]
    return [first, *([f"Not shown: {_enumerate(others)}."] if others else _best_numbers(table))]


def _where(table: Table) -> str:
    """Return "on" the data, if all measured numbers share it."""
    if table.exact:
        return ", for the exact denoiser"
    measured = [each for each in number_format.entries(table) if each.ours is not None]
    data = {str(each.protocol.get("data", "")) for each in measured}
    return f", on {data.pop()}" if len(data) == 1 and data != {""} else ""


def _enumerate(texts: Sequence[str]) -> str:
    """Join sentences, which may have commas, by semicolons."""
    *others, last = texts
    return f"{'; '.join(others)}; and {last}" if others else last


def _best_numbers(table: Table) -> list[str]:
    """Return a sentence on the best finite number of each metric."""
    texts = []
    for metric, better in dict.fromkeys((each.metric, each.better) for each in table.columns):
        columns = [column for column in table.columns if column.metric == metric]
        if len(columns) > 1 and any(column.x is None for column in columns):
            continue  # not one quantity: terms of a sum may share a unit
        cells = [
            (entry.ours, entry, row if column.name == metric else f"{row}, {column.name}")
            for row, entries in table.rows.items()
            for column, entry in zip(table.columns, entries, strict=True)
            if column.metric == metric and entry.ours is not None and isfinite(entry.ours)
        ]
        if better and len(cells) > 1:
            choose = min if better == "lower" else max
            _, entry, place = choose(cells, key=lambda cell: cell[0])
            word = "lowest" if better == "lower" else "highest"
            texts.append(f"the {word} {metric} is {number_format.ours(entry)} ({place})")
    return [f"Among the numbers measured, {_enumerate(texts)}."] if texts else []
