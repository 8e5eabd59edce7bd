"""Rows of the `datasets` library: by index from disk, or one after another from the network."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from typing import Any, BinaryIO

import fsspec
import torch
from torch import Tensor

from ddpm_lab.data.datasets import Images, IterableSplit, Source, concat
from ddpm_lab.data.image_io import decode_image
from ddpm_lab.data.image_transform import ImageTransform
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.utils.errors import UnsafeFileError, escape_control

PROTOCOLS = ("hf", "zip", "tar", "gzip")
"""Allowed URL schemes in the path of a row's image: the Hub, or an archive"""


@dataclass(frozen=True)
class RowDecoder:
    """Decodes the image of a row, and its label if `label` is a column."""

    image: str
    label: str | None
    transform: ImageTransform

    def pixels(self, row: Mapping[str, Any], name: str) -> Tensor:
        """Return (C, H, W) uint8. Raises ValueError that begins with `name`."""
        with open_stream(row[self.image], name) as (stream, full_name):
            return self.transform(decode_image(stream, full_name), name)

    def __call__(self, row: Mapping[str, Any], name: str) -> Images:
        """Return `Images` of size 1."""
        labels = None if self.label is None else label_tensor([row[self.label]])
        return Images(self.pixels(row, name)[None], labels)


@dataclass(frozen=True)
class HubTable(Source):
    """The images of a table that the library maps from disk."""

    table: Any
    decoder: RowDecoder

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Tensor:
        return self.decoder.pixels(self.table[index], f"row {index}")

    def digest(self) -> str:
        """Return the library's fingerprint of the table, and the decoder."""
        return f"{self.table._fingerprint} {self.decoder}"


@dataclass(frozen=True)
class HubStream(IterableSplit):
    """The images of an iterable set without the first `skipped`, shuffled within a buffer."""

    rows: Any
    decoder: RowDecoder
    buffer: int
    skipped: int
    origin: str
    cache: list[Images] = field(default_factory=list)
    """The first images, once they have been read: at most one entry"""

    def epoch(self, seed: int, epoch: int, rank: int, world: int) -> Iterator[Images]:
        from datasets.distributed import split_dataset_by_node

        shuffle_seed = int(torch.randint(2**31, (), generator=make_generator(seed, epoch)))
        rows = self.rows.skip(self.skipped) if self.skipped else self.rows
        rows = rows.shuffle(seed=shuffle_seed, buffer_size=self.buffer)
        if self.skipped:  # the library would skip within each shard and train on held-out images
            rows = islice(rows, rank, None, world)
        else:
            rows = split_dataset_by_node(rows, rank, world)
        return (self.decoder(row, f"a row of {self.origin}") for row in rows)

    def readers(self, world: int) -> int:
        from datasets.distributed import split_dataset_by_node

        return 1 if self.skipped else split_dataset_by_node(self.rows, 0, world).num_shards

    def first(self, count: int) -> Images:
        if not self.cache or self.cache[0].size < count:
            rows = enumerate(islice(self.rows, self.skipped, self.skipped + count))
            images = [self.decoder(row, f"row {i} of {self.origin}") for i, row in rows]
            self.cache[:] = [concat(images)]
        return self.cache[0].select(slice(count))

    def digest(self) -> str:
        """Return the origin and the decoder; the content of a stream has no digest."""
        return f"{self.origin} {self.skipped} {self.decoder}"


@contextmanager
def open_stream(entry: Mapping[str, Any] | None, name: str) -> Iterator[tuple[BinaryIO, str]]:
    """Open the image of a table entry and name it. Raises ValueError that begins with `name`."""
    if entry is None:
        raise ValueError(f"{name} has no image")
    path = entry["path"]
    if entry["bytes"] is not None:
        yield BytesIO(entry["bytes"]), name
        return
    if schemes := {*re.findall(r"(\w+)://", path)} - {*PROTOCOLS}:
        raise UnsafeFileError(
            f"{name} is {escape_control(path)}, but {min(schemes)} is not one of "
            f"{', '.join(PROTOCOLS)}"
        )
    with fsspec.open(path, "rb") as file:  # a path, or a URL of the Hub
        yield file, f"{name}, {path},"


def label_tensor(labels: list[int | None]) -> Tensor:
    """Return labels (N,) int64. Raises ValueError if some are missing."""
    if missing := sum(label is None or label < 0 for label in labels):
        raise ValueError(
            f"label: {missing} of {len(labels)} rows have none; "
            "try another data.label or data.split_test"
        )
    return torch.tensor(labels)
