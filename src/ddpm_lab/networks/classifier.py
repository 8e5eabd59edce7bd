"""Networks that name what they see."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.networks.layers import norm
from ddpm_lab.networks.unet import Encoder, UNetConfig


class AttentionPool(nn.Module):
    """Features as one vector: their mean asks every place (Radford et al., 2021; Dhariwal & Nichol, 2021)."""

    def __init__(self, channels: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.places = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out)"""
        places = x.flatten(2).transpose(1, 2)  # (B, HW, C)
        q = self.query(places.mean(1, keepdim=True)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.places(places).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


class EncoderClassifier(nn.Module):
    """(B, C, H, W), t (B,) on a scale of 1000, a condition -> logits (B, classes), by the half of a U-Net that goes
    down.

    `shape` (C, H, W) and `classes` come from the data; the rest is said in `Layout`.
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
        layout = UNetConfig(
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
        self.encoder = Encoder(shape, layout)
        width = layout.widths[-1]
        self.norm, self.pool = norm(width), AttentionPool(width, layout.count_heads(width), classes)

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x, _, _ = self.encoder(x, t, cond)
        return self.pool(F.silu(self.norm(x)))
