"""Cells of sweeps and ablations: one command each, in a folder of its own, done once."""

import fcntl
import hashlib
import json
import logging
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.commands.output import grid, output
from ddpm_lab.commands.pools import Pool
from ddpm_lab.errors import UserError

LOG = logging.getLogger(__name__)


class CellsFailed(Exception):  # noqa: N818 (it reports what became of them)
    """Some cells of a sweep failed; the folders are those of all."""

    def __init__(self, told: str, folders: list[Path]) -> None:
        super().__init__(told)
        self.folders = folders


@dataclass(frozen=True)
class Cell:
    """A command and the folder that it fills. `config` identifies what it computes, `work` is what its time is
    proportional to, and `needs` are cells whose folders it reads.
    """

    name: str
    verb: str
    words: tuple[str, ...]
    folder: Path
    config: str
    work: float
    needs: tuple["Cell", ...] = ()

    @property
    def command(self) -> str:
        """As it is typed, but for the folder."""
        return f"python {self.verb}.py {shlex.join(self.words)}"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    def state(self) -> dict[str, Any]:
        """What the last attempt left: its exit "status" and "seconds"; {} where there was none, or none that ended."""
        file = self.folder / "cell.json"
        found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return found if found.get("config") == self.config else {}

    def done(self) -> bool:
        return self.state().get("status") == 0


def fingerprint(config: DictConfig, root: Path) -> str:
    """12 digits that are the same for configurations that compute the same: where results go does not matter, nor where
    the cells lie whose folders they read, `root`.
    """
    content: Any = OmegaConf.to_container(config, resolve=False)
    for key in ("hydra", "logger", "out"):
        content.pop(key, None)
    content.get("trainer", {}).pop("default_root_dir", None)
    said = json.dumps(content, sort_keys=True, default=str).replace(f"{root}/", "runs/ablations/")
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def work(verb: str, config: DictConfig) -> float:
    """Passes of pictures through the network, about; those that train count three times."""
    if verb == "train":
        return 3.0 * config.trainer.max_steps * config.data.batch_size * config.trainer.accumulate_grad_batches
    chain = OmegaConf.select(config, "schedule.steps") or 1000
    steps = OmegaConf.select(config, "sampler.steps") or chain
    return float((config.get("count") or 100) * (steps if isinstance(steps, int) else 1))


def remember(root: Path, cells: Sequence[Cell]) -> None:
    """Adds `cells` to the list of a sweep, `sweep.json`, which `report.py dir=` reads."""
    known = listed(root)
    known |= {cell.folder.name: {"name": cell.name, "config": cell.config, "command": cell.command} for cell in cells}
    output(str(root))
    partial = root / "sweep.partial"
    partial.write_text(json.dumps(known, indent=2) + "\n")
    partial.rename(root / "sweep.json")


def listed(root: Path) -> dict[str, dict[str, str]]:
    """The cells of a sweep by their folders: name, config, command."""
    file = root / "sweep.json"
    found: dict[str, dict[str, str]] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def carry_out(cells: Sequence[Cell], pool: Pool, root: Path, *, jobs: int, dry: bool) -> None:
    """Runs those of `cells` that are not done, `jobs` at a time, each after what it needs, and says what became of
    all. Raises CellsFailed if some could not be done.

    What a killed attempt left of a cell is removed before the next.
    """
    todo = [cell for cell in cells if not cell.done()]
    estimate = _estimate(todo, root, jobs)
    if dry:
        LOG.info("%s\n  %s", _table(cells), estimate)
        return
    LOG.info("%d cells, of which %d are done; %s", len(cells), len(cells) - len(todo), estimate)
    output(str(root))
    with _alone(root):
        _run(todo, pool, jobs)
    LOG.info("%s", _table(cells))
    if failed := [cell for cell in cells if not cell.done()]:
        told = f"{len(failed)} of {len(cells)} cells failed; the same command tries them again"
        raise CellsFailed(told, [cell.folder for cell in cells])


def _run(todo: Sequence[Cell], pool: Pool, jobs: int) -> None:
    started, waiting, ended = time.monotonic(), [*todo], 0
    running: dict[Future[int], Cell] = {}
    failed: set[Path] = set()
    total = sum(cell.work for cell in todo)
    with ThreadPoolExecutor(jobs) as threads:
        try:
            while waiting or running:
                for cell in [*waiting]:
                    if any(need.folder in failed for need in cell.needs):
                        waiting.remove(cell)
                        failed.add(cell.folder)
                        _keep(cell, 1, 0.0, f"needs {next(n.name for n in cell.needs if n.folder in failed)}")
                    elif len(running) < jobs and all(need.done() for need in cell.needs):
                        waiting.remove(cell)
                        running[threads.submit(_attempt, cell, pool)] = cell
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    cell = running.pop(future)
                    ended += 1
                    if status := future.result():
                        failed.add(cell.folder)
                    left = [*waiting, *running.values()]
                    share = sum(other.work for other in left) / total
                    spent = time.monotonic() - started
                    rest = f"about {_span(spent * share / (1 - share))} left" if left and share < 1 else ""
                    LOG.info("[%d/%d] %s %s%s", ended, len(todo), "failed:" if status else "done:  ", cell.name,
                             f"  ({rest})" if rest else "")  # fmt: skip
        except BaseException:  # also when interrupted: what runs is stopped, what is done stays
            pool.stop()
            raise


def _attempt(cell: Cell, pool: Pool) -> int:
    shutil.rmtree(cell.folder, ignore_errors=True)
    cell.folder.mkdir(parents=True)
    started = time.monotonic()
    status = pool(cell.verb, [*cell.words, f"hydra.run.dir={cell.folder}"], cell.folder / "log.txt")
    _keep(cell, status, time.monotonic() - started, "" if status == 0 else _complaint(cell.folder / "log.txt"))
    return status


def _keep(cell: Cell, status: int, seconds: float, why: str) -> None:
    """Last of all, and at once, so that a cell is done only when all of it is there."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    partial = cell.folder / "cell.partial"
    partial.write_text(json.dumps({"status": status, "seconds": round(seconds, 1), "work": cell.work, "why": why,
                                   "verb": cell.verb, "config": cell.config, "command": cell.command}))  # fmt: skip
    partial.rename(cell.folder / "cell.json")


def _complaint(log: Path) -> str:
    """The line of a log that says what went wrong."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
    told = [line for line in lines if line.startswith("error: ")]
    return (told or lines or ["it ended without a word"])[-1][:200]


def _table(cells: Sequence[Cell]) -> str:
    rows, said = {}, []
    for cell in cells:
        state = cell.state()
        status = state.get("status")
        word = "to do" if status is None else "failed" if status else "done"
        rows[cell.name] = [word, _span(state["seconds"]) if state else "-", *_figures(cell), cell.folder.name]
        if status:
            said.append(f"  {cell.name}: {state['why']}\n    its log: {cell.folder / 'log.txt'}")
    title = f"{len(cells)} cells in {cells[0].folder.parent}"
    return "\n".join([grid(title, "cell", ["state", "time", "FID", "NLL", "folder"], rows), *said])


def _figures(cell: Cell) -> list[str]:
    found = json.loads(cell.metrics.read_text()) if cell.metrics.is_file() else {}
    values = [found.get("fid"), (found.get("nll") or {}).get("bits_per_dim")]
    return ["-" if value is None else f"{value:.3g}" for value in values]


def _estimate(todo: Iterable[Cell], root: Path, jobs: int) -> str:
    """From how long cells of the same verb took here."""
    rates: dict[str, list[float]] = {}
    for file in root.glob("*/cell.json"):
        state = json.loads(file.read_text())
        if state["status"] == 0:
            rates.setdefault(state["verb"], []).append(state["seconds"] / state["work"])
    known = [cell.work * median(rates[cell.verb]) for cell in todo if cell.verb in rates]
    unknown = sum(cell.verb not in rates for cell in todo)
    said = [f"about {_span(sum(known) / jobs)} with {jobs} at a time"] if known else []
    said += [f"no estimate for {unknown}, for nothing like them has been run here"] if unknown else []
    return "; ".join(said) or "nothing is left to do"


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Raises UserError if another sweep fills `root`."""
    with (root / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another sweep is filling {root}; wait for it, or choose another folder") from error
        yield
