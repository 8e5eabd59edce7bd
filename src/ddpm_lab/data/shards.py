"""A prepared set of images: raw bytes in a few files that are checked and mapped. scripts/prepare_data.py writes it.

A store is a folder with `index.json`, `pixels-00000.npy` and so on, (N, C, H, W) uint8 of about `SHARD` bytes each,
and, where there are classes, `labels.npy` (N,) int64. It may be two of them, in `train/` and `test/`.
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

from ddpm_lab.data.datasets import IN_MEMORY_BYTES, Images, MapSplit, Split
from ddpm_lab.data.image_folder import train_test_split
from ddpm_lab.data.image_transform import ImageTransform
from ddpm_lab.data.module import DataModule
from ddpm_lab.utils.errors import UnsafeFileError, escape_control
from ddpm_lab.utils.safe_load import regular_file

FORMAT = "ddpm-lab images 1"
INDEX, LABELS = "index.json", "labels.npy"
SHARD = 256 * 2**20
CONTENT = ("count", "shape", "classes", "labels", "shards")
"""What of the index `sha256` is of; the rest tells where it came from"""


class Shards:
    """What is in the store `root`, mapped. Raises ValueError that names the file unless all of it is there and as long
    as the index says; `verify` looks at every byte.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.index = root, _index(root / INDEX)
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
                f"path: {root / INDEX} says count={len(self)}, and its shards hold {self.starts[-1]}"
            )
        self.labels = None
        if self.index["labels"]:
            file = root / self.index["labels"]["name"]
            self.labels = torch.tensor(_mapped(file, (len(self),), np.int64))

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return Shards, (self.root,)  # a map would be sent byte by byte

    def __len__(self) -> int:
        return self.index["count"]

    def __getitem__(self, index: int) -> Tensor:
        shard = bisect_right(self.starts, index) - 1
        return torch.tensor(self.maps[shard][index - self.starts[shard]])

    def read(self, indices: Tensor) -> Tensor:
        """Those numbered `chosen` (N,): (N, C, H, W) uint8"""
        pixels = torch.empty(len(indices), *self.shape, dtype=torch.uint8)
        for start, images in zip(self.starts, self.maps, strict=False):
            here = (indices >= start) & (indices < start + len(images))
            pixels[here] = torch.from_numpy(images[indices[here].numpy() - start])
        return pixels

    def verify(self) -> None:
        """Raises ValueError that names the first file whose bytes are not those that were written."""
        for entry in [
            *self.index["shards"],
            *([self.index["labels"]] if self.index["labels"] else []),
        ]:
            if _sha256(file := self.root / entry["name"]) != entry["sha256"]:
                raise ValueError(
                    f"path: {file} is damaged, its SHA-256 is not that of {INDEX}; prepare it again"
                )

    def digest(self) -> str:
        """SHA-256 of all that it holds, as its index has it."""
        return self.index["sha256"]


def image_store(
    path: str | None,
    held_out: float = 0.1,
    in_memory: bool | None = None,
    flip: bool = False,
    batch_size: int | None = None,
    workers: int = 2,
    seed: int = 0,
) -> DataModule:
    """What scripts/prepare_data.py wrote to `path`. A share `held_out` is kept from training, unless the store has a
    test set of its own.

    A split is read into memory if it is `resident` (None: if it takes at most `RESIDENT` bytes), else from the mapped
    files. What is read into memory whole is verified. Raises ValueError that names the file.
    """
    root = Path(path or "").expanduser()
    if path is None or not root.is_dir():
        raise ValueError(
            f"path must be a store that scripts/prepare_data.py wrote (got {path}); try data.path=DIR"
        )
    if (root / "train").is_dir():
        sources = [Shards(root / "train"), Shards(root / "test")]
        parts = [torch.arange(len(source)) for source in sources]
    else:
        sources = [Shards(root)] * 2
        parts = [*train_test_split(len(sources[0]), held_out)]
    train, test = sources
    if (train.shape, train.classes) != (test.shape, test.classes):
        raise ValueError(
            f"path={path} has a test set of {test.shape} and classes {test.classes}, and its training set "
            f"is of {train.shape} and {train.classes}; prepare it again"
        )
    splits = [_held(source, part, in_memory) for source, part in zip(sources, parts, strict=True)]
    if isinstance(splits[0], Images):
        for source in {id(source): source for source in sources}.values():
            source.verify()
    for source in sources:
        labels = source.labels
        if (
            labels is not None
            and len(labels)
            and not 0 <= labels.min() <= labels.max() < len(source.classes)
        ):
            raise ValueError(
                f"path={path} has labels of other than its {len(source.classes)} classes"
            )
    return DataModule(
        root.resolve().name,
        *splits,
        classes=len(train.classes) or None,
        batch_size=batch_size,
        flip=flip,
        workers=workers,
        seed=seed,
        captions=[[name] for name in train.classes] or None,
    )


def write_store(
    root: Path,
    read: Iterable[tuple[Tensor, Tensor]],
    classes: Sequence[str],
    fit: ImageTransform,
    source: str,
) -> dict[str, Any]:
    """Images `read`, (n, C, H, W) uint8 and their labels (n,) a few at a time, to the new folder `root`: the index,
    which is written last.
    """
    root.mkdir(parents=True)
    shards: list[dict[str, Any]] = []
    waiting: list[Tensor] = []
    labels = [torch.empty(0, dtype=torch.int64)]

    def shard() -> None:
        pixels = torch.cat(waiting)
        waiting.clear()
        shards.append(
            _saved(root / f"pixels-{len(shards):05d}.npy", pixels) | {"count": len(pixels)}
        )

    for pixels, numbers in read:
        waiting.append(pixels)
        labels.append(numbers)
        if sum(held.nbytes for held in waiting) >= SHARD:
            shard()
    if waiting:
        shard()
    index: dict[str, Any] = {
        "format": FORMAT,
        "source": source,
        "fit": fit.settings,
        "count": sum(entry["count"] for entry in shards),
        "shape": fit.shape,
        "classes": [*classes],
        "labels": _saved(root / LABELS, torch.cat(labels)) if classes else None,
        "shards": shards,
    }
    index["sha256"] = _content(index)
    (root / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return index


def _held(source: Shards, indices: Tensor, in_memory: bool | None) -> Split:
    labels = None if source.labels is None else source.labels[indices]
    size = len(indices) * torch.Size(source.shape).numel()
    if size <= IN_MEMORY_BYTES if in_memory is None else in_memory:
        return Images(source.read(indices), labels)
    return MapSplit(source, indices, source.shape, labels)


def _index(file: Path) -> dict[str, Any]:
    try:
        index = json.loads(regular_file(file.resolve()).read_bytes())
        if index["format"] != FORMAT or index["sha256"] != _content(index):
            raise ValueError(f"it is not of {FORMAT}, or was changed")
        for entry in [*index["shards"], *([index["labels"]] if index["labels"] else [])]:
            if not re.fullmatch(r"[\w-]+\.npy", entry["name"]):
                raise UnsafeFileError(
                    f"{file} names {escape_control(entry['name'])}, which is no file of a store"
                )
    except UnsafeFileError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"path: {file} is no index of a store that scripts/prepare_data.py finished ({error!r}); "
            "prepare it again, or try data=folder"
        ) from error
    return index


def _mapped(file: Path, shape: tuple[int, ...], kind: type) -> np.memmap:
    try:
        found = np.load(regular_file(file.resolve()), mmap_mode="r", allow_pickle=False)
        if (found.shape, found.dtype) != (
            shape,
            kind,
        ) or file.stat().st_size != found.offset + found.nbytes:
            raise ValueError(f"it is {found.shape} {found.dtype}, {file.stat().st_size} bytes")
    except UnsafeFileError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"path: {file} is damaged or missing ({error}), and {shape} {np.dtype(kind)} is wanted; "
            "prepare it again"
        ) from error
    return found


def _saved(file: Path, values: Tensor) -> dict[str, Any]:
    np.save(file, values.numpy(), allow_pickle=False)
    return {"name": file.name, "sha256": _sha256(file)}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _content(index: dict[str, Any]) -> str:
    return hashlib.sha256(
        json.dumps({key: index[key] for key in CONTENT}, sort_keys=True).encode()
    ).hexdigest()
