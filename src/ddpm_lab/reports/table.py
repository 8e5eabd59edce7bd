"""What a report is made of: every number of ours with the file that says it, and what a paper says there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

Status = Literal["done", "failed", "not run"]


@dataclass(frozen=True)
class Source:
    """Where one number comes from, or would come from."""

    command: str
    """As it is typed"""
    config: str
    """The first digits of the SHA-256 of the configuration, without where it saves"""
    file: Path
    """`metrics.json` of the cell"""
    status: Status
    value: float | None = None
    """None unless done and measured"""


@dataclass(frozen=True)
class Published:
    """What a paper says: a number, or a word such as "unstable"."""

    value: float | str
    recalled: bool = False
    """From memory, and not checked against the paper's text: shown grey, and nothing may be asserted of it"""


@dataclass(frozen=True)
class Entry:
    """One place of a table; several `sources` are the same cell with other seeds."""

    paper: Published | None
    sources: tuple[Source, ...] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """What the number depends on beside what the table varies, flat"""
    marks: tuple[str, ...] = ()
    """Of the notes below the table that hold for it"""
    comparable: bool = True
    """Whether ours is the paper's metric, and not what a tier measures in its place"""

    @property
    def values(self) -> list[float]:
        return [source.value for source in self.sources if source.value is not None]

    @property
    def ours(self) -> float | None:
        """The mean over seeds; None unless all of them are there."""
        return mean(self.values) if self.sources and len(self.values) == len(self.sources) else None

    @property
    def theirs(self) -> float | None:
        """The paper's, where it is a number."""
        return None if self.paper is None or isinstance(self.paper.value, str) else self.paper.value

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds; None where a value is not finite."""
        finite = self.ours is not None and isfinite(self.ours)
        return stdev(self.values) if finite and len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return (
            None
            if self.ours is None or self.theirs is None or not self.comparable
            else self.ours - self.theirs
        )

    @property
    def status(self) -> Status:
        """Of the worst of its sources."""
        found = {source.status for source in self.sources} or {"not run"}
        return "failed" if "failed" in found else "not run" if "not run" in found else "done"


@dataclass(frozen=True)
class Column:
    """Of one metric."""

    name: str
    """As the paper heads it"""
    metric: str
    """What is measured in this tier, such as "FID" """
    better: Literal["lower", "higher"] | None
    x: float | None = None
    """Where it lies on the axis of a plot: a number of steps, a scale"""


@dataclass(frozen=True)
class Claim:
    """An order or ratio that a paper's numbers show, and whether ours do."""

    text: str
    passed: bool | None
    """None where a number that it needs was not run"""
    detail: str
    """The numbers it is about"""


@dataclass(frozen=True)
class Panel:
    """A plot: named lines (xs, ys), or bars where the xs are words."""

    title: str
    x: str
    y: str
    lines: Mapping[str, tuple[list[Any], list[float]]]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Table:
    """A paper's table or figure in one tier, or a sweep, which has no paper."""

    name: str
    """Of files, such as ddim_table1-tiny"""
    title: str
    source: str
    """The paper, and where in it"""
    tier: str
    row_header: str
    """What the rows differ in"""
    columns: tuple[Column, ...]
    rows: Mapping[str, tuple[Entry, ...]]
    paper_protocol: str = ""
    our_protocol: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Mark to text"""
    claims: tuple[Claim, ...] = ()
    omitted: Mapping[str, str] = field(default_factory=dict)
    """Claims that are not made of this tier, and why"""
    panels: tuple[Panel, ...] = ()
    images: Mapping[str, Path] = field(default_factory=dict)
    """Samples and the like: caption to PNG"""
    command: str = ""
    """That makes the whole of it"""
    skip_reason: str = ""
    """Why this tier has no such table; then there are no rows"""
