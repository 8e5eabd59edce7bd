"""Images and points of one split: held in memory, or left where they are until they are asked for."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

IN_MEMORY_BYTES = 4 * 2**30
"""Bytes of images that are read into memory unasked"""


class Images(NamedTuple):
    """Images, in memory."""

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

    def select(self, index: Tensor | slice) -> "Images":
        return Images(self.pixels[index], None if self.labels is None else self.labels[index])

    def to(self, device: torch.device) -> "Images":
        return Images(
            self.pixels.to(device), None if self.labels is None else self.labels.to(device)
        )

    def digest(self) -> str:
        """SHA-256 of all that it holds."""
        return _digest(self.pixels, self.labels)


class Points(NamedTuple):
    """Points, in memory."""

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

    def select(self, index: Tensor | slice) -> "Points":
        return Points(self.x0[index], None if self.labels is None else self.labels[index])

    def to(self, device: torch.device) -> "Points":
        return Points(self.x0.to(device), None if self.labels is None else self.labels.to(device))

    def digest(self) -> str:
        """SHA-256 of all that it holds."""
        return _digest(self.x0, self.labels)


class Source(Protocol):
    """Images on disk, in an order that is always the same. It is sent to worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor:
        """(C, H, W) uint8"""

    def digest(self) -> str:
        """What tells it apart from any other content."""


@dataclass(frozen=True)
class MapSplit:
    """Images of a source, read when they are asked for."""

    source: Source
    indices: Tensor
    """(N,) int64, which of the source's"""
    shape: tuple[int, ...]
    """(C, H, W)"""
    labels: Tensor | None
    """(N,) int64"""
    device: torch.device = torch.device("cpu")
    """Where what is read is brought"""

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
        """SHA-256 of what the source says of its content, and of what is taken of it."""
        return hashlib.sha256(
            (self.source.digest() + _digest(self.indices, self.labels)).encode()
        ).hexdigest()


class Stream(Protocol):
    """Images that come one after another. It is sent to worker processes."""

    def epoch(self, seed: int, epoch: int, rank: int, world: int) -> Iterator[Images]:
        """Once through, shuffled, one image at a time: the share of process `rank` of `world`, and of it that of the
        worker that asks.
        """

    def readers(self, world: int) -> int:
        """How many workers of a process can have a share."""

    def first(self, count: int) -> Images:
        """The first `count` in memory."""

    def digest(self) -> str:
        """What tells it apart from any other content."""


HEAD_SIZE = 10_000
"""So many images of a stream can be asked for by number"""


@dataclass(frozen=True)
class IterableSplit:
    """Images of a stream, for what does not even fit the disk. Which are together in a batch depends on the number of
    processes and workers, and only the first `KNOWN` can be asked for by number.
    """

    stream: Stream
    size: int
    """N"""
    shape: tuple[int, ...]
    """(C, H, W)"""
    labels: None = None
    """They come with the images"""
    device: torch.device = torch.device("cpu")
    """Where what is read is brought"""

    def select(self, index: Tensor | slice) -> Images:
        """Reads up to the last of them. Raises ValueError beyond `KNOWN`."""
        asked = index if isinstance(index, Tensor) else torch.arange(*index.indices(self.size))
        last = int(asked.max()) if len(asked) else -1
        if last >= HEAD_SIZE:
            raise ValueError(
                f"streaming gives the first {HEAD_SIZE} images by number (asked for number {last}); try "
                "data.streaming=false"
            )
        return self.stream.first(last + 1).select(asked).to(self.device)

    def to(self, device: torch.device) -> "IterableSplit":
        return replace(self, device=device)

    def digest(self) -> str:
        """What the stream says of its content."""
        return self.stream.digest()


InMemorySplit = Images | Points
"""What is in memory"""
Split = Images | Points | MapSplit | IterableSplit


def head(split: Split) -> Split:
    """What of it can be asked for by number: all, or the first `KNOWN` of a stream, in memory."""
    return split.select(slice(HEAD_SIZE)) if isinstance(split, IterableSplit) else split


def concat(images: Sequence[Images]) -> Images:
    """One after another."""
    labels = [some.labels for some in images if some.labels is not None]
    return Images(
        torch.cat([some.pixels for some in images]), torch.cat(labels) if labels else None
    )


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to uint8; what lies outside is cut."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte()


def to_batch(split: InMemorySplit) -> dict[str, Tensor]:
    """What a model is given: "x0" (B, ...) and, where there are labels, "label" (B,)."""
    return {"x0": split.x0} if split.labels is None else {"x0": split.x0, "label": split.labels}


def select_rows(to_batch: dict[str, Tensor], index: Tensor | slice) -> dict[str, Tensor]:
    """Those of `index`."""
    return {name: value[index] for name, value in to_batch.items()}


def to_device(to_batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """On `device`."""
    return {name: value.to(device) for name, value in to_batch.items()}


def _digest(*tensors: Tensor | None) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.cpu().contiguous().numpy().data)
    return found.hexdigest()


def load_or_stream(
    source: Source,
    shape: tuple[int, ...],
    labels: Tensor | None,
    indices: Tensor | None = None,
    in_memory: bool | None = None,
) -> Split:
    """Images of `source`, those numbered `chosen` (N,), or all of them, and their `labels` (N,), in memory or, where
    they are not `resident`, streamed. None: resident where they take at most `RESIDENT` bytes.
    """
    indices = torch.arange(len(source)) if indices is None else indices
    size = len(indices) * torch.Size(shape).numel()
    if not (size <= IN_MEMORY_BYTES if in_memory is None else in_memory):
        return MapSplit(source, indices, shape, labels)
    pixels = torch.empty(len(indices), *shape, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:  # decoders let go of the interpreter
        read = pool.map(source.__getitem__, indices.tolist())
        for i, image in enumerate(
            tqdm(read, "reading images", len(indices), leave=False, disable=None)
        ):
            pixels[i] = image
    return Images(pixels, labels)


Batch = dict[str, Tensor]
