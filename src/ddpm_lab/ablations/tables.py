"""Tables of ablations and sweeps, from the metrics.json files of their jobs."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from string import ascii_lowercase

from pydantic import BaseModel, TypeAdapter, ValidationError

from ddpm_lab.ablations import build_plots, spec
from ddpm_lab.ablations.build_plots import sample_grids
from ddpm_lab.ablations.claims import check_claim
from ddpm_lab.ablations.job_environments import describe_environments
from ddpm_lab.ablations.plan import JobKey, Plan
from ddpm_lab.ablations.results import last_number, numbers, read_protocol, read_source
from ddpm_lab.reports.table import Column, Entry, Published, Table
from ddpm_lab.sweeps.job import Job, by_name, read_number
from ddpm_lab.utils.errors import UnsafeFileError, UserError, escape_control
from ddpm_lab.utils.safe_load import read_json, reject_links

ALWAYS = ("data", "count", "split", "extractor", "weights", "steps", "spacing")
"""Protocol keys that the note on our protocol always includes"""
DAGGER = "†"
"""Footnote mark of numbers whose protocol differs from the paper's"""


class SweepItem(BaseModel):
    """A job in sweep.json."""

    name: str
    config: str
    command: str


def published(value: float | str | None) -> Published | None:
    """Parse a published number; "~8.11" is quoted from memory."""
    if value is None:
        return None
    text = str(value)
    return Published(float(text[1:]), recalled=True) if text[:1] == "~" else Published(value)


def from_plan(plan: Plan) -> Table:
    """Build the table of an ablation in a tier from the jobs that are done."""
    ablation, tier = plan.ablation, plan.tier
    table = Table(
        name=f"{plan.name}-{tier}",
        title=ablation.title,
        source=ablation.source,
        tier=tier,
        row_header=ablation.row_header,
        columns=(),
        rows={},
        paper_protocol=_format(ablation.protocol),
        command=plan.command,
        exact=tier == "analytic",
        skip_reason=plan.spec.skip_reason,
    )
    if table.skip_reason:
        return table
    columns = tuple(_column(plan, name) for name in ablation.columns)
    rows = {
        name: tuple(
            _entry(plan, name, column, row.paper[i] if row.paper else None)
            for i, column in enumerate(ablation.columns)
        )
        for name, row in ablation.rows.items()
    }
    table = _add_footnotes(plan, replace(table, columns=columns, rows=rows))
    models = build_plots.models(plan)
    panels = [build_plots.build_panels(plan, table, plot) for plot in ablation.plots]
    return replace(
        table,
        claims=tuple(
            check_claim(table, each) for each in ablation.claims if tier not in each.omitted
        ),
        omitted={each.text: each.omitted[tier] for each in ablation.claims if tier in each.omitted},
        panels=(*chain(*panels), *build_plots.training_panels(models)),
        images=build_plots.sample_grids(build_plots.cells(plan))
        or build_plots.sample_grids(models),
        provenance=describe_environments(
            plan.jobs.values(), () if table.exact else plan.spec.seeds
        ),
    )


def _column(plan: Plan, name: str) -> Column:
    metric, paper_label = plan.metric(name), _label(plan.paper_metric(name))
    number = numbers().get(metric)
    column = plan.ablation.columns[name]
    overrides = plan.substitute([*column.train, *column.evaluate])
    return Column(
        name,
        _label(metric),
        number.better if number else None,
        "" if _label(metric) == paper_label else paper_label,
        last_number(overrides[-1]) if overrides else None,
    )


def _label(metric: str) -> str:
    return numbers()[metric].label if metric in numbers() else metric


def _entry(plan: Plan, row: str, column: str, paper: float | str | None) -> Entry:
    metric = plan.metric(column)
    keys = [JobKey(row, column, seed) for seed in plan.spec.seeds]
    sources = [read_source(plan.by_key[key], metric) for key in keys if key in plan.by_key]
    file = next((source.file for source in sources if source.status == "done"), None)
    protocol = (read_protocol(file, metric) if file else {}) | plan.spec.protocol
    comparable = metric == plan.paper_metric(column)
    return Entry(published(paper), tuple(sources), protocol, comparable=comparable)


def _add_footnotes(plan: Plan, table: Table) -> Table:
    """Mark numbers whose protocol differs from the paper's or from most of the same metric."""
    metrics, varied = [*map(plan.metric, plan.ablation.columns)], _varied_keys(plan.ablation)
    rows = {row: [*entries] for row, entries in table.rows.items()}
    notes: dict[str, str] = {}
    letters: dict[str, str] = {}
    deviations: dict[str, None] = {}
    protocols: dict[str, str] = {}
    for metric in dict.fromkeys(metrics):
        places = [
            (row, i)
            for row, entries in rows.items()
            for i, entry in enumerate(entries)
            if metrics[i] == metric and entry.ours is not None
        ]
        theirs = _paper_protocol(plan.ablation.protocol, metric)
        usual = _usual_protocol([rows[row][i] for row, i in places], varied, theirs)
        protocols[_label(metric)] = _format(
            {k: v for k, v in usual.items() if k in {*theirs, *ALWAYS}}
        )
        differences = [
            (f"{key} {usual[key]}" if key in usual else f"no {key}") + f", the paper {value}"
            for key, value in theirs.items()
            if usual.get(key) != value and key not in varied
        ]
        for row, i in places:
            entry, marks = rows[row][i], []
            if differences and entry.paper is not None:
                deviations |= dict.fromkeys(differences)
                notes[DAGGER] = f"not measured as in the paper: {'; '.join(deviations)}"
                marks.append(DAGGER)
            unusual = [
                f"{key} {entry.protocol[key]}, elsewhere {value}"
                for key, value in usual.items()
                if entry.protocol.get(key, value) != value
            ]
            if note := "; ".join(unusual):
                letter = letters.setdefault(note, ascii_lowercase[len(letters) % 26])
                notes[letter] = note
                marks.append(letter)
            comparable = entry.comparable and DAGGER not in marks
            rows[row][i] = replace(entry, marks=tuple(marks), comparable=comparable)
    return replace(
        table,
        rows={row: tuple(entries) for row, entries in rows.items()},
        notes=notes,
        our_protocol=_our_protocol(plan, protocols),
    )


def _varied_keys(ablation: spec.Ablation) -> set[str]:
    parts: list[spec.Overrides] = [*ablation.rows.values(), *ablation.columns.values()]
    overrides = [each for part in parts for each in (*part.train, *part.evaluate, *part.exact)]
    keys = {override.partition("=")[0] for override in overrides}
    keys |= {key.rpartition(".")[2] for key in keys} | {"seed"}
    return keys | {"T"} if "schedule.steps" in keys else keys


def _usual_protocol(
    entries: Sequence[Entry], varied: set[str], theirs: Mapping[str, str]
) -> dict[str, str]:
    """Return the most common value of each protocol key that the table does not vary."""
    groups = tuple(f"{key}." for key in varied)
    keys = {
        key
        for entry in entries
        for key in entry.protocol
        if key not in varied and (not key.startswith(groups) or key in theirs)
    }
    values = {key: [e.protocol[key] for e in entries if key in e.protocol] for key in sorted(keys)}
    return {key: Counter(each).most_common(1)[0][0] for key, each in values.items()}


def _paper_protocol(protocol: Mapping[str, str], metric: str) -> dict[str, str]:
    """Return the paper's protocol of a metric.

    Keys such as nll.split apply to nll only, which then shares only "data" with other metrics.
    """
    group = metric.partition(".")[0] + "."
    own = {
        key.removeprefix(group): value for key, value in protocol.items() if key.startswith(group)
    }
    if own:
        return own | ({"data": protocol["data"]} if "data" in protocol else {})
    return {key: value for key, value in protocol.items() if not key.startswith("nll.")}


def _our_protocol(plan: Plan, protocols: Mapping[str, str]) -> str:
    """Join the tier's note, its substitutions and the protocols by metric."""
    substitutions = ", ".join(f"{new} for {old}" for old, new in plan.spec.substitutions.items())
    texts = [*dict.fromkeys(filter(None, protocols.values()))]
    if len(texts) > 1:
        texts = [f"{label}: {text}" for label, text in protocols.items()]
    return "; ".join(filter(None, [plan.spec.note, substitutions, *texts]))


def _format(protocol: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(protocol.items()))


def from_sweep(root: Path) -> Table:
    """Build the table of a sweep: one row per job, one column per number in `numbers`.

    Raises UserError if `root` is not the folder of a sweep, UnsafeFileError if its sweep.json
    refers to other folders.
    """
    items = _read_index(root)
    jobs = [Job(item.name, "", (), root / key, item.config, 1.0) for key, item in items.items()]
    sweep = dict(sorted(by_name(jobs).items()))
    keys = [
        key
        for key in numbers()
        if any(job.done() and read_number(job.metrics, key) is not None for job in jobs)
    ]

    def entry(job: Job, key: str) -> Entry:
        return Entry(
            None, (replace(read_source(job, key), command=items[job.folder.name].command),)
        )

    name, models = root.resolve().name, {name: [job] for name, job in sweep.items()}
    return Table(
        name=name,
        title=f"Sweep {name}",
        source="",
        tier="sweep",
        row_header="job",
        columns=tuple(
            Column(number.label, number.label, number.better)
            for number in map(numbers().__getitem__, keys)
        ),
        rows={row: tuple(entry(job, key) for key in keys) for row, job in sweep.items()},
        panels=tuple(build_plots.training_panels(models)),
        images=sample_grids(models),
        provenance=describe_environments(jobs),
    )


def _read_index(root: Path) -> dict[str, SweepItem]:
    """Return the jobs in sweep.json by folder. Raises UserError, UnsafeFileError."""
    try:
        items = TypeAdapter(dict[str, SweepItem]).validate_python(read_json(root / "sweep.json"))
    except ValidationError:
        items = {}
    if not items:
        raise UserError(
            f"dir={root} is not the folder of a sweep (no valid sweep.json in it); "
            "train.py -m prints that folder"
        )
    for folder in items:
        if not re.fullmatch(r"[\w.=+-]+", folder) or not folder.strip("."):
            raise UnsafeFileError(
                f"dir={root}: its sweep.json lists the job {escape_control(folder)}, which is not "
                "a folder in it"
            )
        reject_links(root / folder)
    return items
