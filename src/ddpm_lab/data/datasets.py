"""Data sets and their splits: images or points in memory, images on disk, images in a stream."""

import hashlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, NamedTuple, Self

import torch
from annotated_types import Ge
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.diffusion.analytic_denoisers import Mixture
from ddpm_lab.diffusion.conditioning import Batch as Batch
from ddpm_lab.diffusion.rng import make_generator

IN_MEMORY_BYTES = 4 * 2**30
"""Largest size of a split that is read into memory by default"""
HEAD_SIZE = 10_000
"""Number of images at the start of a stream that can be selected by index"""
CPU = torch.device("cpu")
LOG = logging.getLogger(__name__)
MaxImages = Annotated[int, Ge(4)]
"""Largest number of images of a split"""


class InMemorySplit(NamedTuple):
    """Samples in memory."""

    values: Tensor
    """(N, C, H, W) uint8 for images, (N, d) float32 for points"""
    labels: Tensor | None
    """(N,) int64"""

    @property
    def x0(self) -> Tensor:
        """(N, ...) float32"""
        return self.values

    @property
    def size(self) -> int:
        """N"""
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) or (d,)"""
        return tuple(self.values.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.values.device

    def select(self, index: Tensor | slice) -> Self:
        return type(self)(self.values[index], _select(self.labels, index))

    def subset(self, index: Tensor) -> Self:
        """Return the split of the samples at `index`."""
        return self.select(index)

    def to(self, device: torch.device) -> Self:
        labels = None if self.labels is None else self.labels.to(device)
        return type(self)(self.values.to(device), labels)

    def digest(self) -> str:
        """Return the SHA-256 of values and labels."""
        return _digest(self.values, self.labels)


class Points(InMemorySplit):
    """Points in memory."""


class Images(InMemorySplit):
    """Images in memory."""

    @property
    def pixels(self) -> Tensor:
        """(N, C, H, W) uint8"""
        return self.values

    @property
    def x0(self) -> Tensor:
        """(N, C, H, W) float32 in [-1, 1]"""
        return self.values.float().div_(127.5).sub_(1)


class Source(ABC):
    """Images on disk in a fixed order; pickled for worker processes."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int, /) -> Tensor:
        """Return an image (C, H, W) uint8. Raises ValueError that begins with its name."""

    @abstractmethod
    def digest(self) -> str:
        """Return a string that identifies the content."""

    def read(self, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the images at `indices` (N,), of `shape` (C, H, W): (N, C, H, W) uint8."""
        pixels = torch.empty(len(indices), *shape, dtype=torch.uint8)
        with ThreadPoolExecutor() as pool:  # decoders release the GIL
            images = pool.map(self.__getitem__, indices.tolist())
            progress = tqdm(images, "reading images", len(indices), leave=False, disable=None)
            for i, image in enumerate(progress):
                pixels[i] = image
        return pixels


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
        pixels = [self.source[i] for i in self.indices[index].tolist()]
        empty = torch.empty(0, *self.shape, dtype=torch.uint8)
        return Images(torch.stack(pixels) if pixels else empty, _select(self.labels, index)).to(
            self.device
        )

    def subset(self, index: Tensor) -> "MapSplit":
        """Return the split of the images at `index`, without reading them."""
        return replace(self, indices=self.indices[index], labels=_select(self.labels, index))

    def fits(self, in_memory: bool | None) -> bool:
        """Return `in_memory`; if None, whether the images take at most `IN_MEMORY_BYTES`."""
        return (
            self.size * math.prod(self.shape) <= IN_MEMORY_BYTES if in_memory is None else in_memory
        )

    def load(self, in_memory: bool | None) -> "Images | MapSplit":
        """Return the images in memory if they fit, else the split.

        Raises ValueError that begins with the name of an image.
        """
        if self.fits(in_memory):
            return Images(self.source.read(self.indices, self.shape), self.labels)
        if self.size:  # raise errors that affect all images here, not in a worker process
            self.source[int(self.indices[0])]
        return self

    def to(self, device: torch.device) -> "MapSplit":
        return replace(self, device=device)

    def digest(self) -> str:
        """Return the SHA-256 of the source's digest, the indices and the labels."""
        content = self.source.digest() + _digest(self.indices, self.labels)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class IterableSplit(ABC):
    """Images that arrive one after another, for data larger than the disk.

    The composition of a batch depends on the number of processes and workers. Only the first
    `HEAD_SIZE` images can be selected by index.
    """

    size: int
    """N"""
    shape: tuple[int, ...]
    """(C, H, W)"""
    device: torch.device = field(default=CPU, kw_only=True)
    """Device of the selected images"""
    labels: ClassVar[None] = None
    """Labels arrive with the images"""

    @abstractmethod
    def epoch(self, seed: int, epoch: int, rank: int, world: int) -> Iterator[Images]:
        """Yield the shuffled images of an epoch one by one. Process `rank` of `world` receives its
        share, divided among its workers.
        """

    @abstractmethod
    def readers(self, world: int) -> int:
        """Return the maximum number of workers per process, so that each has a share."""

    @abstractmethod
    def first(self, count: int) -> Images:
        """Return the first `count` images."""

    @abstractmethod
    def digest(self) -> str:
        """Return a string that identifies the content."""

    def select(self, index: Tensor | slice) -> Images:
        """Read the stream up to the largest index. Raises ValueError beyond `HEAD_SIZE`."""
        if isinstance(index, slice):
            index = torch.arange(*index.indices(self.size))
        last = int(index.max()) if len(index) else -1
        if last >= HEAD_SIZE:
            raise ValueError(
                f"data.streaming=true allows indices below {HEAD_SIZE} only (got index {last}); "
                "try data.streaming=false"
            )
        return self.first(last + 1).select(index).to(self.device)

    def subset(self, index: Tensor) -> Self:
        """Raise ValueError, because a stream has no index."""
        raise ValueError("train_count is not for streams; try streaming=false")

    def to(self, device: torch.device) -> Self:
        return replace(self, device=device)


Split = InMemorySplit | MapSplit | IterableSplit


class Splits(NamedTuple):
    """A data set: the return value of the functions that `dataset` decorates."""

    name: str
    """Name for messages and fingerprints"""
    train: Split
    """Training samples"""
    test: Split
    """Held-out samples"""
    captions: Sequence[Sequence[str]] | None = None
    """Names of each class, the main one first; None: without classes"""
    mixture: Mixture | None = None
    """Exact distribution of the data; None: not available"""
    left_out: Sequence[str] = ()
    """A line for each file that is not used, with the reason"""


def make_splits(
    sources: Sequence[Source],
    shape: tuple[int, ...],
    labels: Sequence[Tensor | None] = (None,),
    held_out: float = 0.1,
    max_images: int | None = None,
) -> tuple[MapSplit, MapSplit]:
    """Return the splits of a training and a test source, whose `labels` are (N,).

    Of each source, at most `max_images` evenly spaced images are used. Of a single source, a fixed
    random share `held_out` (at least 2 images) is held out.
    """
    parts = [evenly_spaced(len(source), max_images or len(source)) for source in sources]
    used, total = sum(map(len, parts)), sum(map(len, sources))
    if used < total:
        LOG.info("max_images=%d: %d of %d images, evenly spaced", max_images, used, total)
    if len(sources) == 1:
        order = parts[0][torch.randperm(len(parts[0]), generator=make_generator(0))]
        test_size = max(2, int(held_out * len(order)))
        parts = [order[test_size:], order[:test_size]]
    train = MapSplit(sources[0], parts[0], shape, _select(labels[0], parts[0]))
    return train, MapSplit(sources[-1], parts[1], shape, _select(labels[-1], parts[1]))


def evenly_spaced(count: int, limit: int) -> Tensor:
    """Return at most `limit` evenly spaced indices below `count`, (n,) int64."""
    size = min(count, limit)
    return torch.arange(size) * count // max(1, size)


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
    """Return the network input: "x0" (B, ...) and, for labeled data, "label" (B,)."""
    return {"x0": split.x0} if split.labels is None else {"x0": split.x0, "label": split.labels}


def select_rows(batch: Batch, index: Tensor | slice) -> Batch:
    return {name: value[index] for name, value in batch.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) for name, value in batch.items()}


def _select(labels: Tensor | None, index: Tensor | slice) -> Tensor | None:
    return None if labels is None else labels[index]


def _digest(*tensors: Tensor | None) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
