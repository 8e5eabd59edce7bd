"""Findings: sentences on a table, generated from its claims and numbers."""

from collections.abc import Sequence
from math import isfinite

from ddpm_lab.reports import number_format
from ddpm_lab.reports.table import Column, Table, Verdict

NOT_SHOWN: dict[Verdict, str] = {
    "failed": "the numbers contradict it",
    "not resolved": "within two standard errors",
}


def findings(table: Table) -> list[str]:
    """Return at most two sentences: the claims that the numbers show, and the others.

    Without other claims, the second sentence names the best number of each metric. Without numbers,
    the only sentence names the command.
    """
    if table.command and all(entry.ours is None for entry in number_format.entries(table)):
        return [f"No number has been measured yet; to run the table: {table.command}"]
    texts = [claim.text for claim in table.claims if claim.verdict == "passed"]
    others = [
        f"{claim.text} ({NOT_SHOWN[claim.verdict]})"
        for claim in table.claims
        if claim.verdict in NOT_SHOWN
    ]
    tested = len(texts) + len(others)
    if not tested:
        return _best_numbers(table)
    missing = len(table.claims) - tested
    counts = f"{len(texts)} of {tested} claims"
    counts += f", {missing} without numbers" if missing else ""
    if texts:
        first = f"As in the paper{_where(table)} ({counts}): {_enumerate(texts)}."
    else:
        first = f"None of the paper's claims shows{_where(table).removeprefix(',')} ({counts})."
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


def _place(row: str, column: Column) -> str:
    name = number_format.our_name(column.name, column)
    return row if name == column.metric else f"{row}, {name}"


def _best_numbers(table: Table) -> list[str]:
    """Return a sentence on the best finite number of each metric."""
    texts = []
    for metric, better in dict.fromkeys((each.metric, each.better) for each in table.columns):
        columns = [column for column in table.columns if column.metric == metric]
        if len(columns) > 1 and any(column.x is None for column in columns):
            continue  # not one quantity: terms of a sum may share a unit
        cells = [
            (entry.ours, entry, _place(row, column))
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
