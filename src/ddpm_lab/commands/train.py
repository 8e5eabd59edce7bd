"""python train.py"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.callbacks.quality import Quality
from ddpm_lab.commands.build import at_least, build
from ddpm_lab.commands.output import quality_rows, quiet, table
from ddpm_lab.data.images import ImageData
from ddpm_lab.errors import UserError
from ddpm_lab.loggers import finish
from ddpm_lab.systems.diffusion import Diffusion

LOG = logging.getLogger(__name__)


def train(config: DictConfig) -> None:
    """Trains what `config` describes, in the folder `trainer.default_root_dir`."""
    quiet()
    at_least(config, {"seed": 0})
    torch.manual_seed(config.seed)
    data: ImageData = build(config, "data")
    system: Diffusion = build(config, "system", shape=data.shape, classes=data.classes)
    callbacks = build(config, "callbacks")
    trainer: Trainer = build(config, "trainer", callbacks=[*callbacks.values()], logger=False)
    _check(config, trainer)
    run = Path(config.trainer.default_root_dir)
    run.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, run / "config.yaml")
    trainer.loggers = [*build(config, "logger").values()]  # last, so that a mistake above leaves no W&B run
    settings: Any = OmegaConf.to_container(config, resolve=True)
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)
    parameters = sum(parameter.numel() for parameter in system.parameters())
    shape = "x".join(map(str, data.shape))
    LOG.info("%s: %d pictures of %s to train on, %d held out; a network of %.2f M parameters", data.name,
             len(data.train.pixels), shape, len(data.test.pixels), parameters / 1e6)  # fmt: skip

    started = time.perf_counter()
    try:
        trainer.fit(system, data)
        trainer.save_checkpoint(run / "checkpoints" / "last.ckpt")
    finally:
        finish()
    seconds = time.perf_counter() - started

    quality = next((callback.result for callback in callbacks.values() if isinstance(callback, Quality)), {})
    training = {"steps": trainer.global_step, "seconds": seconds, "parameters": parameters}
    if "val/loss" in trainer.callback_metrics:
        training["val_loss"] = trainer.callback_metrics["val/loss"].item()
    (run / "metrics.json").write_text(json.dumps({**quality, "training": training}, indent=2) + "\n")
    rows = quality_rows(quality) if quality else []
    rows.append(("training", f"{seconds:.0f} s", f"{trainer.global_step} steps, pictures and FID included"))
    LOG.info(
        "%s\n%s",
        table(rows),
        _farewell(run, " guidance.w=1" if system.denoiser.knows_null and "w" in config.guidance else ""),
    )


def _check(config: DictConfig, trainer: Trainer) -> None:
    """What Lightning would take and we cannot."""
    at_least(config, {"trainer.max_steps": 1})
    if trainer.world_size > 1:
        raise UserError(f"trainer.devices={config.trainer.devices} is more than one device; try trainer.devices=1")
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"trainer.precision={trainer.precision} would lose the float64 tables, or clip gradients that "
                        "are scaled; try 32-true or bf16-mixed")  # fmt: skip


def _farewell(run: Path, guided: str) -> str:
    """Where things are, and what to type next."""
    shown = run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
    prefix, suffix = ("python ", ".py") if sys.argv[0].endswith(".py") else ("ddpm-", "")
    return "\n".join([
        f"  saved in {shown}: {', '.join(sorted(entry.name for entry in run.iterdir()))}",
        f"  look at  {shown / 'pictures'}",
        f"  next     {prefix}sample{suffix} run={shown} count=100{guided}",
        f"           {prefix}evaluate{suffix} run={shown} sampler.steps=50",
    ])  # fmt: skip
