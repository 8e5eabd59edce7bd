"""Pictures and points held in memory, and the Lightning data module that serves them."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ddpm_lab.diffusion.exact import Mixture
from ddpm_lab.diffusion.noise import generator


class Images(NamedTuple):
    """Pictures of one split."""

    pixels: Tensor
    """(N, C, H, W) uint8"""
    labels: Tensor | None
    """(N,) int64"""

    @property
    def x0(self) -> Tensor:
        """(N, C, H, W) float32 in [-1, 1]"""
        return self.pixels.float().div_(127.5).sub_(1)

    def at(self, index: Tensor | slice) -> "Images":
        return Images(self.pixels[index], None if self.labels is None else self.labels[index])

    def to(self, device: torch.device) -> "Images":
        return Images(self.pixels.to(device), None if self.labels is None else self.labels.to(device))


class Points(NamedTuple):
    """Points of one split."""

    x0: Tensor
    """(N, d) float32"""
    labels: Tensor | None
    """(N,) int64"""

    def at(self, index: Tensor | slice) -> "Points":
        return Points(self.x0[index], None if self.labels is None else self.labels[index])

    def to(self, device: torch.device) -> "Points":
        return Points(self.x0.to(device), None if self.labels is None else self.labels.to(device))


Split = Images | Points


def to_bytes(x: Tensor) -> Tensor:
    """[-1, 1] to uint8; what lies outside is cut."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte()


class Data(L.LightningDataModule):
    """A training split and a held-out one, resident (on the device, when training), served by index.

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
        batch_size: int,
        flip: bool = False,
        seed: int = 0,
        mixture: Mixture | None = None,
        captions: Sequence[Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= batch_size <= len(train[0]):
            raise ValueError(f"batch_size must lie in 1..{len(train[0])}, the number of training samples "
                             f"(got {batch_size}); try batch_size={min(32, len(train[0]))}")  # fmt: skip
        self.name, self.train, self.test, self.classes, self.mixture = name, train, test, classes, mixture
        self.batch_size, self.flip, self.seed = batch_size, flip, seed
        self.captions = captions if captions or classes is None else [[str(label)] for label in range(classes)]

    @property
    def spec(self) -> dict[str, Any]:
        """What it dictates to a model, by the names of `Spec`."""
        return {"shape": self.shape, "classes": self.classes, "bin_width": self.bin_width, "captions": self.captions}

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), or (d,)"""
        return tuple(self.train[0].shape[1:])

    @property
    def bin_width(self) -> float | None:
        """That of the bins that x0 is rounded to, 2 / 255 for bytes; None where it is not rounded."""
        return 2 / 255 if isinstance(self.train, Images) else None

    def train_dataloader(self) -> "Batches":
        assert self.trainer is not None  # Lightning attaches itself before it asks
        return Batches(self.train.to(self.trainer.strategy.root_device), self.batch_size, self.flip, self.seed)

    def val_dataloader(self) -> DataLoader:
        batches: Any = [batch(self.test.at(index)) for index in torch.arange(len(self.test[0])).split(self.batch_size)]
        # Lightning takes a bare list for several loaders; a loader without a generator draws from the training stream.
        return DataLoader(batches, batch_size=None, generator=torch.Generator())


def batch(split: Split) -> dict[str, Tensor]:
    """What a model is given: "x0" (B, ...) and, where there are labels, "label" (B,)."""
    return {"x0": split.x0} if split.labels is None else {"x0": split.x0, "label": split.labels}


def rows(batch: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """Those of `index` (B,)."""
    return {name: value[index] for name, value in batch.items()}


def moved(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """On `device`."""
    return {name: value.to(device) for name, value in batch.items()}


class Batches:
    """An endless stream of shuffled batches. Epoch e has the order of seed (seed, e); the few samples that do not fill
    a batch wait for the next epoch's order.
    """

    def __init__(self, split: Split, batch_size: int, flip: bool, seed: int) -> None:
        self.split, self.batch_size, self.flip, self.seed = split, batch_size, flip, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        total, device = len(self.split[0]), self.split[0].device
        for epoch in count():
            stream = generator(self.seed, epoch)
            order = torch.randperm(total, generator=stream)
            coins = torch.rand(total, generator=stream) < 0.5
            for start in range(0, total - self.batch_size + 1, self.batch_size):
                places = slice(start, start + self.batch_size)
                made = batch(self.split.at(order[places].to(device)))
                if self.flip:
                    mirrored = coins[places].to(device)[:, None, None, None]
                    made["x0"] = torch.where(mirrored, made["x0"].flip(-1), made["x0"])
                yield made
