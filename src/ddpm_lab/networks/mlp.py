"""A residual MLP for points and for very small images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.networks.layers import ConditionedNetwork, zero_module
from ddpm_lab.utils.ranges import Count, NonNegativeInt, check_ranges


class Block(nn.Module):
    """Residual block of width `channels`, scaled and shifted by the embedding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.emb, self.first = nn.Linear(channels, 2 * channels), nn.Linear(channels, channels)
        self.second = zero_module(nn.Linear(channels, channels))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, channels), (B, channels) -> (B, channels)"""
        scale, shift = self.emb(emb).chunk(2, dim=1)
        return x + self.second(F.silu(self.first(self.norm(x) * (1 + scale) + shift)))


@check_ranges
class MLP(ConditionedNetwork):
    """(B, *shape), t (B,) on a scale of 1000, condition -> (B, outputs * shape[0], *shape[1:]).

    The data determines `shape` and `classes`, the variance `outputs`.

    Args:
        fourier_frequencies: Number of features sin(2^k pi x), cos(2^k pi x), k = 0, 1, ..., which
            help with fine detail (Tancik et al., 2020, section 6).
    """

    fourier_frequencies: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        outputs: int = 1,
        classes: int | None = None,
        channels: Count = 128,
        blocks: Count = 3,
        fourier_frequencies: NonNegativeInt = 0,
    ) -> None:
        super().__init__(channels, channels, classes)
        size = math.prod(shape)
        self.output_shape = (outputs * shape[0], *shape[1:])
        frequencies = math.pi * 2.0 ** torch.arange(fourier_frequencies)
        self.register_buffer("fourier_frequencies", frequencies, persistent=False)
        self.first = nn.Linear(size * (1 + 2 * fourier_frequencies), channels)
        self.blocks = nn.ModuleList([Block(channels) for _ in range(blocks)])
        self.last = nn.Sequential(
            nn.LayerNorm(channels), zero_module(nn.Linear(channels, outputs * size))
        )

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x, emb = self.embed(x, t, cond)
        x = x.flatten(1)
        angles = (x[:, :, None] * self.fourier_frequencies).flatten(1)
        x = self.first(torch.cat([x, angles.sin(), angles.cos()], dim=1))
        for block in self.blocks:
            x = block(x, emb)
        return self.last(x).unflatten(1, self.output_shape)
