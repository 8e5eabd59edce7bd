"""The U-Net of Ho et al. (2020) with the adaptive group norm of Dhariwal & Nichol (2021)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.diffusion.condition import Condition
from ddpm_lab.networks.layers import Attention, Down, LabelEmbedding, ResBlock, Stack, Up, Waves, norm, zeroed


class UNet(nn.Module):
    """(B, C, H, W), t (B,) on a scale of 1000, a condition -> (B, outputs * C, H, W).

    `shape` (C, H, W) and `classes` come from the data, `outputs` from the variance. Level i has `channels *
    multipliers[i]` channels, `blocks` residual blocks and half the resolution of level i - 1. `attention` lists the
    resolutions (H) that get self-attention; None: the coarsest, which every picture has. Raises ValueError where these
    do not fit the shape.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        outputs: int = 1,
        classes: int | None = None,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] | None = None,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        resolutions = _resolutions(shape, multipliers)
        attention = resolutions[-1:] if attention is None else attention
        if absent := set(attention) - set(resolutions):
            raise ValueError(f"attention={list(attention)}: resolution {min(absent)} does not occur; "
                             f"pictures of {shape[1]}x{shape[2]} reach {resolutions}; try attention=null")  # fmt: skip
        for name, count in {"channels": channels, "blocks": blocks, "heads": heads}.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1 (got {count})")

        if channels % 2:
            raise ValueError(f"channels must be even, for the waves of the time embedding (got {channels})")

        emb = 4 * channels
        self.time = nn.Sequential(Waves(channels), nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label = None if classes is None else LabelEmbedding(classes, emb)

        def level(inside: int, out: int, resolution: int) -> Stack:
            attend = [Attention(out, heads)] if resolution in attention else []
            return Stack([ResBlock(inside, out, emb, dropout), *attend])

        widths = [channels * multiplier for multiplier in multipliers]
        self.first = nn.Conv2d(shape[0], channels, 3, padding=1)
        self.down, kept, width = nn.ModuleList(), [channels], channels
        for i, (out, resolution) in enumerate(zip(widths, resolutions, strict=True)):
            for _ in range(blocks):
                self.down.append(level(width, out, resolution))
                kept.append(width := out)
            if i < len(widths) - 1:
                self.down.append(Down(width))
                kept.append(width)

        self.middle = Stack([ResBlock(width, width, emb, dropout), Attention(width, heads),
                             ResBlock(width, width, emb, dropout)])  # fmt: skip

        self.up = nn.ModuleList()
        for i, (out, resolution) in reversed(list(enumerate(zip(widths, resolutions, strict=True)))):
            for j in range(blocks + 1):
                stack = level(width + kept.pop(), out, resolution)
                width = out
                if i and j == blocks:
                    stack.append(Up(width))
                self.up.append(stack)

        self.last = nn.Sequential(norm(width), nn.SiLU(), zeroed(nn.Conv2d(width, outputs * shape[0], 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        emb = self.time(t)
        emb = F.silu(emb if self.label is None else emb + self.label(cond, len(t)))
        x = self.first(x)
        kept = [x]
        for layer in self.down:
            x = layer(x, emb)
            kept.append(x)
        x = self.middle(x, emb)
        for layer in self.up:
            x = layer(torch.cat([x, kept.pop()], dim=1), emb)
        return self.last(x)


def _resolutions(shape: tuple[int, ...], multipliers: Sequence[int]) -> list[int]:
    """The H of each level."""
    if len(shape) != 3:
        raise ValueError(f"shape of the data must be that of pictures, (C, H, W) (got {shape}); try model=mlp")
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers must hold one or more numbers, each at least 1 (got {list(multipliers)})")
    factor = 2 ** (len(multipliers) - 1)
    for size in shape[1:]:
        if size % factor:
            low = size // factor * factor
            fits = " or ".join(str(n) for n in (low, low + factor) if n)
            raise ValueError(f"multipliers={list(multipliers)} halves pictures {len(multipliers) - 1} times, and "
                             f"{shape[1]}x{shape[2]} cannot be; try a resolution of {fits}, or fewer multipliers"
                             )  # fmt: skip
    return [shape[1] // 2**i for i in range(len(multipliers))]
