"""Classifiers of noisy images."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.networks.layers import multi_head_attention, norm
from ddpm_lab.networks.unet import Encoder, UNetConfig


class AttentionPool(nn.Module):
    """Attention of the mean feature to all pixels (Radford et al., 2021)."""

    def __init__(self, channels: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.places = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out)"""
        pixels = x.flatten(2).transpose(1, 2)  # (B, HW, C)
        q = self.query(pixels.mean(1, keepdim=True))
        k, v = self.places(pixels).chunk(2, dim=2)
        return self.out(multi_head_attention(q, k, v, self.heads).flatten(1))


class EncoderClassifier(nn.Module):
    """Encoder of a U-Net with attention pooling: (B, C, H, W), t (B,), condition -> (B, classes).

    t is on a scale of 1000. The data determines `shape` (C, H, W) and `classes`. For the other
    arguments see `UNetConfig`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        classes: int,
        channels: int = 32,
        multipliers: Sequence[float] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] | Literal["all"] | None = None,
        heads: int | None = 4,
        head_channels: int | None = None,
        scale_shift: bool = True,
        resblock_updown: bool = True,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        config = UNetConfig(
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            heads=heads,
            head_channels=head_channels,
            scale_shift=scale_shift,
            resblock_updown=resblock_updown,
            dropout=dropout,
            checkpointing=checkpointing,
        )
        self.encoder = Encoder(shape, config)
        width = config.widths[-1]
        self.norm, self.pool = norm(width), AttentionPool(width, config.count_heads(width), classes)

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x, _, _ = self.encoder(x, t, cond)
        return self.pool(F.silu(self.norm(x)))
