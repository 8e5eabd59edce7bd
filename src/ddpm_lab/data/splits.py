"""Pictures held in memory as uint8, and the Lightning data module that serves them."""

from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ddpm_lab.diffusion.noise import generator


class Images(NamedTuple):
    """One split."""

    pixels: Tensor
    """(N, C, H, W) uint8"""
    labels: Tensor | None
    """(N,) int64"""

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """The pictures at `index`, (B,): "image" (B, C, H, W) in [-1, 1] and, where there are labels, "label" (B,)."""
        batch = {"image": self.pixels[index].float().div_(127.5).sub_(1)}
        return batch if self.labels is None else batch | {"label": self.labels[index]}

    def to(self, device: torch.device) -> "Images":
        return Images(self.pixels.to(device), None if self.labels is None else self.labels.to(device))


class ImageData(L.LightningDataModule):
    """A training split and a held-out one, resident (on the device, when training), served by index.

    Raises ValueError where `batch_size` does not fit.
    """

    def __init__(
        self,
        name: str,
        train: Images,
        test: Images,
        *,
        classes: int | None,
        batch_size: int,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 1 <= batch_size <= len(train.pixels):
            raise ValueError(f"batch_size must lie in 1..{len(train.pixels)}, the number of training pictures "
                             f"(got {batch_size})")  # fmt: skip
        self.name, self.train, self.test, self.classes = name, train, test, classes
        self.batch_size, self.flip, self.seed = batch_size, flip, seed

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width

    def train_dataloader(self) -> "Batches":
        assert self.trainer is not None  # Lightning attaches itself before it asks
        return Batches(self.train.to(self.trainer.strategy.root_device), self.batch_size, self.flip, self.seed)

    def val_dataloader(self) -> DataLoader:
        batches: Any = [self.test.batch(index) for index in torch.arange(len(self.test.pixels)).split(self.batch_size)]
        # Lightning takes a bare list for several loaders; a loader without a generator draws from the training stream.
        return DataLoader(batches, batch_size=None, generator=torch.Generator())


class Batches:
    """An endless stream of shuffled batches. Epoch e has the order of seed (seed, e); the few pictures that do not fill
    a batch wait for the next epoch's order.
    """

    def __init__(self, images: Images, batch_size: int, flip: bool, seed: int) -> None:
        self.images, self.batch_size, self.flip, self.seed = images, batch_size, flip, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        total, device = len(self.images.pixels), self.images.pixels.device
        for epoch in count():
            stream = generator(self.seed, epoch)
            order = torch.randperm(total, generator=stream)
            coins = torch.rand(total, generator=stream) < 0.5
            for start in range(0, total - self.batch_size + 1, self.batch_size):
                places = slice(start, start + self.batch_size)
                batch = self.images.batch(order[places].to(device))
                if self.flip:
                    mirrored = coins[places].to(device)[:, None, None, None]
                    batch["image"] = torch.where(mirrored, batch["image"].flip(-1), batch["image"])
                yield batch
