"""Rows that the library `datasets` reads: by number from disk, or one after another from afar."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any, BinaryIO

import fsspec
import torch
from PIL import Image
from torch import Tensor

from ddpm_lab.data.datasets import Images, gathered
from ddpm_lab.data.image_io import decoded
from ddpm_lab.data.image_transform import Fit
from ddpm_lab.diffusion.rng import generator
from ddpm_lab.utils.errors import Unsafe, shown

PROTOCOLS = ("hf", "zip", "tar", "gzip")
"""Where a row may say that its picture is, besides in a file: in the Hub, or in an archive"""


@dataclass(frozen=True)
class Reading:
    """From a row to a picture, and its label where `label` is a column."""

    image: str
    label: str | None
    fit: Fit

    def pixels(self, row: Mapping[str, Any], name: str) -> Tensor:
        """(C, H, W) uint8. Raises ValueError that begins with what is known of the row."""
        return self.fit(opened(row[self.image], name), name)

    def __call__(self, row: Mapping[str, Any], name: str) -> Images:
        """Of size 1."""
        labels = None if self.label is None else listed([row[self.label]])
        return Images(self.pixels(row, name)[None], labels)


@dataclass(frozen=True)
class Rows:
    """Those of a table that the library maps from disk."""

    table: Any
    reading: Reading

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Tensor:
        return self.reading.pixels(self.table[index], f"row {index}")

    def digest(self) -> str:
        """What the library says of its content, and how it is read."""
        return f"{self.table._fingerprint} {self.reading}"


@dataclass
class Coming:
    """Rows of an iterable set, but for the first `skipped`, shuffled within a buffer."""

    rows: Any
    reading: Reading
    buffer: int
    skipped: int
    origin: str
    known: Images | None = None
    """What was read of the first"""

    def epoch(self, seed: int, epoch: int, rank: int, world: int) -> Iterator[Images]:
        from datasets.distributed import split_dataset_by_node

        number = int(torch.randint(2**31, (), generator=generator(seed, epoch)))
        rows = self.rows.skip(self.skipped) if self.skipped else self.rows
        rows = rows.shuffle(seed=number, buffer_size=self.buffer)
        # The library splits a skip among shards, which would train on what was held out.
        share = (
            islice(rows, rank, None, world)
            if self.skipped
            else split_dataset_by_node(rows, rank, world)
        )
        return (self.reading(row, f"a row of {self.origin}") for row in share)

    def readers(self, world: int) -> int:
        from datasets.distributed import split_dataset_by_node

        return 1 if self.skipped else split_dataset_by_node(self.rows, 0, world).num_shards

    def first(self, count: int) -> Images:
        if self.known is None or self.known.size < count:
            rows = islice(self.rows, self.skipped, self.skipped + count)
            self.known = gathered(
                [self.reading(row, f"row {i} of {self.origin}") for i, row in enumerate(rows)]
            )
        return self.known.at(slice(count))

    def digest(self) -> str:
        """Where it comes from, and how it is read: nothing is known of the content."""
        return f"{self.origin} {self.skipped} {self.reading}"


def opened(held: Mapping[str, Any] | None, name: str) -> Image.Image:
    """The picture of a cell, its bytes or where they are. Raises ValueError that begins with `name`."""
    with stream_of(held, name) as (stream, where):
        return decoded(stream, where)


@contextmanager
def stream_of(held: Mapping[str, Any] | None, name: str) -> Iterator[tuple[BinaryIO, str]]:
    """Open the image file of a cell, and name it. Raises ValueError that begins with `name`."""
    if held is None:
        raise ValueError(f"{name} has no picture")
    if held["bytes"] is not None:
        yield BytesIO(held["bytes"]), name
        return
    if odd := {*re.findall(r"(\w+)://", held["path"])} - {*PROTOCOLS}:
        raise Unsafe(
            f"{name} is {shown(held['path'])}, and {min(odd)} is none of {', '.join(PROTOCOLS)}"
        )
    with fsspec.open(held["path"], "rb") as file:  # a path, or an address of the Hub
        yield file, f"{name}, {held['path']},"


def listed(found: list[int | None]) -> Tensor:
    """Labels (N,) int64. Raises ValueError where some are missing."""
    if missing := sum(label is None or label < 0 for label in found):
        raise ValueError(
            f"label: {missing} of {len(found)} rows have none; try another data.label or data.split_test"
        )
    return torch.tensor(found)
