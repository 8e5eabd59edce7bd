"""Fingerprints of a run's data, and their comparison with the current data."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.data.datasets import Images, MapSplit, Split
from ddpm_lab.data.module import Data, read_batches
from ddpm_lab.runs import run_record
from ddpm_lab.utils.errors import UserError, join_first

LOG = logging.getLogger(__name__)
SAMPLES = {"train": "training", "test": "held-out"}
OTHER_IMAGES = "other images"
SAMPLED = 2**24
"""Bytes of pixels per split that a fingerprint covers"""


def data_fingerprint(data: Data) -> dict[str, Any]:
    """Return shape, class names, split sizes and a SHA-256 of the images, independent of paths."""
    classes = None if data.captions is None else [names[0] for names in data.captions]
    splits = {
        name: {"size": split.size, "sha256": _digest(split, data.workers)}
        for name, split in (("train", data.train), ("test", data.test))
    }
    return {"shape": [*data.shape], "classes": classes, **splits}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return differences as phrases: sizes, shape and classes, or else `OTHER_IMAGES`."""
    if not old:
        return []
    splits = {name: (old.get(name, {}), new[name]) for name in ("train", "test")}
    phrases = [
        f"{now['size']} {SAMPLES[name]} samples instead of {before.get('size')}"
        for name, (before, now) in splits.items()
        if now["size"] != before.get("size")
    ] + [
        f"{key} {_join(new[key])} instead of {_join(old.get(key))}"
        for key in ("shape", "classes")
        if new[key] != old.get(key)
    ]
    hashes = [(before.get("sha256"), now["sha256"]) for before, now in splits.values()]
    other_images = any(before and now and before != now for before, now in hashes)
    return phrases or [OTHER_IMAGES] * other_images


def verify_data(run: str | Path, config: DictConfig, new: dict[str, Any]) -> None:
    """Raise UserError if a resumed `run` gets data of another size, shape or classes."""
    old, key = run_record.read_record(run).data, _source(config)
    changes = differences(old, new)
    if changes == [OTHER_IMAGES]:  # another version of an image decoder changes them too
        LOG.warning("warning: %s has other images than those %s was trained on", key, run)
    elif changes:
        hint = f"try the original data, or init={run} for a new run from its weights"
        raise UserError(f"{key} is not the data of {run}: {'; '.join(changes)}; {hint}")


def warn_if_changed(old: dict[str, Any], data: Data, config: DictConfig, run: str) -> None:
    """Log how `data` differs from the fingerprint `old` of the training data of `run`."""
    if changes := differences(old, data_fingerprint(data)):
        key, text = _source(config), "; ".join(changes)
        LOG.warning("warning: %s is not the data that run=%s was trained on: %s", key, run, text)


def _source(config: DictConfig) -> str:
    """Return the override that names the data, such as data.path=DIR."""
    for key in ("data.path", "data.name"):
        if (value := OmegaConf.select(config, key)) is not None:
            return f"{key}={value}"
    return "data"


def _join(value: Any) -> str:
    return join_first(value if isinstance(value, list) else [value], 6)


def _digest(split: Split, workers: int) -> str | None:
    """Return the SHA-256 of labels and evenly spaced images; None for points and streams."""
    if not isinstance(split, Images | MapSplit):  # points depend on a machine's sine function
        return None
    count = min(split.size, max(16, SAMPLED // torch.Size(split.shape).numel()))
    labels = split.labels
    digest = hashlib.sha256(b"" if labels is None else labels.cpu().long().numpy().tobytes())
    index = torch.arange(count) * split.size // count
    for images in read_batches(split, index.split(100), workers):
        assert isinstance(images, Images)
        digest.update(images.pixels.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
