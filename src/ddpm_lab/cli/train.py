"""python train.py"""

import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig

from ddpm_lab.callbacks.checkpoints import Checkpoints
from ddpm_lab.callbacks.ema import EMA
from ddpm_lab.callbacks.forecast import Forecast
from ddpm_lab.callbacks.loggers import finish, has_failed, log_checkpoints, make_optional, run_name
from ddpm_lab.callbacks.model_metrics import FID, ODELikelihood
from ddpm_lab.callbacks.progress import Progress
from ddpm_lab.callbacks.reconstructions import Reconstructions
from ddpm_lab.callbacks.torch_compile import TorchCompile
from ddpm_lab.cli.next_commands import complete_command, typed_overrides
from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.config.overrides import shell_value
from ddpm_lab.config.validation import (
    validate,
    validate_length,
    validate_settings,
    validate_trainer,
)
from ddpm_lab.data.datasets import IterableSplit
from ddpm_lab.data.module import Data
from ddpm_lab.evaluation.metrics import Results, Rows
from ddpm_lab.reports.terminal import key_value_table
from ddpm_lab.runs import data_check, init_weights, provenance, resume, run_record, trusted_paths
from ddpm_lab.runs.provenance import Environment
from ddpm_lab.runs.saved_config import foreign_packages, redact
from ddpm_lab.sampling.class_names import is_numbered, legend
from ddpm_lab.sampling.conditions import format_size
from ddpm_lab.systems.base import BaseSystem, DataModule
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils import watchdog
from ddpm_lab.utils.atomic_io import directory_lock, write_json, write_text
from ddpm_lab.utils.distributed import is_rank_zero
from ddpm_lab.utils.errors import (
    CLIError,
    CorruptFileError,
    DivergenceError,
    InterruptedRunError,
    pluralize,
    prefix_errors,
)
from ddpm_lab.utils.safe_load import checkpoint_step, list_checkpoints
from ddpm_lab.utils.shell import quiet_libraries, script_command

LOG = logging.getLogger(__name__)
T = TypeVar("T", bound=Callback)
LEFT_OUT, NAMED = "left_out.txt", 3
"""File for the names of unused images and other files, if there are more than a line names"""


class Training(NamedTuple):
    """A run and its parts."""

    config: DictConfig
    run: Path
    data: Data
    system: BaseSystem
    trainer: Trainer
    saving: Checkpoints
    checkpoint: Path | None
    """Checkpoint to resume"""


def train(config: DictConfig, overrides: Sequence[str] | None, home: Path | None = None) -> None:
    """Train `config`, composed from `overrides` (None: in Python), in `trainer.default_root_dir`.

    With `home`, resume the run in that directory.
    """
    quiet_libraries()
    if home is not None and config.resume not in (None, "auto"):
        config = resume.continue_config(config, home, overrides or ())
    run = Path(config.trainer.default_root_dir)
    with directory_lock(run, "training") if is_rank_zero() and run.is_dir() else nullcontext():
        checkpoint = resume.newest_checkpoint(home, config) if home else None
        _train(config, overrides, run, checkpoint)


def _train(
    config: DictConfig, overrides: Sequence[str] | None, run: Path, checkpoint: Path | None
) -> None:
    validate_settings(config)
    if config.get("init") is not None and checkpoint is None:
        init_weights.adopt_model(config, overrides)
    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch's optimizers query the GPU at each step
    torch.manual_seed(config.seed)
    data: Data = build(config, "data")
    system: BaseSystem = build_system(config, data)
    validate_length(config)
    system.seed = config.seed
    callbacks = _callbacks(config)
    validate(config, data, system, callbacks)
    trainer: Trainer = build(config, "trainer", callbacks=[*callbacks.values()], logger=False)
    validate_trainer(config, trainer, system)
    if isinstance(system, Diffusion):
        with prefix_errors("codec"):
            system.codec.to(trainer.strategy.root_device).measure(data.train)
    fingerprint = data_check.data_fingerprint(data)
    if checkpoint:
        data_check.verify_data(checkpoint.parents[1], config, fingerprint)
    elif config.get("init") is not None:
        LOG.info(init_weights.load_initial_weights(system, config))
    saving = _find(callbacks, Checkpoints)
    assert saving is not None
    if is_rank_zero():
        run.mkdir(parents=True, exist_ok=True)
        resume.save_config(config, run, overrides)
        if len(data.left_out) > NAMED:
            write_text(run / LEFT_OUT, "".join(f"{line}\n" for line in data.left_out))
            LOG.info("the %d files that are not used: %s", len(data.left_out), run / LEFT_OUT)
        environment = provenance.environment(trainer.strategy.root_device)
        saving.run_id = run_record.write_record(run, fingerprint, environment)
        trusted_paths.add_trusted_paths(config)
        _add_loggers(trainer, config, environment, run)
    training = Training(config, run, data, system, trainer, saving, checkpoint)
    _log_start(training)
    _fit(training)
    if is_rank_zero():
        _report(training, callbacks)


def _callbacks(config: DictConfig) -> dict[str, Callback]:
    """Return the callbacks of the configuration and those of every run."""
    callbacks: dict[str, Callback] = build(config, "callbacks")
    if _find(callbacks, Checkpoints) is None:
        callbacks["checkpoints"] = Checkpoints(every=max(1, config.trainer.max_steps))
    bars = [name for name, callback in callbacks.items() if isinstance(callback, ProgressBar)]
    if not config.trainer.get("enable_progress_bar", True):
        callbacks = {name: callback for name, callback in callbacks.items() if name not in bars}
    elif not bars:
        callbacks["progress"] = Progress()  # Lightning's own counts epochs
    first: dict[str, Callback] = {"forecast": Forecast(timed=config.compile is None)}
    if config.compile is not None:
        first["compiled"] = TorchCompile(config.compile)
    return first | callbacks


def _add_loggers(
    trainer: Trainer,
    config: DictConfig,
    environment: Environment,
    run: Path,
) -> None:
    """Attach the loggers after all checks, so that a mistake leaves no W&B run."""
    config = config.copy()
    if "wandb" in config.logger and config.logger.wandb.get("name") is None:
        config.logger.wandb.name = run_name(typed_overrides(run))
    loggers = [logger for logger in build(config, "logger").values() if logger is not None]
    trainer.loggers = [make_optional(logger) for logger in loggers]
    settings = redact(config) | {"environment": environment}
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)
    trainer.loggers = [logger for logger in trainer.loggers if not has_failed(logger)]


def _log_start(training: Training) -> None:
    data, system = training.data, training.system
    codec = system.codec if isinstance(system, Diffusion) else None
    kind = "points" if data.bin_width is None else "images"
    latents = f", in latents of {format_size(codec.shape)}" if codec and codec.space else ""
    text = f"{data.name}: {data.train.size} training {kind} of {format_size(data.shape)}{latents}"
    size = _num_parameters(system) / 1e6
    LOG.info("%s, %d held-out; a network of %.2f M parameters", text, data.test.size, size)
    if data.captions and not is_numbered(data.captions):
        LOG.info("classes: %s", legend(data.captions))
    if not training.checkpoint:
        return
    if isinstance(data.train, IterableSplit):
        LOG.info("a stream cannot resume at its position: it starts with a new shuffle")
    on_gpu = training.trainer.strategy.root_device.type == "cuda"
    if on_gpu and not training.config.trainer.get("deterministic"):
        LOG.info(
            "on a GPU, the last bits may differ from an uninterrupted run; "
            "trainer.deterministic=true avoids that"
        )


def _num_parameters(system: BaseSystem) -> int:
    return sum(parameter.numel() for parameter in system.parameters())


def _fit(training: Training) -> None:
    """Train; if interrupted or diverged, raise an error that names the next command."""
    run, system, checkpoint = training.run, training.system, training.checkpoint
    try:
        with watchdog.monitor(training.config.hang_timeout, run / "hang.txt"):
            training.trainer.fit(system, DataModule(training.data), ckpt_path=checkpoint)
        log_checkpoints(training.trainer.loggers, run)
    except DivergenceError as error:
        last = next(iter(list_checkpoints(run / "checkpoints")), "none")
        raise DivergenceError(f"{error}; the last checkpoint is {last}") from error
    except InterruptedRunError as error:
        number = error.status - 128
        if number == signal.SIGUSR1 and is_rank_zero():
            _requeue()
        step = training.trainer.global_step
        message = f"{error} at step {step}; {_resume_hint(training)}"
        raise InterruptedRunError(message, number) from error
    except Exception as error:  # Lightning raises any type for a checkpoint that is not one
        ours = isinstance(error, CLIError | OSError | MemoryError)
        if checkpoint and not system.restored and not ours:
            raise CorruptFileError(
                f"{checkpoint} cannot be resumed ({type(error).__name__}: {error}); remove it to "
                f"use the previous one, or try init={run} for a new run from its weights"
            ) from error
        raise
    finally:
        finish()


def _resume_hint(training: Training) -> str:
    """Return the last checkpoint of an interrupted run and the command that resumes it."""
    checkpoints = list_checkpoints(training.run / "checkpoints")
    if not checkpoints:
        return "nothing was saved yet"
    is_last = checkpoint_step(checkpoints[0]) == training.trainer.global_step
    saved = "saved in" if is_last else "the last checkpoint is"
    overrides = f"resume={shell_value(training.run)}{_trust(training.config)}"
    command = f"{script_command('train')} {overrides}"
    return f"{saved} {checkpoints[0]}; to resume, repeat the command, or type {command}"


def _report(training: Training, callbacks: dict[str, Callback]) -> None:
    """Write metrics.json; log the metrics and the next commands."""
    system, steps, saving = training.system, training.trainer.global_step, training.saving
    fid = _result(callbacks, FID)
    ode_nll = _result(callbacks, ODELikelihood)
    reconstruction = _result(callbacks, Reconstructions)
    seconds = saving.state_dict()["seconds"]
    cost = {"steps": steps, "seconds": seconds, "parameters": _num_parameters(system)}
    validation = {
        name.removeprefix("val/"): value for name, value in system.validation_metrics.items()
    }
    if saving.best is not None:
        cost["best"] = {"metric": saving.metric, "value": saving.best, "step": saving.best_step}
    if system.zero_loss is not None:
        cost["zero_loss"] = system.zero_loss
    if "loss" in validation:
        cost["val_loss"] = validation.pop("loss")
    metrics = {
        **validation,  # on some held-out samples; the metrics below use all
        "run_id": saving.run_id,
        **fid,
        **reconstruction,
        **({"ode_nll": ode_nll} if ode_nll else {}),
        "training": cost,
    }
    write_json(training.run / "metrics.json", metrics)
    rows = [
        row
        for callback in callbacks.values()
        if isinstance(callback, FID | ODELikelihood) and callback.result
        for row in callback.metric.rows(callback.result)
    ]
    rows += _accuracy_rows(validation) if "accuracy" in validation else []
    rows += _reconstruction_rows(reconstruction)
    with_callbacks = ", with images and metrics" if training.config.callbacks else ""
    remark = f"{pluralize(steps, 'step')}{with_callbacks}"
    if skipped := int(system.skips.counts[0]):
        remark += f"; {pluralize(skipped, 'step')} skipped because of non-finite gradients"
    rows.append(("training", f"{seconds:.0f} s", remark))
    if saving.best is not None:
        remark = f"its {saving.metric} is {saving.best:.4g}; to use it: checkpoint=best"
        rows.append(("best checkpoint", f"step {saving.best_step}", remark))
    raw = "" if _find(callbacks, EMA) or not isinstance(system, Diffusion) else " weights=raw"
    suffix = f"{raw}{_trust(training.config)}"
    LOG.info("%s\n%s", key_value_table(rows), _next_steps(training, bool(fid), suffix))


def _accuracy_rows(validation: Results) -> Rows:
    quarters = [
        f"{100 * value:.1f} %"
        for name, value in sorted(validation.items())
        if name.startswith("accuracy_q")
    ]
    remark = f"on held-out images; by quarter of t, nearest the data first: {', '.join(quarters)}"
    return [("accuracy", f"{100 * validation['accuracy']:.1f} %", remark)]


def _reconstruction_rows(metrics: Results) -> Rows:
    formats = {
        "psnr": ("PSNR", "{:.1f} dB", "mean over held-out images"),
        "ssim": ("SSIM", "{:.3f}", ""),
        "rfid": ("rFID", "{:.3g}", "of reconstructions to their originals"),
        "codes_used": ("codes used", "{:.1%}", "of the codebook"),
    }
    return [
        (label, text.format(metrics[name]), remark)
        for name, (label, text, remark) in formats.items()
        if name in metrics
    ]


def _find(callbacks: dict[str, Callback], kind: type[T]) -> T | None:
    return next((one for one in callbacks.values() if isinstance(one, kind)), None)


def _result(
    callbacks: dict[str, Callback], kind: type[FID | ODELikelihood | Reconstructions]
) -> Results:
    callback = _find(callbacks, kind)
    return {} if callback is None else callback.result


def _requeue() -> None:
    if job := os.environ.get("SLURM_JOB_ID"):
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scontrol", "requeue", job], capture_output=True, check=True)
            LOG.info("SLURM job %s is back in the queue", job)
            return
        LOG.warning("SLURM job %s could not be put back into the queue", job)


def _trust(config: DictConfig) -> str:
    """Return the override that allows the user's own packages, with a space before it."""
    packages = foreign_packages(config)
    return f" 'trust=[{','.join(packages)}]'" if packages else ""


def _next_steps(training: Training, has_fid: bool, suffix: str) -> str:
    """Return the location of the results and the next commands, with more overrides in `suffix`."""
    run, cwd = training.run, Path.cwd()
    path = run.relative_to(cwd) if run.is_relative_to(cwd) else run
    commands = [
        complete_command(verb, overrides + suffix, training.config, typed_overrides(run))
        for verb, overrides in training.system.suggestions(shell_value(path), has_fid)
    ]
    entries = ", ".join(sorted(entry.name for entry in run.iterdir() if entry.name[0] != "."))
    lines = [f"  saved in {path}: {entries}"]
    if (run / "images").is_dir():
        lines.append(f"  look at  {path / 'images'}")
    return "\n".join([*lines, "  next     " + "\n           ".join(commands)])
