"""Autoencoders of images, whose latents diffusion can work in (Rombach et al., 2022, section 3.1)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import NoiseSampler
from ddpm_lab.networks.layers import Attention, BlockConditioning, Down, ResBlock, Stack, Up, norm


class PatchDiscriminator(nn.Module):
    """(B, C, H, W) -> (B, 1, h, w), above 0 where a patch looks real (Isola et al., 2017)."""

    def __init__(self, in_channels: int, channels: int, halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for _ in range(halvings - 1):
            layers += [
                nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
                norm(2 * channels),
                nn.LeakyReLU(0.2),
            ]
            channels *= 2
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


NO_CONDITIONING = BlockConditioning()


class BottleneckOutput(NamedTuple):
    """What a bottleneck lets through."""

    z: Tensor
    """(B, latent, h, w)"""
    penalty: Tensor
    """(B,), what it adds to the loss, summed over z"""
    codes: Tensor | None = None
    """(B, h, w) int64, which of a codebook's vectors"""


class Bottleneck(nn.Module, ABC):
    """What stands between encoder and decoder."""

    latent: int
    """Channels of z"""
    inputs: int
    """Channels that it wants of the encoder"""
    codes: int | None = None
    """How many vectors its codebook has; None: it has none"""

    @abstractmethod
    def forward(self, h: Tensor, noise: NoiseSampler = torch.randn_like) -> BottleneckOutput:
        """(B, inputs, h, w). `noise` decides what is left to chance."""

    def restore(self, z: Tensor) -> Tensor:
        """(B, latent, h, w), what the decoder is given of `z`."""
        return z


class KL(Bottleneck):
    """A normal distribution, held near the standard one by `weight` times the divergence (Kingma & Welling, 2014)."""

    def __init__(self, latent: int = 4, weight: float = 1e-6) -> None:
        super().__init__()
        _positive(latent=latent)
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be at least 0 (got {weight:g})")
        self.latent, self.inputs, self.weight = latent, 2 * latent, weight

    def forward(self, h: Tensor, noise: NoiseSampler = torch.randn_like) -> BottleneckOutput:
        mean, log_var = h.chunk(2, dim=1)
        log_var = log_var.clamp(-30, 20)
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1)
        return BottleneckOutput(mean + (0.5 * log_var).exp() * noise(mean), self.weight * kl)


class VQ(Bottleneck):
    """The nearest of `codes` learned vectors at each place (van den Oord et al., 2017, eq. 3). `weight` is that of what
    draws the vectors to the encoder, `commitment` times it that of what holds the encoder to them. z is what comes
    before the quantisation, so that diffusion may err without harm.
    """

    codes: int

    def __init__(
        self, latent: int = 4, codes: int = 256, commitment: float = 0.25, weight: float = 1.0
    ) -> None:
        super().__init__()
        _positive(latent=latent, codes=codes)
        for name, value in {"commitment": commitment, "weight": weight}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0 (got {value:g})")
        self.latent, self.inputs, self.codes = latent, latent, codes
        self.commitment, self.weight, self.codebook = (
            commitment,
            weight,
            nn.Parameter(torch.randn(codes, latent)),
        )

    def forward(self, h: Tensor, noise: NoiseSampler = torch.randn_like) -> BottleneckOutput:
        codes, nearest = self.quantise(h)
        penalty = (nearest - h.detach()).square() + self.commitment * (
            h - nearest.detach()
        ).square()
        return BottleneckOutput(h, self.weight * penalty.flatten(1).sum(1), codes)

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w), and the vectors themselves, (B, latent, h, w)."""
        codes = (
            torch.cdist(z.movedim(1, -1).flatten(0, 2), self.codebook)
            .argmin(1)
            .view(len(z), *z.shape[2:])
        )
        return codes, F.embedding(codes, self.codebook).movedim(-1, 1)

    def restore(self, z: Tensor) -> Tensor:
        _, nearest = self.quantise(z)
        return z + (nearest - z).detach()  # gradients pass as if nothing had happened


class Autoencoder(nn.Module):
    """(B, C, H, W) <-> (B, latent, H / f, W / f), f = 2^(len(multipliers) - 1).

    Level i has `channels * multipliers[i]` channels and `blocks` residual blocks (one more on the way back); the
    coarsest has attention. `shape` (C, H, W) comes from the data. Raises ValueError where it cannot be halved so often.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        bottleneck: Bottleneck,
        channels: int = 32,
        multipliers: Sequence[float] = (1, 2),
        blocks: int = 1,
        heads: int = 1,
    ) -> None:
        super().__init__()
        _positive(channels=channels, blocks=blocks, heads=heads)
        if len(shape) != 3:
            raise ValueError(f"shape of the data must be that of images, (C, H, W) (got {shape})")
        if not multipliers or min(multipliers) <= 0:
            raise ValueError(
                f"multipliers must hold one or more numbers above 0 (got {list(multipliers)})"
            )
        factor = 2 ** (len(multipliers) - 1)
        if any(size % factor for size in shape[1:]):
            raise ValueError(
                f"multipliers={list(multipliers)} makes latents {factor} times smaller, and "
                f"{shape[1]}x{shape[2]} cannot be; try fewer multipliers"
            )
        widths = [int(channels * multiplier) for multiplier in multipliers]
        if min(widths) < 1:
            raise ValueError(
                f"multipliers={list(multipliers)} of {channels} channels leave a level without any"
            )
        if widths[-1] % heads:
            raise ValueError(
                f"heads={heads} must divide the {widths[-1]} channels of the coarsest level; try heads=1"
            )
        self.shape, self.latent_shape = (
            shape,
            (bottleneck.latent, shape[1] // factor, shape[2] // factor),
        )

        def middle() -> list[nn.Module]:
            width = widths[-1]
            return [_block(width, width), Attention(width, heads), _block(width, width)]

        layers: list[nn.Module] = []
        width = widths[0]
        for i, out in enumerate(widths):
            for _ in range(blocks):
                layers.append(_block(width, out))
                width = out
            if i < len(widths) - 1:
                layers.append(Down(width))
        self.encoder = Stack([*layers, *middle()])
        layers = middle()
        for i, out in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                layers.append(_block(width, out))
                width = out
            if i:
                layers.append(Up(width))
        self.decoder = Stack(layers)
        self.first = _conv(shape[0], widths[0])
        self.quant_conv = nn.Sequential(
            norm(widths[-1]), nn.SiLU(), _conv(widths[-1], bottleneck.inputs)
        )
        self.bottleneck, self.post_quant_conv = bottleneck, _conv(bottleneck.latent, widths[-1])
        self.end, self.last = nn.Sequential(norm(widths[0]), nn.SiLU()), _conv(widths[0], shape[0])

    def encode(self, x: Tensor, noise: NoiseSampler = torch.randn_like) -> BottleneckOutput:
        """Images in [-1, 1]. `noise` decides what is left to chance."""
        passed: BottleneckOutput = self.bottleneck(
            self.quant_conv(self.encoder(self.first(x), NO_CONDITIONING)), noise
        )
        return passed

    def decode(self, z: Tensor) -> Tensor:
        """(B, latent, h, w) -> (B, C, H, W), about [-1, 1]"""
        h = self.decoder(self.post_quant_conv(self.bottleneck.restore(z)), NO_CONDITIONING)
        return self.last(self.end(h))


def _positive(**numbers: int) -> None:
    for name, count in numbers.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1 (got {count})")


def _block(in_channels: int, out: int) -> ResBlock:
    return ResBlock(in_channels, out, None, 0.0)


def _conv(in_channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out, 3, padding=1)
