"""Networks: modules (x_t, t, condition) -> the prediction, in the shape of x_t."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.networks.layers import ConditionedNetwork, zero_module


class PatchNet(ConditionedNetwork):
    """Residual convolutions on patches of 2x2 pixels, (B, C, H, W) -> (B, outputs * C, H, W).

    The data determines `shape` and `classes`, the variance `outputs`. The base class embeds the
    time and the label.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        outputs: int = 1,
        classes: int | None = None,
        channels: int = 96,
        blocks: int = 4,
    ) -> None:
        if shape[1] % 2 or shape[2] % 2:
            raise ValueError(f"shape must be even (got {shape[1]}x{shape[2]})")
        super().__init__(channels, channels, classes)
        self.first = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(4 * shape[0], channels, 3, padding=1)
        )
        self.position = nn.Parameter(torch.zeros(channels, shape[1] // 2, shape[2] // 2))
        self.blocks = nn.ModuleList([PatchBlock(channels) for _ in range(blocks)])
        last = nn.Conv2d(channels, 4 * outputs * shape[0], 3, padding=1)
        self.last = nn.Sequential(nn.SiLU(), zero_module(last), nn.PixelShuffle(2))

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x, emb = self.embed(x, t, cond)
        h = self.first(x) + self.position
        for block in self.blocks:
            h = block(h, emb)
        return self.last(h)


class PatchBlock(nn.Module):
    """Two convolutions, scaled and shifted by the embedding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.emb = nn.Linear(channels, 2 * channels)
        self.norm = nn.GroupNorm(8, channels, affine=False)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = zero_module(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """(B, channels, H, W), (B, channels) -> (B, channels, H, W)"""
        scale, shift = self.emb(emb)[:, :, None, None].chunk(2, dim=1)
        h1 = F.silu(self.norm(self.first(F.silu(self.norm(h)))) * (1 + scale) + shift)
        return h + self.second(h1)
