"""Checks that need several keys or the machine, before a run directory is created."""

import inspect
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.callbacks.monitor import Monitor
from ddpm_lab.callbacks.periodic import Periodic
from ddpm_lab.config.instantiate import check_settings
from ddpm_lab.config.messages import suggest
from ddpm_lab.data.datasets import Points
from ddpm_lab.data.module import Data
from ddpm_lab.systems.autoencoder_system import AutoencoderSystem
from ddpm_lab.systems.base import BaseSystem
from ddpm_lab.systems.classifier_system import ClassifierSystem
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.systems.sharding import FSDPStrategy, sharding_units
from ddpm_lab.utils.errors import ResourceError, UserError
from ddpm_lab.utils.ranges import Count, NonNegative, NonNegativeInt, Positive
from ddpm_lab.utils.shell import script_command

LOG = logging.getLogger(__name__)
EPOCHS = "training counts steps, not epochs"
FIXED: dict[str, tuple[Any, str]] = {
    "enable_checkpointing": (False, "try callbacks.checkpoints.every=N"),
    "enable_progress_bar": (True, "the bar is a callback; try ~callbacks.progress"),
    "callbacks": (None, "callbacks are a separate group; try +callbacks.NAME._target_=..."),
    "logger": (None, "loggers are a separate group; try logger=csv"),
    "check_val_every_n_epoch": (None, f"{EPOCHS}; try trainer.val_check_interval=N"),
    "num_sanity_val_steps": (0, "it would change the logged metrics; try trainer=debug"),
    "max_epochs": (None, f"{EPOCHS}; try trainer.max_steps=N"),
    "min_epochs": (None, f"{EPOCHS}; try trainer.max_steps=N"),
    "min_steps": (None, "training has trainer.max_steps steps; try trainer.max_steps=N"),
    "max_time": (None, "to stop earlier, and resume later, try: timeout -s TERM"),
    "fast_dev_run": (False, "it would save nothing; try trainer=debug"),
    "overfit_batches": (0, "batches are endless; try fewer training samples"),
    "limit_train_batches": (None, "batches are endless; try trainer.max_steps=N"),
    "reload_dataloaders_every_n_epochs": (0, EPOCHS),
    "gradient_clip_algorithm": (
        None,
        "gradients are clipped by norm; try trainer.gradient_clip_val=1",
    ),
    "barebones": (False, "it disables loggers and callbacks; try callbacks=none logger=csv"),
    "plugins": (None, "checkpointing sets its own; try trainer.precision=bf16-mixed"),
}
"""Keys of `trainer` with their only supported value, and the reason"""
SETTINGS = {
    "seed": NonNegativeInt,
    "compile": Literal["default", "reduce-overhead", "max-autotune"] | None,
    "hang_timeout": Positive | None,
    "init_checkpoint": Literal["newest", "best"],
    "init_replace": list[str],
    "init_weights": Literal["ema", "raw"] | None,
    "optimizer.lr": Positive | None,
    "optimizer.weight_decay": NonNegative | None,
    "trainer.accelerator": Literal["cpu", "gpu", "cuda", "mps", "auto"],
    "trainer.accumulate_grad_batches": Count | None,
    "trainer.gradient_clip_val": Positive | None,
    "trainer.max_steps": Count | None,
    "trainer.num_nodes": Count | None,
    "trainer.val_check_interval": Count | None,
}
"""Types and ranges of keys"""
BFLOAT16 = ("bf16-mixed", "bf16")
PRECISIONS = ("32-true", "32", 32, *BFLOAT16)
COPIES = 16
"""Copies of the weights on disk: four checkpoints of weights, average and two moments of Adam"""


def check_keys(trainer: DictConfig) -> None:
    """Raise UserError for a key of `trainer` that Lightning or this package does not support."""
    parameters = inspect.signature(Trainer).parameters
    for key in map(str, trainer):
        if key in FIXED:
            supported, reason = FIXED[key]
            if trainer[key] not in (None, supported):
                raise UserError(f"trainer.{key}={trainer[key]} is not supported: {reason}")
        elif key != "_target_" and key not in parameters:
            hint = f"{suggest(key, parameters)}; keys: {', '.join(parameters)}"
            raise UserError(f"trainer.{key}={trainer[key]} is not supported{hint}")


def validate_settings(config: DictConfig) -> None:
    """Validate the configuration and the machine. Raises UserError and ResourceError."""
    check_keys(config.trainer)
    check_settings(config, SETTINGS)
    if config.model._target_ == "ddpm_lab.diffusion.analytic_denoisers.MixtureDenoiser":
        raise UserError(
            "model=exact is a closed form and cannot be trained; try "
            f"{script_command('evaluate')} model=exact"
        )
    _check_devices(config.trainer)
    precision, on_cpu = config.trainer.precision, config.trainer.accelerator == "cpu"
    if precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision={precision} would round the float64 tables, or clip scaled "
            "gradients; try 32-true or bf16-mixed"
        )
    if on_cpu and precision in BFLOAT16:
        LOG.warning("warning: trainer.precision=%s is many times slower on most CPUs", precision)
    if on_cpu and config.compile and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise ResourceError(
            f"compile={config.compile} on a CPU needs a C++ compiler; try g++, or compile=null"
        )


def validate_length(config: DictConfig) -> None:
    """Raise UserError for a warm-up that is longer than the training."""
    warmup, steps = config.lr_schedule.get("warmup"), config.trainer.max_steps
    if type(warmup) is int and warmup > steps:
        raise UserError(
            f"lr_schedule.warmup={warmup} is longer than the training, trainer.max_steps={steps}; "
            f"try lr_schedule.warmup={steps // 2}"
        )


def _check_devices(trainer: DictConfig) -> None:
    """Raise UserError for an invalid device, and ResourceError for a missing one."""
    accelerator, devices = trainer.accelerator, trainer.devices
    if OmegaConf.is_list(devices) and devices and {*map(type, devices)} == {int}:
        needed = max(devices) + 1
    elif type(devices) is int and (devices > 0 or devices == -1):
        needed = devices
    elif devices == "auto":
        needed = 0
    else:
        raise UserError(f"trainer.devices={devices} must be auto, or at least 1; try 1")
    if accelerator not in ("gpu", "cuda"):
        return
    if not (available := torch.cuda.device_count()):
        raise ResourceError(
            f"trainer.accelerator={accelerator}, but this machine has no GPU; try trainer=cpu"
        )
    if needed > available:
        raise ResourceError(
            f"trainer.devices={devices}, but this machine has {available}; "
            f"try trainer.devices={available}"
        )
    if trainer.precision in BFLOAT16 and not torch.cuda.is_bf16_supported():
        raise ResourceError(
            f"trainer.precision={trainer.precision} is not supported by this GPU; "
            "try trainer.precision=32-true"
        )


def validate(
    config: DictConfig, data: Data, system: BaseSystem, callbacks: Mapping[str, Callback]
) -> None:
    """Validate the objects before the trainer is built. Raises UserError and ResourceError."""
    _check_callbacks(callbacks, system, data)
    _check_monitors(config, callbacks, system, data)
    if config.compile is not None and system.compile_target is None:
        raise UserError(
            f"compile={config.compile} is not supported by this system; try compile=null"
        )
    if isinstance(system, Diffusion):
        reach = data.train[0].abs().max().item() if isinstance(data.train, Points) else 1.0
        clip = system.pipeline.sampler.clip
        if clip is not None and reach > clip:
            raise UserError(
                f"sampler.clip={clip:g} would clip this data, which reaches {reach:.3g}; "
                f"try sampler.clip={math.ceil(reach)}"
            )
    elif config.codec._target_ != "ddpm_lab.sampling.codecs.Pixels":
        raise UserError("codec=autoencoder is for system=diffusion; try codec=pixels")
    _check_disk_space(Path(config.trainer.default_root_dir).absolute(), system)


def validate_trainer(config: DictConfig, trainer: Trainer, system: BaseSystem) -> None:
    """Raise UserError for a trainer that Lightning accepts and this package does not support."""
    if not isinstance(trainer.strategy, DDPStrategy | FSDPStrategy | SingleDeviceStrategy):
        strategy = config.trainer.strategy
        raise UserError(
            f"trainer.strategy={strategy} would save sharded checkpoints; try trainer=ddp or fsdp"
        )
    if isinstance(trainer.strategy, FSDPStrategy):
        if trainer.world_size == 1:
            LOG.info("trainer.strategy: FSDP shards nothing in one process; try trainer=gpu")
        network = system.denoiser.network if isinstance(system, Diffusion) else None
        if network is None or next(sharding_units(network), None) is None:
            subject = "this system" if network is None else type(network).__name__
            raise UserError(
                f"trainer.strategy: FSDP shards the layers in the module lists of a denoiser, and "
                f"{subject} has none; try trainer=ddp"
            )
    single = isinstance(trainer.strategy, SingleDeviceStrategy)
    world = trainer.world_size
    if world > 1 and (single or config.trainer.get("use_distributed_sampler", True)):
        raise UserError(
            f"trainer.devices={config.trainer.devices} is more than one device; try trainer=ddp"
        )
    size = config.data.batch_size
    if size % world:
        raise UserError(
            f"data.batch_size={size} is the total over all processes and must be a multiple of "
            f"{world}; try data.batch_size={-(-size // world) * world}"
        )
    if (launched := int(os.environ.get("WORLD_SIZE", world))) != world:
        raise UserError(
            f"WORLD_SIZE={launched} in the environment, but "
            f"trainer.devices={config.trainer.devices} makes {world}; try trainer=ddp "
            f"trainer.devices={launched}"
        )


def _check_disk_space(folder: Path, system: BaseSystem) -> None:
    """Raise ResourceError if `folder` is not writable or has no space for checkpoints."""
    parent = next(place for place in (folder, *folder.parents) if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = f"{parent} is not a writable folder; choose another hydra.run.dir"
        raise ResourceError(f"trainer.default_root_dir={folder} cannot be written to: {reason}")
    weights = sum(parameter.numel() * parameter.element_size() for parameter in system.parameters())
    needed, free = COPIES * weights, shutil.disk_usage(parent).free
    if free < needed:
        raise ResourceError(
            f"trainer.default_root_dir={folder} has {free / 2**20:.0f} MiB of free space, but "
            f"checkpoints of this model take {needed / 2**20:.0f}; choose another hydra.run.dir"
        )


def _check_callbacks(callbacks: Mapping[str, Callback], system: BaseSystem, data: Data) -> None:
    """Raise UserError for callbacks whose `supports` does not list the trained system."""
    match system:
        case ClassifierSystem():
            subject, choice = "a classifier", "classifier"
        case AutoencoderSystem():
            subject, choice = "an autoencoder", "autoencoder"
        case _ if data.bin_width is None:
            subject, choice = "points", "points"
        case _:
            subject, choice = "images", "default"
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):  # an experiment may set keys of a missing callback
            raise UserError(
                f"callbacks.{name} sets keys of a callback that callbacks= does not contain; try "
                f"~callbacks.{name}"
            )
        if subject not in getattr(callback, "supports", (subject,)):
            kind = type(callback).__name__
            raise UserError(f"callbacks: {kind} is not for {subject}; try callbacks={choice}")


def _check_monitors(
    config: DictConfig, callbacks: Mapping[str, Callback], system: BaseSystem, data: Data
) -> None:
    """Raise UserError for a callback that follows a metric that is not measured in training."""
    interval = config.trainer.get("val_check_interval")
    validated = interval is not None and interval < config.trainer.max_steps
    measured = [*system.validated] if validated else []
    for callback in callbacks.values():
        if isinstance(callback, Periodic) and (callback.every or 0) < config.trainer.max_steps:
            measured += callback.measured(system, data)
    for name, callback in callbacks.items():
        if isinstance(callback, Monitor) and callback.metric not in (None, *measured):
            raise UserError(
                f"callbacks.{name}.{callback.argument}={callback.metric} is not measured during "
                f"training (measured: {', '.join(measured) or 'nothing'}); try "
                "callbacks.fid.every=100, or trainer.val_check_interval=100 for loss"
            )
