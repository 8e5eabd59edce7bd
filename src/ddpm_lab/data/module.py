"""The Lightning data module, and the endless stream of batches that training sees."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, islice, tee
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ddpm_lab.data.datasets import (
    Images,
    InMemorySplit,
    IterableSplit,
    MapSplit,
    Split,
    concat,
    to_batch,
)
from ddpm_lab.diffusion.analytic_denoisers import Mixture
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.utils.errors import HangError, ResourceError, UserError

BATCH = 64
"""Samples in a batch unless `batch_size` is given, or there are fewer"""
TIMEOUT = 300
"""Seconds that a batch may take to be read"""


class DataModule(L.LightningDataModule):
    """A training split and a held-out one, served by index: what is in memory is so on the device that trains; what is
    streamed is read by `workers` processes.

    `batch_size` is that of a step over all processes that train (None: `BATCH`, or all samples where they are fewer).
    `captions` are what each class is called (None: by its number); `mixture` is the law of the data, where it is known.
    Raises ValueError where `batch_size` does not fit.
    """

    def __init__(
        self,
        name: str,
        train: Split,
        test: Split,
        *,
        classes: int | None,
        batch_size: int | None,
        flip: bool = False,
        seed: int = 0,
        workers: int = 2,
        mixture: Mixture | None = None,
        captions: Sequence[Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        batch_size = min(BATCH, train.size) if batch_size is None else batch_size
        if not 1 <= batch_size <= train.size:
            raise ValueError(
                f"batch_size must lie in 1..{train.size}, the number of training samples "
                f"(got {batch_size}); try batch_size={min(32, train.size)}"
            )
        if not 0 <= workers <= 64:
            raise ValueError(
                f"workers are processes that read images, 0 to 64 (got {workers}); try 2"
            )
        self.name, self.train, self.test, self.classes, self.mixture = (
            name,
            train,
            test,
            classes,
            mixture,
        )
        self.batch_size, self.flip, self.seed, self.workers = batch_size, flip, seed, workers
        self.captions = (
            None if classes is None else captions or [[str(label)] for label in range(classes)]
        )

    @property
    def spec(self) -> dict[str, Any]:
        """What it dictates to a model, by the names of `Spec`."""
        return {
            "shape": self.shape,
            "classes": self.classes,
            "bin_width": self.bin_width,
            "captions": self.captions,
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), or (d,)"""
        return self.train.shape

    @property
    def bin_width(self) -> float | None:
        """That of the bins that x0 is rounded to, 2 / 255 for bytes; None where it is not rounded."""
        return 2 / 255 if isinstance(self.train, Images | MapSplit | IterableSplit) else None

    def train_dataloader(self) -> "TrainBatches":
        trainer = self.trainer
        assert trainer is not None  # Lightning attaches itself before it asks
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return TrainBatches(
            self.train.to(trainer.strategy.root_device),
            self.batch_size,
            self.flip,
            self.seed,
            workers=self.workers,
            rank=trainer.global_rank,
            world=trainer.world_size,
            done=done,
        )

    def val_dataloader(self) -> "ValidationBatches":
        return ValidationBatches(self.test, self.batch_size, self.workers)


class ValidationBatches:
    """A split in order, each batch whole on every process, which looks at rows of its own."""

    def __init__(self, split: Split, batch_size: int, workers: int) -> None:
        self.split, self.index, self.workers = (
            split,
            torch.arange(split.size).split(batch_size),
            workers,
        )

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return map(to_batch, read_batches(self.split, self.index, self.workers))


class TrainBatches:
    """An endless stream of shuffled batches. Epoch e has the order of seed (seed, e); the few samples that do not fill
    a batch wait for the next epoch's order. Of each batch, process `rank` of `world` has its share of rows, in order.

    The first `done` batches are left out. A stream cannot be entered where it was left: it begins a new shuffle then,
    as epoch `done`.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        flip: bool,
        seed: int,
        *,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        done: int = 0,
    ) -> None:
        self.split, self.batch_size, self.flip, self.seed = split, batch_size, flip, seed
        self.workers, self.rank, self.world, self.done = workers, rank, world, done

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        pairs: Iterator[tuple[InMemorySplit, Tensor]]
        if isinstance(self.split, IterableSplit):
            workers = min(self.workers, self.split.stream.readers(self.world))
            device = self.split.device
            loader = _loader(_Flows(self.split, self), None, workers, device)
            pairs = ((_whole(held).to(device), coins) for held, coins in loader)
        else:
            ahead, now = tee(self._chosen())  # what is read is chosen some batches ahead
            pairs = zip(
                read_batches(self.split, (index for index, _ in ahead), self.workers),
                (coins for _, coins in now),
                strict=False,
            )
        return (self._made(held, coins) for held, coins in pairs)

    def _chosen(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The numbers of the samples of each batch of this process, and which of them are mirrored."""
        mine, size = self.batch_size // self.world, self.split.size
        first, skipped = divmod(self.done, size // self.batch_size)
        for epoch in count(first):
            stream = make_generator(self.seed, epoch)
            order = torch.randperm(size, generator=stream)
            coins = torch.rand(size, generator=stream) < 0.5
            for start in range(
                skipped * self.batch_size, size - self.batch_size + 1, self.batch_size
            ):
                places = slice(start + self.rank * mine, start + (self.rank + 1) * mine)
                yield order[places], coins[places]
            skipped = 0

    def _made(self, held: InMemorySplit, coins: Tensor) -> dict[str, Tensor]:
        made = to_batch(held)
        if self.flip:
            mirrored = coins.to(made["x0"].device)[:, None, None, None]
            made["x0"] = torch.where(mirrored, made["x0"].flip(-1), made["x0"])
        return made


def read_batches(split: Split, indices: Iterable[Tensor], workers: int) -> Iterator[InMemorySplit]:
    """What is at each index (B,) of `chosen`; what is streamed, by `workers` processes, and in the same order. Raises
    UserError where a image cannot be read.
    """
    if isinstance(split, MapSplit):
        waiting: deque[Tensor] = deque()

        def asked() -> Iterator[Tensor]:
            for index in indices:
                waiting.append(index)
                yield index

        loader = _loader(_Reads(split.to(torch.device("cpu"))), asked(), workers, split.device)
        return (_whole(held).to(split.device) for held in _awaited(loader, split, waiting))
    device = split.device if isinstance(split, IterableSplit) else split[0].device
    return (split.select(index.to(device)) for index in indices)


def _awaited(
    loader: DataLoader, split: MapSplit, waiting: "deque[Tensor]"
) -> Iterator[Images | str]:
    """What `loader` reads, of which the batches `waiting` were asked for."""
    try:
        for read_batches in loader:
            waiting.popleft()
            yield read_batches
    except RuntimeError as error:
        if "timed out" in str(error):
            files = getattr(split.source, "files", None)
            late = [
                str(files[i]) if isinstance(files, list) else f"image {i}"
                for i in split.indices[waiting[0]].tolist()[:3]
            ]
            raise HangError(
                f"data: nothing was read for {TIMEOUT} s; awaited are {', '.join(late)} and others"
            ) from error
        if "exited unexpectedly" in str(error) or "killed by signal" in str(error):
            raise ResourceError(
                f"data: a process that reads images was killed ({str(error).split(';')[0][:100]}), maybe "
                "for lack of memory; try fewer data.workers"
            ) from error
        raise


def _loader(source: Any, indices: Any, workers: int, device: torch.device) -> DataLoader:
    # A loader without a generator draws from the training stream.
    return DataLoader(
        source,
        sampler=indices,
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),
        timeout=TIMEOUT * (workers > 0),
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
    )


def _whole(read_batches: Images | str) -> Images:
    if isinstance(read_batches, str):
        raise UserError(f"data: {read_batches}")
    return read_batches


class _Reads(Dataset):
    """What worker processes do."""

    def __init__(self, split: MapSplit) -> None:
        self.split = split

    def __getitem__(self, index: Tensor) -> Images | str:
        try:
            return self.split.select(index)
        except (
            ValueError
        ) as error:  # told by the process that asked, without the tracebacks of both
            return str(error)


class _Flows(IterableDataset):
    """What worker processes do with a stream: epochs follow one another, and a batch may have the end of one and the
    start of the next.
    """

    def __init__(self, split: IterableSplit, asked: TrainBatches) -> None:
        self.stream, self.seed, self.rank, self.world = (
            split.stream,
            asked.seed,
            asked.rank,
            asked.world,
        )
        self.rows, self.first = asked.batch_size // asked.world, asked.done

    def __iter__(self) -> Iterator[tuple[Images | str, Tensor]]:
        worker = get_worker_info()
        stream = make_generator(self.seed, self.rank, worker.id if worker else 0, self.first)
        epochs = (
            self.stream.epoch(self.seed, epoch, self.rank, self.world)
            for epoch in count(self.first)
        )
        images = chain.from_iterable(epochs)
        while True:
            coins = torch.rand(self.rows, generator=stream) < 0.5
            try:
                yield concat(list(islice(images, self.rows))), coins
            except ValueError as error:
                yield str(error), coins
