"""Executors of jobs: processes on this machine, or a SLURM cluster. Imports nothing heavy."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.shell import optional_package

RunJob = Callable[[str, list[str], Path], int]
"""(verb, overrides, log file) -> exit status"""
GRACE_SECONDS = 30
"""Time between SIGTERM and SIGKILL, for training to save a checkpoint"""


class Executor(ABC):
    """Runs a verb with its overrides outside this process."""

    stopped = False

    @abstractmethod
    def __call__(self, verb: str, overrides: list[str], log: Path) -> int:
        """Return the exit status; write the output to `log`. Thread-safe."""

    @abstractmethod
    def stop(self) -> None:
        """End all running jobs."""


class ProcessExecutor(Executor):
    """Runs each job in its own process, so that a killed job affects no other.

    Processes are forked from a server that has imported torch and Lightning once. They end when
    their parent ends. Each process uses the least used of CUDA_VISIBLE_DEVICES.
    """

    def __init__(self, max_workers: int, run: RunJob, preload: Sequence[str] = ()) -> None:
        self.run = run
        self.threads = max(1, (os.cpu_count() or 1) // max_workers)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([*preload])
        self.devices = [*filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))]
        self.lock = threading.Lock()
        self.running: dict[BaseProcess, str | None] = {}

    def __call__(self, verb: str, overrides: list[str], log: Path) -> int:
        with self.lock:
            used = [*self.running.values()]
            device = min(self.devices, key=used.count) if self.devices else None
            args = (self.run, verb, overrides, log, self.threads, device)
            process = self.context.Process(target=_run_in_child, args=args)
            resource_tracker.ensure_running()  # start() would do it, and unblock SIGINT
            # The server and its children inherit the mask: Ctrl-C reaches this process only.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            process.start()
            self.running[process] = device
        if self.stopped:
            process.kill()
        connection.wait([process.sentinel])
        # An exit status can be read only once, and start() reads that of every ended process.
        with self.lock:
            status = process.exitcode
        del self.running[process]
        return 1 if status is None else status

    def stop(self) -> None:
        self.stopped = True
        processes, deadline = [*self.running], time.monotonic() + GRACE_SECONDS
        try:
            for process in processes:
                process.terminate()
            while (seconds := deadline - time.monotonic()) > 0:
                sentinels = [process.sentinel for process in processes if process in self.running]
                if not sentinels:
                    break
                connection.wait(sentinels, min(seconds, 0.1))
        finally:  # even after a second interrupt
            for process in [*self.running]:
                process.kill()


class SlurmExecutor(Executor):
    """Submits each job to SLURM, through submitit.

    `parameters` are submitit's: slurm_partition, gpus_per_node, cpus_per_task, timeout_min, ...
    With `cluster` "local", submitit runs the jobs as local processes, for testing.
    """

    def __init__(
        self, folder: Path, cluster: str, run: RunJob, parameters: dict[str, Any] | None = None
    ) -> None:
        key = f"hydra.launcher.cluster={cluster}"
        with optional_package("submitit", key, UserError):
            from submitit import AutoExecutor
        try:
            self.executor = AutoExecutor(str(folder), cluster=cluster)
            self.executor.update_parameters(**(parameters or {}))
        # submitit's errors for a missing SLURM, an unknown cluster or an unknown parameter
        except (RuntimeError, ValueError, NameError, TypeError) as error:
            raise UserError(f"{key}: {' '.join(str(error).split())[:200]}") from error
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


def _run_in_child(
    run: RunJob, verb: str, overrides: list[str], log: Path, threads: int, device: str | None
) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # discards a pending one
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch
    from tqdm import tqdm

    # tqdm's default lock is a semaphore, which a killed process would leave behind.
    tqdm.set_lock(threading.RLock())
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    sys.exit(run(verb, overrides, log))
