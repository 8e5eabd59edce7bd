"""Keys of Lightning's Trainer: those that work here, and why others are refused."""

from typing import Any

from omegaconf import DictConfig

from ddpm_lab.commands.refusals import near
from ddpm_lab.errors import UserError

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
                f"trainer.{key}={value} is not supported{near(key, known)}; keys: {', '.join(WORK[1:])}"
            )
        wanted, why = FIXED[key]
        if value != wanted and value is not None:
            raise UserError(f"trainer.{key}={value} is not supported: {why}")
