"""What the cells' files say."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_lab.reports.table import Source, Status
from ddpm_lab.sweeps.job import Job, get_nested, read_number
from ddpm_lab.utils.errors import CorruptFileError, UnsafeFileError, escape_control
from ddpm_lab.utils.safe_load import read_json, regular_file, reject_links

METRICS: dict[str, tuple[str, Any]] = {
    "fid": ("FID", "lower"),
    "intra_fid": ("intra FID", "lower"),
    "inception_score": ("IS", "higher"),
    "class_accuracy": ("class accuracy", "higher"),
    "precision": ("precision", "higher"),
    "recall": ("recall", "higher"),
    "nll.bits_per_dim": ("bits/dim", "lower"),
    "nll.gap": ("bits/dim over entropy", "lower"),
    "nll.L_T": ("bits/dim", "lower"),
    "nll.L_T.bits": ("bits/dim", "lower"),
    "nll.L_0": ("bits/dim", "lower"),
    "nll.L_0.bits": ("bits/dim", "lower"),
    "wasserstein": ("W2 distance", "lower"),
    "sliced_wasserstein": ("sliced W2", "lower"),
    "reconstruction.mse": ("mean square error", "lower"),
    "reconstruction": ("mean square error", "lower"),
    "ode_nll.nll": ("NLL, nats", "lower"),
    "psnr": ("PSNR, dB", "higher"),
    "ssim": ("SSIM", "higher"),
    "rfid": ("rFID", "lower"),
    "training.val_loss": ("validation loss", "lower"),
    "accuracy": ("accuracy", "higher"),
}
"""What keys of metrics.json are called, and which way is better."""


WEIGHTS = "weights_sha256"
"""Key of a protocol that is another for each run that is trained, and so no difference in how it is measured"""


def last_number(text: str) -> float | None:
    """What a name or a word such as sampler.steps=10 ends with."""
    last = re.split(r"[\s=]", text)[-1]
    return float(last) if re.fullmatch(r"\d+(\.\d+)?", last) else None


def read_source(cell: Job, key: str, command: str | None = None) -> Source:
    """Of the number `key` of a cell, of which `command` is how it is typed, if it does not say so itself."""
    state = cell.state().get("status")
    status: Status = "not run" if state is None else "failed" if state else "done"
    value = read_number(cell.metrics, key) if status == "done" else None
    return Source(command or cell.command, cell.config, cell.metrics, status, value)


def read_protocol(file: Path, key: str) -> dict[str, str]:
    """What the number `key` depends on, flat: that which stands nearest to it."""
    parts = key.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        found = get_nested(read_json(file), ".".join([*parts[:depth], "protocol"]))
        if isinstance(found, dict):
            return dict(_flat({name: value for name, value in found.items() if name != WEIGHTS}))
    return {}


def _flat(found: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    return [
        pair
        for name, value in found.items()
        for pair in (
            _flat(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else [(prefix + name, str(value))]
        )
    ]


def read_losses(folder: Path) -> tuple[list[Any], list[float]] | None:
    """Steps and losses of a training, where any were logged."""
    file = folder / "metrics.csv"
    if not file.exists():
        return None
    try:
        with regular_file(file).open() as stream:
            found = [
                (int(row["step"]), float(row["train/loss"]))
                for row in csv.DictReader(stream)
                if row.get("train/loss")
            ]
    except UnsafeFileError:
        raise
    except (ValueError, OverflowError, KeyError, TypeError, csv.Error) as error:
        raise CorruptFileError(f"{escape_control(file)} is cut short, or none of ours") from error
    return ([x for x, _ in found], [y for _, y in found]) if found else None


def last_sample_grid(folder: Path) -> Path | None:
    """The last grid of samples of a run."""
    last = max((folder / "images").glob("samples-*.png"), default=None)
    return None if last is None else regular_file(reject_links(last.parent) / last.name)
