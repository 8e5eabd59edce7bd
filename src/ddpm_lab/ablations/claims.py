"""Claims of a paper, tested on our numbers over seeds."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, sqrt
from statistics import mean, stdev

from ddpm_lab.ablations.spec import OrderClaim
from ddpm_lab.reports.number_format import our_name
from ddpm_lab.reports.table import Claim, Entry, Table, Verdict

MARGIN = 2
"""Number of standard errors that a difference must exceed"""
SIGNS: dict[Verdict, str] = {"passed": "<", "not resolved": "≈", "failed": "≥"}


@dataclass(frozen=True)
class Comparison:
    """The comparison `ratio` * `low` < `high`, of values by seed.

    Cells of one seed share the trained model and the noise, so the differences are paired.
    """

    low: Sequence[float]
    high: Sequence[float]
    ratio: float = 1.0
    exact: bool = False
    """True for numbers without sampling noise"""

    @property
    def differences(self) -> list[float]:
        return [b - self.ratio * a for a, b in zip(self.low, self.high, strict=True)]

    @property
    def margin(self) -> float | None:
        """Two standard errors of the mean difference; None without an error."""
        differences = self.differences
        if self.exact or len(differences) < 2 or not all(map(isfinite, differences)):
            return None
        return MARGIN * stdev(differences) / sqrt(len(differences))

    @property
    def verdict(self) -> Verdict:
        low, high = mean(self.low), mean(self.high)
        if self.margin is None:
            in_order = low < high if self.ratio == 1 else self.ratio * low <= high
            return "passed" if in_order else "failed"
        difference = mean(self.differences)
        if abs(difference) <= self.margin:
            return "not resolved"
        return "passed" if difference > 0 else "failed"

    def result(self, name: str) -> str:
        """Format the verdict, the mean of `high`, and the difference if it has an error."""
        error = ""
        if self.margin is not None:
            difference = _number(mean(self.differences), "+.2g")
            error = f" [{difference} ± {_number(self.margin, '.2g')}]"
        return f" {SIGNS[self.verdict]} {_number(mean(self.high))} ({name}){error}"


def check_claim(table: Table, order: OrderClaim, paper: bool = False) -> Claim:
    """Test a claim on our numbers or, to verify the claim itself, on the paper's."""
    columns = [column.name for column in table.columns]
    labels = {column.name: our_name(column.name, column) for column in table.columns}
    by_row = order.order[0] in table.rows
    across = (order.columns or columns) if by_row else (order.rows or [*table.rows])
    verdicts: set[Verdict] = set()
    details = []
    for other in across:
        places = [(name, other) if by_row else (other, name) for name in order.order]
        entries = [table.rows[row][columns.index(column)] for row, column in places]
        values = [_values(entry, paper) for entry in entries]
        if not all(values):
            verdicts.add("not run")
            continue
        exact = table.exact or paper
        pairs = [Comparison(a, b, order.ratio, exact) for a, b in pairwise(values)]
        verdicts |= {pair.verdict for pair in pairs}
        names = [labels.get(name, name) for name in order.order]
        details.append(f"{labels.get(other, other)}: {_chain(names, order.ratio, pairs)}")
    ranked: tuple[Verdict, ...] = ("failed", "not run", "not resolved", "passed")
    verdict = next(each for each in ranked if each in verdicts)
    reason = ""
    if verdict in ("failed", "not resolved"):
        reason = next((text for tier, text in order.reasons.items() if tier == table.tier), "")
    return Claim(_text(table, order, {*order.order, *across}), verdict, tuple(details), reason)


def _text(table: Table, order: OrderClaim, names: Container[str]) -> str:
    """Return the text of a claim, with the metrics of its columns and its factor."""
    text = order.text
    for column in table.columns:
        if column.name in names:
            text = our_name(text, column)
    if order.ratio < 1:
        return f"{text} (within a factor of {1 / order.ratio:.2g})"
    return text + (f" (by a factor of {order.ratio:g} or more)" if order.ratio > 1 else "")


def _values(entry: Entry, paper: bool) -> list[float]:
    """Return the values by seed, or the paper's number; empty if a number is missing."""
    if paper:
        return [] if entry.theirs is None else [entry.theirs]
    return [] if entry.ours is None else entry.values


def _chain(names: Sequence[str], ratio: float, pairs: Sequence[Comparison]) -> str:
    """Format comparisons as a < b < c or, with a factor, as 2 × a < b, 2 × b < c."""
    heads = [
        f"{_number(mean(pair.low))} ({name})" for name, pair in zip(names, pairs, strict=False)
    ]
    tails = [pair.result(name) for name, pair in zip(names[1:], pairs, strict=True)]
    if ratio == 1:
        return heads[0] + "".join(tails)
    return ", ".join(f"{ratio:g} × {head}{tail}" for head, tail in zip(heads, tails, strict=True))


def _number(value: float, style: str = ".4g") -> str:
    return f"{value:{style}}".replace("-", "−")
