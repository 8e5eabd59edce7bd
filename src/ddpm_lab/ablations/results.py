"""Read numbers, protocols, losses and images from the folders of jobs."""

import csv
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import OmegaConf

from ddpm_lab.config.overrides import CONFIGS, METRICS
from ddpm_lab.evaluation.analytic_case import ANALYTIC_NUMBERS
from ddpm_lab.evaluation.metrics import Number
from ddpm_lab.reports.table import Source, Status
from ddpm_lab.sweeps.job import Job, get_nested, read_number
from ddpm_lab.utils.errors import CorruptFileError, UnsafeFileError, escape_control
from ddpm_lab.utils.safe_load import read_json, regular_file, reject_links

TRAINING_NUMBERS = (
    Number("psnr", "PSNR, dB", "higher"),
    Number("ssim", "SSIM", "higher"),
    Number("rfid", "rFID", "lower"),
    Number("training.val_loss", "validation loss", "lower"),
    Number("accuracy", "accuracy", "higher"),
)
UNIQUE = ("weights_sha256", "run")
"""Protocol keys that differ between all runs and are not compared"""


@cache
def numbers() -> dict[str, Number]:
    """Return the numbers of metrics.json by dotted key: metrics, the analytic tier, training."""
    files = [CONFIGS / "metric" / f"{name}.yaml" for name in METRICS]
    metrics: list[Any] = [get_class(OmegaConf.load(file)._target_) for file in files]
    parts = (*(metric.numbers for metric in metrics), ANALYTIC_NUMBERS, TRAINING_NUMBERS)
    return {number.key: number for part in parts for number in part}


def last_number(text: str) -> float | None:
    """Return the number at the end of a name or override, such as 10 for sampler.steps=10."""
    last = re.split(r"[\s=]", text)[-1]
    return float(last) if re.fullmatch(r"\d+(\.\d+)?", last) else None


def read_source(job: Job, key: str) -> Source:
    """Read the number under a dotted key of a job's metrics.json."""
    exit_status = job.state().get("status")
    status: Status = "not run" if exit_status is None else "failed" if exit_status else "done"
    value = read_number(job.metrics, key) if status == "done" else None
    return Source(job.command, job.config_hash, job.metrics, status, value)


def read_protocol(file: Path, key: str) -> dict[str, str]:
    """Return the flattened protocol nearest to the dotted `key` in metrics.json."""
    content, parts = read_json(file), key.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        protocol = get_nested(content, ".".join([*parts[:depth], "protocol"]))
        if isinstance(protocol, dict):
            return _flatten(protocol)
    return {}


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in content.items():
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        elif name not in UNIQUE:
            flat[prefix + name] = str(value)
    return flat


def read_losses(folder: Path) -> dict[Any, float]:
    """Return the losses of a training run by step; empty if it logged none."""
    file = folder / "metrics.csv"
    if not file.exists():
        return {}
    try:
        with regular_file(file).open() as stream:
            return {
                int(row["step"]): float(row["train/loss"])
                for row in csv.DictReader(stream)
                if row.get("train/loss")
            }
    except UnsafeFileError:
        raise
    except (ValueError, OverflowError, KeyError, TypeError, csv.Error) as error:
        raise CorruptFileError(
            f"{escape_control(file)} is truncated, or not a metrics.csv of a run"
        ) from error


def sample_grid(folder: Path) -> Path | None:
    """Return the sample grid of an evaluation, or the last one of a run; None if there is none."""
    grids = [folder / "samples.png", *sorted((folder / "images").glob("samples-*.png"))[-1:]]
    last = next((file for file in reversed(grids) if file.exists()), None)
    return None if last is None else regular_file(reject_links(last.parent) / last.name)
