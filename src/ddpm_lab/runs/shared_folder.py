"""Folders with weights and configuration, which are read like a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ddpm_lab.runs import run_record
from ddpm_lab.runs.run_record import RunRecord
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.errors import ResourceError, UserError


def make_target(target: Path) -> Path:
    """Create the directory `target`. Raises UserError if it exists, and ResourceError."""
    if target.exists():
        raise UserError(f"TARGET={target} exists, and nothing is overwritten; try another name")
    try:
        target.mkdir(parents=True)
    except OSError as error:
        raise ResourceError(
            f"TARGET={target} cannot be created ({error.strerror}); try another"
        ) from error
    return target


def write_folder(
    target: Path,
    config: DictConfig,
    state: Mapping[str, Any],
    hyper_parameters: Mapping[str, Any],
    weights: str,
    step: int = 0,
    record: RunRecord | None = None,
) -> Path:
    """Write weights.safetensors, config.yaml and run.json, and return the file of weights.

    Args:
        state: State of the system, with tensors and plain values.
        hyper_parameters: Fields of the `DataSpec`.
        weights: "ema" or "raw", the kind of the weights.
        step: Number of optimizer steps.
        record: Contents of run.json; None: no such file.
    """
    tensors = {
        name: value.contiguous() for name, value in state.items() if isinstance(value, Tensor)
    }
    metadata = {
        "run_id": None if record is None else record.id,
        "hyper_parameters": dict(hyper_parameters),
        "global_step": step,
        "weights": weights,
        "extra": {name: value for name, value in state.items() if name not in tensors},
    }
    file = target / "weights.safetensors"
    safe_load.save_tensors(tensors, file, {"ddpm_lab": json.dumps(metadata)})
    OmegaConf.save(config, target / "config.yaml")
    if record is not None:
        public = record._asdict() | {"directory": None}
        (target / run_record.FILE).write_text(json.dumps(public, indent=1) + "\n")
    return file
