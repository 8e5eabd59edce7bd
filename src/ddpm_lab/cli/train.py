"""python train.py"""

import json
import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig

from ddpm_lab.callbacks.checkpoints import Checkpoints, checkpoint_step, list_checkpoints
from ddpm_lab.callbacks.ema import EMA
from ddpm_lab.callbacks.forecast import Forecast
from ddpm_lab.callbacks.loggers import finish, has_failed, make_optional
from ddpm_lab.callbacks.metrics import FID, ODELikelihood
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
from ddpm_lab.data.module import DataModule
from ddpm_lab.reports.terminal import (
    accuracy_rows,
    fid_rows,
    key_value_table,
    ode_nll_rows,
    reconstruction_rows,
)
from ddpm_lab.runs import data_check, init_weights, resume, run_record, trusted_paths
from ddpm_lab.runs.saved_config import foreign_packages, redact
from ddpm_lab.sampling.class_names import is_numbered, legend
from ddpm_lab.sampling.conditions import format_size
from ddpm_lab.systems.base import BaseSystem
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils import watchdog
from ddpm_lab.utils.atomic_io import directory_lock, write_text
from ddpm_lab.utils.distributed import is_rank_zero
from ddpm_lab.utils.errors import (
    CLIError,
    CorruptFileError,
    DivergenceError,
    InterruptedRunError,
    prefix_errors,
)
from ddpm_lab.utils.shell import quiet_libraries, script_command

LOG = logging.getLogger(__name__)


def train(config: DictConfig, overrides: Sequence[str] = (), home: Path | None = None) -> None:
    """Trains what `config` describes, which `words` chose, in the folder `trainer.default_root_dir`; in `home` it goes
    on with the run that is there.
    """
    quiet_libraries()
    if home is not None and config.resume not in (None, "auto"):
        config = resume.continue_config(config, home, overrides)
    run = Path(config.trainer.default_root_dir)
    with directory_lock(run, "training") if is_rank_zero() and run.is_dir() else nullcontext():
        _train(config, overrides, run, resume.newest_checkpoint(home, config) if home else None)


def _train(
    config: DictConfig, overrides: Sequence[str], run: Path, checkpoint: Path | None
) -> None:
    if config.get("init") is not None and checkpoint is None:
        init_weights.adopt_model(config)
    validate_settings(config)
    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = (
            ""  # or torch's optimizers look for a GPU anew at each step: 0.05 ms
        )
    torch.manual_seed(config.seed)
    data: DataModule = build(config, "data")
    system: BaseSystem = build_system(config, data)
    validate_length(config)
    system.seed = config.seed
    callbacks = build(config, "callbacks")
    if not any(isinstance(callback, Checkpoints) for callback in callbacks.values()):
        callbacks["checkpoints"] = Checkpoints(every=max(1, config.trainer.max_steps))
    bars = [name for name, callback in callbacks.items() if isinstance(callback, ProgressBar)]
    if config.trainer.get("enable_progress_bar", True) and not bars:
        callbacks["progress"] = Progress()  # or Lightning draws one that counts epochs
    elif not config.trainer.get("enable_progress_bar", True):
        callbacks = {name: callback for name, callback in callbacks.items() if name not in bars}
    if config.compile is not None:
        callbacks = {"compiled": TorchCompile(config.compile)} | callbacks
    callbacks = {"forecast": Forecast(timed=config.compile is None)} | callbacks
    validate(config, data, system, callbacks)
    trainer: Trainer = build(config, "trainer", callbacks=[*callbacks.values()], logger=False)
    validate_trainer(config, trainer)
    if isinstance(system, Diffusion):
        with prefix_errors("codec"):
            system.codec.to(trainer.strategy.root_device).measure(data.train)
    about = data_check.data_fingerprint(data)
    if checkpoint:
        data_check.verify_data(checkpoint.parents[1], config, about)
    elif config.get("init") is not None:
        LOG.info(init_weights.load_initial_weights(system, config))
    saving = next(callback for callback in callbacks.values() if isinstance(callback, Checkpoints))
    if is_rank_zero():
        run.mkdir(parents=True, exist_ok=True)
        resume.save_config(config, run, overrides)
        saving.run_id = run_record.write_record(run, about)
        trusted_paths.remember_paths(config)
        built = build(config, "logger").values()  # last, so that a mistake above leaves no W&B run
        trainer.loggers = [make_optional(logger) for logger in built if logger is not None]
        settings = redact(config)
        for logger in trainer.loggers:
            logger.log_hyperparams(settings)
        trainer.loggers = [logger for logger in trainer.loggers if not has_failed(logger)]
    parameters = sum(parameter.numel() for parameter in system.parameters())
    shape = format_size(data.shape)
    what = "points" if data.bin_width is None else "images"
    codec = system.codec if isinstance(system, Diffusion) else None
    where = f", in latents of {format_size(codec.shape)}" if codec and codec.space else ""
    LOG.info(
        "%s: %d %s of %s to train on%s, %d held out; a network of %.2f M parameters",
        data.name,
        data.train.size,
        what,
        shape,
        where,
        data.test.size,
        parameters / 1e6,
    )

    if data.captions and not is_numbered(data.captions):
        LOG.info("classes: %s", legend(data.captions))
    if checkpoint and isinstance(data.train, IterableSplit):
        LOG.info("a stream cannot be entered where it was left: it begins a new shuffle")
    if (
        checkpoint
        and trainer.strategy.root_device.type == "cuda"
        and not config.trainer.get("deterministic")
    ):
        LOG.info(
            "on a GPU the last bits may become others than without the interruption; trainer.deterministic=true "
            "keeps them"
        )
    try:
        with watchdog.monitor(config.hang_timeout, run / "hang.txt"):
            trainer.fit(system, data, ckpt_path=checkpoint)
    except (InterruptedRunError, DivergenceError) as stop:
        kept = list_checkpoints(run / "checkpoints")
        if isinstance(stop, DivergenceError):
            raise DivergenceError(
                f"{stop}; the last checkpoint is {kept[0] if kept else 'none'}"
            ) from stop
        if (number := stop.status - 128) == signal.SIGUSR1 and is_rank_zero():
            _requeue()
        where = "nothing was saved yet"
        if kept:
            last = (
                "saved in"
                if checkpoint_step(kept[0]) == trainer.global_step
                else "the last checkpoint is"
            )
            same = f"{script_command('train')} resume={shell_value(run)}{_trust(config)}"
            where = f"{last} {kept[0]}; the same command goes on, or {same}"
        raise InterruptedRunError(
            f"{stop} at step {trainer.global_step}; {where}", number
        ) from stop
    except Exception as error:  # whatever Lightning makes of a state that is none
        if (
            checkpoint
            and not system.begun
            and not isinstance(error, CLIError | OSError | MemoryError)
        ):
            raise CorruptFileError(
                f"{checkpoint} holds no state to go on from ({type(error).__name__}: {error}); remove it, "
                f"and the one before it is taken, or try init={run} for a new run from its weights"
            ) from error
        raise
    finally:
        finish()
    if not is_rank_zero():
        return
    seconds = saving.state_dict()["seconds"]

    quality = _result(callbacks, FID)
    density = _result(callbacks, ODELikelihood)
    reconstructed = _result(callbacks, Reconstructions)
    training = {"steps": trainer.global_step, "seconds": seconds, "parameters": parameters}
    watched = {
        name.removeprefix("val/"): value for name, value in system.validation_metrics.items()
    }
    if system.zero_loss is not None:
        training["zero_loss"] = system.zero_loss
    if "loss" in watched:
        training["val_loss"] = watched.pop("loss")
    found = {
        **watched,  # of some held-out samples, where the others have all of them
        "run_id": saving.run_id,
        **quality,
        **reconstructed,
        **({"ode_nll": density} if density else {}),
        "training": training,
    }
    write_text(run / "metrics.json", json.dumps(found, indent=2) + "\n")
    rows = (fid_rows(quality) if quality else []) + (ode_nll_rows(density) if density else [])
    rows += accuracy_rows(watched) if "accuracy" in watched else []
    rows += reconstruction_rows(reconstructed) if reconstructed else []
    skipped = int(system.skips.counts[0])
    without = (
        f"; {skipped} steps were skipped, for their gradients were not finite" if skipped else ""
    )
    rows.append(
        (
            "training",
            f"{seconds:.0f} s",
            f"{trainer.global_step} steps, all images and metrics included{without}",
        )
    )
    averaged = any(isinstance(callback, EMA) for callback in callbacks.values())
    LOG.info(
        "%s\n%s", key_value_table(rows), _farewell(run, system, bool(quality), averaged, config)
    )


def _result(
    callbacks: dict[str, Callback], kind: type[FID | ODELikelihood | Reconstructions]
) -> dict[str, Any]:
    return next(
        (callback.result for callback in callbacks.values() if isinstance(callback, kind)), {}
    )


def _requeue() -> None:
    """Puts the SLURM job that this is back into the queue."""
    if job := os.environ.get("SLURM_JOB_ID"):
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scontrol", "requeue", job], capture_output=True, check=True)
            LOG.info("SLURM job %s is back in the queue", job)
            return
        LOG.warning("SLURM job %s could not be put back into the queue", job)


def _trust(config: DictConfig) -> str:
    """What to type so that a run of `config` is read: it may be built from packages of the user's own."""
    packages = foreign_packages(config)
    return f" 'trust=[{','.join(packages)}]'" if packages else ""


def _farewell(
    run: Path, system: BaseSystem, measured: bool, averaged: bool, config: DictConfig
) -> str:
    """Where things are, and what to type next."""
    shown = run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
    raw = "" if averaged or not isinstance(system, Diffusion) else " weights=raw"
    trust = _trust(config)
    suggested = [
        complete_command(verb, f"{overrides}{raw}{trust}", config, typed_overrides(run))
        for verb, overrides in system.suggestions(shell_value(shown), measured)
    ]
    return "\n".join(
        [
            f"  saved in {shown}: {', '.join(sorted(entry.name for entry in run.iterdir() if entry.name[0] != '.'))}",
            *([f"  look at  {shown / 'images'}"] if (run / "images").is_dir() else []),
            "  next     " + "\n           ".join(suggested),
        ]
    )
