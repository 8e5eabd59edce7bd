"""Data sets with their serving options, as endless training batches and validation batches."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import wraps
from inspect import Signature, signature
from itertools import chain, count, islice, tee
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ddpm_lab.data.datasets import (
    CPU,
    Batch,
    Images,
    InMemorySplit,
    IterableSplit,
    MapSplit,
    Split,
    Splits,
    concat,
    evenly_spaced,
    to_batch,
)
from ddpm_lab.diffusion.conditioning import DataSpec
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.utils.errors import HangError, ResourceError, UserError
from ddpm_lab.utils.ranges import check_ranges

LOG = logging.getLogger(__name__)
BATCH = 64
"""Default batch size, unless there are fewer training samples"""
TIMEOUT = 300
"""Maximum time in seconds for workers to read a batch"""


@check_ranges
class Data:
    """A data set and its serving options."""

    def __init__(
        self,
        splits: Splits,
        *,
        train_count: Annotated[int, Ge(2)] | None = None,
        flip: bool = False,
        batch_size: int | None = None,
        workers: Annotated[int, Ge(0), Le(64)] = 2,
        seed: int = 0,
    ) -> None:
        """Raises ValueError if an option is out of range.

        `train_count` is the number of training samples that are used, evenly spaced (None: all).
        `flip` mirrors half of the training images. `batch_size` counts the samples of a step over
        all processes (None: `BATCH`). `workers` processes read the data that is not in memory.
        """
        self.name, self.train, self.test, captions, self.mixture, self.left_out = splits
        if train_count is not None:
            self.train = _evenly_spaced_part(self.train, train_count)
        size = self.train.size
        batch_size = min(BATCH, size) if batch_size is None else batch_size
        if not 1 <= batch_size <= size:
            raise ValueError(
                f"batch_size must be in 1..{size}, the number of training samples (got "
                f"{batch_size}); try batch_size={min(32, size)}"
            )
        if flip and len(self.shape) != 3:
            raise ValueError("flip mirrors images, but this data set has points; try flip=false")
        self.captions = captions or None
        self.classes = len(captions) if captions else None
        self.flip, self.batch_size, self.workers, self.seed = flip, batch_size, workers, seed

    @property
    def spec(self) -> dict[str, Any]:
        """Properties of the data that a model depends on: the fields of `DataSpec`."""
        return {name: getattr(self, name) for name in DataSpec._fields}

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), or (d,) for points"""
        return self.train.shape

    @property
    def bin_width(self) -> float | None:
        """Distance of neighboring values of x0: 2 / 255 for images; None for points."""
        return 2 / 255 if len(self.shape) == 3 else None


def _evenly_spaced_part(split: Split, count: int) -> Split:
    """Return `count` evenly spaced samples of the training `split`, and log the numbers."""
    size = split.size
    if count > size:
        raise ValueError(
            f"train_count must be in 2..{size}, the number of training samples (got {count}); try "
            "train_count=null"
        )
    LOG.info("train_count=%d: %d of %d training samples, evenly spaced", count, count, size)
    return split.subset(evenly_spaced(size, count))


def dataset(load: Callable[..., Splits]) -> Callable[..., Data]:
    """Decorate a function that loads a data set: it returns a `Data` that serves the set.

    The keyword arguments of `Data` are added to the signature of `load`. Together they are
    the keys of the configuration. Raises ValueError for numbers out of the annotated ranges.
    """
    serving = [p for p in signature(Data).parameters.values() if p.kind is p.KEYWORD_ONLY]
    load = check_ranges(load)

    @wraps(load)
    def serve(*args: Any, **kwargs: Any) -> Data:
        options = {p.name: kwargs.pop(p.name) for p in serving if p.name in kwargs}
        return Data(load(*args, **kwargs), **options)

    parameters = [*signature(load).parameters.values(), *serving]
    vars(serve)["__signature__"] = Signature(parameters, return_annotation=Data)
    return serve


class ValidationBatches:
    """The batches of a split in order. Process `rank` of `world` receives its rows of each."""

    sizes: list[int]
    """Rows of each batch in all processes"""
    rows: list[slice]
    """The rows of this process, which may be none"""

    def __init__(
        self, split: Split, batch_size: int, workers: int, rank: int = 0, world: int = 1
    ) -> None:
        self.split, self.workers = split, workers
        self.indices = torch.arange(split.size).split(batch_size)
        self.sizes = [len(index) for index in self.indices]
        self.rows = [slice(rank * size // world, (rank + 1) * size // world) for size in self.sizes]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        indices = (index[rows] for index, rows in zip(self.indices, self.rows, strict=True))
        return map(to_batch, read_batches(self.split, indices, self.workers))


@dataclass(eq=False)
class TrainBatches:
    """An endless stream of shuffled batches, without the first `done`.

    The order of epoch e is a function of (seed, e). Samples that do not fill a batch are left out
    of the epoch. Process `rank` of `world` receives its share of the rows of each batch. An
    `IterableSplit` cannot resume within an epoch: it starts with the order of epoch `done`.
    """

    split: Split
    batch_size: int
    flip: bool
    seed: int
    _: KW_ONLY
    workers: int = 0
    rank: int = 0
    world: int = 1
    done: int = 0

    @property
    def rows(self) -> int:
        """Samples of a batch that this process receives."""
        return self.batch_size // self.world

    def __iter__(self) -> Iterator[Batch]:
        pairs: Iterator[tuple[InMemorySplit, Tensor]]
        if isinstance(self.split, IterableSplit):
            device = self.split.device
            workers = min(self.workers, self.split.readers(self.world))
            loader = _loader(_StreamReader(self.split, self), None, workers, device)
            pairs = ((_checked(images).to(device), mirror) for images, mirror in loader)
        else:
            ahead, current = tee(self._indices())  # workers read some batches ahead
            samples = read_batches(self.split, (index for index, _ in ahead), self.workers)
            pairs = zip(samples, (mirror for _, mirror in current), strict=False)
        return (self._to_batch(samples, mirror) for samples, mirror in pairs)

    def _indices(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each batch the indices of its samples, and which of them to mirror."""
        size = self.split.size
        first, skip = divmod(self.done, size // self.batch_size)
        for epoch in count(first):
            generator = make_generator(self.seed, epoch)
            order = torch.randperm(size, generator=generator)
            mirror = torch.rand(size, generator=generator) < 0.5
            for start in range(skip * self.batch_size, size - self.batch_size + 1, self.batch_size):
                share = slice(start + self.rank * self.rows, start + (self.rank + 1) * self.rows)
                yield order[share], mirror[share]
            skip = 0

    def _to_batch(self, samples: InMemorySplit, mirror: Tensor) -> Batch:
        batch = to_batch(samples)
        if self.flip:
            x0 = batch["x0"]
            batch["x0"] = torch.where(mirror.to(x0.device)[:, None, None, None], x0.flip(-1), x0)
        return batch


def read_batches(split: Split, indices: Iterable[Tensor], workers: int) -> Iterator[InMemorySplit]:
    """Return the samples at each index (B,) of `indices`; `workers` processes read a `MapSplit`.

    Raises UserError if an image cannot be read.
    """
    if not isinstance(split, MapSplit):
        return (split.select(index.to(split.device)) for index in indices)
    return _read_from_disk(split, indices, workers)


def _read_from_disk(
    split: MapSplit, indices: Iterable[Tensor], workers: int
) -> Iterator[InMemorySplit]:
    """Yield the images at each index (B,) of `indices`. Timeout errors name the pending images."""
    ahead, pending = tee(indices)
    try:
        for batch in _loader(_MapReader(split.to(CPU)), ahead, workers, split.device):
            next(pending)
            yield _checked(batch).to(split.device)
    except RuntimeError as error:
        if "timed out" in str(error):
            files = getattr(split.source, "files", None)
            numbers = split.indices[next(pending)].tolist()[:3]
            late = ", ".join(f"image {i}" if files is None else str(files[i]) for i in numbers)
            message = f"data: nothing was read for {TIMEOUT} s; pending: {late} and others"
            raise HangError(message) from error
        if "exited unexpectedly" in str(error) or "killed by signal" in str(error):
            raise ResourceError(
                f"data: a process that reads images was killed ({str(error).split(';')[0][:100]}), "
                "possibly out of memory; try fewer data.workers"
            ) from error
        raise


def _loader(source: Any, indices: Any, workers: int, device: torch.device) -> DataLoader:
    return DataLoader(
        source,
        sampler=indices,
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),  # the default draws from the global generator
        timeout=TIMEOUT * (workers > 0),
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
    )


def _checked(batch: Images | ValueError) -> Images:
    if isinstance(batch, ValueError):
        raise UserError(f"data: {batch}")
    return batch


@dataclass
class _MapReader(Dataset):
    """Reads batches in a worker process.

    Errors are returned, so that the main process raises them without the worker's traceback.
    """

    split: MapSplit

    def __getitem__(self, index: Tensor) -> Images | ValueError:
        try:
            return self.split.select(index)
        except ValueError as error:
            return ValueError(str(error))


@dataclass
class _StreamReader(IterableDataset):
    """Reads batches in a worker process; a batch may span two epochs."""

    stream: IterableSplit
    batches: TrainBatches

    def __iter__(self) -> Iterator[tuple[Images | ValueError, Tensor]]:
        part, worker = self.batches, get_worker_info()
        generator = make_generator(part.seed, part.rank, worker.id if worker else 0, part.done)
        images = chain.from_iterable(
            self.stream.epoch(part.seed, epoch, part.rank, part.world) for epoch in count(part.done)
        )
        while True:
            mirror = torch.rand(part.rows, generator=generator) < 0.5
            try:
                yield concat(list(islice(images, part.rows))), mirror
            except ValueError as error:
                yield ValueError(str(error)), mirror
