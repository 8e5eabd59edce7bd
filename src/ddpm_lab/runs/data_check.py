"""The data of a run: verified to be that of its training, wherever it lies now."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.runs import trusted_paths, run_record, load
from ddpm_lab.config.instantiate import build
from ddpm_lab.data.module import DataModule, read_batches
from ddpm_lab.data.datasets import Images, Split, MapSplit
from ddpm_lab.utils.errors import UserError

LOG = logging.getLogger(__name__)
SAMPLED = 2**24
"""Bytes of the pixels of each split that a fingerprint covers"""


def data_fingerprint(load_data: DataModule) -> dict[str, Any]:
    """Shape, class names, sizes of the splits, and a SHA-256 of the images, which neither times nor places change."""
    names = None if load_data.captions is None else [texts[0] for texts in load_data.captions]
    splits = {
        name: {"size": split.size, "sha256": _digest(split, load_data.workers)}
        for name, split in (("train", load_data.train), ("test", load_data.test))
    }
    return {"shape": [*load_data.shape], "classes": names, **splits}


def differences(known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Differences in size, shape or classes between two fingerprints, as phrases; [] if the older one is unknown."""
    if not known:
        return []
    splits = [
        f"{now[split]['size']} {what} samples, and were {known.get(split, {}).get('size')}"
        for split, what in (("train", "training"), ("test", "held-out"))
        if now[split]["size"] != known.get(split, {}).get("size")
    ]
    return splits + [
        f"{key} {_listed(now[key])}, and were {_listed(known.get(key))}"
        for key in ("shape", "classes")
        if now[key] != known.get(key)
    ]


def changed(known: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether the images of two fingerprints differ where both have them."""
    pairs = [
        (known.get(split, {}).get("sha256"), now[split]["sha256"]) for split in ("train", "test")
    ]
    return any(old and new and old != new for old, new in pairs)


def verify_data(run: str | Path, config: DictConfig, now: dict[str, Any]) -> None:
    """Raises UserError where a run that is resumed finds data of another size, shape or classes; other images are
    reported in a line, for another version of a decoder changes them as well.
    """
    known, key = run_record.read_record(run).data, _source(config)
    if told := differences(known, now):
        raise UserError(
            f"{key} is not the data that {run} was trained on: {'; '.join(told)}; try the data that it "
            f"had, or init={run}, which starts a new run from its weights"
        )
    if changed(known, now):
        LOG.warning("warning: %s has other images than %s was trained on", key, run)


def load_data(settings: DictConfig) -> DataModule:
    """The data of `settings.run`, where `settings.data` says that it is. A line says where it differs from that of
    training.
    """
    saved = run_record.apply_adjustable(load.load_config(settings.run), settings, "data")
    trusted_paths.require_named(saved, f"run={settings.run}", trusted_paths.DATA)
    found: DataModule = build(saved, "data")
    known, now = run_record.read_record(settings.run).data, data_fingerprint(found)
    if told := differences(known, now) or (["other images"] if changed(known, now) else []):
        LOG.warning(
            "warning: %s is not the data that run=%s was trained on: %s",
            _source(saved),
            settings.run,
            "; ".join(told),
        )
    return found


def _source(config: DictConfig) -> str:
    """The key that says where the data is, and its value."""
    key = next(
        (key for key in ("data.path", "data.name") if OmegaConf.select(config, key) is not None),
        "data",
    )
    return f"{key}={OmegaConf.select(config, key)}" if key != "data" else "data"


def _listed(value: Any) -> str:
    texts = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    return ", ".join(texts[:6]) + (f" and {len(texts) - 6} more" if len(texts) > 6 else "")


def _digest(split: Split, workers: int) -> str | None:
    """SHA-256 of the labels and of evenly spaced images, the same in memory and streamed; None where there is no cheap
    or exact one: points depend on a machine's sine, and streams are not read twice.
    """
    if not isinstance(split, Images | MapSplit):
        return None
    count = min(split.size, max(16, SAMPLED // torch.Size(split.shape).numel()))
    digest = hashlib.sha256(
        b"" if split.labels is None else split.labels.cpu().long().numpy().tobytes()
    )
    for images in read_batches(split, (torch.arange(count) * split.size // count).split(100), workers):
        assert isinstance(images, Images)
        digest.update(images.pixels.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
