"""Codecs: maps between the data and the space in which diffusion takes place."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_lab.data.datasets import Split, head
from ddpm_lab.diffusion.conditioning import Conditioner, DataSpec
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.networks.autoencoder import Autoencoder
from ddpm_lab.sampling.conditions import format_size
from ddpm_lab.utils.errors import UserError, choice_name
from ddpm_lab.utils.safe_load import sha256_of_tensors

MEASURED = 50_000
"""Maximum number of images, evenly spaced, on which mean and standard deviation are measured"""


class Codec(nn.Module, ABC):
    """A frozen map between the data and the space of diffusion."""

    shape: tuple[int, ...]
    """Shape of x_0, without the batch"""
    bin_width: float | None
    """Bin width of a quantized x_0; None: neither quantized nor bounded"""
    space: str
    """Hash that identifies a latent space; "" for the space of the data"""

    @abstractmethod
    def encode(self, x: Tensor, noise: NoiseSampler = torch.randn_like) -> Tensor:
        """Map data (B, ...) to x_0 (B, *shape). `noise` draws random numbers."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Map x_0 (B, *shape) to data (B, ...)."""

    def measure(self, data: Split) -> None:
        """Adapt to the training data. Raises ValueError if it cannot be used."""


class Pixels(Codec):
    """The identity."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.shape, self.bin_width, self.space = spec.shape, spec.bin_width, ""

    def encode(self, x: Tensor, noise: NoiseSampler = torch.randn_like) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


class Latents(Codec):
    """Latents of a frozen autoencoder, each channel with mean 0 and standard deviation 1.

    Mean and standard deviation are measured on the training split, on at most `MEASURED` images.
    Checkpoints contain them and a hash of the autoencoder, but not its weights. Raises ValueError
    if the autoencoder takes other images, or has changed since the model was trained.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: DataSpec, autoencoder: Autoencoder, origin: str = "") -> None:
        super().__init__()
        if spec.shape != autoencoder.shape:
            raise ValueError(
                f"run={origin} was trained on data of shape {autoencoder.shape}, but this data "
                f"has shape {spec.shape}; they must agree"
            )
        self.shape, self.bin_width, self.origin = autoencoder.latent_shape, None, origin
        self.space = sha256_of_tensors(autoencoder.state_dict())
        # A list keeps it out of checkpoints.
        self._frozen = [autoencoder.requires_grad_(False).eval()]
        self.register_buffer("mean", torch.zeros(self.shape[0]))
        self.register_buffer("std", torch.ones(self.shape[0]))

    def encode(self, x: Tensor, noise: NoiseSampler = torch.randn_like) -> Tensor:
        # Latents are training targets, hence full precision.
        with torch.autocast(x.device.type, enabled=False):
            z = self._autoencoder(x.device).encode(x.float(), noise).z
        return (z - self.mean[:, None, None]) / self.std[:, None, None]

    def decode(self, z: Tensor) -> Tensor:
        latents = z * self.std[:, None, None] + self.mean[:, None, None]
        return self._autoencoder(z.device).decode(latents)

    @torch.no_grad()
    def measure(self, data: Split) -> None:
        data = head(data)
        self.mean.zero_(), self.std.fill_(1)
        index = torch.arange(0, data.size, math.ceil(data.size / MEASURED)).split(500)
        sums = torch.zeros(2, self.shape[0], dtype=torch.float64)
        for batch in tqdm(index, desc="measuring latents", unit="batch", disable=None, leave=False):
            z = self.encode(data.select(batch).x0.to(self.mean.device)).cpu().double()
            sums += torch.stack([z.sum((0, 2, 3)), z.square().sum((0, 2, 3))])
        mean, square = sums / (sum(map(len, index)) * self.shape[1] * self.shape[2])
        std = (square - mean.square()).sqrt()
        if not (std > 0).all():  # also false for NaN
            values = [round(value, 6) for value in std.tolist()]
            raise ValueError(
                f"run={self.origin}: the channels of its latents have standard deviations "
                f"{values}; train it for longer, or again"
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
                f"run={self.origin} has changed since this model was trained on its latents; train "
                "again, or restore the autoencoder"
            )


def check_conditioner(
    network: Callable[..., nn.Module], conditioner: Conditioner, codec: Codec
) -> None:
    """Raise UserError unless `network` takes the inputs of `conditioner`."""
    parameters = inspect.signature(network).parameters
    name, inputs = choice_name(conditioner), conditioner.cond_dims.keys()
    if "outputs" not in parameters:
        raise UserError(
            "model is not a denoising network; classifier is for system=classifier, "
            "autoencoder_kl and autoencoder_vq for system=autoencoder"
        )
    if missing := inputs - parameters.keys():
        model = "unet_cross" if "context" in missing else "unet"
        hint = f"model={model}" if len(codec.shape) == 3 else "conditioner=label"
        raise UserError(
            f"conditioner={name} needs the network input {' and '.join(missing)}, which this model "
            f"does not have; try {hint}"
        )
    if "image" in inputs and codec.space:
        raise UserError(
            f"conditioner={name} concatenates an image of the data's size with x_t, but with "
            f"codec={choice_name(codec)} x_t is {format_size(codec.shape)}; try codec=pixels"
        )
