"""Content of a report: our numbers with their source files, next to the paper's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

Status = Literal["done", "failed", "not run"]
Verdict = Literal["passed", "failed", "not resolved", "not run"]


@dataclass(frozen=True)
class Source:
    """Origin of one number: a job, finished or planned."""

    command: str
    config_hash: str
    """First digits of the SHA-256 of the configuration, without the output folder"""
    file: Path
    """metrics.json of the job"""
    status: Status
    value: float | None = None
    """None unless done and measured"""


@dataclass(frozen=True)
class Published:
    """A published result: a number, or a word such as "unstable"."""

    value: float | str
    recalled: bool = False
    """From memory, not checked against the paper; no claim may depend on it"""

    @property
    def number(self) -> float | None:
        return None if isinstance(self.value, str) else self.value


@dataclass(frozen=True)
class Entry:
    """One number of a table, with one source per seed."""

    paper: Published | None
    sources: tuple[Source, ...] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Flattened settings of the measurement"""
    marks: tuple[str, ...] = ()
    """Keys of the table's notes that apply"""
    comparable: bool = True
    """False if our number has another metric or protocol than the paper's"""

    @property
    def values(self) -> list[float]:
        return [source.value for source in self.sources if source.value is not None]

    @property
    def ours(self) -> float | None:
        """Mean over seeds; None unless all values exist."""
        return mean(self.values) if self.sources and len(self.values) == len(self.sources) else None

    @property
    def theirs(self) -> float | None:
        """The paper's number; None for a word."""
        return self.paper.number if self.paper else None

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds; None for one seed or a non-finite value."""
        finite = self.ours is not None and isfinite(self.ours)
        return stdev(self.values) if finite and len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Our number minus the paper's; None if they are not comparable."""
        if self.ours is None or self.theirs is None or not self.comparable:
            return None
        return self.ours - self.theirs

    @property
    def status(self) -> Status:
        """Worst status of the sources."""
        statuses = {source.status for source in self.sources} or {"not run"}
        return "failed" if "failed" in statuses else "not run" if "not run" in statuses else "done"


@dataclass(frozen=True)
class Column:
    """A column of one metric."""

    name: str
    """Header in the paper"""
    metric: str
    """Label of the metric that this tier measures, such as "FID" """
    better: Literal["lower", "higher"] | None
    paper_metric: str = ""
    """Label of the paper's metric if this tier measures another one"""
    x: float | None = None
    """Position on the x-axis of a plot, such as a number of steps"""


@dataclass(frozen=True)
class Claim:
    """An order or ratio in the paper's numbers, tested on ours."""

    text: str
    verdict: Verdict
    """"not resolved": a difference is within two standard errors over seeds; "not run": a number
    is missing"""
    details: tuple[str, ...] = ()
    """The numbers compared, by column or row"""
    reason: str = ""
    """Explanation of a claim that did not pass"""


@dataclass(frozen=True)
class Line:
    """A line of points or, if x are words, a group of bars."""

    xs: Sequence[Any]
    ys: Sequence[float]
    low: Sequence[float] = ()
    """Lower end of the error bars or the band; empty for none"""
    high: Sequence[float] = ()
    recalled: Sequence[bool] = ()
    """True for numbers from memory; empty for none"""


@dataclass(frozen=True)
class Panel:
    """A plot of named lines or bars."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Line]
    log_x: bool = False
    log_y: bool = False
    bars: bool = False
    note: str = ""
    """Explanation of error bars or bands"""


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper in one tier, or a sweep, which has no paper."""

    name: str
    """Prefix of file names, such as ddim_table1-tiny"""
    title: str
    source: str
    """Citation of the paper"""
    tier: str
    row_header: str
    columns: tuple[Column, ...]
    rows: Mapping[str, tuple[Entry, ...]]
    paper_protocol: str = ""
    our_protocol: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Footnotes by mark"""
    claims: tuple[Claim, ...] = ()
    omitted: Mapping[str, str] = field(default_factory=dict)
    """Claims that this tier cannot test, with the reason"""
    panels: tuple[Panel, ...] = ()
    images: Mapping[str, Path] = field(default_factory=dict)
    """PNG files by caption"""
    provenance: str = ""
    """Code, libraries, machines, days and seeds of the jobs"""
    command: str = ""
    """Command that computes the whole table"""
    exact: bool = False
    """True for numbers without sampling noise, which have no errors"""
    skip_reason: str = ""
    """Reason why this tier has no such table, and no rows"""
