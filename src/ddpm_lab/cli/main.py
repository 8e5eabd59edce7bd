"""The entry points: compose the configuration, then import torch and run a command."""

import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_lab.config import messages
from ddpm_lab.config.overrides import CONFIGS, move_positional, slug, split_command
from ddpm_lab.runs import partial_results, provenance, resume, saved_config
from ddpm_lab.runs.run_config import expand_cascade, register_run_choices
from ddpm_lab.sweeps.job import ENVIRONMENT
from ddpm_lab.utils.distributed import check_launch, is_rank_zero
from ddpm_lab.utils.errors import (
    CLIError,
    InterruptedRunError,
    ResourceError,
    UserError,
    as_resource_error,
    escape_control,
)

OUTPUT_PARENTS = r"runs|sweeps|samples|evaluations|exact|\d{4}-\d\d-\d\d"
"""Names of directories that the configurations create around an output directory"""
SWEEPS: list[Path] = []
"""Directories of the sweeps of this process"""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program in the same way as Ctrl-C does."""


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _entry_point(command: Callable[[], None]) -> Callable[[], None]:
    """Normalize the arguments of `command`; exit with one line for mistakes, SIGINT and SIGTERM."""

    @wraps(command)
    def run() -> None:
        is_main_thread = threading.current_thread() is threading.main_thread()
        try:
            if is_main_thread and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
                signal.signal(signal.SIGTERM, _raise_terminated)
            sys.argv[1:] = messages.normalize_flags(sys.argv[1:], CONFIGS)
            command()
        except UserError as error:
            sys.exit(_print_error(error))
        except KeyboardInterrupt as stop:
            number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
            if is_main_thread:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program ends now
            message = f"stopped by {number.name}; finished parts are saved"
            sys.exit(_print_error(InterruptedRunError(message, number)))

    return run


@_entry_point
def train() -> None:
    """Train a model, or the models of an ablation."""
    overrides = sys.argv[1:]
    command, sys.argv[1:] = split_command(overrides)
    if command == "ablate":
        _run(command, lambda config: import_module("ddpm_lab.ablations.plan").run_ablation(config))
        return
    saved_config.set_trusted(overrides)
    try:
        sys.argv[1:], home = resume.resolve_run_dir(sys.argv[1:])
    except OSError as error:
        message = f"{error.filename} cannot be read ({error.strerror})"
        sys.exit(_print_error(ResourceError(message)))

    def task(config: DictConfig) -> None:
        if "wandb" in config.logger:
            # wandb.init imports it. Its models search all imported modules, few before Lightning.
            import_module("wandb.apis.public")
        import_module("ddpm_lab.cli.train").train(config, overrides, home)

    _run(command, task)


@_entry_point
def sample() -> None:
    """Sample from a run."""
    _run("sample", lambda config: import_module("ddpm_lab.cli.sample").sample(config))


@_entry_point
def evaluate() -> None:
    """Evaluate a run or, with model=exact, samplers on data with a closed-form denoiser."""
    if "model=exact" in sys.argv[1:]:
        _run("exact", lambda config: import_module("ddpm_lab.cli.analytic").evaluate_exact(config))
    else:
        _run("evaluate", lambda config: import_module("ddpm_lab.cli.evaluate").evaluate(config))


@_entry_point
def report() -> None:
    """Show an ablation or a sweep next to a paper's numbers."""
    sys.argv[1:] = move_positional(sys.argv[1:], "report")
    _run("report", lambda config: import_module("ddpm_lab.cli.report").report(config))


def _run(command: str, task: Callable[[DictConfig], None]) -> None:
    """Compose the configuration of `command` and run `task` with it; exit with the first error."""
    statuses: list[int] = []
    started = False

    def job(config: DictConfig) -> None:
        nonlocal started
        started = True
        try:
            if "out" in config and config.out in (None, "") and command != "report":
                raise UserError(f"out={config.out} is not a directory name")
            task(config)
        except Exception as error:  # a sweep continues with its next job
            statuses.append(_print_error(_explain(error, command, started)))
            discard_if_empty(Path(HydraConfig.get().runtime.output_dir))

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # silences a warning of DDP
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its own errors, which `_explain` rewrites
    try:
        _prepare_arguments(command)
        with _only_rank_zero_writes():
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=command)(job)()
    except Exception as error:
        statuses.append(_print_error(_explain(error, command, started)))
    finally:
        for folder in SWEEPS:
            files = [file.name for file in folder.iterdir()] if folder.is_dir() else []
            if files == ["multirun.yaml"]:  # no job was started
                (folder / "multirun.yaml").unlink()
                discard_if_empty(folder)
    if statuses:
        sys.exit(statuses[0])


def _prepare_arguments(command: str) -> None:
    """Check the arguments and complete them before Hydra reads them. Raises UserError."""
    check_launch()
    messages.check_flags(sys.argv[1:], OmegaConf.load(CONFIGS / f"{command}.yaml"))
    messages.check_overrides(sys.argv[1:], CONFIGS)
    saved_config.set_trusted(sys.argv[1:])
    if command in ("sample", "evaluate"):
        sys.argv[1:] = expand_cascade(sys.argv[1:])
        register_run_choices(sys.argv[1:])
    if command == "evaluate":
        sys.argv[1:] = partial_results.resume_overrides(sys.argv[1:])
    OmegaConf.register_new_resolver("slug", slug, replace=True)


def discard_if_empty(folder: Path) -> None:
    """Remove `folder` if it is empty, and the empty directories that the configurations created."""
    with suppress(OSError):
        folder.rmdir()
        for parent in folder.parents:
            if not re.fullmatch(OUTPUT_PARENTS, parent.name):
                break
            parent.rmdir()


@contextmanager
def _only_rank_zero_writes() -> Iterator[None]:
    """Give Hydra an empty temporary directory in all processes of a run but the first."""
    if is_rank_zero():
        yield
        return
    logging.disable(logging.INFO)
    with TemporaryDirectory() as folder:
        sys.argv.append(f"hydra.run.dir={folder}")
        yield


def _explain(error: Exception, command: str, started: bool) -> CLIError:
    """Return the error to print for `error`, before or after `command` has started.

    Raises `error` itself if it is a bug.
    """
    explained: CLIError | None = None
    match error:
        case CLIError():
            return error
        case HydraException() | OmegaConfBaseException():
            explained = UserError(messages.explain_error(error, command, CONFIGS, sys.argv[1:]))
        case _ if started:
            explained = as_resource_error(error)
        case yaml.YAMLError() | UnicodeDecodeError():
            explained = UserError(messages.explain_broken_file(error, sys.argv[1:]))
        case OSError(filename=file) if file is not None:  # some of Hydra's errors are OSErrors
            message = f"{file} cannot be created as a directory ({error.strerror})"
            explained = ResourceError(message)
    if explained is None:
        raise error
    explained.__cause__ = error
    return explained


def _print_error(error: CLIError) -> int:
    """Print `error`, with its traceback if DDPM_LAB_DEBUG is set. Return the exit status."""
    if os.environ.get("DDPM_LAB_DEBUG"):
        traceback.print_exception(error)
    print(f"{error.prefix}{escape_control(error, lines=True)}", file=sys.stderr)
    return error.status


def run_job(command: str, overrides: list[str], log: Path) -> int:
    """Run a command in this process, with its output in `log`. Return the exit status.

    A finished job leaves its environment next to `log`.
    """
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [f"{command}.py", *overrides]
    try:
        globals()[command]()
        status = 0
        provenance.write_environment(log.parent / ENVIRONMENT)
    except SystemExit as stop:  # without a number: a signal ended Lightning
        status = stop.code if isinstance(stop.code, int) else 1
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status
