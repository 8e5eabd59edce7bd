"""python train.py"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.callbacks.density import Density
from ddpm_lab.callbacks.pictures import Pictures
from ddpm_lab.callbacks.quality import Quality
from ddpm_lab.callbacks.scatter import Scatter
from ddpm_lab.commands.build import at_least, build
from ddpm_lab.commands.output import density_rows, quality_rows, quiet, table
from ddpm_lab.data.splits import Data
from ddpm_lab.errors import UserError
from ddpm_lab.loggers import finish
from ddpm_lab.systems.diffusion import Diffusion

LOG = logging.getLogger(__name__)


def train(config: DictConfig) -> None:
    """Trains what `config` describes, in the folder `trainer.default_root_dir`."""
    quiet()
    at_least(config, {"seed": 0})
    if config.model._target_ == "ddpm_lab.diffusion.exact.MixtureDenoiser":
        raise UserError(
            "model=exact is known in closed form and has nothing to train; try: python evaluate.py model=exact"
        )
    torch.manual_seed(config.seed)
    data: Data = build(config, "data")
    system: Diffusion = build(config, "system", shape=data.shape, classes=data.classes, bin_width=data.bin_width)
    callbacks = build(config, "callbacks")
    kinds, usual = ((Scatter, Density), "default") if data.bin_width else ((Pictures, Quality), "points")
    if any(isinstance(callback, kinds) for callback in callbacks.values()):
        raise UserError(f"callbacks: {kinds[0].__name__} and {kinds[1].__name__} do not look at data of the shape "
                        f"{data.shape}; try callbacks={usual}")  # fmt: skip
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
    what = "points" if data.bin_width is None else "pictures"
    LOG.info("%s: %d %s of %s to train on, %d held out; a network of %.2f M parameters", data.name,
             len(data.train[0]), what, shape, len(data.test[0]), parameters / 1e6)  # fmt: skip

    started = time.perf_counter()
    try:
        trainer.fit(system, data)
        trainer.save_checkpoint(run / "checkpoints" / "last.ckpt")
    finally:
        finish()
    seconds = time.perf_counter() - started

    quality = _result(callbacks, Quality)
    density = _result(callbacks, Density)
    training = {"steps": trainer.global_step, "seconds": seconds, "parameters": parameters}
    if "val/loss" in trainer.callback_metrics:
        training["val_loss"] = trainer.callback_metrics["val/loss"].item()
    found = {**quality, **({"density": density} if density else {}), "training": training}
    (run / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")
    rows = (quality_rows(quality) if quality else []) + (density_rows(density) if density else [])
    rows.append(("training", f"{seconds:.0f} s", f"{trainer.global_step} steps, all pictures and metrics included"))
    LOG.info(
        "%s\n%s",
        table(rows),
        _farewell(run, " guidance.w=1" if system.denoiser.knows_null and "w" in config.guidance else ""),
    )


def _result(callbacks: dict[str, Callback], kind: type[Quality | Density]) -> dict[str, Any]:
    return next((callback.result for callback in callbacks.values() if isinstance(callback, kind)), {})


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
