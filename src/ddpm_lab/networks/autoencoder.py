"""Image autoencoders for latent diffusion (Rombach et al., 2022, section 3.1)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import NoiseSampler
from ddpm_lab.networks.layers import (
    Attention,
    BlockConditioning,
    Down,
    Norm,
    ResBlock,
    Stack,
    Up,
    group_norm,
    level_shapes,
    level_widths,
)
from ddpm_lab.utils.ranges import Count, NonNegative, Positive, check_ranges

NO_CONDITIONING = BlockConditioning()


class BottleneckOutput(NamedTuple):
    z: Tensor
    """(B, latent, h, w)"""
    penalty: Tensor
    """(B,), term of the loss, summed over z"""
    codes: Tensor | None = None
    """(B, h, w) int64, indices into the codebook; None without one"""


class Bottleneck(nn.Module, ABC):
    """Map from the encoder's output to latents, and from latents to the decoder's input."""

    latent: int
    """Channels of z"""
    inputs: int
    """Channels of the encoder's output"""
    codes: int | None = None
    """Size of the codebook; None without one"""

    @abstractmethod
    def forward(self, h: Tensor, noise: NoiseSampler = torch.randn_like) -> BottleneckOutput:
        """Return latents of `h` (B, inputs, h, w). `noise` draws the random numbers."""

    def restore(self, z: Tensor) -> Tensor:
        """Return the decoder's input for `z`, (B, latent, h, w) -> (B, latent, h, w)."""
        return z


@check_ranges
class KL(Bottleneck):
    """Normal distribution, with `weight` times its KL divergence to N(0, 1) as penalty.

    Source: Kingma & Welling, 2014.
    """

    def __init__(self, latent: Count = 4, weight: NonNegative = 1e-6) -> None:
        super().__init__()
        self.latent, self.inputs, self.weight = latent, 2 * latent, weight

    def forward(self, h: Tensor, noise: NoiseSampler = torch.randn_like) -> BottleneckOutput:
        mean, log_var = h.chunk(2, dim=1)
        log_var = log_var.clamp(-30, 20)
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1)
        return BottleneckOutput(mean + (0.5 * log_var).exp() * noise(mean), self.weight * kl)


@check_ranges
class VQ(Bottleneck):
    """Vector quantization (van den Oord et al., 2017, eq. 3).

    z is the vector before quantization, so that small errors of the diffusion model vanish.

    Args:
        codes: Size of the codebook.
        commitment: Weight of the commitment loss, relative to the codebook loss.
        weight: Weight of both.
    """

    codes: int

    def __init__(
        self,
        latent: Count = 4,
        codes: Count = 256,
        commitment: NonNegative = 0.25,
        weight: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.latent, self.inputs, self.codes = latent, latent, codes
        self.commitment, self.weight = commitment, weight
        self.codebook = nn.Parameter(torch.randn(codes, latent))

    def forward(self, h: Tensor, noise: NoiseSampler = torch.randn_like) -> BottleneckOutput:
        codes, nearest = self.quantize(h)
        codebook_loss = (nearest - h.detach()).square()
        penalty = codebook_loss + self.commitment * (h - nearest.detach()).square()
        return BottleneckOutput(h, self.weight * penalty.flatten(1).sum(1), codes)

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest codes, (B, h, w), and their vectors, (B, latent, h, w)."""
        distances = torch.cdist(z.movedim(1, -1).flatten(0, 2), self.codebook)
        codes = distances.argmin(1).view(len(z), *z.shape[2:])
        return codes, F.embedding(codes, self.codebook).movedim(-1, 1)

    def restore(self, z: Tensor) -> Tensor:
        _, nearest = self.quantize(z)
        return z + (nearest - z).detach()  # straight-through gradient


@check_ranges
class Autoencoder(nn.Module):
    """(B, C, H, W) <-> (B, latent, H / f, W / f), f = 2^(len(multipliers) - 1).

    The data determines `shape` (C, H, W). Raises ValueError for incompatible sizes.

    Args:
        channels: Channels of the first level, for a multiplier of 1.
        multipliers: Factors on `channels`, one per level. Each level halves the resolution.
        blocks: Residual blocks per level of the encoder; the decoder has one more.
        heads: Attention heads at the coarsest level.
        attention: Resolutions (H) whose blocks are followed by attention, besides the middle.
        middle_attention: Attention between the two blocks in the middle.
        latent_conv: A 1x1 convolution of the latents before the decoder (Rombach et al., 2022).
        norm_groups, norm_eps: See `UNetBase`.
        downsample_padding: See `Down`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        bottleneck: Bottleneck,
        channels: Count = 32,
        multipliers: Sequence[float] = (1, 2),
        blocks: Count = 1,
        heads: Count = 1,
        attention: Sequence[int] = (),
        middle_attention: bool = True,
        latent_conv: bool = False,
        norm_groups: Count | None = None,
        norm_eps: Positive = 1e-5,
        downsample_padding: Literal[0, 1] = 1,
    ) -> None:
        super().__init__()
        widths, shapes = level_widths(channels, multipliers), level_shapes(shape, multipliers)
        self.shape, self.latent_shape = shape, (bottleneck.latent, *shapes[-1])
        if widths[-1] % heads:
            raise ValueError(
                f"heads={heads} must divide the {widths[-1]} channels of the coarsest level; "
                "try heads=1"
            )
        resolutions = [height for height, _ in shapes]
        if absent := {*attention} - {*resolutions}:
            raise ValueError(
                f"attention={list(attention)}: resolution {min(absent)} does not occur; the levels "
                f"have {resolutions}; try attention=[]"
            )
        coarse, norm = widths[-1], partial(group_norm, groups=norm_groups, eps=norm_eps)
        layers = _Layers(heads, norm)
        levels = list(zip(widths, [height in attention for height in resolutions], strict=True))
        middle = (coarse, middle_attention)
        down = partial(Down, padding=downsample_padding)
        self.encoder = Stack([*layers.levels(levels, blocks, down), *layers.middle(*middle)])
        up = layers.levels(levels[::-1], blocks + 1, Up)
        self.decoder = Stack([*layers.middle(*middle), *up])
        self.first = _conv(shape[0], widths[0])
        quant_conv = _conv(coarse, bottleneck.inputs)
        self.quant_conv = nn.Sequential(norm(coarse), nn.SiLU(), quant_conv)
        latent = bottleneck.latent
        self.latent_conv = nn.Conv2d(latent, latent, 1) if latent_conv else nn.Identity()
        self.bottleneck, self.post_quant_conv = bottleneck, _conv(latent, coarse)
        self.end, self.last = nn.Sequential(norm(widths[0]), nn.SiLU()), _conv(widths[0], shape[0])

    def encode(self, x: Tensor, noise: NoiseSampler = torch.randn_like) -> BottleneckOutput:
        """Return the latents of images in [-1, 1]. `noise` draws the random numbers."""
        h = self.quant_conv(self.encoder(self.first(x), NO_CONDITIONING))
        output: BottleneckOutput = self.bottleneck(h, noise)
        return output

    def decode(self, z: Tensor) -> Tensor:
        """Return images, approximately in [-1, 1], (B, latent, h, w) -> (B, C, H, W)."""
        latents = self.latent_conv(self.bottleneck.restore(z))
        h = self.decoder(self.post_quant_conv(latents), NO_CONDITIONING)
        return self.last(self.end(h))


class PatchDiscriminator(nn.Module):
    """(B, C, H, W) -> (B, 1, h, w), positive for real patches (Isola et al., 2017)."""

    def __init__(self, in_channels: int, channels: int, halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [in_channels, *(channels * 2**i for i in range(halvings))]
        for i, (width, out) in enumerate(pairwise(widths)):
            conv = nn.Conv2d(width, out, 4, stride=2, padding=1)
            layers += [conv, *([group_norm(out)] if i else []), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, _conv(widths[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class _Layers(NamedTuple):
    """Layers of an autoencoder with these options."""

    heads: int
    norm: Norm

    def levels(
        self,
        levels: Sequence[tuple[int, bool]],
        blocks: int,
        resample: Callable[[int], nn.Module],
    ) -> list[nn.Module]:
        """Return `blocks` residual blocks per level, and a layer that resamples between levels.

        `levels` has the channels, and whether attention follows each block.
        """
        layers: list[nn.Module] = []
        width, _ = levels[0]
        for i, (out, attention) in enumerate(levels):
            if i:
                layers.append(resample(width))
            for _ in range(blocks):
                layers.append(self._block(width, out))
                layers += [Attention(out, self.heads, self.norm)] if attention else []
                width = out
        return layers

    def middle(self, width: int, attention: bool) -> list[nn.Module]:
        layers = [Attention(width, self.heads, self.norm)] if attention else []
        return [self._block(width, width), *layers, self._block(width, width)]

    def _block(self, channels: int, out: int) -> ResBlock:
        return ResBlock(channels, out, emb=None, dropout=0.0, norm=self.norm)


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)
