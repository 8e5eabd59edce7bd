"""Where cells run: in processes of this machine, or on a SLURM cluster. Nothing heavy is imported here."""

import multiprocessing
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.shell import install_command

RunJob = Callable[[str, list[str], Path], int]
"""(verb, overrides, log file) -> exit status"""
GRACE = 30
"""Seconds to end in order"""


class Executor(ABC):
    """Runs a verb with its words elsewhere."""

    stopped = False

    @abstractmethod
    def __call__(self, verb: str, overrides: list[str], log: Path) -> int:
        """The exit status; what is said goes to `log`. Several threads call it at once."""

    @abstractmethod
    def stop(self) -> None:
        """Ends what runs."""


class ProcessExecutor(Executor):
    """A process for each cell, so that one that is killed takes nothing with it. They are forked from a server that has
    imported torch and Lightning once, and die with their parent.
    """

    def __init__(self, jobs: int, run: RunJob, preload: Sequence[str] = ()) -> None:
        self.run = run
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([*preload])
        self.devices = [
            device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device
        ]
        self.lock = threading.Lock()
        self.running: dict[BaseProcess, str | None] = {}

    def __call__(self, verb: str, overrides: list[str], log: Path) -> int:
        with self.lock:  # a device that the fewest use
            used = [*self.running.values()]
            device = min(self.devices, key=used.count) if self.devices else None
            process = self.context.Process(
                target=_forked,
                args=(self.run, verb, overrides, log, self.threads, device),
            )
            process.start()  # the first waits for the server
            self.running[process] = device
        if self.stopped:
            process.kill()
        connection.wait([process.sentinel])
        with (
            self.lock
        ):  # the exit status can be read once, and start() reads that of all that have ended
            status = process.exitcode
        del self.running[process]
        return 1 if status is None else status

    def stop(self) -> None:
        self.stopped = True
        running, until = [*self.running], time.monotonic() + GRACE
        try:
            for process in running:
                process.terminate()  # what trains saves itself first
            while (
                left := [process.sentinel for process in running if process in self.running]
            ) and (seconds := until - time.monotonic()) > 0:
                connection.wait(left, min(seconds, 0.1))
        finally:  # also when interrupted once more
            for process in [*self.running]:
                process.kill()


class SlurmExecutor(Executor):
    """A SLURM job for each cell, through submitit. `parameters` are submitit's: slurm_partition, gpus_per_node,
    cpus_per_task, timeout_min, and so on. `cluster=local` runs them as processes of this machine, to try it out.
    """

    def __init__(
        self, folder: Path, cluster: str, run: RunJob, parameters: dict[str, Any] | None = None
    ) -> None:
        try:
            from submitit import AutoExecutor
        except ImportError as error:
            raise UserError(
                f"hydra.launcher.cluster={cluster} needs submitit; try {install_command('submitit')}"
            ) from error
        try:
            self.executor = AutoExecutor(str(folder), cluster=cluster)
            self.executor.update_parameters(**(parameters or {}))
        except (
            RuntimeError,
            ValueError,
            NameError,
            TypeError,
        ) as error:  # no SLURM; no such cluster or parameter
            raise UserError(
                f"hydra.launcher.cluster={cluster}: {' '.join(str(error).split())[:200]}"
            ) from error
        self.run = run
        self.running: list[Any] = []

    def __call__(self, verb: str, overrides: list[str], log: Path) -> int:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        job = self.executor.submit(self.run, verb, overrides, log)
        self.running.append(job)
        if self.stopped:
            job.cancel(check=False)
        try:
            return int(job.result())
        except (FailedJobError, UncompletedJobError) as error:
            with log.open("a") as file:
                file.write(f"error: job {job.job_id}: {str(error).splitlines()[0]}\n")
            return 1
        finally:
            self.running.remove(job)

    def stop(self) -> None:
        self.stopped = True
        for job in [*self.running]:
            job.cancel(check=False)


def _forked(
    run: RunJob, verb: str, overrides: list[str], log: Path, threads: int, device: str | None
) -> None:
    import torch
    from tqdm import tqdm

    os.setsid()  # Ctrl-C is for the parent, which ends the others in order
    tqdm.set_lock(
        threading.RLock()
    )  # tqdm's own is a semaphore, which a process that is killed would leave behind
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    sys.exit(run(verb, overrides, log))
