"""Classifiers of noisy images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.networks.layers import level_shapes, multi_head_attention
from ddpm_lab.networks.unet import Encoder, UNetBase
from ddpm_lab.utils.ranges import Count, check_ranges


class AttentionPool(nn.Module):
    """Attention of the mean feature to all pixels (Radford et al., 2021).

    With `positions`, the number of pixels, the mean is a key too, and all keys have learned
    positions, as in Dhariwal & Nichol (2021).
    """

    def __init__(self, channels: int, heads: int, out: int, positions: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.places = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, out)
        self.positions = None
        if positions is not None:
            self.positions = nn.Parameter(torch.randn(positions + 1, channels) * channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out)"""
        pixels = x.flatten(2).transpose(1, 2)  # (B, HW, C)
        mean = pixels.mean(1, keepdim=True)
        if self.positions is not None:
            pixels = torch.cat([mean, pixels], dim=1) + self.positions
            mean = pixels[:, :1]
        q = self.query(mean)
        k, v = self.places(pixels).chunk(2, dim=2)
        return self.out(multi_head_attention(q, k, v, self.heads).flatten(1))


@check_ranges
@dataclass(eq=False, repr=False, kw_only=True)
class EncoderClassifier(UNetBase):
    """Encoder of a U-Net with attention pooling: (B, C, H, W), t (B,), condition -> (B, classes).

    t is on a scale of 1000. The data determines `classes`.

    Args:
        pool_positions: Add learned positions to the attention pooling; see `AttentionPool`.
        others: See `UNetBase`.
    """

    classes: int
    channels: Count = 32
    multipliers: Sequence[float] = (1, 2)
    blocks: Count = 1
    resblock_updown: bool = True
    pool_positions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.encoder = Encoder(self)
        width = self.widths[-1]
        self.norm = self.make_norm(width)
        height, breadth = level_shapes(self.shape, self.multipliers)[-1]
        positions = height * breadth if self.pool_positions else None
        self.pool = AttentionPool(width, self.count_heads(width), self.classes, positions)

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x, _, _ = self.encoder(x, t, cond)
        return self.pool(F.silu(self.norm(x)))
