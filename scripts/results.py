"""Run the tables of papers in the analytic and the tiny tier, and write docs/results.

    make results                                # all tables: hours on two cores
    python scripts/results.py ddim_table1       # some of them
    python scripts/results.py write             # write docs/results from the finished jobs only

To resume, repeat the command.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import csv
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from ddpm_lab.ablations.spec import Tier, load_ablation, names

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
JOB = re.compile(r"(?:train|evaluate)-[0-9a-f]{12}")
"""Directory of a job"""
JOBS = 2
"""Number of jobs at the same time, one thread each"""
TIERS: tuple[Tier, ...] = ("analytic", "tiny")
HEAD = """# Tables of papers

Each folder has the output of `python report.py ablation=NAME` without the page and the LaTeX:
tables with the paper's numbers, ours, claims, footnotes, the code and the machine; plots; and a CSV
in which every number has its configuration, its command and its file. All are written by

    make results

A claim is an order of the paper's numbers. It passes if every difference that it states exceeds
two standard errors over seeds; the analytic tier is exact. Of FIDs, only differences of 5 % or more
in the paper are claimed: laboratories that train one recipe differ by more. "Not claimed" are
claims that a tier cannot show, with the reason. The time is that of all jobs that a table needs,
also of trainings that it shares with others, two jobs at a time with one thread each.
"""


def run_jobs(selection: Sequence[str]) -> bool:
    """Run the unfinished jobs of both tiers; return True if none failed."""
    ablations = f"ablation=[{','.join(selection)}]"
    return not any([call("train.py", ablations, f"tier={tier}", f"jobs={JOBS}") for tier in TIERS])


def call(*command: str) -> int:
    """Run a script of the project and return its exit status."""
    return subprocess.run([sys.executable, *command], cwd=ROOT).returncode


def write_folder(name: str) -> None:
    """Write docs/results/NAME, without the page and the LaTeX, which are large or local."""
    folder = RESULTS / name
    shutil.rmtree(folder, ignore_errors=True)
    if call("report.py", f"ablation={name}", f"out={folder}"):
        raise SystemExit(f"error: the report of {name} failed")
    if not any(line["ours"] for line in read_csv(folder / "table.csv")):
        shutil.rmtree(folder)
        return
    for file in ("report.html", "table.tex"):
        (folder / file).unlink()


def write_index() -> None:
    """Write docs/results/README.md from the CSV files of all folders."""
    lines = [HEAD, "| | analytic | tiny | time, tiny |", "|---|---|---|---|"]
    totals = {tier: Counter[str]() for tier in TIERS}
    findings = []
    for name in names():
        folder = RESULTS / name
        claims = read_csv(folder / "claims.csv")
        cells = []
        for tier in TIERS:
            verdicts = Counter(line["verdict"] for line in claims if line["tier"] == tier)
            ran = any(
                line["tier"] == tier and line["ours"] for line in read_csv(folder / "table.csv")
            )
            totals[tier] += verdicts if ran else Counter()
            exists = not load_ablation(name).tier(tier).skip_reason
            cells.append(format_verdicts(verdicts) if ran else "not run" if exists else "-")
        link = f"[{name}]({name}/table.md)" if folder.is_dir() else name
        lines.append(f"| {link} | {' | '.join(cells)} | {hours(folder)} |")
        lines_of_claims = [*describe(claims)]
        if lines_of_claims:
            findings += ["", f"**{name}**: {load_ablation(name).title}.", "", *lines_of_claims]
    for tier, verdicts in totals.items():
        count = sum(verdicts[verdict] for verdict in ("passed", "failed", "not resolved"))
        lines.append(
            f"| all claims, {tier} | {verdicts['passed']} of {count} | | |"
        ) if count else None
    lines += ["", "## Claims that do not show", *findings]
    toctree = "```{toctree}\n:hidden:\n:glob:\n\n*/table\n```"
    (RESULTS / "README.md").write_text("\n".join([*lines, "", toctree, ""]))


def read_csv(file: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file; [] if there is none."""
    if not file.is_file():
        return []
    with file.open() as stream:
        return [*csv.DictReader(stream)]


def format_verdicts(verdicts: Counter[str]) -> str:
    tested = sum(verdicts[each] for each in ("passed", "failed", "not resolved"))
    rest = [
        f"{verdicts[each]} {each}"
        for each in ("not resolved", "not claimed", "not run")
        if verdicts[each]
    ]
    return ", ".join([f"{verdicts['passed']} of {tested}" if tested else "no claim", *rest])


def describe(claims: Sequence[dict[str, str]]) -> Iterator[str]:
    """Yield a line for each tier and claim that did not pass, with its reason."""
    for tier in TIERS:
        for line in claims:
            if line["tier"] == tier and line["verdict"] != "passed":
                reason = f": {line['reason']}" if line["reason"] else ""
                yield f"- {tier}, {line['verdict']}: {line['claim']}{reason}"


def hours(folder: Path) -> str:
    """Return the time of the jobs of the tiny tier and those they read, `JOBS` at a time.

    It is "" if a job is not in runs/ablations.
    """
    jobs = {
        job
        for line in read_csv(folder / "table.csv")
        if line["tier"] == "tiny" and line["ours"]
        for job in JOB.findall(line["files"])
    }
    seconds = {}
    while todo := jobs - seconds.keys():
        for job in todo:
            file = ROOT / "runs" / "ablations" / job / "job.json"
            if not file.is_file():
                return ""
            state = json.loads(file.read_text())
            seconds[job] = state["seconds"]
            jobs |= {*JOB.findall(state["command"])}
    return str(timedelta(seconds=round(sum(seconds.values()) / JOBS))) if seconds else ""


if __name__ == "__main__":
    arguments = sys.argv[1:]
    selection = [name for name in arguments if name != "write"] or names()
    complete = "write" in arguments or run_jobs(selection)
    for each in selection:
        write_folder(each)
    write_index()
    print(f"saved in {RESULTS}")
    sys.exit(not complete)
