"""Stores: prepared image sets of raw bytes in a few checksummed, memory-mapped files.

A store is a folder with `index.json`, `pixels-00000.npy` and so on, (N, C, H, W) uint8 of about
`SHARD` bytes each, and, with classes, `labels.npy` (N,) int64. A store with a test split consists
of two such folders, `train/` and `test/`. `cli/prepare.py` writes stores.
"""

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lab.data.datasets import MaxImages, Source, Splits, make_splits
from ddpm_lab.data.image_transform import ImageTransform
from ddpm_lab.data.module import dataset
from ddpm_lab.utils.errors import UnsafeFileError, escape_control
from ddpm_lab.utils.ranges import OpenFraction
from ddpm_lab.utils.safe_load import regular_file
from ddpm_lab.utils.shell import script_command

FORMAT = "ddpm-lab images 1"
INDEX, LABELS = "index.json", "labels.npy"
SHARD = 256 * 2**20
CONTENT = ("count", "shape", "classes", "labels", "shards")
"""Keys of the index that its `sha256` covers; the others describe the origin"""


class Shards(Source):
    """The mapped images of the store `root`.

    Raises ValueError that names the file unless all files have the size that the index states.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.index = root, _read_index(root / INDEX)
        self.shape: tuple[int, ...] = tuple(self.index["shape"])
        self.classes: list[str] = self.index["classes"]
        shards = self.index["shards"]
        self.maps = [
            _mapped(root / shard["name"], (shard["count"], *self.shape), np.uint8)
            for shard in shards
        ]
        self.starts = [0, *accumulate(shard["count"] for shard in shards)]
        if self.starts[-1] != len(self):
            raise ValueError(
                f"path: {root / INDEX} has count={len(self)}, but its shards hold {self.starts[-1]}"
            )
        self.labels = None
        if entry := self.index["labels"]:
            self.labels = torch.tensor(_mapped(root / entry["name"], (len(self),), np.int64))

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return Shards, (self.root,)  # a memory map would be pickled with its content

    def __len__(self) -> int:
        return self.index["count"]

    def __getitem__(self, index: int) -> Tensor:
        shard = bisect_right(self.starts, index) - 1
        return torch.tensor(self.maps[shard][index - self.starts[shard]])

    def read(self, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
        pixels = torch.empty(len(indices), *shape, dtype=torch.uint8)
        for start, images in zip(self.starts, self.maps, strict=False):
            here = (indices >= start) & (indices < start + len(images))
            pixels[here] = torch.from_numpy(images[indices[here].numpy() - start])
        return pixels

    def verify(self) -> None:
        """Raises ValueError that names the first file whose checksum does not match."""
        for entry in _entries(self.index):
            if _sha256(file := self.root / entry["name"]) != entry["sha256"]:
                raise ValueError(f"path: {file} is damaged, its SHA-256 differs; prepare it again")

    def digest(self) -> str:
        """Return the SHA-256 of the content, which the index states."""
        return self.index["sha256"]


@dataset
def image_store(
    path: str | None,
    held_out: OpenFraction = 0.1,
    max_images: MaxImages | None = None,
    in_memory: bool | None = None,
) -> Splits:
    """Load the store `path`. A share `held_out` is held out unless the store has a test split.

    For `max_images` see `make_splits`, for `in_memory` `MapSplit.load`; files of in-memory images
    are verified. Raises ValueError that names the file.
    """
    root = Path(path or "").expanduser()
    if path is None or not root.is_dir():
        raise ValueError(
            f"path must be a store that {script_command('prepare')} wrote (got {path}); "
            "try data.path=DIR"
        )
    parts = ("train", "test") if (root / "train").is_dir() else ("",)
    sources = [Shards(root / part) for part in parts]
    train, test = sources[0], sources[-1]
    if (train.shape, train.classes) != (test.shape, test.classes):
        sets = [f"{source.shape} with classes {source.classes}" for source in (train, test)]
        raise ValueError(f"path={path} has images of {' and '.join(sets)}; prepare it again")
    labels = [source.labels for source in sources]
    splits = make_splits(sources, train.shape, labels, held_out, max_images)
    for source in sources:
        if splits[0].fits(in_memory):
            source.verify()
        own, classes = source.labels, len(train.classes)
        if own is not None and len(own) and not 0 <= own.min() <= own.max() < classes:
            raise ValueError(f"path={path} has labels outside its {classes} classes")
    loaded = [split.load(in_memory) for split in splits]
    return Splits(root.resolve().name, loaded[0], loaded[1], [[name] for name in train.classes])


def write_store(
    root: Path,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: Sequence[str],
    transform: ImageTransform,
    source: str,
) -> dict[str, Any]:
    """Write images (n, C, H, W) uint8 and labels (n,) to the new folder `root`.

    The index is written last, and returned.
    """
    root.mkdir(parents=True)
    shards: list[dict[str, Any]] = []
    buffer: list[Tensor] = []
    labels = [torch.empty(0, dtype=torch.int64)]

    def write_shard() -> None:
        pixels = torch.cat(buffer)
        buffer.clear()
        file = root / f"pixels-{len(shards):05d}.npy"
        shards.append(_save(file, pixels) | {"count": len(pixels)})

    for pixels, numbers in batches:
        buffer.append(pixels)
        labels.append(numbers)
        if sum(part.nbytes for part in buffer) >= SHARD:
            write_shard()
    if buffer:
        write_shard()
    index: dict[str, Any] = {
        "format": FORMAT,
        "source": source,
        "fit": transform.settings,
        "count": sum(entry["count"] for entry in shards),
        "shape": transform.shape,
        "classes": [*classes],
        "labels": _save(root / LABELS, torch.cat(labels)) if classes else None,
        "shards": shards,
    }
    index["sha256"] = _content(index)
    (root / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return index


def _read_index(file: Path) -> dict[str, Any]:
    try:
        index = json.loads(regular_file(file.resolve()).read_bytes())
        if index["format"] != FORMAT or index["sha256"] != _content(index):
            raise ValueError(f"it was changed, or its format is not {FORMAT}")
        for entry in _entries(index):
            if not re.fullmatch(r"[\w-]+\.npy", entry["name"]):
                raise UnsafeFileError(
                    f"{file} names {escape_control(entry['name'])}, which is not a file name of a "
                    "store"
                )
    except UnsafeFileError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"path: {file} is not the index of a complete store of {script_command('prepare')} "
            f"({error!r}); prepare it again, or try data=folder"
        ) from error
    return index


def _entries(index: dict[str, Any]) -> list[dict[str, Any]]:
    return [*index["shards"], *([index["labels"]] if index["labels"] else [])]


def _mapped(file: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    try:
        array = np.load(regular_file(file.resolve()), mmap_mode="r", allow_pickle=False)
        size = file.stat().st_size
        if (array.shape, array.dtype, size) != (shape, dtype, array.offset + array.nbytes):
            raise ValueError(f"it is {array.shape} {array.dtype}, {size} bytes")
    except UnsafeFileError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"path: {file} is damaged or missing ({error}), expected {shape} {np.dtype(dtype)}; "
            "prepare it again"
        ) from error
    return array


def _save(file: Path, values: Tensor) -> dict[str, Any]:
    np.save(file, values.numpy(), allow_pickle=False)
    return {"name": file.name, "sha256": _sha256(file)}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _content(index: dict[str, Any]) -> str:
    """Return the SHA-256 of the keys `CONTENT`."""
    content = {key: index[key] for key in CONTENT}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
