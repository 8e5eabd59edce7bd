"""UNet2DModel, AutoencoderKL and VQModel of diffusers, alone or in the folder of a pipeline."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ddpm_lab.interop.autoencoder_layout import rename_autoencoder
from ddpm_lab.interop.files import find_weights, read_file, read_json, select_tensors
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
from ddpm_lab.interop.openai import add_labels, heads_of
from ddpm_lab.interop.schedulers import scheduler_overrides, unused_options
from ddpm_lab.utils.errors import CorruptFileError, UserError

FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "add_attention": True,
    "center_input_sample": False,
    "class_embed_type": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "time_embedding_type": "positional",
}
"""Options of UNet2DModel that have one value in the networks of this project"""
SCHEDULER = "schedule=linear"
RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "emb": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}


OUTER = {
    "first": "encoder.conv_in",
    "quant_conv.0": "encoder.conv_norm_out",
    "post_quant_conv": "decoder.conv_in",
    "end.0": "decoder.conv_norm_out",
    "last": "decoder.conv_out",
}
"""Layers of an autoencoder outside of its levels"""


def names(levels: int, legacy: bool = False) -> Names:
    """Return the names of a U-Net with so many levels; `legacy` for files of old versions."""

    def part_name(part: Part) -> str:
        coarse = levels - 1 - part.level
        match part.half, part.kind:
            case "middle", kind:
                return f"mid_block.{kind}s.{part.index}"
            case "down", "down":
                return f"down_blocks.{part.level}.downsamplers.0"
            case "up", "up":
                return f"up_blocks.{coarse}.upsamplers.0"
            case "down", kind:
                return f"down_blocks.{part.level}.{kind}s.{part.index}"
            case _, kind:
                return f"up_blocks.{coarse}.{kind}s.{part.index}"

    return Names(
        part=part_name,
        resnet=RESNET,
        attention={"norm": "group_norm", "out": "proj_attn" if legacy else "to_out.0"},
        qkv=("query", "key", "value") if legacy else ("to_q", "to_k", "to_v"),
        down="conv",
        up="conv",
        rank=2,
    )


def read_folder(folder: Path) -> Network:
    """Describe the network in a folder, or the models in the folder of a pipeline.

    Raises UserError for classes and options that this project does not have.
    """
    if not (folder / "model_index.json").is_file():
        return _read_model(folder, None)
    index = read_json(folder / "model_index.json")
    parts = {name for name in index if name[0] != "_"} - {"scheduler"}
    if extra := parts - {"unet", "vqvae", "vae"}:
        raise UserError(f"{folder}: {min(extra)} of {index.get('_class_name')} has no counterpart")
    name = next((name for name in ("unet", "vqvae", "vae") if name in index), "unet")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    network = _read_model(folder / name, read_json(scheduler) if "scheduler" in index else None)
    latents = next((name for name in ("vqvae", "vae") if name in index and name != "unet"), None)
    if latents is not None and name == "unet":
        network.autoencoder = _read_model(folder / latents, None)
        network.scale = network.autoencoder.scale
        factor = 2 ** (len(network.autoencoder.attention or ()) - 1)
        match network.overrides.get("data.resolution"):
            case int() as side:
                network.overrides["data.resolution"] = factor * side
            case [height, width]:
                network.overrides["data.resolution"] = [factor * height, factor * width]
    return network


def _read_model(folder: Path, scheduler: Mapping[str, Any] | None) -> Network:
    config = read_json(folder / "config.json")
    tensors = select_tensors(read_file(find_weights(folder)))
    match config.get("_class_name"):
        case "UNet2DModel":
            return _unet(config, tensors, scheduler)
        case "AutoencoderKL" | "VQModel":
            return _autoencoder(config, tensors)
        case other:
            raise UserError(
                f"{folder}: {other} is not a network of this project; UNet2DModel, AutoencoderKL "
                "and VQModel are"
            )


def _unet(
    config: Mapping[str, Any], tensors: Tensors, scheduler: Mapping[str, Any] | None
) -> Network:
    _check_options(config, FIXED)
    _check_blocks(config, tensors)
    if "mid_block.attentions.0.group_norm.weight" not in tensors:
        raise UserError(
            "its attention in the middle has no norm (attn_norm_num_groups=null with "
            "resnet_time_scale_shift=scale_shift), which that of this project has"
        )
    widths, blocks = list(config["block_out_channels"]), config.get("layers_per_block", 2)
    layout = UNetLayout(widths, _attention_levels(config, "DownBlock2D", "UpBlock2D"), blocks)
    channels, outputs = config.get("in_channels", 3), config.get("out_channels", 3)
    if outputs not in (channels, 2 * channels):
        raise UserError(f"a U-Net from {channels} to {outputs} channels is not a denoising network")
    legacy = any(".query." in name for name in tensors)
    classes = config.get("num_class_embeds")

    def renames(model: DictConfig) -> Iterator[Rename]:
        return rename_unet(
            layout,
            heads_of(model),
            resblock_updown=model.resblock_updown,
            labeled=classes is not None,
            sines_first=not config.get("flip_sin_to_cos", True),
            legacy=legacy,
        )

    network = Network(
        "diffusers",
        tensors,
        renames,
        overrides={
            "model": "unet_small",
            "model.channels": widths[0],
            "model.multipliers": ratios(widths, widths[0]),
            "model.blocks": blocks,
            **_options(config),
            "model.resblock_updown": _has_resblock_updown(tensors),
            "model.time_scale": ((scheduler or {}).get("num_train_timesteps") or 1000) / 1000,
            "model.time_shift": -1,
            "variance": "learned_range" if outputs == 2 * channels else "beta",
            "guidance": "none",
            "conditioner": "none",
            **scheduler_overrides(scheduler, outputs == 2 * channels),
        },
        missing={} if scheduler else {"schedule": SCHEDULER},
        attention=layout.attention,
        channels=channels,
        classes=classes,
    )
    if classes is not None:
        add_labels(network)
    network.remark = unused_options(scheduler or {})
    match config.get("sample_size"):
        case int() as size:
            network.overrides["data.resolution"] = size
        case [int() as height, int() as width]:
            network.overrides["data.resolution"] = height if height == width else [height, width]
        case _:
            network.missing["data.resolution"] = "data.resolution=64"
    return network


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a U-Net that its tensors do not determine. Raises UserError."""
    shift, head_channels = config.get("freq_shift", 0), config.get("attention_head_dim", 8)
    if shift not in (0, 1):
        raise UserError(f"freq_shift={shift}: the networks of this project have 0 or 1")
    groups = config.get("norm_num_groups", 32)
    if config.get("attn_norm_num_groups") not in (None, groups):
        raise UserError("attn_norm_num_groups must equal norm_num_groups")
    return {
        "model.heads": 1 if head_channels is None else None,
        "model.head_channels": head_channels,
        "model.scale_shift": config.get("resnet_time_scale_shift", "default") == "scale_shift",
        "model.dropout": config.get("dropout", 0.0),
        "model.norm_groups": groups,
        "model.norm_eps": config.get("norm_eps", 1e-5),
        "model.downsample_padding": config.get("downsample_padding", 1),
        "model.frequency_shift": shift,
    }


def rename_unet(
    layout: UNetLayout,
    heads: Callable[[int], int],
    *,
    resblock_updown: bool,
    labeled: bool,
    sines_first: bool = False,
    legacy: bool = False,
) -> Iterator[Rename]:
    """Yield the tensors of a U-Net. `heads` returns the attention heads of a width."""
    yield from rename_time("encoder.time.1", "time_embedding.linear_1", sines_first)
    yield from rename_layers(
        {
            "encoder.time.3": "time_embedding.linear_2",
            "encoder.first": "conv_in",
            "last.0": "conv_norm_out",
            "last.2": "conv_out",
        }
    )
    if labeled:
        yield Rename("encoder.label.table.weight", ("class_embedding.weight",))
    yield from rename_parts(
        layout.parts(),
        names(len(layout.widths), legacy),
        heads=heads,
        resblock_updown=resblock_updown,
    )


def _check_options(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for key, value in fixed.items():
        if config.get(key, value) not in (value, "swish" if value == "silu" else value):
            raise UserError(
                f"{key}={config[key]}: the networks of this project have {key}={value} only"
            )


def _check_blocks(config: Mapping[str, Any], tensors: Tensors) -> None:
    """Raise CorruptFileError for more blocks than tensors."""
    blocks = config.get("layers_per_block", 1)
    if type(blocks) is not int or not 0 < blocks <= len(tensors):
        raise CorruptFileError(f"layers_per_block={blocks} does not fit its {len(tensors)} tensors")


def _attention_levels(config: Mapping[str, Any], down: str, up: str) -> list[bool]:
    """Return the levels with attention. Raises UserError for blocks of other types."""
    types = [*config["down_block_types"], *config["up_block_types"]]
    allowed = [down, up, f"Attn{down}", f"Attn{up}"]
    allowed += ["ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"]
    if wrong := [name for name in types if name not in allowed]:
        raise UserError(f"{wrong[0]} is not a block of the networks of this project")
    halves = [
        [name.startswith("Attn") for name in config[key]]
        for key in ("down_block_types", "up_block_types")
    ]
    if halves[0] != halves[1][::-1]:
        raise UserError("attention must be in the same levels of both halves of the U-Net")
    return halves[0]


def _has_resblock_updown(tensors: Tensors) -> bool:
    """Return True if residual blocks change the resolution. Raises UserError if only some do."""
    layers = {
        name.rpartition("samplers.0.")[2]
        for name in tensors
        if name.endswith(("samplers.0.conv.weight", "samplers.0.norm1.weight"))
    }
    if len(layers) > 1:
        raise UserError(
            "convolutions change the resolution in some levels and residual blocks in others; the "
            "networks of this project have one of the two"
        )
    return layers == {"norm1.weight"}


def _autoencoder(config: Mapping[str, Any], tensors: Tensors) -> Network:
    _check_options(config, {"act_fn": "silu", "norm_type": "group"})
    _check_blocks(config, tensors)
    widths = list(config["block_out_channels"])
    levels, blocks = len(widths), config.get("layers_per_block", 1)
    attention = _attention_levels(config, "DownEncoderBlock2D", "UpDecoderBlock2D")
    kind = "vq" if config["_class_name"] == "VQModel" else "kl"
    middle = config.get("mid_block_add_attention", True)
    legacy = any(".query." in name for name in tensors)
    latent = config.get("latent_channels", 4 if kind == "kl" else 3)
    if config.get("vq_embed_dim") not in (None, latent):
        raise UserError("vq_embed_dim must equal latent_channels")
    size = config.get("sample_size", 32)
    overrides: dict[str, Any] = {
        "system": "autoencoder",
        "model": f"autoencoder_{kind}",
        "model.bottleneck.latent": latent,
        "model.channels": widths[0],
        "model.multipliers": ratios(widths, widths[0]),
        "model.blocks": blocks,
        "model.heads": 1,
        "model.middle_attention": middle,
        "model.latent_conv": "post_quant_conv.weight" in tensors,
        "model.norm_groups": config.get("norm_num_groups", 32),
        "model.norm_eps": 1e-6,
        "model.downsample_padding": 0,
        "data.resolution": size if isinstance(size, int) else list(size),
    }
    if kind == "vq":
        overrides["model.bottleneck.codes"] = config.get("num_vq_embeddings", 256)

    def renames(model: DictConfig) -> Iterator[Rename]:
        return rename_autoencoder(
            UNetLayout(widths, attention, blocks),
            names(levels, legacy),
            OUTER,
            middle=middle,
            codebook=kind == "vq",
            quant_conv="quant_conv" if "quant_conv.weight" in tensors else None,
            latent_conv=model.latent_conv,
        )

    return Network(
        "diffusers",
        tensors,
        renames,
        overrides=overrides,
        attention=attention,
        channels=config.get("in_channels", 3),
        scale=config.get("scaling_factor", 0.18215 if kind == "kl" else 1.0),
    )
