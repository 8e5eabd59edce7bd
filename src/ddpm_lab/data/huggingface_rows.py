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

from ddpm_lab.data.datasets import Images, concat
from ddpm_lab.data.image_io import decode_image
from ddpm_lab.data.image_transform import ImageTransform
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.utils.errors import UnsafeFileError, escape_control

PROTOCOLS = ("hf", "zip", "tar", "gzip")
"""Where a row may say that its image is, besides in a file: in the Hub, or in an archive"""


@dataclass(frozen=True)
class RowDecoder:
    """From a row to a image, and its label where `label` is a column."""

    image: str
    label: str | None
    fit: ImageTransform

    def pixels(self, row: Mapping[str, Any], name: str) -> Tensor:
        """(C, H, W) uint8. Raises ValueError that begins with what is known of the row."""
        return self.fit(open_image(row[self.image], name), name)

    def __call__(self, row: Mapping[str, Any], name: str) -> Images:
        """Of size 1."""
        labels = None if self.label is None else label_tensor([row[self.label]])
        return Images(self.pixels(row, name)[None], labels)


@dataclass(frozen=True)
class HubTable:
    """Those of a table that the library maps from disk."""

    table: Any
    decoder: RowDecoder

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Tensor:
        return self.decoder.pixels(self.table[index], f"row {index}")

    def digest(self) -> str:
        """What the library says of its content, and how it is read."""
        return f"{self.table._fingerprint} {self.decoder}"


@dataclass
class HubStream:
    """Rows of an iterable set, but for the first `skipped`, shuffled within a buffer."""

    rows: Any
    decoder: RowDecoder
    buffer: int
    skipped: int
    origin: str
    known: Images | None = None
    """What was read of the first"""

    def epoch(self, seed: int, epoch: int, rank: int, world: int) -> Iterator[Images]:
        from datasets.distributed import split_dataset_by_node

        number = int(torch.randint(2**31, (), generator=make_generator(seed, epoch)))
        rows = self.rows.skip(self.skipped) if self.skipped else self.rows
        rows = rows.shuffle(seed=number, buffer_size=self.buffer)
        # The library splits a skip among shards, which would train on what was held out.
        share = (
            islice(rows, rank, None, world)
            if self.skipped
            else split_dataset_by_node(rows, rank, world)
        )
        return (self.decoder(row, f"a row of {self.origin}") for row in share)

    def readers(self, world: int) -> int:
        from datasets.distributed import split_dataset_by_node

        return 1 if self.skipped else split_dataset_by_node(self.rows, 0, world).num_shards

    def first(self, count: int) -> Images:
        if self.known is None or self.known.size < count:
            rows = islice(self.rows, self.skipped, self.skipped + count)
            self.known = concat(
                [self.decoder(row, f"row {i} of {self.origin}") for i, row in enumerate(rows)]
            )
        return self.known.select(slice(count))

    def digest(self) -> str:
        """Where it comes from, and how it is read: nothing is known of the content."""
        return f"{self.origin} {self.skipped} {self.decoder}"


def open_image(held: Mapping[str, Any] | None, name: str) -> Image.Image:
    """The image of a cell, its bytes or where they are. Raises ValueError that begins with `name`."""
    with open_stream(held, name) as (stream, where):
        return decode_image(stream, where)


@contextmanager
def open_stream(held: Mapping[str, Any] | None, name: str) -> Iterator[tuple[BinaryIO, str]]:
    """Open the image file of a cell, and name it. Raises ValueError that begins with `name`."""
    if held is None:
        raise ValueError(f"{name} has no image")
    if held["bytes"] is not None:
        yield BytesIO(held["bytes"]), name
        return
    if odd := {*re.findall(r"(\w+)://", held["path"])} - {*PROTOCOLS}:
        raise UnsafeFileError(
            f"{name} is {escape_control(held['path'])}, and {min(odd)} is none of {', '.join(PROTOCOLS)}"
        )
    with fsspec.open(held["path"], "rb") as file:  # a path, or an address of the Hub
        yield file, f"{name}, {held['path']},"


def label_tensor(found: list[int | None]) -> Tensor:
    """Labels (N,) int64. Raises ValueError where some are missing."""
    if missing := sum(label is None or label < 0 for label in found):
        raise ValueError(
            f"label: {missing} of {len(found)} rows have none; try another data.label or data.split_test"
        )
    return torch.tensor(found)
