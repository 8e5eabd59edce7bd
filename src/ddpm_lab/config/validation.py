"""What only several keys together can be wrong about, and what the machine does not have: seen before a run has a
folder. What one key alone can be wrong about is checked by what it builds, see `commands.build`.
"""

import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.callbacks.ema import EMA
from ddpm_lab.callbacks.metrics import FID, ODELikelihood
from ddpm_lab.callbacks.reconstructions import Reconstructions
from ddpm_lab.callbacks.sample_grid import SampleGrid
from ddpm_lab.callbacks.scatter_plot import ScatterPlot
from ddpm_lab.config.instantiate import check_above, check_minimum
from ddpm_lab.config.messages import suggest
from ddpm_lab.data.datasets import Points
from ddpm_lab.data.module import DataModule
from ddpm_lab.systems.autoencoder_system import AutoencoderSystem
from ddpm_lab.systems.base import BaseSystem
from ddpm_lab.systems.classifier_system import ClassifierSystem
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.errors import ResourceError, UserError
from ddpm_lab.utils.shell import script_command

WORK = (
    "_target_",
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "precision",
    "max_steps",
    "val_check_interval",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "deterministic",
    "benchmark",
    "inference_mode",
    "profiler",
    "detect_anomaly",
    "limit_val_batches",
    "enable_model_summary",
    "default_root_dir",
    "use_distributed_sampler",
    "log_every_n_steps",
    "sync_batchnorm",
)
"""Keys of any value that Lightning takes"""
FIXED: dict[str, tuple[Any, str]] = {
    "enable_checkpointing": (
        False,
        "callbacks.checkpoints saves; try callbacks.checkpoints.every=N",
    ),
    "enable_progress_bar": (True, "the bar is a callback; try ~callbacks.progress"),
    "callbacks": (None, "callbacks are a group of their own; try +callbacks.NAME._target_=..."),
    "logger": (None, "loggers are a group of their own; try logger=csv"),
    "check_val_every_n_epoch": (None, "epochs do not end here; try trainer.val_check_interval=N"),
    "num_sanity_val_steps": (
        0,
        "validation before training would change what is logged; try trainer=debug",
    ),
    "max_epochs": (None, "epochs do not end here; try trainer.max_steps=N"),
    "min_epochs": (None, "epochs do not end here; try trainer.max_steps=N"),
    "min_steps": (None, "training has trainer.max_steps steps; try trainer.max_steps=N"),
    "max_time": (
        None,
        "training has trainer.max_steps steps; to stop earlier and go on later, try: timeout -s TERM",
    ),
    "fast_dev_run": (False, "it would save nothing; try trainer=debug"),
    "overfit_batches": (0, "batches are endless; try fewer training samples"),
    "limit_train_batches": (None, "batches are endless; try trainer.max_steps=N"),
    "reload_dataloaders_every_n_epochs": (0, "epochs do not end here"),
    "gradient_clip_algorithm": (
        None,
        "gradients are clipped by their norm; try trainer.gradient_clip_val=1",
    ),
    "barebones": (
        False,
        "it would switch off loggers and callbacks; try callbacks=none logger=csv",
    ),
    "plugins": (
        None,
        "checkpoints and precision have their own here; try trainer.precision=bf16-mixed",
    ),
}
"""Keys of one value, and why others are refused"""


def check_keys(trainer: DictConfig) -> None:
    """Raises UserError for a key that works against ours, or that Lightning does not have."""
    for key in map(str, trainer):
        if key in WORK:
            continue
        value = trainer[key]
        if key not in FIXED:
            known = [*WORK[1:], *FIXED]
            raise UserError(
                f"trainer.{key}={value} is not supported{suggest(key, known)}; keys: {', '.join(WORK[1:])}"
            )
        wanted, why = FIXED[key]
        if value != wanted and value is not None:
            raise UserError(f"trainer.{key}={value} is not supported: {why}")


LOG = logging.getLogger(__name__)
MODES = ("default", "reduce-overhead", "max-autotune")
"""Of torch.compile"""
ACCELERATORS = ("cpu", "gpu", "cuda", "mps", "auto")
PRECISIONS = ("32-true", "32", 32, "bf16-mixed", "bf16")
LEAST = {
    "trainer.max_steps": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.val_check_interval": 1,
    "trainer.num_nodes": 1,
}
COPIES = 12
"""Of the weights: each of three checkpoints has them, their average and two moments of Adam"""


def validate_settings(config: DictConfig) -> None:
    """Before anything is built. Raises UserError, and Hindered for what this machine has not."""
    check_keys(config.trainer)
    check_minimum(config, {"seed": 0} | _given(config, LEAST))
    check_above(
        config,
        _given(config, {"optimizer.lr": 0, "hang_timeout": 0, "trainer.gradient_clip_val": 0}),
    )
    check_above(config, _given(config, {"optimizer.weight_decay": 0}), equal=True)
    if config.model._target_ == "ddpm_lab.diffusion.analytic_denoisers.MixtureDenoiser":
        raise UserError(
            f"model=exact is known in closed form and has nothing to train; try {script_command('evaluate')} model=exact"
        )
    _devices(config.trainer)
    _compiler(config)
    if config.trainer.precision in ("bf16", "bf16-mixed") and config.trainer.accelerator == "cpu":
        LOG.warning(
            "warning: trainer.precision=%s is many times slower than 32-true on most CPUs",
            config.trainer.precision,
        )
    if config.trainer.precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision={config.trainer.precision} would lose the float64 tables, or clip "
            "gradients that are scaled; try 32-true or bf16-mixed"
        )


def validate_length(config: DictConfig) -> None:
    """Raises UserError for a warm-up that is longer than the training, whose length is known by now."""
    warmup, steps = config.lr_schedule.get("warmup"), config.trainer.max_steps
    if isinstance(warmup, int) and warmup > steps:
        raise UserError(
            f"lr_schedule.warmup={warmup} is longer than the training, trainer.max_steps={steps}, which "
            f"would never come to optimizer.lr; try lr_schedule.warmup={steps // 2}"
        )


def _compiler(config: DictConfig) -> None:
    """Raises UserError for what is no mode of torch.compile, and Hindered where it finds no compiler."""
    if config.compile is None:
        return
    if config.compile not in MODES:
        raise UserError(f"compile={config.compile} is not one of {', '.join(MODES)}, or null")
    if config.trainer.accelerator == "cpu" and not any(
        map(shutil.which, ("g++", "clang++", "c++"))
    ):
        raise ResourceError(
            f"compile={config.compile} needs a C++ compiler on a CPU, and there is none; install g++, or "
            "try compile=null"
        )


def _given(config: DictConfig, bounds: dict[str, Any]) -> dict[str, Any]:
    return {
        key: bound for key, bound in bounds.items() if OmegaConf.select(config, key) is not None
    }


def _devices(trainer: DictConfig) -> None:
    """Raises UserError for what is no device, and Hindered where there is none, or too few."""
    accelerator, devices = trainer.accelerator, trainer.devices
    if accelerator not in ACCELERATORS:
        raise UserError(
            f"trainer.accelerator={accelerator} is not one of {', '.join(ACCELERATORS)}; try trainer=cpu"
        )
    count = (
        [*devices] if OmegaConf.is_list(devices) else devices if isinstance(devices, int) else None
    )
    if devices != "auto" and not (count and (count == -1 or isinstance(count, list) or count > 0)):
        raise UserError(
            f"trainer.devices={devices} must be auto, or a whole number of at least 1; try 1"
        )
    if accelerator not in ("gpu", "cuda"):
        return
    if not (here := torch.cuda.device_count()):
        raise ResourceError(
            f"trainer.accelerator={accelerator}, and there is no GPU; try trainer=cpu"
        )
    wanted = max(count, default=0) + 1 if isinstance(count, list) else count or 0
    if wanted > here:
        raise ResourceError(
            f"trainer.devices={devices}, and this machine has {here}; try trainer.devices={here}"
        )
    if trainer.precision in ("bf16", "bf16-mixed") and not torch.cuda.is_bf16_supported():
        raise ResourceError(
            f"trainer.precision={trainer.precision}, which this GPU cannot; try trainer.precision=32-true"
        )


def validate(
    config: DictConfig, data: DataModule, system: BaseSystem, callbacks: Mapping[str, Callback]
) -> None:
    """What was built, before a trainer is. Raises UserError, and Hindered where there is no room for it."""
    _fitting(callbacks, system, data)
    if config.compile is not None and system.compile_target is None:
        raise UserError(
            f"compile={config.compile} is for system=diffusion and system=classifier; try compile=null"
        )
    if (
        not isinstance(system, Diffusion)
        and config.codec._target_ != "ddpm_lab.sampling.codecs.Pixels"
    ):
        raise UserError(
            "codec=autoencoder is for system=diffusion, and nothing else works in latents; try codec=pixels"
        )
    reach = data.train[0].abs().max().item() if isinstance(data.train, Points) else 1.0
    if (
        isinstance(system, Diffusion)
        and system.pipeline.sampler.clip is not None
        and reach > system.pipeline.sampler.clip
    ):
        raise UserError(
            f"sampler.clip={system.pipeline.sampler.clip:g} would cut this data, which reaches {reach:.3g}; "
            f"try sampler.clip={math.ceil(reach)}"
        )
    _room(Path(config.trainer.default_root_dir).absolute(), system)


def validate_trainer(config: DictConfig, trainer: Trainer) -> None:
    """What Lightning would take and we cannot. Raises UserError."""
    if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
        raise UserError(
            f"trainer.strategy={config.trainer.strategy} shards or splits what our checkpoints hold whole; "
            "try trainer=ddp"
        )
    shares = isinstance(trainer.strategy, DDPStrategy) and not config.trainer.get(
        "use_distributed_sampler", True
    )
    if trainer.world_size > 1 and not shares:
        raise UserError(
            f"trainer.devices={config.trainer.devices} is more than one device; try trainer=ddp"
        )
    size = config.data.batch_size
    if size % trainer.world_size:
        fits = -(-size // trainer.world_size) * trainer.world_size
        raise UserError(
            f"data.batch_size={size} is that of all processes together, and {trainer.world_size} cannot "
            f"share it; try data.batch_size={fits}"
        )
    if (told := int(os.environ.get("WORLD_SIZE", trainer.world_size))) != trainer.world_size:
        raise UserError(
            f"WORLD_SIZE={told} in the environment, and trainer.devices={config.trainer.devices} makes "
            f"{trainer.world_size}; try trainer=ddp trainer.devices={told}"
        )


def _room(folder: Path, system: BaseSystem) -> None:
    """Raises Hindered where checkpoints would not find room, or not be let in."""
    place = next(one for one in (folder, *folder.parents) if one.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ResourceError(
            f"trainer.default_root_dir={folder} cannot be written to: {place} is no folder, or not ours; "
            "choose another hydra.run.dir"
        )
    weights = sum(parameter.numel() * parameter.element_size() for parameter in system.parameters())
    needed, free = COPIES * weights, shutil.disk_usage(place).free
    if free < needed:
        raise ResourceError(
            f"trainer.default_root_dir={folder}: there are {free / 2**20:.0f} MiB of room, and checkpoints "
            f"of this model take {needed / 2**20:.0f}; make room, or choose another hydra.run.dir"
        )


def _fitting(callbacks: Mapping[str, Callback], system: BaseSystem, data: DataModule) -> None:
    """Raises UserError where callbacks look at what there is not."""
    if isinstance(system, ClassifierSystem):
        kinds: tuple[type[Callback], ...] = (
            EMA,
            ScatterPlot,
            ODELikelihood,
            SampleGrid,
            FID,
            Reconstructions,
        )
        what, usual = "a classifier", "classifier"
    elif isinstance(system, AutoencoderSystem):
        kinds, what, usual = (
            (EMA, ScatterPlot, ODELikelihood, SampleGrid, FID),
            "an autoencoder",
            "autoencoder",
        )
    elif data.bin_width is None:
        kinds, what, usual = (SampleGrid, FID, Reconstructions), "points", "points"
    else:
        kinds, what, usual = (ScatterPlot, ODELikelihood, Reconstructions), "images", "default"
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):  # what an experiment sets of one that is not there
            raise UserError(
                f"callbacks.{name} sets keys of a callback that callbacks= does not have; "
                f"try ~callbacks.{name}"
            )
        if isinstance(callback, kinds):
            raise UserError(
                f"callbacks: {type(callback).__name__} is not for {what}; try callbacks={usual}"
            )
