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
    check_positive,
    downsample,
    level_shapes,
    level_widths,
    norm,
    time_embedding,
    upsample,
    zero_module,
)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Options that encoder and decoder share, and the layers that follow from them.

    Args:
        channels: Channels of the first level, for a multiplier of 1.
        multipliers: Factors on `channels`, one per level. Each level halves the resolution.
        blocks: Residual blocks per level.
        attention: Resolutions (H) with self-attention; None for the coarsest, "all" for every one.
            Resolutions above the image's are ignored.
        heads: Number of attention heads; None if `head_channels` is given.
        head_channels: Channels per attention head; None if `heads` is given.
        scale_shift: See `ResBlock`.
        resblock_updown: Change the resolution by residual blocks (BigGAN), not by convolutions.
        dropout: Probability of dropout in residual blocks.
        checkpointing: Recompute activations inside layers in the backward pass.
        context: Width of the tokens for cross-attention, which follows every self-attention.
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
        check_positive(
            channels=self.channels,
            blocks=self.blocks,
            heads=self.heads,
            head_channels=self.head_channels,
        )
        if self.channels % 2:
            raise ValueError(f"channels must be even, for the time embedding (got {self.channels})")
        if (self.heads is None) == (self.head_channels is None):
            raise ValueError(
                f"heads={self.heads} head_channels={self.head_channels}: one must be a number and "
                "the other null; try heads=4 head_channels=null"
            )
        level_widths(self.channels, self.multipliers)  # raises ValueError
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"dropout is a probability and must lie in [0, 1) (got {self.dropout:g})"
            )

    @property
    def emb(self) -> int:
        """Size of the time embedding."""
        return 4 * self.channels

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return level_widths(self.channels, self.multipliers)

    def levels(self, shape: tuple[int, ...]) -> list[tuple[int, bool]]:
        """Return the channels of each level, with True for self-attention.

        Raises ValueError if images of `shape` cannot be halved so often, or do not reach a
        resolution of `attention`.
        """
        resolutions = [height for height, _ in level_shapes(shape, self.multipliers)]
        if self.attention is None:
            attended = resolutions[-1:]
        elif self.attention == "all":
            attended = resolutions
        else:
            attended = [int(resolution) for resolution in self.attention]
        if absent := {size for size in attended if size <= shape[1]} - {*resolutions}:
            raise ValueError(
                f"attention={attended}: resolution {min(absent)} does not occur; "
                f"images of {shape[1]}x{shape[2]} reach {resolutions}; try attention=null"
            )
        pairs = zip(self.widths, resolutions, strict=True)
        return [(width, resolution in attended) for width, resolution in pairs]

    def count_heads(self, width: int) -> int:
        """Return the number of heads for `width` channels. Raises ValueError if it is not whole."""
        name, count = ("heads", self.heads) if self.heads else ("head_channels", self.head_channels)
        assert count is not None
        if width % count:
            raise ValueError(
                f"{name}={count} must divide the {width} channels of every level with attention; "
                f"try {name}={2 ** ((width & -width).bit_length() - 1)}"
            )
        return count if self.heads else width // count

    def res_block(
        self, channels: int, out: int, resample: Callable[[Tensor], Tensor] | None = None
    ) -> ResBlock:
        return ResBlock(channels, out, self.emb, self.dropout, self.scale_shift, resample)

    def attention_layers(self, width: int) -> list[nn.Module]:
        """Return self-attention, and cross-attention if there are tokens."""
        heads = self.count_heads(width)
        layers: list[nn.Module] = [Attention(width, heads)]
        if self.context is not None:
            layers.append(CrossAttention(width, heads, self.context))
        return layers

    def block(self, channels: int, out: int, attention: bool) -> Stack:
        """Return a residual block, with attention layers if `attention`."""
        layers = self.attention_layers(out) if attention else []
        return Stack([self.res_block(channels, out), *layers])

    def down(self, width: int) -> nn.Module:
        return self.res_block(width, width, downsample) if self.resblock_updown else Down(width)

    def up(self, width: int) -> nn.Module:
        return self.res_block(width, width, upsample) if self.resblock_updown else Up(width)

    def run(
        self,
        layer: Callable[[Tensor, BlockConditioning], Tensor],
        x: Tensor,
        conditioning: BlockConditioning,
    ) -> Tensor:
        """Return layer(x, conditioning), with checkpointing if configured."""
        if self.checkpointing and x.requires_grad:
            output: Tensor = checkpoint(layer, x, conditioning, use_reentrant=False)
            return output
        return layer(x, conditioning)


class Encoder(nn.Module):
    """Downsampling half and middle of a U-Net.

    Maps (B, C, H, W), t (B,) on a scale of 1000 and a condition to the coarsest features
    (B, widths[-1], h, w), the skip connections and the input of the layers.

    Args:
        classes: Number of labels; None for a network without labels.
        image: Channels of the image to concatenate with x; None for none.
        self_conditioning: Concatenate the previous estimate of x_0, or zeros (Chen et al., 2023).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        config: UNetConfig,
        classes: int | None = None,
        image: int | None = None,
        self_conditioning: bool = False,
    ) -> None:
        super().__init__()
        levels, emb = config.levels(shape), config.emb
        self.config, self.self_conditioning = config, self_conditioning
        self.time = time_embedding(config.channels, emb)
        self.label = None if classes is None else LabelEmbedding(classes, emb)
        self.context = None if config.context is None else CrossAttentionContext(config.context)
        self.image = None if image is None else ConcatConditioning(image, config.channels, emb)
        in_channels, width = shape[0] * (1 + self_conditioning) + (image or 0), config.widths[0]
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down, self.skip_widths = nn.ModuleList(), [width]
        for i, (out, attention) in enumerate(levels):
            for _ in range(config.blocks):
                self.down.append(config.block(width, out, attention))
                self.skip_widths.append(width := out)
            if i < len(levels) - 1:
                self.down.append(config.down(width))
                self.skip_widths.append(width)
        first = config.res_block(width, width)
        attention_layers = config.attention_layers(width)
        self.middle = Stack([first, *attention_layers, config.res_block(width, width)])

    def forward(
        self, x: Tensor, t: Tensor, cond: Condition
    ) -> tuple[Tensor, list[Tensor], BlockConditioning]:
        emb = self.time(t)
        if self.label is not None:
            emb = emb + self.label(cond, len(t))
        if self.self_conditioning:
            previous = torch.zeros_like(x) if cond.previous_x0 is None else cond.previous_x0
            x = torch.cat([x, previous], dim=1)
        if self.image is not None:
            x, level = self.image(cond, x)
            emb = emb + level
        context = None if self.context is None else self.context(cond, len(t))
        conditioning = BlockConditioning(F.silu(emb), context)
        x = self.first(x)
        skips = [x]
        for layer in self.down:
            x = self.config.run(layer, x, conditioning)
            skips.append(x)
        return self.config.run(self.middle, x, conditioning), skips, conditioning


class UNet(nn.Module):
    """(B, C, H, W), t (B,) on a scale of 1000, condition -> (B, outputs * C, H, W).

    The data determines `shape` (C, H, W), the variance `outputs`, the conditioner `classes`,
    `context` and `image`. Raises ValueError if the options do not fit the shape.

    Args:
        outputs: Number of output images per input image.
        self_conditioning, classes, image: See `Encoder`.
        channels_last: Store weights, and so activations, with the channels innermost.
        others: See `UNetConfig`.
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
        self.config = UNetConfig(
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
        self.encoder = Encoder(shape, self.config, classes, image, self_conditioning)
        self.up = self._decoder(shape)
        width = self.config.widths[0]
        last = zero_module(nn.Conv2d(width, outputs * shape[0], 3, padding=1))
        self.last = nn.Sequential(norm(width), nn.SiLU(), last)
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _decoder(self, shape: tuple[int, ...]) -> nn.ModuleList:
        config, skip_widths = self.config, list(self.encoder.skip_widths)
        layers, width = nn.ModuleList(), config.widths[-1]
        for i, (out, attention) in reversed(list(enumerate(config.levels(shape)))):
            for j in range(config.blocks + 1):
                block = config.block(width + skip_widths.pop(), out, attention)
                width = out
                if i and j == config.blocks:
                    block.append(config.up(width))
                layers.append(block)
        return layers

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x, skips, conditioning = self.encoder(x, t, cond)
        for layer in self.up:
            x = self.config.run(layer, torch.cat([x, skips.pop()], dim=1), conditioning)
        return self.last(x)
