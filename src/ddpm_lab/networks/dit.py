"""The diffusion transformer of Peebles & Xie (2023)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.networks.layers import ConcatConditioning, LabelEmbedding, time_embedding, zero_module

WAVES = 256


def sincos_pos_embed(height: int, width: int, channels: int) -> Tensor:
    """Sines and cosines of the places of a grid, half of the channels for each axis, (height * width, channels)."""
    quarter = channels // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (x, y)]
    return torch.cat(
        [wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1
    ).float()


class DiTBlock(nn.Module):
    """Attention and a perceptron, both residual; the embedding shifts, scales and gates them, and at first shuts both
    (adaLN-Zero).
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.first, self.second = (
            nn.Linear(channels, 4 * channels),
            nn.Linear(4 * channels, channels),
        )
        self.emb = nn.Linear(channels, 6 * channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, N, channels), (B, channels) -> (B, N, channels)"""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.emb(emb)[:, None].chunk(6, dim=2)
        h = _modulated(x, shift1, scale1)
        q, k, v = (
            self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, heads, N, channels/heads)
        x = x + gate1 * self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.first(_modulated(x, shift2, scale2))
        return x + gate2 * self.second(F.gelu(h, approximate="tanh"))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class DiT(nn.Module):
    """(B, C, H, W), t (B,) on a scale of 1000, a condition -> (B, outputs * C, H, W).

    Images are cut into patches of `patch` x `patch` pixels, each a token of `channels` numbers. `shape` (C, H, W)
    comes from the data, `outputs` from the variance; `classes` and `image` (channels of a image beside x) from the
    condition. Raises ValueError where these do not fit.
    """

    pos_embed: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        outputs: int = 1,
        classes: int | None = None,
        image: int | None = None,
        patch: int = 2,
        channels: int = 384,
        blocks: int = 12,
        heads: int = 6,
    ) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(
                f"shape of the data must be that of images, (C, H, W) (got {shape}); try model=mlp"
            )
        if patch < 1 or any(size % patch for size in shape[1:]):
            raise ValueError(
                f"patch={patch} must be at least 1 and divide images of {shape[1]}x{shape[2]}; "
                f"try patch={math.gcd(shape[1], shape[2], 2)}"
            )
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1 (got {blocks})")
        if channels < 4 or channels % 4:
            raise ValueError(
                f"channels must be a multiple of 4, for the waves of the places (got {channels})"
            )
        if heads < 1 or channels % heads:
            raise ValueError(
                f"heads={heads} must divide the {channels} channels; try heads={math.gcd(channels, 6)}"
            )
        grid = (shape[1] // patch, shape[2] // patch)
        self.time = time_embedding(WAVES, channels)
        self.label = None if classes is None else LabelEmbedding(classes, channels)
        self.image = None if image is None else ConcatConditioning(image, WAVES, channels)
        self.first = nn.Conv2d(shape[0] + (image or 0), channels, patch, stride=patch)
        self.register_buffer("pos_embed", sincos_pos_embed(*grid, channels), persistent=False)
        stack = [DiTBlock(channels, heads) for _ in range(blocks)]
        self.blocks = nn.ModuleList(stack)
        self.emb = nn.Linear(channels, 2 * channels)
        self.last = nn.Linear(channels, patch**2 * outputs * shape[0])
        self.unpatch = nn.Sequential(nn.Unflatten(2, grid), nn.PixelShuffle(patch))
        for module in self.modules():  # the authors' initialisation, here and below
            if isinstance(module, nn.Linear | nn.Conv2d):
                zero_module(module)
                nn.init.xavier_uniform_(module.weight.data.flatten(1))
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for name, parameter in self.time.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
        for silent in [self.emb, self.last, *(block.emb for block in stack)]:
            zero_module(silent)

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        emb = self.time(t)
        if self.label is not None:
            emb = emb + self.label(cond, len(t))
        if self.image is not None:
            x, level = self.image(cond, x)
            emb = emb + level
        emb = F.silu(emb)
        tokens = self.first(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, emb)
        shift, scale = self.emb(emb)[:, None].chunk(2, dim=2)
        return self.unpatch(self.last(_modulated(tokens, shift, scale)).transpose(1, 2))
