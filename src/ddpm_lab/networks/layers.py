"""Layers that the networks share. U-Net layers take (x, conditioning), so that they stack."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm_lab.diffusion.conditioning import Condition

C = TypeVar("C")
"""Input of a layer in addition to x"""


class BlockConditioning(NamedTuple):
    """Input of every layer in addition to x."""

    emb: Tensor | None = None
    """(B, E), activated embedding of the time and of labels and noise levels"""
    context: Tensor | None = None
    """(B, M, D), tokens for cross-attention"""


def run_layer(
    layer: Callable[[Tensor, C], Tensor], x: Tensor, conditioning: C, checkpointing: bool
) -> Tensor:
    """Return layer(x, conditioning), recomputed in the backward pass if `checkpointing`."""
    if checkpointing and x.requires_grad:
        output: Tensor = checkpoint(layer, x, conditioning, use_reentrant=False)
        return output
    return layer(x, conditioning)


def check_image_shape(shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `shape` is (C, H, W)."""
    if len(shape) != 3:
        raise ValueError(
            f"shape of the data must be that of images, (C, H, W) (got {shape}); for points, try "
            "model=mlp"
        )


def level_widths(channels: int, multipliers: Sequence[float]) -> list[int]:
    """Return the channels of each level. Raises ValueError unless all are positive."""
    if not multipliers or min(multipliers) <= 0:
        raise ValueError(
            f"multipliers must be one or more numbers above 0 (got {list(multipliers)})"
        )
    widths = [int(channels * multiplier) for multiplier in multipliers]
    if min(widths) < 1:
        raise ValueError(
            f"multipliers={list(multipliers)} of {channels} channels leave a level without channels"
        )
    return widths


def max_halvings(shape: tuple[int, ...]) -> int:
    """Return how many times both sides of images (C, H, W) can be halved."""
    side = math.gcd(*shape[1:])
    return (side & -side).bit_length() - 1


def level_shapes(shape: tuple[int, ...], multipliers: Sequence[float]) -> list[tuple[int, int]]:
    """Return (H, W) of each level. Raises ValueError if images cannot be halved that many times."""
    check_image_shape(shape)
    halvings = len(multipliers) - 1
    factor = 2**halvings
    if indivisible := [size for size in shape[1:] if size % factor]:
        low = indivisible[0] // factor * factor
        sizes = " or ".join(str(n) for n in (low, low + factor) if n)
        fewer = ",".join(f"{number:g}" for number in multipliers[: 1 + max_halvings(shape)])
        raise ValueError(
            f"multipliers={list(multipliers)} halves images {halvings} times, which {shape[1]}x"
            f"{shape[2]} does not allow; try multipliers=[{fewer}], or a resolution of {sizes}"
        )
    return [(shape[1] // 2**i, shape[2] // 2**i) for i in range(len(multipliers))]


def group_norm(channels: int, groups: int | None = None, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm in `groups`; None: at most 32, a power of two, of at least 4 channels each.

    Raises ValueError unless `groups` divides the channels.
    """
    if groups is None:
        groups = math.gcd(32, channels)
        while groups > 1 and channels // groups < 4:
            groups //= 2
    if channels % groups:
        raise ValueError(
            f"norm_groups={groups} must divide the channels of every layer, such as {channels}; "
            "try norm_groups=null"
        )
    return nn.GroupNorm(groups, channels, eps)


Norm = Callable[[int], nn.Module]
"""Constructor of a norm of so many channels"""


def zero_module(module: nn.Module) -> nn.Module:
    """Set all parameters to 0, so that a residual branch starts as 0 (Ho et al., 2020, app. B)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class TimeEncoding(NamedTuple):
    """Conventions of the time embedding, in which published networks differ."""

    scale: float = 1.0
    """Factor on the time, which is on a scale of 1000"""
    shift: float = 0.0
    """Term added to the scaled time; -1 if timesteps are numbered from 0"""
    frequency_shift: int = 0
    """Frequencies 10000^(-i / (half - frequency_shift)), for i below half the channels"""


class SinusoidalEmbedding(nn.Module):
    """Sinusoidal embedding of a number on a scale of 1000 (Vaswani et al., 2017)."""

    frequencies: Tensor

    def __init__(self, channels: int, encoding: TimeEncoding = TimeEncoding()) -> None:
        super().__init__()
        self.scale, self.shift, frequency_shift = encoding
        # On the CPU also in a meta-device context, where arange imports torch._dynamo (1 s).
        steps = torch.arange(channels // 2, device="cpu")
        frequencies = torch.exp(-math.log(10000) * steps / (channels // 2 - frequency_shift))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, channels)"""
        time = self.scale * t[:, None].to(self.frequencies.dtype) + self.shift
        angles = time * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def time_embedding(
    channels: int, emb: int, encoding: TimeEncoding = TimeEncoding()
) -> nn.Sequential:
    """Sinusoidal embedding of width `channels` and a two-layer MLP, (B,) -> (B, emb).

    Raises ValueError unless `channels` is even.
    """
    if channels % 2:
        raise ValueError(f"channels must be even, for the time embedding (got {channels})")
    embedding = SinusoidalEmbedding(channels, encoding)
    return nn.Sequential(embedding, nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))


class LabelEmbedding(nn.Module):
    """Embedding of the label; a learned null vector replaces labels that are absent or dropped."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.table, self.null = nn.Embedding(classes, channels), nn.Parameter(torch.zeros(channels))

    def forward(self, cond: Condition, size: int) -> Tensor:
        """Return (size, channels)."""
        if cond.label is None:
            return self.null.expand(size, -1)
        return cond.replace_dropped(self.table(cond.label), self.null)


class CrossAttentionContext(nn.Module):
    """Tokens for cross-attention; a learned null token replaces absent and dropped ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, cond: Condition, size: int) -> Tensor:
        """Return (size, M, width)."""
        if cond.context is None:
            return self.null.expand(size, 1, -1)
        return cond.replace_dropped(cond.context, self.null)


class ConcatConditioning(nn.Module):
    """Concatenation of an image with x, and an embedding of its noise level (Ho et al., 2022).

    A learned color and a zero embedding replace images that are absent or dropped.
    """

    def __init__(self, channels: int, frequency_channels: int, emb: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros(channels, 1, 1))
        self.level = time_embedding(frequency_channels, emb)

    def forward(self, cond: Condition, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (B, C + channels, H, W), and the embedding (B, emb)."""
        if cond.image is None:
            image = self.null.expand(len(x), -1, *x.shape[2:])
            return torch.cat([x, image], dim=1), torch.zeros(1, device=x.device)
        assert cond.noise_level is not None
        image = cond.replace_dropped(cond.image, self.null)
        return torch.cat([x, image], dim=1), cond.replace_dropped(self.level(cond.noise_level), 0)


class ConditionedNetwork(nn.Module):
    """Base of networks with an embedding of the time, the label and the noise level of an image.

    Args:
        frequency_channels: Width of the sinusoidal embeddings.
        emb: Width of the embedding.
        classes: Number of labels; None for a network without labels.
        image: Channels of the image to concatenate with x; None for none.
        encoding: Conventions of the time embedding.
    """

    def __init__(
        self,
        frequency_channels: int,
        emb: int,
        classes: int | None,
        image: int | None = None,
        encoding: TimeEncoding = TimeEncoding(),
    ) -> None:
        super().__init__()
        self.time = time_embedding(frequency_channels, emb, encoding)
        self.label = None if classes is None else LabelEmbedding(classes, emb)
        self.image = None if image is None else ConcatConditioning(image, frequency_channels, emb)

    def embed(self, x: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """Return x, concatenated with the image, and the activated embedding (B, emb)."""
        emb = self.time(t)
        if self.label is not None:
            emb = emb + self.label(cond, len(t))
        if self.image is not None:
            x, level = self.image(cond, x)
            emb = emb + level
        return x, F.silu(emb)


def downsample(x: Tensor) -> Tensor:
    """Halve the resolution by average pooling."""
    return F.avg_pool2d(x, 2)


def upsample(x: Tensor) -> Tensor:
    """Double the resolution by nearest neighbors."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ResBlock(nn.Module):
    """Residual block of two convolutions, (B, channels, H, W) -> (B, out, H', W').

    Args:
        emb: Size of the embedding; None for a block without one.
        scale_shift: The embedding scales and shifts between the convolutions (Dhariwal & Nichol,
            2021, AdaGN); if False, it is added before the second norm (Ho et al., 2020).
        resample: `downsample` or `upsample`, applied to both branches before the first
            convolution (Brock et al., 2019, BigGAN).
        norm: Constructor of the norms.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        emb: int | None,
        dropout: float,
        scale_shift: bool = True,
        resample: Callable[[Tensor], Tensor] | None = None,
        norm: Norm = group_norm,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.emb = None if emb is None else nn.Linear(emb, 2 * out if scale_shift else out)
        self.norm2, self.dropout = norm(out), nn.Dropout(dropout)
        self.conv2 = zero_module(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, conditioning: BlockConditioning) -> Tensor:
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


def multi_head_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head softmax(Q K^T / sqrt(d)) V, (B, N, C) x (B, M, C) x (B, M, C) -> (B, N, C)."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Residual self-attention between the pixels of an image, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, heads: int, norm: Norm = group_norm) -> None:
        super().__init__()
        self.heads, self.norm = heads, norm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        zero_module(self.out)

    def forward(self, x: Tensor, conditioning: BlockConditioning) -> Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = self.qkv(pixels).chunk(3, dim=2)
        h = self.out(multi_head_attention(q, k, v, self.heads))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class CrossAttention(nn.Module):
    """Residual attention of the pixels of an image (B, C, H, W) to tokens (B, M, width).

    Source: Rombach et al., 2022, section 3.3.
    """

    def __init__(self, channels: int, heads: int, width: int, norm: Norm = group_norm) -> None:
        super().__init__()
        self.heads, self.norm = heads, norm(channels)
        self.q, self.kv = nn.Linear(channels, channels), nn.Linear(width, 2 * channels)
        self.out = zero_module(nn.Linear(channels, channels))

    def forward(self, x: Tensor, conditioning: BlockConditioning) -> Tensor:
        q = self.q(self.norm(x).flatten(2).transpose(1, 2))  # (B, HW, C)
        k, v = self.kv(conditioning.context).chunk(2, dim=2)  # (B, M, C)
        h = self.out(multi_head_attention(q, k, v, self.heads))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class Down(nn.Module):
    """Halve the resolution by a strided convolution.

    Args:
        padding: 1 for zeros on all sides, 0 for zeros on the right and below, as in the code of
            Ho et al. (2020).
    """

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, conditioning: BlockConditioning) -> Tensor:
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Double the resolution by nearest neighbors and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, conditioning: BlockConditioning) -> Tensor:
        return self.conv(upsample(x))


class Stack(nn.ModuleList):
    """Layers in sequence."""

    def forward(self, x: Tensor, conditioning: BlockConditioning) -> Tensor:
        for layer in self:
            x = layer(x, conditioning)
        return x
