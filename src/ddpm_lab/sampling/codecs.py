"""Codecs: between data and where diffusion happens. Built with what the data dictates, a `Spec`."""

import hashlib
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_lab.conditioners.base import DataSpec
from ddpm_lab.data.datasets import Split, head
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.networks.autoencoder import Autoencoder

MEASURED = 50_000
"""How many images, evenly over all, latents are measured on"""


class Codec(nn.Module, ABC):
    """It learns nothing while diffusion is trained."""

    shape: tuple[int, ...]
    """Of what diffusion sees, without the batch"""
    bin_width: float | None
    """That of the bins that it is rounded to; None where it is not rounded, and has no bounds"""
    space: str
    """What tells spaces of latents apart; "" for that of the data"""

    @abstractmethod
    def encode(self, x: Tensor, noise: NoiseSampler = torch.randn_like) -> Tensor:
        """Data, (B, ...) -> (B, *shape). `noise` decides what is left to chance."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """(B, *shape) -> data, (B, ...)"""

    def measure(self, data: Split) -> None:
        """Whatever depends on the data that will be trained on. Raises ValueError where it cannot be used."""


class Pixels(Codec):
    """The data itself."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.shape, self.bin_width, self.space = spec.shape, spec.bin_width, ""

    def encode(self, x: Tensor, noise: NoiseSampler = torch.randn_like) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


class Latents(Codec):
    """Those of a frozen autoencoder, each channel with mean 0 and standard deviation 1 over the training split (of more
    than `MEASURED` images, over as many).

    Mean and standard deviation are kept in the run; the autoencoder is not, but its fingerprint is. Raises ValueError
    for an autoencoder of other images and, when a run is read whose autoencoder has changed since, for that.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: DataSpec, autoencoder: Autoencoder, origin: str = "") -> None:
        super().__init__()
        if spec.shape != autoencoder.shape:
            raise ValueError(
                f"run={origin} was trained on data of shape {autoencoder.shape}, and this data has "
                f"{spec.shape}; they must agree"
            )
        self.shape, self.bin_width, self.origin = autoencoder.latent_shape, None, origin
        self.space = _fingerprint(autoencoder)
        self._frozen = [
            autoencoder.requires_grad_(False).eval()
        ]  # in a list, so that it is in no checkpoint
        self.register_buffer("mean", torch.zeros(self.shape[0]))
        self.register_buffer("std", torch.ones(self.shape[0]))

    def encode(self, x: Tensor, noise: NoiseSampler = torch.randn_like) -> Tensor:
        with torch.autocast(
            x.device.type, enabled=False
        ):  # they are what is learned: not in half the precision
            z = self._autoencoder(x.device).encode(x.float(), noise).z
        return (z - self.mean[:, None, None]) / self.std[:, None, None]

    def decode(self, z: Tensor) -> Tensor:
        return self._autoencoder(z.device).decode(
            z * self.std[:, None, None] + self.mean[:, None, None]
        )

    @torch.no_grad()
    def measure(self, data: Split) -> None:
        data = head(data)
        self.mean.zero_(), self.std.fill_(1)
        index = torch.arange(0, data.size, math.ceil(data.size / MEASURED)).split(500)
        sums = torch.zeros(2, self.shape[0], dtype=torch.float64)
        for some in tqdm(index, desc="measuring latents", unit="batch", disable=None, leave=False):
            z = self.encode(data.select(some).x0.to(self.mean.device)).cpu().double()
            sums += torch.stack([z.sum((0, 2, 3)), z.square().sum((0, 2, 3))])
        mean, square = sums / (sum(map(len, index)) * self.shape[1] * self.shape[2])
        std = (square - mean.square()).sqrt()
        if not (std > 0).all():  # nor is it where a latent is not a number
            found = [round(value, 6) for value in std.tolist()]
            raise ValueError(
                f"run={self.origin} makes latents whose channels have standard deviations {found}; train "
                "it for longer, or anew"
            )
        self.mean.copy_(mean), self.std.copy_(std)

    def _autoencoder(self, device: torch.device) -> Autoencoder:
        (frozen,) = self._frozen
        return frozen.to(device)

    def get_extra_state(self) -> dict[str, Any]:
        return {"autoencoder": self.space}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["autoencoder"] != self.space:
            raise ValueError(
                f"run={self.origin} has changed since this model was trained in its latents; train again, "
                "or bring back what was there"
            )


def _fingerprint(autoencoder: Autoencoder) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(autoencoder.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()
