"""Names of the layers of U-Nets and autoencoders, and conversions of their tensors."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
AttentionOrder = Literal["old", "new"]
"""Order of the rows of one matrix for queries, keys and values

new: all queries, all keys, all values. old: queries, keys and values of each head in turn.
"""


@dataclass(frozen=True)
class Part:
    """A layer of a U-Net or an autoencoder."""

    name: str
    """Prefix of its tensors in this project"""
    kind: Literal["resnet", "attention", "down", "up"]
    half: Literal["down", "middle", "up"]
    level: int
    """Level, 0 for the finest; of a layer that resamples, the level before it"""
    index: int
    """Number among the blocks of its level and kind"""
    entry: int
    """Number of the stack of layers within its half"""
    place: int
    """Place within the stack"""
    width: int
    """Number of channels of its output"""


class Rename(NamedTuple):
    """A tensor of this project and the tensors of another codebase from which it is made."""

    ours: str
    theirs: tuple[str, ...]
    read: Callable[[Sequence[Tensor]], Tensor] = lambda tensors: tensors[0]
    write: Callable[[Tensor], list[Tensor]] = lambda tensor: [tensor]


class UNetLayout(NamedTuple):
    """The levels of a U-Net."""

    widths: Sequence[int]
    attention: Sequence[bool]
    """One per level"""
    blocks: int

    def parts(self) -> list[Part]:
        """Return all layers."""
        return [*self.down_parts(), *self.middle_parts(), *self.up_parts()]

    def down_parts(self) -> Iterator[Part]:
        """Yield the layers of the downsampling half."""
        entry, last = 0, len(self.widths) - 1
        for level, (width, attention) in enumerate(zip(self.widths, self.attention, strict=True)):
            for index in range(self.blocks):
                name, at = f"encoder.down.{entry}", (level, index, entry)
                yield Part(f"{name}.0", "resnet", "down", *at, 0, width)
                if attention:
                    yield Part(f"{name}.1", "attention", "down", *at, 1, width)
                entry += 1
            if level < last:
                yield Part(f"encoder.down.{entry}", "down", "down", level, 0, entry, 0, width)
                entry += 1

    def middle_parts(self) -> Iterator[Part]:
        """Yield the layers in the middle."""
        kinds: tuple[Literal["resnet", "attention"], ...] = ("resnet", "attention", "resnet")
        level, width = len(self.widths) - 1, self.widths[-1]
        for place, kind in enumerate(kinds):
            name = f"encoder.middle.{place}"
            yield Part(name, kind, "middle", level, place // 2, 0, place, width)

    def up_parts(self) -> Iterator[Part]:
        """Yield the layers of the upsampling half."""
        entry = 0
        levels = list(enumerate(zip(self.widths, self.attention, strict=True)))
        for level, (width, attention) in reversed(levels):
            for index in range(self.blocks + 1):
                name, at = f"up.{entry}", (level, index, entry)
                yield Part(f"{name}.0", "resnet", "up", *at, 0, width)
                if attention:
                    yield Part(f"{name}.1", "attention", "up", *at, 1, width)
                if level and index == self.blocks:
                    place = 1 + attention
                    yield Part(f"{name}.{place}", "up", "up", level, 0, entry, place, width)
                entry += 1


@dataclass(frozen=True)
class Names:
    """Names of the tensors in another codebase. Keys are the names in this project."""

    part: Callable[[Part], str]
    """Prefix of a layer"""
    resnet: Mapping[str, str]
    attention: Mapping[str, str]
    """Without queries, keys and values"""
    qkv: tuple[str, ...]
    """One matrix, or three"""
    down: str
    up: str
    rank: int
    """Dimensions of the matrices of attention: 2, or 3 and 4 for convolutions"""


def rename_parts(
    parts: Iterable[Part],
    names: Names,
    *,
    heads: Callable[[int], int],
    order: AttentionOrder = "new",
    resblock_updown: bool = False,
) -> Iterator[Rename]:
    """Yield the tensors of these layers. `heads` returns the attention heads of a width."""
    for part in parts:
        prefix = names.part(part)
        match part.kind:
            case "attention":
                norm = {"norm": names.attention["norm"]}
                yield from rename_layers(norm, f"{part.name}.", f"{prefix}.")
                yield from _rename_attention(part, prefix, names, heads(part.width), order)
            case "down" | "up" if not resblock_updown:
                layer = names.down if part.kind == "down" else names.up
                yield from rename_layers({"conv": layer}, f"{part.name}.", f"{prefix}.")
            case _:
                yield from rename_layers(names.resnet, f"{part.name}.", f"{prefix}.")


def rename_layers(layers: Mapping[str, str], ours: str = "", theirs: str = "") -> Iterator[Rename]:
    """Yield weight and bias of `layers`, whose names follow the prefixes `ours` and `theirs`."""
    for layer, other in layers.items():
        for kind in ("weight", "bias"):
            yield Rename(f"{ours}{layer}.{kind}", (f"{theirs}{other}.{kind}",))


def _rename_attention(
    part: Part, prefix: str, names: Names, heads: int, order: AttentionOrder
) -> Iterator[Rename]:
    rows = qkv_rows(part.width, heads, order)
    back, count = rows.argsort(), len(names.qkv)

    def read_qkv(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.flatten(1) if tensor.ndim > 1 else tensor for tensor in tensors])[
            rows
        ]

    for kind, rank in (("weight", names.rank), ("bias", 1)):

        def write_qkv(tensor: Tensor, rank: int = rank) -> list[Tensor]:
            return [_with_rank(one, rank) for one in tensor[back].chunk(count)]

        yield Rename(
            f"{part.name}.qkv.{kind}",
            tuple(f"{prefix}.{name}.{kind}" for name in names.qkv),
            read_qkv,
            write_qkv,
        )
        yield Rename(
            f"{part.name}.out.{kind}",
            (f"{prefix}.{names.attention['out']}.{kind}",),
            _without_pixels,
            partial(_write_matrix, rank=rank),
        )


def qkv_rows(width: int, heads: int, order: AttentionOrder) -> Tensor:
    """Return the row of a matrix in `order` for each row in the order of this project, (3 width,).

    With one head, "old" and "new" are the same.
    """
    rows = torch.arange(3 * width)
    return rows if order == "new" else rows.view(heads, 3, -1).transpose(0, 1).flatten()


def _without_pixels(tensors: Sequence[Tensor]) -> Tensor:
    """Return the matrix of a 1x1 convolution; matrices and vectors are unchanged."""
    (tensor,) = tensors
    return tensor.flatten(1) if tensor.ndim > 2 else tensor


def _write_matrix(tensor: Tensor, rank: int) -> list[Tensor]:
    return [_with_rank(tensor, rank)]


def _with_rank(tensor: Tensor, rank: int) -> Tensor:
    return tensor.view(*tensor.shape, *[1] * (rank - tensor.ndim))


def swap_halves(tensor: Tensor) -> Tensor:
    """Swap the halves of the columns: sines before cosines."""
    return tensor.roll(tensor.shape[1] // 2, dims=1)


def rename_time(ours: str, theirs: str, sines_first: bool) -> list[Rename]:
    """Return the first layer after a sinusoidal embedding; cosines come first in this project."""
    names = f"{ours}.weight", (f"{theirs}.weight",)
    weight = (
        Rename(*names, lambda one: swap_halves(one[0]), lambda one: [swap_halves(one)])
        if sines_first
        else Rename(*names)
    )
    return [weight, Rename(f"{ours}.bias", (f"{theirs}.bias",))]


def shift_time(weight: Tensor, shift: float, frequency_shift: int) -> Tensor:
    """Return the weight (E, C) that gives at time t the output that `weight` gives at t + shift.

    Cosines and sines at t + shift are a rotation of those at t, so the result is exact.
    """
    half = weight.shape[1] // 2
    steps = torch.arange(half, dtype=torch.float64)
    angles = shift * 10000.0 ** (-steps / (half - frequency_shift))
    cosines, sines = weight.double().chunk(2, dim=1)
    turned = [
        cosines * angles.cos() + sines * angles.sin(),
        sines * angles.cos() - cosines * angles.sin(),
    ]
    return torch.cat(turned, dim=1).to(weight.dtype) if shift else weight


def ratios(widths: Sequence[int], channels: int) -> list[float]:
    """Return the multipliers of these widths; whole numbers where they are whole."""
    multipliers = [width / channels for width in widths]
    return [int(ratio) if ratio == int(ratio) else ratio for ratio in multipliers]
