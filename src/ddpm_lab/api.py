"""The Python interface: compose and train configurations, and load runs.

It takes the keys and values of the command line and gives the same numbers. Mistakes raise
`UserError` with the message that a command prints.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from ddpm_lab.cli.export_weights import export_weights
from ddpm_lab.cli.share import share as write_share
from ddpm_lab.interop.conversion import import_once
from ddpm_lab.interop.conversion import import_weights as write_run
from ddpm_lab.model import Model
from ddpm_lab.runs import resume
from ddpm_lab.runs.compose import compose_command, user_errors
from ddpm_lab.utils.arguments import check_call
from ddpm_lab.utils.distributed import broadcast


@check_call
def compose(*overrides: str, config_dir: str | Path | None = None) -> DictConfig:
    """Return the configuration of `python train.py OVERRIDES`, for `train`.

    Args:
        overrides: Choices and values, such as "schedule=cosine", "trainer.max_steps=100".
        config_dir: A folder with choices of your own, such as schedule/NAME.yaml; --config-dir.

    Raises UserError for keys and choices that do not exist.
    """
    return compose_command("train", overrides, config_dir)


@check_call
def train(config: DictConfig, directory: str | Path | None = None) -> Path:
    """Train `config` and return its run directory, for `load`.

    Args:
        config: The return value of `compose`, which may be changed.
        directory: The new run directory, or that of an interrupted run of this configuration, which
            is resumed (None: a new directory in runs/).

    With several processes, each returns the directory, and the first one writes it.

    Raises UserError for mistakes, DivergenceError, ResourceError, and InterruptedRunError after
    Ctrl-C, when the last step is saved.
    """
    from ddpm_lab.cli.train import train as train_config  # Lightning takes seconds to import

    folder = Path(directory or f"runs/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}")
    resume.check_vacant(folder)
    config = config.copy()
    config.trainer.default_root_dir = str(folder)
    config.hang_timeout = None  # would end the user's process
    with user_errors("train", ()):
        train_config(config, None, folder)
    return broadcast(folder)


@check_call
def load(
    run: str | Path | Sequence[str | Path],
    *overrides: str,
    config_dir: str | Path | None = None,
) -> Model:
    """Load the diffusion model of a run directory, or of a folder that share.py wrote.

    `run` may also be a file or a folder of published weights, or a name on the Hugging Face Hub,
    which is converted once, in the cache; see import.py. `overrides` may then have its overrides,
    too, such as "model.heads=4".

    Args:
        run: The directory that `train` returns and train.py prints, or a list of them in order of
            resolution, for a cascade.
        overrides: As for sample.py, such as "weights=raw", "data.path=DIR", "sampler=ddim", or
            "trust=[my_package]" for a run with parts of your own package.
        config_dir: A folder with choices of your own for samplers, guidances and metrics.

    Raises UserError if it is not the run of a diffusion model, UnsafeFileError if it requests what
    is not allowed, and CorruptFileError if a file is damaged.
    """
    if not isinstance(run, str | Path):
        return Model([import_once(stage, ())[0] for stage in run], overrides, config_dir)
    return Model(*import_once(run, overrides), config_dir)


@check_call
def share(
    run: str | Path,
    target: str | Path,
    weights: str | None = None,
    checkpoint: Literal["newest", "best"] = "newest",
) -> Path:
    """Write weights and configuration of `run` to the new folder `target`, for `load`.

    It has weights.safetensors, config.yaml and run.json, and no code; see share.py.

    Args:
        weights: "ema" or "raw" (None: ema, if the run has averaged weights).
        checkpoint: "newest", or "best" by the metric callbacks.checkpoints.best.

    Raises UserError if `run` does not have the weights or `target` exists.
    """
    write_share(str(run), Path(target), weights, checkpoint)
    return Path(target)


@check_call
def import_weights(source: str | Path, target: str | Path, *overrides: str) -> Path:
    """Write published weights as a run to the new folder `target`, for `load`; see import.py.

    Args:
        source: A file or a folder of another codebase, or a name on the Hugging Face Hub.
        overrides: Options that `source` does not determine, such as "model.heads=4",
            "schedule=cosine".

    Raises UserError for unknown formats and missing options, CorruptFileError and UnsafeFileError.
    """
    write_run(source, Path(target), overrides)
    return Path(target)


@check_call
def export(
    run: str | Path,
    target: str | Path,
    format: Literal["diffusers", "openai"] = "diffusers",
    weights: Literal["ema", "raw"] = "ema",
) -> Path:
    """Write `run` to the new folder `target` in the format of another codebase; see export.py.

    Raises UserError for what the format cannot state, or if `target` exists.
    """
    return export_weights(run, target, [f"format={format}", f"weights={weights}"])
