"""The U-Net of Ho et al. (2020), Nichol & Dhariwal (2021) and Dhariwal & Nichol (2021)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.networks.layers import (
    Attention,
    BlockConditioning,
    ConditionedNetwork,
    CrossAttention,
    CrossAttentionContext,
    Down,
    ResBlock,
    Stack,
    TimeEncoding,
    Up,
    downsample,
    group_norm,
    level_shapes,
    level_widths,
    run_layer,
    upsample,
    zero_module,
)
from ddpm_lab.utils.ranges import Count, Positive, check_ranges


@dataclass(eq=False, repr=False, kw_only=True)
class UNetBase(nn.Module):
    """Options that the U-Net and the classifier share, and the layers that follow from them.

    Raises ValueError if the options do not fit the shape.

    Args:
        shape: (C, H, W), which the data determines.
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
        norm_groups: Groups of the norms; None: see `group_norm`.
        norm_eps: Term in the denominator of the norms.
        time_scale, time_shift, frequency_shift: See `TimeEncoding`.
        downsample_padding: See `Down`.
    """

    shape: tuple[int, ...] = field(kw_only=False)
    context: int | None = field(default=None, init=False)
    channels: Count = 64
    multipliers: Sequence[float] = (1, 2, 2)
    blocks: Count = 2
    attention: Sequence[int] | Literal["all"] | None = None
    heads: Count | None = 4
    head_channels: Count | None = None
    scale_shift: bool = True
    resblock_updown: bool = False
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    checkpointing: bool = False
    norm_groups: Count | None = None
    norm_eps: Positive = 1e-5
    time_scale: Positive = 1.0
    time_shift: float = 0.0
    frequency_shift: Literal[0, 1] = 0
    downsample_padding: Literal[0, 1] = 1

    def __post_init__(self) -> None:
        super().__init__()
        self.make_norm = partial(group_norm, groups=self.norm_groups, eps=self.norm_eps)
        if (self.heads is None) == (self.head_channels is None):
            raise ValueError(
                f"heads={self.heads} head_channels={self.head_channels}: one must be a number and "
                "the other null; try heads=4 head_channels=null"
            )
        self.widths = level_widths(self.channels, self.multipliers)
        resolutions = [height for height, _ in level_shapes(self.shape, self.multipliers)]
        if self.attention is None:
            attended = resolutions[-1:]
        else:
            attended = resolutions if self.attention == "all" else [*map(int, self.attention)]
        within = [size for size in attended if size <= self.shape[1]]
        if absent := {*within} - {*resolutions}:
            near = {str(min(resolutions, key=lambda other: abs(other - size))) for size in within}
            hint = ",".join(sorted(near, key=int, reverse=True))
            raise ValueError(
                f"attention={attended}: resolution {min(absent)} does not occur; images of "
                f"{self.shape[1]}x{self.shape[2]} reach {resolutions}; try attention=[{hint}]"
            )
        attention = [resolution in attended for resolution in resolutions]
        self.levels = list(zip(self.widths, attention, strict=True))

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
        emb = 4 * self.channels
        return ResBlock(
            channels, out, emb, self.dropout, self.scale_shift, resample, self.make_norm
        )

    def attention_layers(self, width: int) -> list[nn.Module]:
        """Return self-attention, and cross-attention if there are tokens."""
        heads = self.count_heads(width)
        layers: list[nn.Module] = [Attention(width, heads, self.make_norm)]
        if self.context is not None:
            layers.append(CrossAttention(width, heads, self.context, self.make_norm))
        return layers

    def block(self, channels: int, out: int, attention: bool) -> Stack:
        """Return a residual block, with attention layers if `attention`."""
        layers = self.attention_layers(out) if attention else []
        return Stack([self.res_block(channels, out), *layers])

    def down_layer(self, width: int) -> nn.Module:
        if self.resblock_updown:
            return self.res_block(width, width, downsample)
        return Down(width, self.downsample_padding)

    def up_layer(self, width: int) -> nn.Module:
        return self.res_block(width, width, upsample) if self.resblock_updown else Up(width)


class Encoder(ConditionedNetwork):
    """Downsampling half and middle of a U-Net with the options and layers of `base`.

    Maps (B, C, H, W), t (B,) on a scale of 1000 and a condition to the coarsest features
    (B, widths[-1], h, w), the skip connections and the input of the layers.

    With `self_conditioning`, the previous estimate of x_0, or zeros, is concatenated with x (Chen
    et al., 2023). For `classes` and `image` see `ConditionedNetwork`.
    """

    def __init__(
        self,
        base: UNetBase,
        classes: int | None = None,
        image: int | None = None,
        self_conditioning: bool = False,
    ) -> None:
        encoding = TimeEncoding(base.time_scale, base.time_shift, base.frequency_shift)
        super().__init__(base.channels, 4 * base.channels, classes, image, encoding)
        self.checkpointing, self.self_conditioning = base.checkpointing, self_conditioning
        self.context = None if base.context is None else CrossAttentionContext(base.context)
        in_channels, width = base.shape[0] * (1 + self_conditioning) + (image or 0), base.widths[0]
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down, self.skip_widths = nn.ModuleList(), [width]
        for i, (out, attention) in enumerate(base.levels):
            for _ in range(base.blocks):
                self.down.append(base.block(width, out, attention))
                self.skip_widths.append(width := out)
            if i < len(base.levels) - 1:
                self.down.append(base.down_layer(width))
                self.skip_widths.append(width)
        first = base.res_block(width, width)
        attention_layers = base.attention_layers(width)
        self.middle = Stack([first, *attention_layers, base.res_block(width, width)])

    def forward(
        self, x: Tensor, t: Tensor, cond: Condition
    ) -> tuple[Tensor, list[Tensor], BlockConditioning]:
        if self.self_conditioning:
            previous = torch.zeros_like(x) if cond.previous_x0 is None else cond.previous_x0
            x = torch.cat([x, previous], dim=1)
        x, emb = self.embed(x, t, cond)
        context = None if self.context is None else self.context(cond, len(t))
        conditioning = BlockConditioning(emb, context)
        x = self.first(x)
        skips = [x]
        for layer in self.down:
            x = run_layer(layer, x, conditioning, self.checkpointing)
            skips.append(x)
        return run_layer(self.middle, x, conditioning, self.checkpointing), skips, conditioning


@check_ranges
@dataclass(eq=False, repr=False, kw_only=True)
class UNet(UNetBase):
    """(B, C, H, W), t (B,) on a scale of 1000, condition -> (B, outputs * C, H, W).

    Args:
        outputs: Number of output images per input image, which the variance determines.
        classes, image: See `ConditionedNetwork`. The conditioner determines them.
        context: Width of the tokens for cross-attention, which follows every self-attention. The
            conditioner determines it.
        self_conditioning: See `Encoder`.
        channels_last: Store weights, and so activations, with the channels innermost.
        others: See `UNetBase`.
    """

    outputs: int = 1
    classes: int | None = None
    context: int | None = None
    image: int | None = None
    self_conditioning: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.encoder = Encoder(self, self.classes, self.image, self.self_conditioning)
        self.up = self._decoder()
        width = self.widths[0]
        last = zero_module(nn.Conv2d(width, self.outputs * self.shape[0], 3, padding=1))
        self.last = nn.Sequential(self.make_norm(width), nn.SiLU(), last)
        if self.channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _decoder(self) -> nn.ModuleList:
        skip_widths = list(self.encoder.skip_widths)
        layers, width = nn.ModuleList(), self.widths[-1]
        for i, (out, attention) in reversed(list(enumerate(self.levels))):
            for j in range(self.blocks + 1):
                block = self.block(width + skip_widths.pop(), out, attention)
                width = out
                if i and j == self.blocks:
                    block.append(self.up_layer(width))
                layers.append(block)
        return layers

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x, skips, conditioning = self.encoder(x, t, cond)
        for layer in self.up:
            x = run_layer(
                layer, torch.cat([x, skips.pop()], dim=1), conditioning, self.checkpointing
            )
        return self.last(x)
