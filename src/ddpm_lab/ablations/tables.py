"""From cells to tables: what their metrics.json files say, in the places where a paper's numbers stand."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from ddpm_lab.ablations import build_plots, spec
from ddpm_lab.ablations.plan import JobKey, Plan
from ddpm_lab.ablations.results import METRICS, last_number, read_protocol, read_source
from ddpm_lab.reports.table import Claim, Column, Entry, Published, Table
from ddpm_lab.sweeps.job import Job, by_name, read_number
from ddpm_lab.utils.errors import UnsafeFileError, UserError, escape_control
from ddpm_lab.utils.safe_load import read_json, reject_links

ALWAYS = ("data", "count", "split", "extractor", "weights", "steps", "spacing")
"""What is always said of how ours were measured."""
OTHERWISE = "†"
"""Marks numbers that were not measured as the paper's were."""


def published(value: float | str | None) -> Published | None:
    """Of the YAML: a number, a word, or a number from memory, "~8.11"."""
    if isinstance(value, str) and value.startswith("~"):
        return Published(float(value[1:]), recalled=True)
    return None if value is None else Published(value)


def from_plan(plan: Plan) -> Table:
    """The table of an ablation in a tier, as far as it has been run."""
    ablation, stage, tier = plan.ablation, plan.stage, plan.tier
    common: dict[str, Any] = {
        "name": f"{plan.name}-{tier}",
        "title": ablation.title,
        "source": ablation.source,
        "tier": tier,
        "row_header": ablation.row_header,
        "paper_protocol": _said(ablation.protocol),
        "command": plan.command,
    }
    if stage.skip_reason:
        return Table(**common, columns=(), rows={}, skip_reason=stage.skip_reason)
    columns = [_column(plan, name) for name in ablation.columns]
    rows: dict[str, tuple[Entry, ...]] = {}
    for row, said in ablation.rows.items():
        entries = []
        for i, column in enumerate(ablation.columns):
            places = [JobKey(row, column, seed) for seed in stage.seeds]
            those = [plan.places[place] for place in places if place in plan.places]
            sources = tuple(read_source(cell, plan.metric(column)) for cell in those)
            first = next((one.file for one in sources if one.status == "done"), None)
            how = read_protocol(first, plan.metric(column)) if first else {}
            paper = published(said.paper[i]) if said.paper else None
            alike = plan.metric(column) == plan.published(column)
            entries.append(Entry(paper, sources, {**how, **stage.protocol}, comparable=alike))
        rows[row] = tuple(entries)
    table = Table(**common, columns=tuple(columns), rows=rows, our_protocol=stage.note)
    table = _marked(plan, table)
    plots = [
        panel for plot in ablation.plots for panel in build_plots.build_panels(plan, table, plot)
    ]
    claims = tuple(claim(table, order) for order in ablation.claims if tier not in order.omitted)
    omitted = {
        order.text: order.omitted[tier] for order in ablation.claims if tier in order.omitted
    }
    return replace(
        table,
        claims=claims,
        omitted=omitted,
        panels=(*plots, *build_plots.training_panels(plan.trained)),
        images=build_plots.sample_images(plan.trained),
    )


def _column(plan: Plan, name: str) -> Column:
    label, better = METRICS.get(plan.metric(name), (plan.metric(name), None))
    overrides = plan.here(
        [*plan.ablation.columns[name].train, *plan.ablation.columns[name].evaluate]
    )
    return Column(name, label, better, last_number(overrides[-1]) if overrides else None)


def _marked(plan: Plan, table: Table) -> Table:
    """With a mark at each number that was measured in another way than the paper's, or than most of its metric."""
    parts: list[spec.Overrides] = [*plan.ablation.rows.values(), *plan.ablation.columns.values()]
    varied = {
        word.partition("=")[0]
        for part in parts
        for word in (*part.train, *part.evaluate, *part.exact)
    }
    varied |= {name.rpartition(".")[2] for name in varied} | {"seed"}
    varied |= {"T"} if "schedule.steps" in varied else set()
    chosen = tuple(f"{name}." for name in varied)
    notes: dict[str, list[str]] = {}
    letters: dict[str, str] = {}
    escape_control: dict[str, str] = {}
    marked = {row: [*entries] for row, entries in table.rows.items()}
    for metric in dict.fromkeys(map(plan.metric, plan.ablation.columns)):
        at = [i for i, column in enumerate(plan.ablation.columns) if plan.metric(column) == metric]
        found = [
            entries[i] for entries in table.rows.values() for i in at if entries[i].ours is not None
        ]
        theirs = _theirs(plan.ablation.protocol, metric)
        keys = sorted(
            {
                key
                for entry in found
                for key in entry.protocol
                if key not in varied and (not key.startswith(chosen) or key in theirs)
            }
        )
        usual = {
            key: Counter(
                entry.protocol[key] for entry in found if key in entry.protocol
            ).most_common(1)[0][0]
            for key in keys
        }
        other = [
            f"{key} {usual[key]}, the paper {value}"
            if key in usual
            else f"no {key}, the paper {value}"
            for key, value in theirs.items()
            if usual.get(key) != value and key not in varied
        ]
        said = {key: usual[key] for key in keys if key in {*theirs, *ALWAYS}}
        escape_control[METRICS.get(metric, (metric, None))[0]] = _said(said)
        for row, i in ((row, i) for row in marked for i in at if marked[row][i].ours is not None):
            entry = marked[row][i]
            marks = [OTHERWISE] if other and entry.paper is not None else []
            if marks:
                notes[OTHERWISE] = [*dict.fromkeys([*notes.get(OTHERWISE, []), *other])]
            if apart := [
                f"{key} {entry.protocol[key]}, elsewhere {usual[key]}"
                for key in keys
                if entry.protocol.get(key, usual[key]) != usual[key]
            ]:
                letter = letters.setdefault("; ".join(apart), ascii_lowercase[len(letters) % 26])
                notes[letter] = apart
                marks.append(letter)
            marked[row][i] = replace(entry, marks=tuple(marks))
    overrides = {
        one: here if isinstance(here, str) else " ".join(here)
        for one, here in plan.stage.substitutions.items()
    }
    instead = ", ".join(f"{here} for {one}" for one, here in overrides.items())
    configurations = [*dict.fromkeys(filter(None, escape_control.values()))]
    how = (
        configurations
        if len(configurations) < 2
        else [f"{label}: {way}" for label, way in escape_control.items()]
    )
    note = "; ".join(filter(None, [plan.stage.note, instead, *how]))
    told = {
        mark: ("not measured as the paper's: " if mark == OTHERWISE else "") + "; ".join(said)
        for mark, said in notes.items()
    }
    return replace(
        table,
        rows={row: tuple(entries) for row, entries in marked.items()},
        notes=told,
        our_protocol=note,
    )


def _theirs(read_protocol: Mapping[str, str], metric: str) -> dict[str, str]:
    """What a paper says of how `metric` was measured. Keys such as nll.split are of nll alone, which then takes of the
    others only "data".
    """
    group = metric.partition(".")[0] + "."
    own = {
        key.removeprefix(group): value
        for key, value in read_protocol.items()
        if key.startswith(group)
    }
    own |= {"data": read_protocol["data"]} if own and "data" in read_protocol else {}
    return own or {key: value for key, value in read_protocol.items() if not key.startswith("nll.")}


def _said(how: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(how.items()))


def claim(table: Table, order: spec.OrderClaim, paper: bool = False) -> Claim:
    """Whether the numbers of `table`, or, to test the claim itself, the paper's, are in that order."""
    names = [column.name for column in table.columns]
    by_row = order.order[0] in table.rows
    across = (order.columns or names) if by_row else (order.rows or [*table.rows])
    passed: bool | None = True
    said = []
    for other in across:
        places = [(name, other) if by_row else (other, name) for name in order.order]
        entries = [table.rows[row][names.index(column)] for row, column in places]
        values = [entry.theirs if paper else entry.ours for entry in entries]
        if any(value is None for value in values):
            passed = None if passed else passed
            continue
        known = [value for value in values if value is not None]
        held = all(a * order.ratio <= b and a < b for a, b in pairwise(known))
        passed = passed if held else False
        escape_control = [
            f"{name} {value:.4g}" for name, value in zip(order.order, known, strict=True)
        ]
        signs = ["<" if a < b else "≥" for a, b in pairwise(known)]
        said.append(
            f"{other}: {escape_control[0]}"
            + "".join(f" {sign} {one}" for sign, one in zip(signs, escape_control[1:], strict=True))
        )
    text = order.text + (f" (by a factor of {order.ratio:g} or more)" if order.ratio != 1 else "")
    return Claim(text, passed, "; ".join(said))


def from_sweep(root: Path) -> Table:
    """A sweep's cells, with all the numbers that they have in common names for. Raises UserError if it is none."""
    entries = read_json(root / "sweep.json")
    texts = ("name", "config", "command")
    if not entries or not all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in texts)
        for entry in entries.values()
    ):
        raise UserError(
            f"dir={root} is no sweep, for it holds no sweep.json of ours; it is the folder that "
            "train.py -m names"
        )
    if odd := [
        folder
        for folder in entries
        if not re.fullmatch(r"[\w.=+-]+", folder) or not folder.strip(".")
    ]:
        raise UnsafeFileError(
            f"dir={root}: its sweep.json names a cell {escape_control(odd[0])}, which is no folder in it"
        )
    for folder in entries:
        reject_links(root / folder)
    cells = [
        Job(entry["name"], "", (), root / folder, entry["config"], 1.0)
        for folder, entry in entries.items()
    ]
    keys = [
        key
        for key in METRICS
        if any(cell.done() and read_number(cell.metrics, key) is not None for cell in cells)
    ]
    rows: dict[str, tuple[Entry, ...]] = {}
    sweep = dict(sorted(by_name(cells).items()))
    for name, cell in sweep.items():
        command = entries[cell.folder.name]["command"]
        rows[name] = tuple(Entry(None, (read_source(cell, key, command),)) for key in keys)
    columns = tuple(Column(METRICS[key][0], METRICS[key][0], METRICS[key][1]) for key in keys)
    name = root.resolve().name
    return Table(
        name,
        f"Sweep {name}",
        "",
        "sweep",
        "cell",
        columns,
        rows,
        panels=tuple(build_plots.training_panels(sweep)),
        images=build_plots.sample_images(sweep),
    )
