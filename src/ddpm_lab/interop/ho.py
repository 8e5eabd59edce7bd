"""Networks of pytorch_diffusion, the PyTorch port of Ho et al. (2020), and of its autoencoders."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig

from ddpm_lab.interop.autoencoder_layout import rename_autoencoder
from ddpm_lab.interop.layout import (
    Names,
    Part,
    Rename,
    Tensors,
    UNetLayout,
    ratios,
    rename_layers,
    rename_parts,
    rename_time,
)
from ddpm_lab.interop.network import Network
from ddpm_lab.utils.errors import UserError

OUTER = {
    "first": "encoder.conv_in",
    "quant_conv.0": "encoder.norm_out",
    "post_quant_conv": "decoder.conv_in",
    "end.0": "decoder.norm_out",
    "last": "decoder.conv_out",
}
"""Layers of an autoencoder outside of its levels"""


def _part_name(part: Part) -> str:
    kind = {"resnet": "block", "attention": "attn", "down": "downsample", "up": "upsample"}
    if part.half == "middle":
        return f"mid.{kind[part.kind]}_{part.index + 1}"
    name = f"{part.half}.{part.level}.{kind[part.kind]}"
    return name if part.kind == part.half else f"{name}.{part.index}"


NAMES = Names(
    part=_part_name,
    resnet={
        "norm1": "norm1",
        "conv1": "conv1",
        "emb": "temb_proj",
        "norm2": "norm2",
        "conv2": "conv2",
        "skip": "nin_shortcut",
    },
    attention={"norm": "norm", "out": "proj_out"},
    qkv=("q", "k", "v"),
    down="conv",
    up="conv",
    rank=4,
)


def unet(tensors: Tensors) -> Network:
    """Describe a U-Net. Its attention is taken to be at 16x16, as in all of the paper."""
    layout = _layout(tensors, "")
    channels = tensors["conv_in.weight"].shape[1]
    overrides: dict[str, Any] = {
        "model": "unet_large",
        **_options(layout),
        "model.heads": 1,
        "model.scale_shift": False,
        "model.dropout": 0.0,
        "model.norm_groups": 32,
        "model.norm_eps": 1e-6,
        "model.frequency_shift": 1,
        "model.time_shift": -1,
        "model.downsample_padding": 0,
        "schedule": "linear",
        "schedule.steps": 1000,
        "sampler": "ddpm",
        "guidance": "none",
        "conditioner": "none",
    }
    missing = {"data.resolution": "data.resolution=32"}
    if any(layout.attention):
        side = 16 * 2 ** layout.attention.index(True)
        # The paper has the larger variance for CIFAR-10 and the smaller one for LSUN.
        variance = "beta" if side == 32 else "beta_tilde"
        overrides |= {"data.resolution": side, "variance": variance}
        missing = {}

    def renames(model: DictConfig) -> Iterator[Rename]:
        yield from rename_time("encoder.time.1", "temb.dense.0", sines_first=True)
        yield from rename_layers(
            {
                "encoder.time.3": "temb.dense.1",
                "encoder.first": "conv_in",
                "last.0": "norm_out",
                "last.2": "conv_out",
            }
        )
        yield from rename_parts(layout.parts(), NAMES, heads=lambda width: 1)

    return Network(
        "pytorch_diffusion",
        tensors,
        renames,
        overrides=overrides,
        missing=missing,
        attention=layout.attention,
        channels=channels,
        remark="data.resolution is derived from attention at 16x16",
    )


def autoencoder(tensors: Tensors) -> Network:
    """Describe an autoencoder of latent diffusion, KL or VQ. Raises UserError."""
    layout = _layout(tensors, "encoder.")
    codes = tensors.get("quantize.embedding.weight")
    kind = "kl" if codes is None else "vq"
    middle = "encoder.mid.attn_1.q.weight" in tensors
    inputs = tensors["quant_conv.weight"].shape[0]
    overrides: dict[str, Any] = {
        "system": "autoencoder",
        "model": f"autoencoder_{kind}",
        **_options(layout),
        "model.bottleneck.latent": inputs // 2 if codes is None else inputs,
        "model.heads": 1,
        "model.middle_attention": middle,
        "model.latent_conv": True,
        "model.norm_groups": 32,
        "model.norm_eps": 1e-6,
        "model.downsample_padding": 0,
    }
    if codes is not None:
        overrides["model.bottleneck.codes"] = len(codes)

    def renames(model: DictConfig) -> Iterator[Rename]:
        return rename_autoencoder(
            layout,
            NAMES,
            OUTER,
            middle=middle,
            codebook=codes is not None,
            quant_conv="quant_conv",
            latent_conv=True,
        )

    return Network(
        "latent-diffusion",
        tensors,
        renames,
        overrides=overrides,
        missing={"data.resolution": "data.resolution=256"},
        attention=layout.attention,
        channels=tensors["encoder.conv_in.weight"].shape[1],
        unused=("loss.", "ema_"),
    )


def _options(layout: UNetLayout) -> Mapping[str, Any]:
    return {
        "model.channels": layout.widths[0],
        "model.multipliers": ratios(layout.widths, layout.widths[0]),
        "model.blocks": layout.blocks,
    }


def _layout(tensors: Tensors, prefix: str) -> UNetLayout:
    pattern = re.compile(rf"{prefix}down\.(\d+)\.block\.(\d+)\.conv1\.weight")
    shapes = {
        (int(match[1]), int(match[2])): value.shape[0]
        for name, value in tensors.items()
        if (match := pattern.fullmatch(name))
    }
    if not shapes:
        raise UserError("the residual blocks of this network are missing; the file is incomplete")
    levels, blocks = (1 + max(pair[axis] for pair in shapes) for axis in (0, 1))
    widths = [shapes.get((level, 0), 0) for level in range(levels)]
    attention = [f"{prefix}down.{level}.attn.0.q.weight" in tensors for level in range(levels)]
    return UNetLayout(widths, attention, blocks)
