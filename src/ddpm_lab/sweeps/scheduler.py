"""Carrying out cells: those that are not done, each once, each alone."""

import json
import logging
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from statistics import linear_regression, mean

from ddpm_lab.config.overrides import format_override
from ddpm_lab.reports.terminal import format_grid
from ddpm_lab.sweeps.executors import Executor
from ddpm_lab.sweeps.job import Job, by_name
from ddpm_lab.utils.atomic_io import directory_lock, write_text
from ddpm_lab.utils.errors import JobsFailedError, UserError
from ddpm_lab.utils.safe_load import read_json

LOG = logging.getLogger(__name__)
ENOUGH = 3
"""Cells of a kind, from which on the time that others take is estimated"""
Finished = dict[str, list[tuple[float, float]]]
"""By kind, the work and the seconds of finished cells"""


def _remember(root: Path, cells: Sequence[Job]) -> None:
    """Adds `cells` to the list of a sweep, `sweep.json`, which `report.py dir=` reads."""
    known = read_json(root / "sweep.json")
    known |= {
        cell.folder.name: {"name": cell.name, "config": cell.config, "command": cell.command}
        for cell in cells
    }
    write_text(root / "sweep.json", json.dumps(known, indent=2) + "\n")


def run_jobs(cells: Sequence[Job], pool: Executor, root: Path, *, jobs: int, dry: bool) -> None:
    """Runs those of `cells` that are not done, `jobs` at a time, each after what it needs, and says what became of
    all. Raises CellsFailed if some could not be done.

    Training and evaluations go on with what a killed attempt left of a cell; what is left of samples is removed.
    """
    cells = [*{cell.folder: cell for cell in cells}.values()]
    todo = [cell for cell in cells if not cell.done()]
    estimate = _estimate(todo, root, jobs)
    if dry:
        LOG.info("%s\n  %s", _table(cells), estimate)
        return
    LOG.info("%d cells, of which %d are done; %s", len(cells), len(cells) - len(todo), estimate)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{root} cannot be made a folder ({error.strerror}); choose another"
        ) from error
    with directory_lock(root, "running a sweep"):
        _remember(root, cells)
        _run(todo, pool, jobs)
    LOG.info("%s", _table(cells))
    if failed := [cell for cell in cells if not cell.done()]:
        raise JobsFailedError(
            f"{len(failed)} of {len(cells)} cells failed; the same command tries them again"
        )


def _run(todo: Sequence[Job], pool: Executor, jobs: int) -> None:
    waiting, ended = [*todo], 0
    running: dict[Future[int], Job] = {}
    failed: set[Path] = set()
    done: Finished = {}
    with ThreadPoolExecutor(jobs) as threads:
        try:
            while waiting or running:
                for cell in [*waiting]:
                    if any(need.folder in failed for need in cell.needs):
                        waiting.remove(cell)
                        failed.add(cell.folder)
                        _keep(
                            cell,
                            1,
                            0.0,
                            f"needs {next(n.name for n in cell.needs if n.folder in failed)}",
                        )
                    elif len(running) < jobs and all(need.done() for need in cell.needs):
                        waiting.remove(cell)
                        running[threads.submit(_attempt, cell, pool)] = cell
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    cell = running.pop(future)
                    ended += 1
                    if status := future.result():
                        failed.add(cell.folder)
                    else:
                        done.setdefault(_kind(cell.command), []).append(
                            (cell.work, cell.state()["seconds"])
                        )
                    left = [*waiting, *running.values()]
                    rest = f"  ({_left(left, done, jobs)})" if left else ""
                    LOG.info(
                        "[%d/%d] %s %s%s",
                        ended,
                        len(todo),
                        "failed:" if status else "done:  ",
                        cell.name,
                        rest,
                    )
        except BaseException:  # also when interrupted: what runs is stopped, what is done stays
            pool.stop()
            raise


def _attempt(cell: Job, pool: Executor) -> int:
    started, log = time.monotonic(), cell.folder / "log.txt"
    try:
        if cell.verb == "sample":
            shutil.rmtree(cell.folder, ignore_errors=True)
        cell.folder.mkdir(parents=True, exist_ok=True)
        (cell.folder / "job.json").unlink(missing_ok=True)
        status = pool(
            cell.verb, [*cell.overrides, format_override("hydra.run.dir", cell.folder)], log
        )
        if pool.stopped:
            return 1
        if status == 0 and cell.verb != "sample" and not cell.metrics.is_file():
            status = 1  # such as a run that was told to end
        _keep(cell, status, time.monotonic() - started, "" if status == 0 else _complaint(log))
    except OSError as error:  # of this cell's folder; the others go on
        LOG.info("%s: %s", cell.name, error)
        return 1
    return status


def _keep(cell: Job, status: int, seconds: float, why: str) -> None:
    """Last of all, and at once, so that a cell is done only when all of it is there."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    write_text(
        cell.folder / "job.json",
        json.dumps(
            {
                "status": status,
                "seconds": round(seconds, 1),
                "work": cell.work,
                "why": why,
                "verb": cell.verb,
                "config": cell.config,
                "command": cell.command,
            }
        ),
    )


def _complaint(log: Path) -> str:
    """The line of a log that says what went wrong."""
    lines = (
        [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if log.is_file()
        else []
    )
    told = [line for line in lines if line.startswith("error: ")]
    return (told or lines or ["it ended without a word"])[-1][:200]


def _table(cells: Sequence[Job]) -> str:
    rows, said = {}, []
    for name, cell in by_name(cells).items():
        state = cell.state()
        status = state.get("status")
        word = "to do" if status is None else "failed" if status else "done"
        rows[name] = [
            word,
            _span(state["seconds"]) if state else "-",
            *_figures(cell),
            cell.folder.name,
        ]
        if status:
            said.append(f"  {cell.name}: {state['why']}\n    its log: {cell.folder / 'log.txt'}")
    title = f"{len(cells)} cells in {cells[0].folder.parent}"
    return "\n".join(
        [format_grid(title, "cell", ["state", "time", "FID", "NLL", "folder"], rows), *said]
    )


def _figures(cell: Job) -> list[str]:
    found = read_json(cell.metrics)
    values = [found.get("fid"), (found.get("nll") or {}).get("bits_per_dim")]
    return [f"{value:.3g}" if isinstance(value, int | float) else "-" for value in values]


def _estimate(todo: Sequence[Job], root: Path, jobs: int) -> str:
    """How long `todo` may take, from how long cells of the same kinds took here."""
    done: Finished = {}
    for file in root.glob("*/job.json"):
        state = read_json(file)
        if state.get("status") == 0:
            done.setdefault(_kind(state["command"]), []).append((state["work"], state["seconds"]))
    return _left(todo, done, jobs) if todo else "nothing is left to do"


def _left(cells: Sequence[Job], done: Finished, jobs: int) -> str:
    """How long `cells` may take, as far as that is known."""
    times = [_seconds(done.get(_kind(cell.command), ()), cell) for cell in cells]
    known = [seconds for seconds in times if seconds is not None]
    if len(known) < len(times):
        return f"{len(cells)} left, time unknown yet"
    return f"{len(cells)} left, about {_span(sum(known) / jobs)}"


def _seconds(done: Sequence[tuple[float, float]], cell: Job) -> float | None:
    """How long `cell` may take, from the (work, seconds) of cells of its kind: a start and a time for its work. None
    for fewer than `ENOUGH`, or for far more work than any of them.
    """
    works, seconds = [work for work, _ in done], [taken for _, taken in done]
    if len(done) < ENOUGH:
        return None
    if _kind(cell.command) == "exact":  # of which hardly anything depends on the work
        return mean(seconds)
    if cell.work > 2 * max(works):
        return None
    if len({*works}) == 1:
        return mean(seconds) * cell.work / works[0]
    slope, start = linear_regression(works, seconds)
    if start < 0:
        slope, start = linear_regression(works, seconds, proportional=True)
    return start + slope * cell.work if slope > 0 else mean(seconds)


def _kind(command: str) -> str:
    """Of what takes about as long for the same work."""
    return "exact" if "model=exact" in command else command.split()[1]


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
