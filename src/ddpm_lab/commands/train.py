"""python train.py"""

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.callbacks.density import Density
from ddpm_lab.callbacks.ema import EMA
from ddpm_lab.callbacks.pictures import Pictures
from ddpm_lab.callbacks.quality import Quality
from ddpm_lab.callbacks.reconstructions import Reconstructions
from ddpm_lab.callbacks.scatter import Scatter
from ddpm_lab.commands.build import at_least, build
from ddpm_lab.commands.output import accuracy_rows, density_rows, quality_rows, quiet, reconstruction_rows, table
from ddpm_lab.commands.saved import public
from ddpm_lab.data.module import Data
from ddpm_lab.data.splits import Points
from ddpm_lab.errors import UserError, naming
from ddpm_lab.loggers import finish
from ddpm_lab.ranks import first
from ddpm_lab.systems.asking import by
from ddpm_lab.systems.autoencoder import AutoencoderSystem
from ddpm_lab.systems.classifier import ClassifierSystem
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.systems.training import Learner

LOG = logging.getLogger(__name__)


def train(config: DictConfig) -> None:
    """Trains what `config` describes, in the folder `trainer.default_root_dir`."""
    quiet()
    at_least(config, {"seed": 0})
    if config.model._target_ == "ddpm_lab.diffusion.exact.MixtureDenoiser":
        raise UserError(
            "model=exact is known in closed form and has nothing to train; try: python evaluate.py model=exact"
        )
    if config.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={config.trainer.accelerator}, and there is no GPU; try trainer=cpu")
    torch.manual_seed(config.seed)
    data: Data = build(config, "data")
    system: Learner = build(config, "system", **data.spec)
    callbacks = build(config, "callbacks")
    _fitting(callbacks, system, data)
    if not isinstance(system, Diffusion) and config.codec._target_ != "ddpm_lab.codecs.Pixels":
        raise UserError(
            "codec=autoencoder is for system=diffusion, and nothing else works in latents; try codec=pixels"
        )
    reach = data.train[0].abs().max().item() if isinstance(data.train, Points) else 1.0
    if isinstance(system, Diffusion) and system.sampler.clip is not None and reach > system.sampler.clip:
        raise UserError(f"sampler.clip={system.sampler.clip:g} would cut this data, which reaches {reach:.3g}; "
                        f"try sampler.clip={math.ceil(reach)}")  # fmt: skip
    trainer: Trainer = build(config, "trainer", callbacks=[*callbacks.values()], logger=False)
    _check(config, trainer)
    if isinstance(system, Diffusion):
        with naming("codec"):
            system.codec.to(trainer.strategy.root_device).measure(data.train)
    run = Path(config.trainer.default_root_dir)
    if first():
        run.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, run / "config.yaml")
        trainer.loggers = [*build(config, "logger").values()]  # last, so that a mistake above leaves no W&B run
        settings = public(config)
        for logger in trainer.loggers:
            logger.log_hyperparams(settings)
    parameters = sum(parameter.numel() for parameter in system.parameters())
    shape = by(data.shape)
    what = "points" if data.bin_width is None else "pictures"
    codec = system.codec if isinstance(system, Diffusion) else None
    where = f", in latents of {by(codec.shape)}" if codec and codec.space else ""
    LOG.info("%s: %d %s of %s to train on%s, %d held out; a network of %.2f M parameters", data.name,
             data.train.size, what, shape, where, data.test.size, parameters / 1e6)  # fmt: skip

    started = time.perf_counter()
    try:
        trainer.fit(system, data)
        trainer.save_checkpoint(run / "checkpoints" / "last.ckpt")
    finally:
        finish()
    seconds = time.perf_counter() - started
    if not first():
        return

    quality = _result(callbacks, Quality)
    density = _result(callbacks, Density)
    reconstructed = _result(callbacks, Reconstructions)
    training = {"steps": trainer.global_step, "seconds": seconds, "parameters": parameters}
    watched = {name.removeprefix("val/"): value.item() for name, value in trainer.callback_metrics.items()
               if name.startswith("val/")}  # fmt: skip
    if "loss" in watched:
        training["val_loss"] = watched.pop("loss")
    found = {**quality, **reconstructed, **({"density": density} if density else {}), **watched, "training": training}
    (run / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")
    rows = (quality_rows(quality) if quality else []) + (density_rows(density) if density else [])
    rows += accuracy_rows(watched) if "accuracy" in watched else []
    rows += reconstruction_rows(reconstructed) if reconstructed else []
    rows.append(("training", f"{seconds:.0f} s", f"{trainer.global_step} steps, all pictures and metrics included"))
    averaged = any(isinstance(callback, EMA) for callback in callbacks.values())
    LOG.info("%s\n%s", table(rows), _farewell(run, system, bool(quality), averaged))


def _fitting(callbacks: dict[str, Callback], system: Learner, data: Data) -> None:
    """Raises UserError where callbacks look at what there is not."""
    if isinstance(system, ClassifierSystem):
        kinds: tuple[type[Callback], ...] = (EMA, Scatter, Density, Pictures, Quality, Reconstructions)
        what, usual = "a classifier", "classifier"
    elif isinstance(system, AutoencoderSystem):
        kinds, what, usual = (EMA, Scatter, Density, Pictures, Quality), "an autoencoder", "autoencoder"
    elif data.bin_width is None:
        kinds, what, usual = (Pictures, Quality, Reconstructions), "points", "points"
    else:
        kinds, what, usual = (Scatter, Density, Reconstructions), "pictures", "default"
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):  # what an experiment sets of one that is not there
            raise UserError(f"callbacks.{name} sets keys of a callback that callbacks= does not have; "
                            f"try ~callbacks.{name}")  # fmt: skip
        if isinstance(callback, kinds):
            raise UserError(f"callbacks: {type(callback).__name__} is not for {what}; try callbacks={usual}")


def _result(callbacks: dict[str, Callback], kind: type[Quality | Density | Reconstructions]) -> dict[str, Any]:
    return next((callback.result for callback in callbacks.values() if isinstance(callback, kind)), {})


def _check(config: DictConfig, trainer: Trainer) -> None:
    """What Lightning would take and we cannot."""
    at_least(config, {"trainer.max_steps": 1})
    shares = isinstance(trainer.strategy, DDPStrategy) and not config.trainer.get("use_distributed_sampler", True)
    if trainer.world_size > 1 and not shares:
        raise UserError(f"trainer.devices={config.trainer.devices} is more than one device; try trainer=ddp")
    size = config.data.batch_size
    if size % trainer.world_size:
        fits = -(-size // trainer.world_size) * trainer.world_size
        raise UserError(f"data.batch_size={size} is that of all processes together, and {trainer.world_size} cannot "
                        f"share it; try data.batch_size={fits}")  # fmt: skip
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"trainer.precision={trainer.precision} would lose the float64 tables, or clip gradients that "
                        "are scaled; try 32-true or bf16-mixed")  # fmt: skip


def _farewell(run: Path, system: Learner, measured: bool, averaged: bool) -> str:
    """Where things are, and what to type next."""
    shown = run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
    prefix, suffix = ("python ", ".py") if sys.argv[0].endswith(".py") else ("ddpm-", "")
    raw = "" if averaged or not isinstance(system, Diffusion) else " weights=raw"
    suggested = [f"{prefix}{verb}{suffix} {words}{raw}" for verb, words in system.suggestions(str(shown), measured)]
    return "\n".join([
        f"  saved in {shown}: {', '.join(sorted(entry.name for entry in run.iterdir()))}",
        *([f"  look at  {shown / 'pictures'}"] if (run / "pictures").is_dir() else []),
        "  next     " + "\n           ".join(suggested),
    ])  # fmt: skip
