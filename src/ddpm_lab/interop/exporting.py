"""Files of other codebases from a run. What a format cannot state is refused by name."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.interop import diffusers, openai
from ddpm_lab.interop.autoencoder_layout import rename_autoencoder
from ddpm_lab.interop.layout import Rename, Tensors, UNetLayout, shift_time
from ddpm_lab.networks.autoencoder import Autoencoder
from ddpm_lab.networks.layers import level_shapes, level_widths
from ddpm_lab.networks.unet import UNet
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.utils.errors import UserError

VERSION = "0.30.0"
"""Version of diffusers whose configurations are written"""
VARIANCES = {"BetaTilde": "fixed_small", "Beta": "fixed_large"}
PREDICTIONS = {"Eps": "epsilon", "V": "v_prediction", "X0": "sample"}
COSINE = {"offset": 0.008, "max_beta": 0.999}
"""The cosine schedule that both codebases have"""


class Export(NamedTuple):
    """Contents of a folder, by the names of its files."""

    weights: Mapping[str, Mapping[str, Tensor]]
    """Tensors, for a .safetensors or a .pt file"""
    configs: Mapping[str, Mapping[str, Any]]
    """For .json files"""
    usage: str
    """Python code, or flags, that read the folder"""
    binaries: Mapping[str, bytes] = MappingProxyType({})
    """Other files"""


def diffusers_pipeline(pipeline: SamplingPipeline, config: DictConfig) -> Export:
    """Return a DDPMPipeline, or a DDIMPipeline for a run with sampler=ddim. Raises UserError."""
    network, labeled = _unet(pipeline, "diffusers"), pipeline.denoiser.classes is not None
    scheduler = _scheduler(pipeline, config)
    if network.time_scale * 1000 != pipeline.process.steps:
        raise UserError(
            "format=diffusers: this network takes times on a scale of 1000, and diffusers on "
            f"that of schedule.steps={pipeline.process.steps}; try schedule.steps=1000"
        )
    renames = diffusers.rename_unet(
        _layout(network),
        network.count_heads,
        resblock_updown=network.resblock_updown,
        labeled=labeled,
    )
    tensors = _convert(_shift_time(network, 1.0 + network.time_shift), renames)
    name = scheduler["_class_name"].replace("Scheduler", "Pipeline")
    usage = f"from diffusers import {name}\n\nimages = {name}.from_pretrained(FOLDER)().images"
    if labeled:
        usage = (
            "from diffusers import UNet2DModel\n\n"
            'unet = UNet2DModel.from_pretrained(FOLDER, subfolder="unet")\n'
            "output = unet(x_t, t, class_labels=labels).sample  # pipelines pass no labels"
        )
    index = {
        "_class_name": name,
        "_diffusers_version": VERSION,
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    configs = {
        "model_index.json": index,
        "unet/config.json": _unet_config(network, pipeline),
        "scheduler/scheduler_config.json": scheduler,
    }
    return Export({"unet/diffusion_pytorch_model.safetensors": tensors}, configs, usage)


def _unet_config(network: UNet, pipeline: SamplingPipeline) -> dict[str, Any]:
    """Return the configuration of a UNet2DModel. Raises UserError."""
    groups, layout = _norm_groups(network, "diffusers"), _layout(network)
    head_channels = {width // network.count_heads(width) for width in _attended(network)}
    if len(head_channels) > 1 and network.heads != 1:
        raise UserError(
            f"format=diffusers: model.heads={network.heads} gives {sorted(head_channels)} channels "
            "per head, and diffusers has one number; try training with model.head_channels=32"
        )
    kind = "resnet" if network.resblock_updown else "conv"
    # DownBlock2D has no residual block that changes the resolution.
    down, up = {
        "conv": ("DownBlock2D", "UpBlock2D"),
        "resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
    }[kind]
    attention = layout.attention
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": _size(pipeline.shape),
        "in_channels": pipeline.shape[0],
        "out_channels": pipeline.shape[0],
        "block_out_channels": [*layout.widths],
        "layers_per_block": layout.blocks,
        "down_block_types": ["AttnDownBlock2D" if one else down for one in attention],
        "up_block_types": ["AttnUpBlock2D" if one else up for one in attention[::-1]],
        "attention_head_dim": None if network.heads == 1 else head_channels.pop(),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
        "norm_eps": network.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "downsample_type": kind,
        "upsample_type": kind,
        "downsample_padding": network.downsample_padding,
        "dropout": network.dropout,
        "freq_shift": network.frequency_shift,
        "flip_sin_to_cos": True,
        "num_class_embeds": pipeline.denoiser.classes,
    }


def _scheduler(pipeline: SamplingPipeline, config: DictConfig) -> dict[str, Any]:
    """Return the configuration of a DDPMScheduler or a DDIMScheduler. Raises UserError."""
    prediction = _name(pipeline.denoiser.prediction)
    variance = _name(pipeline.denoiser.variance)
    if variance not in VARIANCES:
        raise UserError(
            f"format=diffusers: variance={variance} has no counterpart in its pipelines; try "
            "training with variance=beta_tilde"
        )
    if prediction not in PREDICTIONS:
        raise UserError(
            f"format=diffusers: prediction={prediction} has no counterpart; Eps, V and X0 have"
        )
    ddim = _name(pipeline.sampler) == "DDIM"
    own = {"set_alpha_to_one": True} if ddim else {"variance_type": VARIANCES[variance]}
    return {
        "_class_name": "DDIMScheduler" if ddim else "DDPMScheduler",
        "_diffusers_version": VERSION,
        **_betas(config, pipeline.process),
        "prediction_type": PREDICTIONS[prediction],
        "clip_sample": pipeline.sampler.clip is not None,
        "clip_sample_range": pipeline.sampler.clip or 1.0,
        **own,
    }


def diffusers_autoencoder(autoencoder: Autoencoder, config: DictConfig) -> Export:
    """Return an AutoencoderKL or a VQModel. Raises UserError."""
    groups, model = _norm_groups(autoencoder, "diffusers"), config.model
    fixed = {"heads": 1, "norm_eps": 1e-6, "downsample_padding": 0}
    if wrong := [key for key, value in fixed.items() if model.get(key) != value]:
        options = " ".join(f"model.{key}={fixed[key]:g}" for key in wrong)
        raise UserError(
            f"format=diffusers: its autoencoders have {options}; try training with these"
        )
    shapes = level_shapes(autoencoder.shape, model.multipliers)
    attention = [height in model.attention for height, _ in shapes]
    layout = UNetLayout(level_widths(model.channels, model.multipliers), attention, model.blocks)
    codes, latent = autoencoder.bottleneck.codes, autoencoder.latent_shape[0]
    name = "AutoencoderKL" if codes is None else "VQModel"
    own: dict[str, Any] = {"num_vq_embeddings": codes}
    if codes is None:
        own = {"use_quant_conv": False, "use_post_quant_conv": model.latent_conv}
    renames = rename_autoencoder(
        layout,
        diffusers.names(len(layout.widths)),
        diffusers.OUTER,
        middle=model.middle_attention,
        codebook=codes is not None,
        quant_conv=None if codes is None else "quant_conv",
        latent_conv=model.latent_conv,
    )
    tensors = _convert(autoencoder.state_dict(), renames)
    if codes is not None and not model.latent_conv:
        tensors["post_quant_conv.weight"] = torch.eye(latent).view(latent, latent, 1, 1)
        tensors["post_quant_conv.bias"] = torch.zeros(latent)
    content = {
        "_class_name": name,
        "_diffusers_version": VERSION,
        "sample_size": autoencoder.shape[1],
        "in_channels": autoencoder.shape[0],
        "out_channels": autoencoder.shape[0],
        "latent_channels": latent,
        "block_out_channels": [*layout.widths],
        "layers_per_block": layout.blocks,
        "down_block_types": [f"{'Attn' * one}DownEncoderBlock2D" for one in attention],
        "up_block_types": [f"{'Attn' * one}UpDecoderBlock2D" for one in attention[::-1]],
        "norm_num_groups": groups,
        "scaling_factor": 1.0,
        "mid_block_add_attention": model.middle_attention,
        **own,
    }
    usage = f"from diffusers import {name}\n\nautoencoder = {name}.from_pretrained(FOLDER)"
    return Export({"diffusion_pytorch_model.safetensors": tensors}, {"config.json": content}, usage)


def _size(shape: tuple[int, ...]) -> int | list[int]:
    return shape[1] if shape[1] == shape[2] else [*shape[1:]]


def guided_diffusion(pipeline: SamplingPipeline, config: DictConfig) -> Export:
    """Return a U-Net of guided-diffusion, and the flags of its scripts. Raises UserError."""
    network, steps = _unet(pipeline, "openai"), pipeline.process.steps
    _check_guided_diffusion(network, pipeline)
    if _norm_groups(network, "openai") != 32:
        raise UserError(
            "format=openai: its norms have 32 groups; try training with model.norm_groups=32"
        )
    fixed = {"norm_eps": 1e-5, "frequency_shift": 0, "downsample_padding": 1}
    if wrong := [key for key, value in fixed.items() if getattr(network, key) != value]:
        raise UserError(
            f"format=openai: model.{wrong[0]}={getattr(network, wrong[0])} has no counterpart; its "
            f"networks have {fixed[wrong[0]]}"
        )
    predictions = {"Eps": False, "X0": True}
    prediction = type(pipeline.denoiser.prediction).__name__
    variances = {"Beta": "False", "LearnedRange": "True"}
    variance = type(pipeline.denoiser.variance).__name__
    if prediction not in predictions or variance not in variances:
        raise UserError(
            f"format=openai: prediction={prediction} with variance={variance} has no counterpart"
        )
    rescaled = network.time_scale == 1
    if not rescaled and network.time_scale * 1000 != steps:
        raise UserError(f"format=openai: model.time_scale={network.time_scale} has no counterpart")
    renames = openai.rename_unet(
        _layout(network),
        network.count_heads,
        resblock_updown=network.resblock_updown,
        labeled=pipeline.denoiser.classes is not None,
    )
    step = 1000 / steps if rescaled else 1.0  # between two times, there
    tensors = _convert(_shift_time(network, step + network.time_shift), renames)
    heads = (
        f"--num_heads {network.heads}"
        if network.heads
        else f"--num_head_channels {network.head_channels}"
    )
    sizes = ",".join(str(height) for height, one in _heights(network, pipeline) if one)
    flags = [
        f"--image_size {pipeline.shape[1]} --num_channels {network.channels}",
        f"--channel_mult {','.join(f'{one:g}' for one in network.multipliers)}",
        f"--num_res_blocks {network.blocks}",
        f"--attention_resolutions {sizes or 2 * pipeline.shape[1]}",
        f"{heads} --use_scale_shift_norm {network.scale_shift}",
        f"--resblock_updown {network.resblock_updown} --dropout {network.dropout}",
        f"--class_cond {pipeline.denoiser.classes is not None} --learn_sigma {variances[variance]}",
        f"--predict_xstart {predictions[prediction]} --rescale_timesteps {rescaled}",
        f"--diffusion_steps {steps} --noise_schedule {_openai_schedule(config)}",
    ]
    return Export({"model.pt": tensors}, {}, " \\\n    ".join(flags))


def _check_guided_diffusion(network: UNet, pipeline: SamplingPipeline) -> None:
    """Raise UserError for what the scripts of guided-diffusion cannot build."""
    channels, height, width = pipeline.shape
    problems = {
        f"its images have 3 channels, and these have {channels}": channels != 3,
        f"its images are square, and these are {width}x{height}": height != width,
        f"it has 1000 labels or none, and this model has {pipeline.denoiser.classes}": (
            pipeline.denoiser.classes not in (None, 1000)
        ),
        f"its multipliers are whole numbers, and these are {[*network.multipliers]}": any(
            one != int(one) for one in network.multipliers
        ),
    }
    if problem := next((text for text, wrong in problems.items() if wrong), None):
        raise UserError(f"format=openai: {problem}")


def _heights(network: UNet, pipeline: SamplingPipeline) -> list[tuple[int, bool]]:
    return [
        (pipeline.shape[1] // 2**level, attention)
        for level, (_, attention) in enumerate(network.levels)
    ]


def _openai_schedule(config: DictConfig) -> str:
    schedule = {key: value for key, value in config.schedule.items() if key[0] != "_"}
    name = config.schedule._target_.rpartition(".")[2]
    same = {
        "cosine": {"steps": schedule["steps"], **COSINE},
        "linear": {"steps": schedule["steps"], "start": 1e-4, "end": 0.02, "rescale": True},
    }
    if same.get(name) != schedule:
        raise UserError(
            f"format=openai: schedule={name} with these options has no counterpart; cosine and "
            "linear with the defaults have"
        )
    return name


def _betas(config: DictConfig, process: ForwardProcess) -> dict[str, Any]:
    """Return the schedule for a scheduler of diffusers. Raises UserError."""
    schedule, steps = config.schedule, process.steps
    name = schedule._target_.rpartition(".")[2]
    result: dict[str, Any] = {"num_train_timesteps": steps}
    if name in ("linear", "quadratic"):
        factor = 1000 / steps if schedule.rescale else 1
        kind = {"linear": "linear", "quadratic": "scaled_linear"}[name]
        ends = {"beta_start": schedule.start * factor, "beta_end": schedule.end * factor}
        return {**result, "beta_schedule": kind, **ends}
    if name == "cosine" and all(schedule[key] == value for key, value in COSINE.items()):
        return {**result, "beta_schedule": "squaredcos_cap_v2"}
    alpha, sigma = process.alpha_sigma(torch.arange(steps + 1))
    if not torch.allclose(alpha.square() + sigma.square(), torch.ones_like(alpha)):
        raise UserError(
            f"format=diffusers: schedule={name} does not preserve the variance; its DDPM and DDIM "
            "schedulers do"
        )
    betas = 1 - (alpha[1:] / alpha[:-1]).square()
    return {**result, "trained_betas": betas.tolist()}


def _unet(pipeline: SamplingPipeline, format: str) -> UNet:
    """Return the network. Raises UserError unless `format` has such U-Nets."""
    network, conditioner = pipeline.denoiser.network, pipeline.denoiser.conditioner
    if not isinstance(network, UNet):
        raise UserError(f"format={format}: model={_name(network)} has no counterpart; U-Nets have")
    problem = None
    if pipeline.codec.space:
        problem = "codec=autoencoder: the mean and scale of each channel of the latents"
    elif {*conditioner.cond_dims} - {"classes"}:
        problem = f"conditioner={_name(conditioner)}"
    elif conditioner.dropout > 0:
        problem = f"conditioner.dropout={conditioner.dropout:g}: the embedding of dropped labels"
    elif network.self_conditioning:
        problem = "model.self_conditioning=true"
    if problem is not None:
        raise UserError(f"format={format}: {problem} has no counterpart")
    return network


def _name(part: object) -> str:
    return type(part).__name__


def _layout(network: UNet) -> UNetLayout:
    widths, attention = zip(*network.levels, strict=True)
    return UNetLayout(widths, attention, network.blocks)


def _attended(network: UNet) -> set[int]:
    """Return the widths of all layers with attention."""
    return {width for width, attention in network.levels if attention} | {network.widths[-1]}


def _norm_groups(network: nn.Module, format: str) -> int:
    """Return the groups of all norms. Raises UserError if they differ."""
    groups = {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}
    if len(groups) > 1:
        raise UserError(
            f"format={format}: the norms of this network have {sorted(groups)} groups, and "
            f"{format} has one number; try training with model.norm_groups=8"
        )
    return groups.pop()


def _shift_time(network: UNet, shift: float) -> dict[str, Tensor]:
    """Return the state of `network` for times that are lower by `shift`."""
    state, name = network.state_dict(), "encoder.time.1.weight"
    return {**state, name: shift_time(state[name], shift, network.frequency_shift)}


def _convert(state: Tensors, renames: Iterable[Rename]) -> dict[str, Tensor]:
    """Return the tensors under the names of another codebase."""
    tensors: dict[str, Tensor] = {}
    for rename in renames:
        if rename.ours in state:
            values = rename.write(state[rename.ours])
            tensors |= {
                name: value.contiguous().clone()
                for name, value in zip(rename.theirs, values, strict=True)
            }
    return tensors


def write_export(export: Export, target: Path, card: str) -> None:
    """Write the files of `export`, and the model card README.md, to the folder `target`."""
    from safetensors.torch import save_file

    for name, tensors in export.weights.items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            save_file(dict(tensors), file, {"format": "pt"})
        else:
            torch.save(dict(tensors), file)
    for name, content in export.configs.items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n")
    for name, binary in export.binaries.items():
        (target / name).write_bytes(binary)
    (target / "README.md").write_text(card)
