"""Data sets and their splits: images or points in memory, images on disk, images in a stream."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.diffusion.analytic_denoisers import Mixture

IN_MEMORY_BYTES = 4 * 2**30
"""Largest size of a split that is read into memory by default"""
HEAD_SIZE = 10_000
"""Number of images at the start of a stream that can be selected by index"""
CPU = torch.device("cpu")
Batch = dict[str, Tensor]
"""Network input: "x0" (B, ...) and, for labelled data, "label" (B,)"""


class Images(NamedTuple):
    """Images in memory."""

    pixels: Tensor
    """(N, C, H, W) uint8"""
    labels: Tensor | None
    """(N,) int64"""

    @property
    def x0(self) -> Tensor:
        """(N, C, H, W) float32 in [-1, 1]"""
        return self.pixels.float().div_(127.5).sub_(1)

    @property
    def size(self) -> int:
        """N"""
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)"""
        return tuple(self.pixels.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def select(self, index: Tensor | slice) -> "Images":
        return Images(self.pixels[index], None if self.labels is None else self.labels[index])

    def to(self, device: torch.device) -> "Images":
        labels = None if self.labels is None else self.labels.to(device)
        return Images(self.pixels.to(device), labels)

    def digest(self) -> str:
        """Return the SHA-256 of pixels and labels."""
        return _digest(self.pixels, self.labels)


class Points(NamedTuple):
    """Points in memory."""

    x0: Tensor
    """(N, d) float32"""
    labels: Tensor | None
    """(N,) int64"""

    @property
    def size(self) -> int:
        """N"""
        return len(self.x0)

    @property
    def shape(self) -> tuple[int, ...]:
        """(d,)"""
        return tuple(self.x0.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.x0.device

    def select(self, index: Tensor | slice) -> "Points":
        return Points(self.x0[index], None if self.labels is None else self.labels[index])

    def to(self, device: torch.device) -> "Points":
        return Points(self.x0.to(device), None if self.labels is None else self.labels.to(device))

    def digest(self) -> str:
        """Return the SHA-256 of coordinates and labels."""
        return _digest(self.x0, self.labels)


class Source(Protocol):
    """Images on disk in a fixed order. It is pickled for worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor:
        """Return an image (C, H, W) uint8. Raises ValueError that begins with its name."""

    def digest(self) -> str:
        """Return a string that identifies the content."""


@dataclass(frozen=True)
class MapSplit:
    """Images of a source, read on request."""

    source: Source
    indices: Tensor
    """(N,) int64, positions in the source"""
    shape: tuple[int, ...]
    """(C, H, W)"""
    labels: Tensor | None
    """(N,) int64"""
    device: torch.device = CPU
    """Device of the selected images"""

    @property
    def size(self) -> int:
        """N"""
        return len(self.indices)

    def select(self, index: Tensor | slice) -> Images:
        pixels = torch.stack([self.source[i] for i in self.indices[index].tolist()])
        return Images(pixels, None if self.labels is None else self.labels[index]).to(self.device)

    def to(self, device: torch.device) -> "MapSplit":
        return replace(self, device=device)

    def digest(self) -> str:
        """Return the SHA-256 of the source's digest, the indices and the labels."""
        content = self.source.digest() + _digest(self.indices, self.labels)
        return hashlib.sha256(content.encode()).hexdigest()


class Stream(Protocol):
    """Images that arrive one after another. It is pickled for worker processes."""

    def epoch(self, seed: int, epoch: int, rank: int, world: int) -> Iterator[Images]:
        """Yield the shuffled images of an epoch one by one.

        Process `rank` of `world` receives its share, and each of its workers a share of that.
        """

    def readers(self, world: int) -> int:
        """Return the largest number of workers of a process that can have a share."""

    def first(self, count: int) -> Images:
        """Return the first `count` images."""

    def digest(self) -> str:
        """Return a string that identifies the content."""


@dataclass(frozen=True)
class IterableSplit:
    """Images of a stream, for data larger than the disk.

    The composition of a batch depends on the numbers of processes and workers. Only the first
    `HEAD_SIZE` images can be selected by index.
    """

    stream: Stream
    size: int
    """N"""
    shape: tuple[int, ...]
    """(C, H, W)"""
    labels: None = None
    """Labels arrive with the images"""
    device: torch.device = CPU
    """Device of the selected images"""

    def select(self, index: Tensor | slice) -> Images:
        """Read the stream up to the largest index. Raises ValueError beyond `HEAD_SIZE`."""
        if isinstance(index, slice):
            index = torch.arange(*index.indices(self.size))
        last = int(index.max()) if len(index) else -1
        if last >= HEAD_SIZE:
            raise ValueError(
                f"data.streaming=true selects among the first {HEAD_SIZE} images only "
                f"(got index {last}); try data.streaming=false"
            )
        return self.stream.first(last + 1).select(index).to(self.device)

    def to(self, device: torch.device) -> "IterableSplit":
        return replace(self, device=device)

    def digest(self) -> str:
        return self.stream.digest()


InMemorySplit = Images | Points
Split = Images | Points | MapSplit | IterableSplit


class Splits(NamedTuple):
    """A data set: the return value of the functions that `dataset` decorates."""

    name: str
    train: Split
    test: Split
    captions: Sequence[Sequence[str]] | None = None
    """For each class its names, the first of which is the main one; None: without classes"""
    mixture: Mixture | None = None
    """Exact distribution of the data; None: not available"""


def load_or_stream(
    source: Source,
    shape: tuple[int, ...],
    labels: Tensor | None,
    indices: Tensor | None = None,
    in_memory: bool | None = None,
) -> Images | MapSplit:
    """Return the images of `source` at `indices` (N,) (None: all) with their `labels` (N,).

    They are read into memory if `fits_in_memory`, else on request. Raises ValueError of `source`.
    """
    indices = torch.arange(len(source)) if indices is None else indices
    if not fits_in_memory(len(indices), shape, in_memory):
        if len(indices):  # an error that all images have is raised here, not by a worker process
            source[int(indices[0])]
        return MapSplit(source, indices, shape, labels)
    pixels = torch.empty(len(indices), *shape, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:  # decoders release the interpreter's lock
        images = pool.map(source.__getitem__, indices.tolist())
        progress = tqdm(images, "reading images", len(indices), leave=False, disable=None)
        for i, image in enumerate(progress):
            pixels[i] = image
    return Images(pixels, labels)


def fits_in_memory(count: int, shape: tuple[int, ...], in_memory: bool | None) -> bool:
    """Return `in_memory`; if None, whether `count` images take at most `IN_MEMORY_BYTES`."""
    return count * math.prod(shape) <= IN_MEMORY_BYTES if in_memory is None else in_memory


def head(split: Split) -> Split:
    """Return the samples that can be selected by index: the first `HEAD_SIZE` of a stream."""
    return split.select(slice(HEAD_SIZE)) if isinstance(split, IterableSplit) else split


def concat(images: Sequence[Images]) -> Images:
    labels = [part.labels for part in images if part.labels is not None]
    pixels = torch.cat([part.pixels for part in images])
    return Images(pixels, torch.cat(labels) if labels else None)


def to_uint8(x: Tensor) -> Tensor:
    """Map [-1, 1] to 0..255; values outside are clipped."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte()


def to_batch(split: InMemorySplit) -> Batch:
    """Return the network input: "x0" (B, ...) and, for labelled data, "label" (B,)."""
    return {"x0": split.x0} if split.labels is None else {"x0": split.x0, "label": split.labels}


def select_rows(batch: Batch, index: Tensor | slice) -> Batch:
    return {name: value[index] for name, value in batch.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) for name, value in batch.items()}


def _digest(*tensors: Tensor | None) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
