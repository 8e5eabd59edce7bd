"""The U-Net of Ho et al. (2020), Nichol & Dhariwal (2021) and Dhariwal & Nichol (2021)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.networks.layers import (
    Attention,
    BlockConditioning,
    ConcatConditioning,
    CrossAttention,
    CrossAttentionContext,
    Down,
    LabelEmbedding,
    ResBlock,
    Stack,
    Up,
    downsample,
    norm,
    time_embedding,
    upsample,
    zero_module,
)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """What the parts of a U-Net have in common.

    Level i has `channels * multipliers[i]` channels, `blocks` residual blocks and half the resolution of level i - 1.
    `attention` lists the resolutions (H) that get self-attention, of which those above the image's are passed over;
    None: the coarsest; "all": every one. There are `heads`, or as many as have `head_channels` channels each: one of
    the two is given. `scale_shift` and `resblock_updown` are those of `ResBlock`. With `checkpointing`, what is inside a layer
    is not kept for the gradients but computed again. Where there is a `context`, of tokens of so many numbers, places
    that attend to one another attend to the tokens as well.
    """

    channels: int
    multipliers: Sequence[float]
    blocks: int
    attention: Sequence[int] | Literal["all"] | None
    heads: int | None
    head_channels: int | None
    scale_shift: bool
    resblock_updown: bool
    dropout: float
    checkpointing: bool
    context: int | None = None

    def __post_init__(self) -> None:
        numbers = {
            "channels": self.channels,
            "blocks": self.blocks,
            "heads": self.heads,
            "head_channels": self.head_channels,
        }
        for name, count in numbers.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1 (got {count})")
        if self.channels % 2:
            raise ValueError(
                f"channels must be even, for the waves of the time embedding (got {self.channels})"
            )
        if (self.heads is None) == (self.head_channels is None):
            raise ValueError(
                f"heads={self.heads} and head_channels={self.head_channels}: one must be given, and the "
                "other null; try heads=4 head_channels=null"
            )
        if not self.multipliers or min(self.multipliers) <= 0:
            raise ValueError(
                f"multipliers must hold one or more numbers above 0 (got {list(self.multipliers)})"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"dropout is a probability and must lie in [0, 1) (got {self.dropout:g})"
            )

    @property
    def emb(self) -> int:
        """Numbers in the time embedding."""
        return 4 * self.channels

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [int(self.channels * multiplier) for multiplier in self.multipliers]

    def resolutions(self, shape: tuple[int, ...]) -> list[int]:
        """The H of each level. Raises ValueError where images of `shape` cannot be halved so often."""
        if len(shape) != 3:
            raise ValueError(
                f"shape of the data must be that of images, (C, H, W) (got {shape}); try model=mlp"
            )
        halvings = len(self.multipliers) - 1
        factor = 2**halvings
        for size in shape[1:]:
            if size % factor:
                low = size // factor * factor
                fits = " or ".join(str(n) for n in (low, low + factor) if n)
                raise ValueError(
                    f"multipliers={list(self.multipliers)} halves images {halvings} times, and "
                    f"{shape[1]}x{shape[2]} cannot be; try a resolution of {fits}, or fewer multipliers"
                )
        found = [shape[1] // 2**i for i in range(len(self.multipliers))]
        asked = (
            []
            if self.attention is None or self.attention == "all"
            else [int(n) for n in self.attention]
        )
        if absent := {n for n in asked if n <= shape[1]} - {*found}:
            raise ValueError(
                f"attention={asked}: resolution {min(absent)} does not occur; "
                f"images of {shape[1]}x{shape[2]} reach {found}; try attention=null"
            )
        return found

    def res(self, in_channels: int, out: int) -> ResBlock:
        return ResBlock(in_channels, out, self.emb, self.dropout, self.scale_shift)

    def attend(self, width: int) -> list[nn.Module]:
        """Attention to what there is. Raises ValueError where heads do not divide the channels."""
        heads = self.count_heads(width)
        own = Attention(width, heads)
        return [own] if self.context is None else [own, CrossAttention(width, heads, self.context)]

    def count_heads(self, width: int) -> int:
        """Raises ValueError where they do not divide the channels."""
        name, count = ("heads", self.heads) if self.heads else ("head_channels", self.head_channels)
        assert count is not None
        if width % count:
            raise ValueError(
                f"{name}={count} must divide the {width} channels of every level with attention; "
                f"try {name}={2 ** ((width & -width).bit_length() - 1)}"
            )
        return count if self.heads else width // count

    def level(self, in_channels: int, out: int, resolution: int, resolutions: list[int]) -> Stack:
        """A residual block, and attention where the resolution asks for it."""
        if self.attention is None:
            attended: Sequence[int] = resolutions[-1:]
        else:
            attended = resolutions if self.attention == "all" else [int(n) for n in self.attention]
        attend = self.attend(out) if resolution in attended else []
        return Stack([self.res(in_channels, out), *attend])

    def down(self, width: int) -> nn.Module:
        if not self.resblock_updown:
            return Down(width)
        return ResBlock(width, width, self.emb, self.dropout, self.scale_shift, downsample)

    def up(self, width: int) -> nn.Module:
        if not self.resblock_updown:
            return Up(width)
        return ResBlock(width, width, self.emb, self.dropout, self.scale_shift, upsample)

    def run(
        self,
        layer: Callable[[Tensor, BlockConditioning], Tensor],
        x: Tensor,
        conditioning: BlockConditioning,
    ) -> Tensor:
        """layer(x, told)"""
        if self.checkpointing and x.requires_grad:
            again: Tensor = checkpoint(layer, x, conditioning, use_reentrant=False)
            return again
        return layer(x, conditioning)


class Encoder(nn.Module):
    """(B, C, H, W), t (B,) on a scale of 1000, a condition -> the coarsest features (B, widths[-1], h, w), all that
    were passed on the way, and what the layers were told.

    The doors to a condition: `classes`, the layout's `context`, and `image`, the channels of a image beside x. With
    `recalls` it sees its guess before as well, or zeros (Chen et al., 2023, self-conditioning).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        layout: UNetConfig,
        classes: int | None = None,
        image: int | None = None,
        self_conditioning: bool = False,
    ) -> None:
        super().__init__()
        resolutions, widths = layout.resolutions(shape), layout.widths
        self.layout, self.self_conditioning = layout, self_conditioning
        self.time = time_embedding(layout.channels, layout.emb)
        self.label = None if classes is None else LabelEmbedding(classes, layout.emb)
        self.context = None if layout.context is None else CrossAttentionContext(layout.context)
        self.image = (
            None if image is None else ConcatConditioning(image, layout.channels, layout.emb)
        )
        self.first = nn.Conv2d(
            shape[0] * (1 + self_conditioning) + (image or 0), widths[0], 3, padding=1
        )
        self.down, self.skips, width = nn.ModuleList(), [widths[0]], widths[0]
        for i, (out, resolution) in enumerate(zip(widths, resolutions, strict=True)):
            for _ in range(layout.blocks):
                self.down.append(layout.level(width, out, resolution, resolutions))
                self.skips.append(width := out)
            if i < len(widths) - 1:
                self.down.append(layout.down(width))
                self.skips.append(width)
        self.middle = Stack(
            [layout.res(width, width), *layout.attend(width), layout.res(width, width)]
        )

    def forward(
        self, x: Tensor, t: Tensor, cond: Condition
    ) -> tuple[Tensor, list[Tensor], BlockConditioning]:
        emb = self.time(t)
        if self.label is not None:
            emb = emb + self.label(cond, len(t))
        if self.self_conditioning:
            x = torch.cat(
                [x, torch.zeros_like(x) if cond.previous is None else cond.previous], dim=1
            )
        if self.image is not None:
            x, level = self.image(cond, x)
            emb = emb + level
        conditioning = BlockConditioning(
            F.silu(emb), None if self.context is None else self.context(cond, len(t))
        )
        x = self.first(x)
        skips = [x]
        for layer in self.down:
            x = self.layout.run(layer, x, conditioning)
            skips.append(x)
        return self.layout.run(self.middle, x, conditioning), skips, conditioning


class UNet(nn.Module):
    """(B, C, H, W), t (B,) on a scale of 1000, a condition -> (B, outputs * C, H, W).

    `shape` (C, H, W) comes from the data, `outputs` from the variance; `classes`, `context` (width of tokens) and
    `image` (channels of a image beside x) from the condition. With `self_conditioning` it hears its guess before.
    With `channels_last` its weights, and so all that convolutions answer, lie in memory with the channels innermost.
    The rest is said in `Layout`.
    Raises ValueError where these do not fit the shape.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        outputs: int = 1,
        classes: int | None = None,
        context: int | None = None,
        image: int | None = None,
        channels: int = 64,
        multipliers: Sequence[float] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] | Literal["all"] | None = None,
        heads: int | None = 4,
        head_channels: int | None = None,
        scale_shift: bool = True,
        resblock_updown: bool = False,
        dropout: float = 0.0,
        checkpointing: bool = False,
        self_conditioning: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.layout = layout = UNetConfig(
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
            context=context,
        )
        self.self_conditioning = self_conditioning
        self.encoder = Encoder(shape, layout, classes, image, self_conditioning)
        resolutions, widths = layout.resolutions(shape), layout.widths
        self.up, skips, width = nn.ModuleList(), list(self.encoder.skips), widths[-1]
        for i, (out, resolution) in reversed(
            list(enumerate(zip(widths, resolutions, strict=True)))
        ):
            for j in range(blocks + 1):
                stack = layout.level(width + skips.pop(), out, resolution, resolutions)
                width = out
                if i and j == blocks:
                    stack.append(layout.up(width))
                self.up.append(stack)
        self.last = nn.Sequential(
            norm(width), nn.SiLU(), zero_module(nn.Conv2d(width, outputs * shape[0], 3, padding=1))
        )
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x, skips, conditioning = self.encoder(x, t, cond)
        for layer in self.up:
            x = self.layout.run(layer, torch.cat([x, skips.pop()], dim=1), conditioning)
        return self.last(x)
