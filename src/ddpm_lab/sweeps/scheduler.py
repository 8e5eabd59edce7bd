"""Run each job once, after the jobs it needs, regardless of failures of others."""

import json
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from statistics import mean

from ddpm_lab.config.overrides import format_override
from ddpm_lab.reports.terminal import format_grid
from ddpm_lab.sweeps.executors import Executor
from ddpm_lab.sweeps.job import ENVIRONMENT, Job, by_name, read_number
from ddpm_lab.utils.atomic_io import directory_lock, write_json, write_text
from ddpm_lab.utils.errors import JobsFailedError
from ddpm_lab.utils.safe_load import read_json

LOG = logging.getLogger(__name__)
START = 6.0
"""Seconds, at most, before a job passes its first image through the network"""
COLUMNS = {"FID": "fid", "bits/dim": "nll.bits_per_dim", "loss": "training.val_loss"}
"""Keys of metrics.json by label, for a sweep"""
History = defaultdict[str, list[tuple[float, float]]]
"""(cost, seconds) of finished jobs, by kind"""


def run_jobs(
    jobs: Sequence[Job],
    executor: Executor,
    root: Path,
    *,
    max_workers: int,
    dry: bool,
    columns: Mapping[str, str] = COLUMNS,
) -> None:
    """Run the unfinished jobs, each after its needs, and log a table of all.

    `columns` are keys of metrics.json by label; those that no job has are left out.
    An interrupted training or evaluation resumes; interrupted sampling starts from scratch.
    Raises JobsFailedError if a job fails, OSError if `root` cannot be created.
    """
    jobs = [*{job.folder: job for job in jobs}.values()]
    todo = [job for job in jobs if not job.done()]
    estimate = _estimate(todo, _read_history(root), max_workers)
    if dry:
        LOG.info("%s\n  %s", _table(jobs, columns), estimate)
        return
    LOG.info("%d jobs, of which %d are done; %s", len(jobs), len(jobs) - len(todo), estimate)
    root.mkdir(parents=True, exist_ok=True)
    with directory_lock(root, "running a sweep"):
        _write_index(root, jobs)
        _run(todo, executor, max_workers)
    LOG.info("%s", _table(jobs, columns))
    if failed := [job for job in jobs if not job.done()]:
        raise JobsFailedError(
            f"{len(failed)} of {len(jobs)} jobs failed; repeat the command to retry them"
        )


def _write_index(root: Path, jobs: Sequence[Job]) -> None:
    """Add `jobs` to sweep.json, which `report.py dir=` reads."""
    index = read_json(root / "sweep.json")
    index |= {
        job.folder.name: {"name": job.name, "config": job.config_hash, "command": job.command}
        for job in jobs
    }
    write_json(root / "sweep.json", index)


def _run(todo: Sequence[Job], executor: Executor, max_workers: int) -> None:
    waiting, ended = [*todo], 0
    running: dict[Future[int], Job] = {}
    failed: set[Path] = set()
    history: History = defaultdict(list)
    with ThreadPoolExecutor(max_workers) as threads:
        try:
            while waiting or running:
                for job in [*waiting]:
                    blockers = [need.name for need in job.needs if need.folder in failed]
                    if blockers:
                        waiting.remove(job)
                        failed.add(job.folder)
                        _write_state(job, 1, 0.0, f"needs {blockers[0]}")
                    elif len(running) < max_workers and all(need.done() for need in job.needs):
                        waiting.remove(job)
                        running[threads.submit(_attempt, job, executor)] = job
                completed, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in completed:
                    job = running.pop(future)
                    ended += 1
                    if status := future.result():
                        failed.add(job.folder)
                    else:
                        history[_kind(job.command)].append((job.cost, job.state()["seconds"]))
                    rest = [*waiting, *running.values()]
                    estimate = f"  ({_estimate(rest, history, max_workers)})" if rest else ""
                    verdict = "failed:" if status else "done:  "
                    LOG.info("[%d/%d] %s %s%s", ended, len(todo), verdict, job.name, estimate)
        except BaseException:  # KeyboardInterrupt too: stop the running jobs, keep the finished
            executor.stop()
            raise


def _attempt(job: Job, executor: Executor) -> int:
    start, log = time.monotonic(), job.folder / "log.txt"
    try:
        if job.verb == "sample":
            shutil.rmtree(job.folder, ignore_errors=True)
        job.folder.mkdir(parents=True, exist_ok=True)
        for file in ("job.json", ENVIRONMENT):
            (job.folder / file).unlink(missing_ok=True)
        overrides = [*job.overrides, format_override("hydra.run.dir", job.folder)]
        status = executor(job.verb, overrides, log)
        if executor.stopped:
            return 1
        if status == 0 and job.verb != "sample" and not job.metrics.is_file():
            status = 1  # Lightning exits with status 0 when a signal ends a run
        _write_state(job, status, time.monotonic() - start, _last_error(log) if status else "")
    except OSError as error:  # affects this job's folder only
        if not executor.stopped:
            LOG.info("%s: %s", job.name, error)
        return 1
    return status


def _write_state(job: Job, status: int, seconds: float, error: str) -> None:
    """Write job.json atomically, after all other files: it marks the job as ended."""
    job.folder.mkdir(parents=True, exist_ok=True)
    state = {
        "status": status,
        "seconds": round(seconds, 1),
        "cost": job.cost,
        "error": error,
        "verb": job.verb,
        "config": job.config_hash,
        "command": job.command,
    }
    write_text(job.folder / "job.json", json.dumps(state))


def _last_error(log: Path) -> str:
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1][:200]


def _table(jobs: Sequence[Job], columns: Mapping[str, str]) -> str:
    rows, errors = {}, []
    numbers = {
        label: [read_number(job.metrics, key) for job in jobs] for label, key in columns.items()
    }
    numbers = {label: values for label, values in numbers.items() if values != [None] * len(jobs)}
    for i, (name, job) in enumerate(by_name(jobs).items()):
        state = job.state()
        status = state.get("status")
        word = "to do" if status is None else "failed" if status else "done"
        seconds = _format_seconds(state["seconds"]) if state else "-"
        metrics = [values[i] for values in numbers.values()]
        texts = ["-" if value is None else f"{value:.3g}" for value in metrics]
        rows[name] = [word, seconds, *texts, job.folder.name]
        if status:
            errors.append(f"  {job.name}: {state['error']}\n    log: {job.folder / 'log.txt'}")
    title = f"{len(jobs)} jobs in {jobs[0].folder.parent}"
    grid = format_grid(title, "job", ["state", "time", *numbers, "folder"], rows)
    return "\n".join([grid, *errors])


def _read_history(root: Path) -> History:
    history: History = defaultdict(list)
    for file in root.glob("*/job.json"):
        state = read_json(file)
        if state.get("status") == 0:
            history[_kind(state["command"])].append((state["cost"], state["seconds"]))
    return history


def _estimate(jobs: Sequence[Job], history: History, max_workers: int) -> str:
    if not jobs:
        return "nothing left to do"
    times = [_estimate_seconds(history, job) for job in jobs]
    seconds = [time for time in times if time is not None]
    if len(seconds) < len(times):
        return f"{len(jobs)} left, time unknown yet"
    return f"{len(jobs)} left, about {_format_seconds(sum(seconds) / max_workers)}"


def _estimate_seconds(history: History, job: Job) -> float | None:
    """Estimate the time of `job`: a start, and a time proportional to its cost.

    The rate is that of finished jobs of the same kind or, without any, of all with a network. None
    if there are none.
    """
    kind = _kind(job.command)
    points = history[kind]
    if kind == "exact":  # hardly depends on the cost
        return mean(time for _, time in points) if points else None
    points = points or [
        point for other, points in history.items() if other != "exact" for point in points
    ]
    if not points:
        return None
    seconds = [time for _, time in points]
    start = min(START, *seconds)
    rate = (sum(seconds) - start * len(seconds)) / sum(cost for cost, _ in points)
    return start + rate * job.cost


def _kind(command: str) -> str:
    """Return the class of commands in which equal cost means about equal time."""
    return "exact" if "model=exact" in command else command.split()[1]


def _format_seconds(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
