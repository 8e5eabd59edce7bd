"""The diffusion transformer (Peebles & Xie, 2023)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.networks.layers import (
    ConditionedNetwork,
    TimeEncoding,
    check_image_shape,
    multi_head_attention,
    run_layer,
)
from ddpm_lab.utils.ranges import Count, Positive, check_ranges

FREQUENCY_CHANNELS = 256
"""Width of the sinusoidal embedding of t"""


def sincos_pos_embed(height: int, width: int, channels: int) -> Tensor:
    """Return sines and cosines of grid positions, (height * width, channels), x before y."""
    quarter = channels // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [position.flatten()[:, None] * frequencies for position in (x, y)]
    waves = [wave for angle in angles for wave in (angle.sin(), angle.cos())]
    return torch.cat(waves, dim=1).float()


class DiTBlock(nn.Module):
    """Residual attention and MLP; the embedding shifts, scales and gates both (adaLN-Zero)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.first = nn.Linear(channels, 4 * channels)
        self.second = nn.Linear(4 * channels, channels)
        self.emb = nn.Linear(channels, 6 * channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, N, channels), (B, channels) -> (B, N, channels)"""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.emb(emb)[:, None].chunk(6, dim=2)
        q, k, v = self.qkv(_modulate(x, shift1, scale1)).chunk(3, dim=2)
        x = x + gate1 * self.out(multi_head_attention(q, k, v, self.heads))
        h = self.first(_modulate(x, shift2, scale2))
        return x + gate2 * self.second(F.gelu(h, approximate="tanh"))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


@check_ranges
class DiT(ConditionedNetwork):
    """(B, C, H, W), t (B,) on a scale of 1000, condition -> (B, outputs * C, H, W).

    The data determines `shape` (C, H, W), the variance `outputs`, the conditioner `classes` and
    `image` (channels of an image to concatenate with x). Raises ValueError for incompatible sizes.

    Args:
        patch: Side of a patch in pixels. Each patch is a token.
        channels: Width of a token.
        checkpointing: Recompute activations inside blocks in the backward pass.
        time_scale, time_shift: See `TimeEncoding`.
    """

    pos_embed: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        outputs: int = 1,
        classes: int | None = None,
        image: int | None = None,
        patch: Count = 2,
        channels: Count = 384,
        blocks: Count = 12,
        heads: Count = 6,
        checkpointing: bool = False,
        time_scale: Positive = 1.0,
        time_shift: float = 0.0,
    ) -> None:
        encoding = TimeEncoding(time_scale, time_shift)
        super().__init__(FREQUENCY_CHANNELS, channels, classes, image, encoding)
        _check_sizes(shape, patch, channels, heads)
        self.checkpointing = checkpointing
        grid = (shape[1] // patch, shape[2] // patch)
        self.first = nn.Conv2d(shape[0] + (image or 0), channels, patch, stride=patch)
        self.register_buffer("pos_embed", sincos_pos_embed(*grid, channels), persistent=False)
        self.blocks = nn.ModuleList([DiTBlock(channels, heads) for _ in range(blocks)])
        self.emb = nn.Linear(channels, 2 * channels)
        self.last = nn.Linear(channels, patch**2 * outputs * shape[0])
        self.unpatch = nn.Sequential(nn.Unflatten(2, grid), nn.PixelShuffle(patch))
        self._initialize()

    def _initialize(self) -> None:
        """Initialize all parameters as the authors do."""
        for name, parameter in self.named_parameters():
            if name == "label.table.weight":
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("weight"):
                nn.init.xavier_uniform_(parameter.data.flatten(1))
            else:  # biases, and null embeddings
                nn.init.zeros_(parameter)
        for name, parameter in self.time.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
        for name, parameter in self.named_parameters():
            if name.split(".")[-2] in ("emb", "last"):  # the outputs of blocks and network are 0
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x, emb = self.embed(x, t, cond)
        tokens = self.first(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            tokens = run_layer(block, tokens, emb, self.checkpointing)
        shift, scale = self.emb(emb)[:, None].chunk(2, dim=2)
        return self.unpatch(self.last(_modulate(tokens, shift, scale)).transpose(1, 2))


def _check_sizes(shape: tuple[int, ...], patch: int, channels: int, heads: int) -> None:
    check_image_shape(shape)
    if any(size % patch for size in shape[1:]):
        raise ValueError(
            f"patch={patch} must divide images of {shape[1]}x{shape[2]}; "
            f"try patch={math.gcd(shape[1], shape[2], 2)}"
        )
    if channels % 4:
        raise ValueError(f"channels must be a multiple of 4, for the positions (got {channels})")
    if channels % heads:
        raise ValueError(
            f"heads={heads} must divide the {channels} channels; try heads={math.gcd(channels, 6)}"
        )
