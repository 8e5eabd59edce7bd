"""U-Nets, classifiers and upsamplers of improved-diffusion and guided-diffusion."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ddpm_lab.interop.layout import (
    AttentionOrder,
    Names,
    Part,
    Rename,
    Tensors,
    UNetLayout,
    ratios,
    rename_layers,
    rename_parts,
)
from ddpm_lab.interop.network import Network
from ddpm_lab.utils.errors import UserError

HEADS = "model.heads=4, or model.head_channels=64"
SCHEDULE = "schedule=linear, or schedule=cosine"
RESOLUTION = "data.resolution=64"
TIME = (
    "model.time_scale=1 model.time_shift=-1000/T if it was trained with rescale_timesteps, or "
    "model.time_scale=T/1000 model.time_shift=-1 if not"
)


def _part_name(part: Part) -> str:
    match part.half:
        case "down":
            return f"input_blocks.{part.entry + 1}.{part.place}"
        case "middle":
            return f"middle_block.{part.place}"
    return f"output_blocks.{part.entry}.{part.place}"


NAMES = Names(
    part=_part_name,
    resnet={
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "emb": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "skip": "skip_connection",
    },
    attention={"norm": "norm", "out": "proj_out"},
    qkv=("qkv",),
    down="op",
    up="conv",
    rank=3,
)
OUTER = {
    "encoder.time.1": "time_embed.0",
    "encoder.time.3": "time_embed.2",
    "encoder.first": "input_blocks.0.0",
}
"""Layers outside of the levels"""


def unet(tensors: Tensors, order: AttentionOrder = "old") -> Network:
    """Describe a U-Net. `order` is that of the queries, keys and values of its attention.

    Raises UserError for networks that this project does not have.
    """
    _reject_transformers(tensors)
    layout = _unet_layout(tensors)
    inputs, outputs = _rows("input_blocks.0.0", tensors, 1), _rows("out.2", tensors)
    upsampler = inputs in (2, 6) and outputs in (inputs // 2, inputs)
    channels = inputs // 2 if upsampler else inputs
    if outputs not in (channels, 2 * channels):
        raise UserError(f"a U-Net from {inputs} to {outputs} channels is not a denoising network")
    classes = _rows("label_emb", tensors) if "label_emb.weight" in tensors else None

    def renames(model: DictConfig) -> Iterator[Rename]:
        return rename_unet(
            layout,
            heads_of(model),
            resblock_updown=model.resblock_updown,
            labeled=classes is not None,
            order=order,
        )

    network = Network(
        "guided-diffusion",
        tensors,
        renames,
        overrides={
            "model": "unet_small",
            **_options(tensors, layout),
            "model.time_shift": -1,
            "variance": "learned_range" if outputs == 2 * channels else "beta",
            "sampler": "ddpm",
            "guidance": "none",
            "conditioner": "none",
        },
        missing={
            "data.resolution": RESOLUTION,
            "model.heads": HEADS,
            "schedule": SCHEDULE,
            "model.time_scale": TIME,
        },
        attention=layout.attention,
        channels=channels,
        classes=classes,
    )
    if classes is not None:
        add_labels(network)
    if upsampler:
        _add_low_res(network)
    return network


def add_labels(network: Network) -> None:
    """Add a conditioner of labels that were never dropped in training."""
    network.overrides |= {"conditioner": "label", "conditioner.dropout": 0}
    emb = 4 * network.overrides["model.channels"]
    network.new = {**network.new, "encoder.label.null": torch.zeros(emb)}


def _add_low_res(network: Network) -> None:
    """Add a conditioner of clean low-resolution images, without an input for their noise level."""
    network.overrides |= {
        "conditioner": "low_res",
        "conditioner.label": network.classes is not None,
        "conditioner.max_noise_level": 0,
    }
    network.overrides.pop("conditioner.dropout", None)
    network.missing["conditioner.factor"] = "conditioner.factor=4"
    width = network.overrides["model.channels"]
    network.new = {
        **network.new,
        "encoder.image.null": torch.zeros(network.channels, 1, 1),
        "encoder.image.level.1.weight": torch.zeros(4 * width, width),
        "encoder.image.level.1.bias": torch.zeros(4 * width),
        "encoder.image.level.3.weight": torch.zeros(4 * width, 4 * width),
        "encoder.image.level.3.bias": torch.zeros(4 * width),
    }


def classifier(tensors: Tensors, order: AttentionOrder = "old") -> Network:
    """Describe a classifier with attention pooling. Raises UserError for other pooling."""
    positions = "out.2.positional_embedding"
    if positions not in tensors:
        raise UserError(
            "a classifier with classifier_pool other than attention has no counterpart here"
        )
    layout = _encoder_layout(tensors)
    side = round((tensors[positions].shape[1] - 1) ** 0.5)
    channels, classes = _rows("input_blocks.0.0", tensors, 1), _rows("out.2.c_proj", tensors)
    overrides = {
        "system": "classifier",
        "model": "classifier",
        **_options(tensors, layout),
        "data.resolution": side * 2 ** (len(layout.widths) - 1),
        "model.pool_positions": True,
        "model.time_shift": -1,
        "conditioner": "label",
    }

    def renames(model: DictConfig) -> Iterator[Rename]:
        yield from rename_layers({**OUTER, "norm": "out.0"})
        yield from rename_parts(
            [*layout.down_parts(), *layout.middle_parts()],
            NAMES,
            heads=heads_of(model),
            order=order,
            resblock_updown=model.resblock_updown,
        )
        width = layout.widths[-1]
        for kind in ("weight", "bias"):
            both = (f"out.2.qkv_proj.{kind}",)
            yield Rename(f"pool.query.{kind}", both, lambda one: _matrix(one[0])[:width])
            yield Rename(f"pool.places.{kind}", both, lambda one: _matrix(one[0])[width:])
            yield Rename(f"pool.out.{kind}", (f"out.2.c_proj.{kind}",), lambda one: _matrix(one[0]))
        yield Rename("pool.positions", (positions,), lambda one: one[0].T)

    return Network(
        "guided-diffusion",
        tensors,
        renames,
        overrides=overrides,
        missing={"model.heads": HEADS, "schedule": SCHEDULE, "model.time_scale": TIME},
        attention=layout.attention,
        channels=channels,
        classes=classes,
    )


def rename_unet(
    layout: UNetLayout,
    heads: Callable[[int], int],
    *,
    resblock_updown: bool,
    labeled: bool,
    order: AttentionOrder = "old",
) -> Iterator[Rename]:
    """Yield the tensors of a U-Net. `heads` returns the attention heads of a width."""
    yield from rename_layers({**OUTER, "last.0": "out.0", "last.2": "out.2"})
    if labeled:
        yield Rename("encoder.label.table.weight", ("label_emb.weight",))
    yield from rename_parts(
        layout.parts(), NAMES, heads=heads, order=order, resblock_updown=resblock_updown
    )


def heads_of(model: DictConfig) -> Callable[[int], int]:
    """Return the function from a width to its number of attention heads.

    It raises UserError if that is not a whole number.
    """
    name = "heads" if model.heads else "head_channels"

    def heads(width: int) -> int:
        if width % model[name]:
            raise UserError(
                f"model.{name}={model[name]} must divide the {width} channels of a level"
            )
        return int(model.heads or width // model.head_channels)

    return heads


def _options(tensors: Tensors, layout: UNetLayout) -> dict[str, Any]:
    """Return the options of the model that names and shapes determine."""
    channels = tensors["time_embed.0.weight"].shape[1]
    emb = _rows("input_blocks.1.0.emb_layers.1", tensors)
    out = _rows("input_blocks.1.0.out_layers.3", tensors)
    convolutions = any(name.endswith(".op.weight") for name in tensors)
    return {
        "model.channels": channels,
        "model.multipliers": ratios(layout.widths, channels),
        "model.blocks": layout.blocks,
        "model.scale_shift": emb == 2 * out,
        "model.resblock_updown": len(layout.widths) > 1 and not convolutions,
        "model.norm_groups": 32,
        "model.dropout": 0.0,
    }


def _unet_layout(tensors: Tensors) -> UNetLayout:
    """Return the levels of a U-Net: its first upsampling layer ends the coarsest one."""
    count = _count("output_blocks", tensors)
    ends = [
        i
        for i in range(count)
        if any(
            f"output_blocks.{i}.{place}.{layer}.weight" in tensors
            for place in (1, 2)
            for layer in ("conv", "in_layers.0")
        )
    ]
    return _layout(tensors, blocks=ends[0] if ends else count - 1)


def _encoder_layout(tensors: Tensors) -> UNetLayout:
    """Return the levels of an encoder, whose last level has attention in every block."""
    count = _count("input_blocks", tensors)
    attention = [f"input_blocks.{i}.1.qkv.weight" in tensors for i in range(1, count)]
    ops = [i for i in range(1, count) if f"input_blocks.{i}.0.op.weight" in tensors]
    trailing = next((i for i, one in enumerate(reversed(attention)) if not one), len(attention))
    return _layout(tensors, blocks=ops[0] - 1 if ops else trailing)


def _layout(tensors: Tensors, blocks: int) -> UNetLayout:
    count = _count("input_blocks", tensors)
    levels = count // (blocks + 1)
    if blocks < 1 or levels * (blocks + 1) != count:
        raise UserError(
            "its levels cannot be derived from its tensors; conv_resample=False, and classifiers "
            "without attention in the last level, are not supported"
        )
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [_rows(f"input_blocks.{i}.0.out_layers.3", tensors) for i in firsts]
    attention = [f"input_blocks.{i}.1.qkv.weight" in tensors for i in firsts]
    return UNetLayout(widths, attention, blocks)


def _count(half: str, tensors: Tensors) -> int:
    numbers = {int(match[1]) for name in tensors if (match := re.match(rf"{half}\.(\d+)\.", name))}
    return len(numbers)


def _rows(layer: str, tensors: Tensors, dim: int = 0) -> int:
    try:
        return tensors[f"{layer}.weight"].shape[dim]
    except KeyError as error:
        raise UserError(f"the tensor {layer}.weight is missing; the file is incomplete") from error


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.ndim > 1 else tensor


def _reject_transformers(tensors: Tensors) -> None:
    if name := next((name for name in tensors if ".transformer_blocks." in name), None):
        raise UserError(
            f"its layer {name.partition('.transformer_blocks.')[0]} is a SpatialTransformer, which "
            "the networks of this project do not have"
        )
