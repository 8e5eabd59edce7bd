"""The U-Net's parts. Every layer takes (x, told), so that they stack."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition


class BlockConditioning(NamedTuple):
    """What all layers are told beside x."""

    emb: Tensor | None = None
    """(B, E), the activated embedding of the time and of what joins it"""
    context: Tensor | None = None
    """(B, M, D), tokens to attend to"""


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm in up to 32 groups, a power of two, of at least 4 channels."""
    groups = math.gcd(32, channels)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return nn.GroupNorm(groups, channels)


def zero_module(module: nn.Module) -> nn.Module:
    """With all parameters 0, so that a residual branch starts as nothing (Ho et al., 2020, appendix B)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class SinusoidalEmbedding(nn.Module):
    """Sinusoidal embedding of a number on a scale of 1000 (Vaswani et al., 2017)."""

    frequencies: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        frequencies = torch.exp(-math.log(10000) * torch.arange(channels // 2) / (channels // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, channels)"""
        angles = t[:, None].to(self.frequencies.dtype) * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class LabelEmbedding(nn.Module):
    """What a class says to the time embedding; where there is none, or it was dropped, a learned null says it."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.table, self.null = nn.Embedding(classes, channels), nn.Parameter(torch.zeros(channels))

    def forward(self, cond: Condition, size: int) -> Tensor:
        """(size, channels)"""
        if cond.label is None:
            return self.null.expand(size, -1)
        given = self.table(cond.label)
        return (
            given if cond.dropped is None else torch.where(cond.dropped[:, None], self.null, given)
        )


class CrossAttentionContext(nn.Module):
    """Tokens as the layers hear them; where there are none, or they were dropped, all are one learned null."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, cond: Condition, size: int) -> Tensor:
        """(size, M, width)"""
        if cond.context is None:
            return self.null.expand(size, 1, -1)
        return (
            cond.context
            if cond.dropped is None
            else torch.where(cond.dropped[:, None, None], self.null, cond.context)
        )


class ConcatConditioning(nn.Module):
    """A image laid beside x, and how noisy it is, which joins the time embedding (Ho et al., 2022, cascades); where
    there is none, or it was dropped, a learned colour and no level.
    """

    def __init__(self, channels: int, waves: int, emb: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros(channels, 1, 1))
        self.level = time_embedding(waves, emb)

    def forward(self, cond: Condition, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C + channels, H, W), and (B, emb)"""
        if cond.image is None:
            return torch.cat([x, self.null.expand(len(x), -1, *x.shape[2:])], dim=1), torch.zeros(
                1, device=x.device
            )
        assert cond.noise_level is not None
        image, level = cond.image, self.level(cond.noise_level)
        if cond.dropped is not None:
            image = torch.where(cond.dropped[:, None, None, None], self.null, image)
            level = torch.where(cond.dropped[:, None], 0, level)
        return torch.cat([x, image], dim=1), level


def time_embedding(waves: int, emb: int) -> nn.Sequential:
    """(B,) on a scale of 1000 -> (B, emb)"""
    return nn.Sequential(
        SinusoidalEmbedding(waves), nn.Linear(waves, emb), nn.SiLU(), nn.Linear(emb, emb)
    )


def downsample(x: Tensor) -> Tensor:
    """Half the resolution, by means of four."""
    return F.avg_pool2d(x, 2)


def upsample(x: Tensor) -> Tensor:
    """Twice the resolution, by nearest neighbours."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ResBlock(nn.Module):
    """Two convolutions; between them the embedding scales and shifts (Dhariwal & Nichol, 2021, AdaGN) or, without
    `scale_shift`, is added before the norm (Ho et al., 2020). `resample` changes the resolution of both branches before
    the first convolution (Brock et al., 2019, BigGAN). Without `emb`, it is told nothing.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        emb: int | None,
        dropout: float,
        scale_shift: bool = True,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.emb = None if emb is None else nn.Linear(emb, 2 * out if scale_shift else out)
        self.norm2, self.dropout, self.conv2 = (
            norm(out),
            nn.Dropout(dropout),
            zero_module(nn.Conv2d(out, out, 3, padding=1)),
        )
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, conditioning: BlockConditioning) -> Tensor:
        """(B, channels, H, W) -> (B, out, H', W')"""
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        if self.emb is None:
            h = self.norm2(h)
        elif self.scale_shift:
            scale, shift = self.emb(conditioning.emb)[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + self.emb(conditioning.emb)[:, :, None, None])
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention between the places of a image."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = (
            norm(channels),
            nn.Linear(channels, 3 * channels),
            nn.Linear(channels, channels),
        )
        zero_module(self.out)

    def forward(self, x: Tensor, conditioning: BlockConditioning) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        positions = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = (
            self.qkv(positions).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, heads, HW, C/heads)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed).transpose(1, 2).unflatten(2, x.shape[2:])


class CrossAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V, the queries from the places of a image, keys and values from tokens of `width`
    numbers (Rombach et al., 2022, section 3.3).
    """

    def __init__(self, channels: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.q, self.kv = (
            norm(channels),
            nn.Linear(channels, channels),
            nn.Linear(width, 2 * channels),
        )
        self.out = zero_module(nn.Linear(channels, channels))

    def forward(self, x: Tensor, conditioning: BlockConditioning) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        positions = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q = (
            self.q(positions).unflatten(2, (self.heads, -1)).transpose(1, 2)
        )  # (B, heads, HW, C/heads)
        # (B, heads, M, C/heads)
        k, v = (
            self.kv(conditioning.context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed).transpose(1, 2).unflatten(2, x.shape[2:])


class Down(nn.Module):
    """Half the resolution, by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, conditioning: BlockConditioning) -> Tensor:
        return self.conv(x)


class Up(nn.Module):
    """Twice the resolution, by nearest neighbours and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, conditioning: BlockConditioning) -> Tensor:
        return self.conv(upsample(x))


class Stack(nn.ModuleList):
    """Layers, one after another."""

    def forward(self, x: Tensor, conditioning: BlockConditioning) -> Tensor:
        for layer in self:
            x = layer(x, conditioning)
        return x
