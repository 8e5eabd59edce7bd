"""The door: composes the configuration and hands it to a verb. Nothing heavy is imported before that is done."""

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
from ddpm_lab.runs import load, partial_results, resume, saved_config
from ddpm_lab.utils.distributed import check_launch, is_rank_zero
from ddpm_lab.utils.errors import (
    CLIError,
    InterruptedRunError,
    ResourceError,
    UserError,
    as_resource_error,
    escape_control,
)

MADE = ("runs", "sweeps", "samples", "evaluations", "exact")
"""Folders that the configurations make around an output folder, beside one that is called by the day"""
SWEEPS: list[Path] = []
"""Folders of the sweeps of this process"""


def _in_order(verb: Callable[[], None]) -> Callable[[], None]:
    """`verb` with the arguments as Hydra takes them; a mistake in them, SIGINT and SIGTERM end it with a line."""

    @wraps(verb)
    def ended() -> None:
        try:
            if threading.current_thread() is threading.main_thread() and (
                signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            ):
                signal.signal(signal.SIGTERM, _terminated)
            sys.argv[1:] = messages.normalize_flags(sys.argv[1:], CONFIGS)
            verb()
        except UserError as error:
            sys.exit(_tell(error))
        except KeyboardInterrupt as stop:
            number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is near
            sys.exit(
                _tell(
                    InterruptedRunError(
                        f"stopped by {number.name}; what is finished is kept", number
                    )
                )
            )

    return ended


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program in the same order as Ctrl-C."""


def _terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated


@_in_order
def train() -> None:
    """Trains a model."""

    overrides = sys.argv[1:]
    home: Path | None = None

    def task(config: DictConfig) -> None:
        from ddpm_lab.cli.train import train

        train(config, overrides, home)

    def run_ablation(config: DictConfig) -> None:
        from ddpm_lab.ablations.plan import run_ablation

        run_ablation(config)

    verb, sys.argv[1:] = split_command(overrides)
    try:
        if verb == "train":
            saved_config.set_trusted(overrides)
            sys.argv[1:], home = resume.resolve_run_dir(sys.argv[1:])
    except OSError as error:
        sys.exit(_tell(ResourceError(f"{error.filename} cannot be read ({error.strerror})")))
    _main(verb, run_ablation if verb == "ablate" else task)


@_in_order
def sample() -> None:
    """Samples from a run."""

    def task(config: DictConfig) -> None:
        from ddpm_lab.cli.sample import sample

        sample(config)

    _main("sample", task)


@_in_order
def evaluate() -> None:
    """Measures a run, or, with model=exact, what needs no network."""

    def task(config: DictConfig) -> None:
        from ddpm_lab.cli.evaluate import evaluate

        evaluate(config)

    def exact_task(config: DictConfig) -> None:
        from ddpm_lab.cli.analytic import evaluate_exact

        evaluate_exact(config)

    if "model=exact" in sys.argv[1:]:
        _main("exact", exact_task)
    else:
        _main("evaluate", task)


@_in_order
def report() -> None:
    """Shows an ablation or a sweep beside a paper's numbers."""

    def task(config: DictConfig) -> None:
        from ddpm_lab.cli.report import report

        report(config)

    sys.argv[1:] = move_positional(sys.argv[1:], "report")
    _main("report", task)


def _main(verb: str, task: Callable[[DictConfig], None]) -> None:
    ended: list[int] = []
    begun = []

    def job(config: DictConfig) -> None:
        begun.append(config)
        try:
            if "out" in config and config.out in (None, "") and verb != "report":
                raise UserError(f"out={config.out} names no folder")
            task(config)
        except (
            CLIError,
            OmegaConfBaseException,
        ) as error:  # here, so that a sweep goes on with its next cell
            ended.append(_tell(_explained(error, verb)))
            discard(Path(HydraConfig.get().runtime.output_dir))
        except Exception as error:
            if (told := as_resource_error(error)) is None:
                raise
            told.__cause__ = error
            ended.append(_tell(told))
            discard(Path(HydraConfig.get().runtime.output_dir))

    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # or DDP warns where every parameter was used
    os.environ["HYDRA_FULL_ERROR"] = (
        "1"  # so that Hydra raises its errors, which are then told in our words
    )
    try:
        check_launch()
        messages.check_flags(sys.argv[1:], OmegaConf.load(CONFIGS / f"{verb}.yaml"))
        messages.check_overrides(sys.argv[1:], CONFIGS)
        saved_config.set_trusted(sys.argv[1:])
        if verb in ("sample", "evaluate"):
            sys.argv[1:] = load.expand_cascade(sys.argv[1:])
            load.register_run_choices(sys.argv[1:])
        if verb == "evaluate":
            sys.argv[1:] = partial_results.resume_overrides(sys.argv[1:])
        OmegaConf.register_new_resolver("slug", slug, replace=True)
        with _apart():
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=verb)(job)()
    except (CLIError, HydraException, OmegaConfBaseException) as error:
        ended.append(_tell(_explained(error, verb)))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        if begun:
            raise
        ended.append(_tell(UserError(messages.explain_broken_file(error, sys.argv[1:]))))
    except OSError as error:  # some of Hydra's are OSErrors as well
        if begun or error.filename is None:
            raise
        ended.append(
            _tell(ResourceError(f"{error.filename} cannot be made a folder ({error.strerror})"))
        )
    finally:
        for folder in SWEEPS:
            if folder.is_dir() and [file.name for file in folder.iterdir()] == [
                "multirun.yaml"
            ]:  # no job began
                (folder / "multirun.yaml").unlink()
                discard(folder)
    if ended:
        sys.exit(ended[0])


def discard(folder: Path) -> None:
    """Remove `folder` if it is empty, and then those around it that the configurations make."""
    with suppress(OSError):
        folder.rmdir()
        for above in folder.parents:
            if above.name not in MADE and not re.fullmatch(r"\d{4}-\d\d-\d\d", above.name):
                break
            above.rmdir()


@contextmanager
def _apart() -> Iterator[None]:
    """Of several processes of one run, all but the first write and log nothing: Hydra gives them an empty folder."""
    if is_rank_zero():
        yield
        return
    logging.disable(logging.INFO)
    with TemporaryDirectory() as folder:
        sys.argv.append(f"hydra.run.dir={folder}")
        yield


def _explained(error: Exception, verb: str) -> CLIError:
    """`error`, or if it is Hydra's, what it means."""
    if isinstance(error, CLIError):
        return error
    found = UserError(messages.explain_error(error, verb, CONFIGS, sys.argv[1:]))
    found.__cause__ = error
    return found


def _tell(error: CLIError) -> int:
    """Says what went wrong, with DDPM_LAB_DEBUG=1 also where; the exit status."""
    if os.environ.get("DDPM_LAB_DEBUG"):
        traceback.print_exception(error)
    said = escape_control(error, lines=True)
    print(said if isinstance(error, InterruptedRunError) else f"error: {said}", file=sys.stderr)
    return error.status


def run_job(verb: str, overrides: list[str], log: Path) -> int:
    """Runs a verb in this process, whose output goes to `log` from now on."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [f"{verb}.py", *overrides]
    try:
        globals()[verb]()
        status = 0
    except SystemExit as ended:  # without a number: Lightning was told to end
        status = ended.code if isinstance(ended.code, int) else 1
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status
