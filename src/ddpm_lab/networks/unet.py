"""The U-Net of Ho et al. (2020), Nichol & Dhariwal (2021) and Dhariwal & Nichol (2021)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ddpm_lab.diffusion.condition import Condition
from ddpm_lab.networks.encoder import Encoder, Layout
from ddpm_lab.networks.layers import norm, zeroed


class UNet(nn.Module):
    """(B, C, H, W), t (B,) on a scale of 1000, a condition -> (B, outputs * C, H, W).

    `shape` (C, H, W) comes from the data, `outputs` from the variance; `classes`, `context` (width of tokens) and
    `image` (channels of a picture beside x) from the condition. With `self_conditioning` it hears its guess before.
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
        biggan: bool = False,
        dropout: float = 0.0,
        checkpointing: bool = False,
        self_conditioning: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.layout = layout = Layout(
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            heads=heads,
            head_channels=head_channels,
            scale_shift=scale_shift,
            biggan=biggan,
            dropout=dropout,
            checkpointing=checkpointing,
            context=context,
        )
        self.recalls = self_conditioning
        self.encoder = Encoder(shape, layout, classes, image, self_conditioning)
        resolutions, widths = layout.resolutions(shape), layout.widths
        self.up, kept, width = nn.ModuleList(), list(self.encoder.kept), widths[-1]
        for i, (out, resolution) in reversed(
            list(enumerate(zip(widths, resolutions, strict=True)))
        ):
            for j in range(blocks + 1):
                stack = layout.level(width + kept.pop(), out, resolution, resolutions)
                width = out
                if i and j == blocks:
                    stack.append(layout.up(width))
                self.up.append(stack)
        self.last = nn.Sequential(
            norm(width), nn.SiLU(), zeroed(nn.Conv2d(width, outputs * shape[0], 3, padding=1))
        )
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x, kept, told = self.encoder(x, t, cond)
        for layer in self.up:
            x = self.layout.run(layer, torch.cat([x, kept.pop()], dim=1), told)
        return self.last(x)
