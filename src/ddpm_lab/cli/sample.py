"""python sample.py run=DIR"""

import logging
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.cli.sample_io import SPLITS, read_array, read_samples, save_samples
from ddpm_lab.config.instantiate import check_settings
from ddpm_lab.config.overrides import format_override
from ddpm_lab.data.datasets import Batch, Split, select_rows, to_uint8
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.evaluation.reconstruction import reconstruct
from ddpm_lab.reports.grids import save_grid
from ddpm_lab.runs.run_config import make_deterministic
from ddpm_lab.runs.run_dir import RunDir, load_cascade
from ddpm_lab.sampling.editing import (
    edit,
    edit_conditions,
    interpolate_images,
    interpolate_latents,
    repeat_rows,
)
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.sampling.samples import Samples, to_arrays
from ddpm_lab.utils.atomic_io import make_directory, write_text
from ddpm_lab.utils.distributed import all_gather, init_process_group, is_rank_zero
from ddpm_lab.utils.errors import UserError, prefix_errors
from ddpm_lab.utils.ranges import Count, NonNegativeInt, PositiveFraction
from ddpm_lab.utils.shell import quiet_libraries, script_command

LOG = logging.getLogger(__name__)
SETTINGS = {
    "mode": Literal["sample", "encode", "decode", "interpolate", "edit", "times"],
    "count": Count | None,
    "seed": NonNegativeInt,
    "batch_size": Count,
    "frames": Annotated[int, Ge(2)],
    "strength": PositiveFraction,
}
"""Types and ranges of keys"""
KEYS_OF_MODES = {"strength": ("edit", "interpolate"), "frames": ("interpolate",)}
"""Keys that other modes do not use"""


def sample(config: DictConfig) -> None:
    """Run `config.mode` on a run and write the results to `config.out`."""
    quiet_libraries()
    check_settings(config, SETTINGS)
    if config.cascade is not None and config.mode != "sample":
        raise UserError(
            f"mode={config.mode} is for one model, but cascade={config.cascade} has several; try "
            "run=DIR"
        )
    for key, modes in KEYS_OF_MODES.items():
        if _is_typed(key) and config.mode not in modes:
            raise UserError(
                f"{key}={config[key]} has no effect in mode={config.mode}; try "
                f"mode={' or '.join(modes)}"
            )
    init_process_group()
    if not is_rank_zero() and config.mode != "sample":
        return  # only mode=sample is distributed
    if config.mode in ("encode", "decode") or _interpolates_latents(config):
        make_deterministic(config, HydraConfig.get().overrides.task)
    run = RunDir(config.run, config)
    if config.mode not in ("sample", "edit", "times") and run.pipeline.references:
        raise UserError(
            f"mode={config.mode} does not take a guidance that restores images; try mode=sample, "
            "mode=edit, or guidance=none"
        )
    with torch.inference_mode(), prefix_errors("sampler"):
        MODES[config.mode](config, run)
    if is_rank_zero() and (out := Path(config.out)).is_dir():
        command = f"python sample.py {shlex.join(HydraConfig.get().overrides.task)}\n"
        write_text(out / "sample_command.txt", command)


def _is_typed(key: str) -> bool:
    return any(text.startswith(f"{key}=") for text in HydraConfig.get().overrides.task)


def _interpolates_latents(config: DictConfig) -> bool:
    return config.mode == "interpolate" and not _is_typed("strength")


def _sample(config: DictConfig, run: RunDir) -> None:
    """Save `config.count` samples of each stage of a cascade: a grid, an .npz and PNGs."""
    cascade = load_cascade(run)
    first, last = cascade.stages[0], cascade.stages[-1]
    images = _images_to_upsample(config, run, first)
    count = config.count or (100 if images is None or config.input in SPLITS else images.size)
    conditions = _make_conditions(config, first, count, images)
    cascade.check_conditions(conditions)
    labels = conditions.get("label")
    columns = 10 if config.label != "all" or labels is None else int((labels == 0).sum())
    if is_rank_zero():
        make_directory(config.out)  # errors precede any work
    options = {"seed": config.seed, "batch_size": config.batch_size}
    total = cascade.num_steps(count, config.batch_size)
    with tqdm(total=total, desc=f"sampling {count}", unit="step", disable=None, leave=False) as bar:
        earlier, conditions = cascade.sample_earlier_stages(conditions, count, **options, bar=bar)
        samples = last.sample(count, conditions=conditions, **options, bar=bar)
        batches = all_gather([batch[0].cpu() for batch in samples])
    if not is_rank_zero():
        return
    out = make_directory(config.out)
    for number, split in enumerate(earlier, 1):
        folder = make_directory(f"{out}/stage-{number}")
        save_samples(Samples(split[0].cpu(), labels, last.class_names), folder, columns)
    pixels = torch.cat(batches)
    save_samples(Samples(pixels, labels, last.class_names), out, columns)
    if last.references:
        rows = torch.arange(min(count, 40))
        pictures = {name: x.cpu()[rows % len(x)] for name, x in last.references.items()}
        groups = {name: to_uint8(x) for name, x in pictures.items()} | {"sample": pixels[:40]}
        LOG.info("  %-11s %s", "guidance", _save_groups(groups, out / "guidance.png"))


def _save_groups(pictures: Mapping[str, Tensor], file: Path) -> str:
    """Save images (N, C, H, W) uint8 side by side in groups; return the file and its caption."""
    *names, last = pictures
    caption = f"Groups of {', '.join(names)} and {last}."
    images = torch.stack([x.cpu() for x in pictures.values()], dim=1).flatten(0, 1)
    columns = min(len(images), 12 // len(pictures) * len(pictures))
    path = save_grid(images, file, columns, caption, group=len(pictures))
    return f"{path} ({caption[:-1].replace('Groups', 'groups')})"


def _edit(config: DictConfig, run: RunDir) -> None:
    """Noise data up to t = strength T and denoise them (SDEdit); save samples and a grid.

    With `config.count`, the data repeat in turn.
    """
    pipeline = run.pipeline
    split = read_samples(config, pipeline.shape, run)
    if config.count is not None:
        split = split.select(torch.arange(config.count) % split.size)
    conditions = edit_conditions(pipeline, split, *_label_and_text(config))
    make_directory(config.out)  # errors precede any work
    data = split.x0
    samples = edit(pipeline, data, conditions, config.strength, config.seed, config.batch_size)
    out = make_directory(config.out)
    save_samples(samples, out)
    if pipeline.bin_width is not None:
        pictures = {"input": to_uint8(data[:40]), "edited image": samples.tensor[:40]}
        LOG.info("  %-11s %s", "edits", _save_groups(pictures, out / "edits.png"))


def _encode(config: DictConfig, run: RunDir) -> None:
    """Encode data to x_T and decode it (Song et al., 2021, section 5.4); save x_T and a grid."""
    pipeline = run.pipeline
    split = read_samples(config, pipeline.shape, run)
    conditions = pipeline.data_conditions(split, *_label_and_text(config))
    data = split.x0.to(pipeline.device)
    x_T, decoded, error = reconstruct(pipeline, data, conditions, config.batch_size)
    out = make_directory(config.out)
    array = out / "x_T.npz"
    np.savez_compressed(array, **to_arrays("x_T", x_T.cpu(), conditions))
    if pipeline.bin_width is None:
        labels = conditions.get("label")
        from ddpm_lab.reports.figures import save_scatter

        panels = {"input": (data, labels), "x_T": (x_T, labels), "decoded": (decoded, labels)}
        image = f"{save_scatter(panels, out / 'scatter.png')} (input, x_T, decoded)"
    else:
        pictures = {
            "input": to_uint8(data[:40]),
            "x_T": pipeline.to_images(x_T[:40], None)[0],
            "decoded image": to_uint8(decoded[:40]),
        }
        image = _save_groups(pictures, out / "grid.png")
    steps, accuracy = pipeline.num_steps, f"mean squared error {error:.2g}, in [0, 1]"
    LOG.info("%d samples encoded and decoded, in %d steps each: %s", len(data), steps, accuracy)
    LOG.info("  x_T         %s\n  image       %s", array, image)
    LOG.info("  next        %s", _decode_command(array))


def _decode_command(file: Path) -> str:
    """Return the command that decodes `file` with the options of this command."""
    keys = ("mode", "input", "count", "label", "text", "out", "hydra")
    overrides = [
        text for text in HydraConfig.get().overrides.task if re.split("[.=]", text)[0] not in keys
    ]
    overrides += ["mode=decode", format_override("input", file)]
    return f"{script_command('sample')} {shlex.join(overrides)}"


def _decode(config: DictConfig, run: RunDir) -> None:
    """Sample from the x_T of an .npz; only the sampler adds noise."""
    if config.input in SPLITS:
        raise UserError(
            f"mode=decode needs the x_T.npz of mode=encode (got input={config.input}); "
            "try input=FILE"
        )
    pipeline = run.pipeline
    x_T, conditions = read_array(config.input, "x_T", pipeline.codec.shape, pipeline.classes)
    held_out = _held_out_images(run)
    if not conditions or config.label is not None or config.text is not None:
        conditions = _make_conditions(config, pipeline, len(x_T), held_out)
    else:
        own = pipeline.resolve(_make_conditions(config, pipeline, 1, held_out))
        _check_conditions(config.input, conditions, own)
    _save_decoded(config, pipeline, x_T, conditions, range(len(x_T)), "decoding")


def _check_conditions(file: str, conditions: Batch, own: Batch) -> None:
    """Raise UserError unless the conditions in `file` have the names and shapes of the model's."""
    for name, value in own.items():
        saved = conditions.get(name)
        # Without a text, the label determines the caption.
        fits = name == "text" if saved is None else saved.shape[1:] == value.shape[1:]
        if not fits:
            raise UserError(
                f"input={file} is from a model with the condition {' and '.join(conditions)}, but "
                f"this one takes {name} {tuple(value.shape[1:])}; try mode=encode with this run"
            )


def _interpolate(config: DictConfig, run: RunDir) -> None:
    """Save rows of images, interpolated between images of `config.input` or between noise.

    Rows lead from each image to the next: on the sphere between their x_T or, with a strength,
    between their x_t. Without an input there are `config.count` rows between x_T of the prior. A
    row has one noise stream. Rows between images have no class unless one is typed.
    """
    pipeline, frames = run.pipeline, config.frames
    if _is_typed("input"):
        split = read_samples(config, pipeline.shape, run, 11)
        if split.size < 2:
            raise UserError(f"input={config.input} has one image, but mode=interpolate needs two")
        rows, data, split = split.size - 1, split.x0, split._replace(labels=None)
        own = edit_conditions(pipeline, split, *_label_and_text(config))
        conditions = select_rows(own, slice(rows))
        if _is_typed("strength"):
            options = (frames, config.strength, config.seed, config.batch_size)
            out = make_directory(config.out)
            samples = interpolate_images(pipeline, data[:-1], data[1:], conditions, *options)
            save_samples(samples, out, frames)
            return
        x_T = pipeline.encode_data(data, own, batch_size=config.batch_size).cpu()
        ends = x_T[:-1], x_T[1:]
    elif _is_typed("strength"):
        raise UserError(
            f"strength={config.strength:g} needs images for mode=interpolate; try input=test, or "
            "input=FOLDER"
        )
    else:
        rows = config.count or 100
        z = PerSampleGenerator(config.seed, range(2 * rows))(
            torch.empty(2 * rows, *pipeline.codec.shape)
        )
        z = pipeline.sampler.prior(pipeline.process, z.to(pipeline.device)).cpu()
        ends = z[::2], z[1::2]
        conditions = _make_conditions(config, pipeline, rows, _held_out_images(run))
    x_T = interpolate_latents(pipeline, *ends, frames)
    conditions = repeat_rows(conditions, frames)
    streams = [2 * rows + row for row in range(rows) for _ in range(frames)]
    _save_decoded(config, pipeline, x_T, conditions, streams, "interpolating", columns=frames)


def _times(config: DictConfig, run: RunDir) -> None:
    """Log the pairs (t, s) that the sampler visits."""
    process = run.pipeline.process
    pairs = list(pairwise(run.pipeline.sampler.timesteps(process)))
    text = " ".join(f"({round(t, 2)},{round(s, 2)})" for t, s in pairs)
    LOG.info("%d steps (t, s) of T = %d:\n%s", len(pairs), process.steps, text)


MODES: dict[str, Callable[[DictConfig, RunDir], None]] = {
    "sample": _sample,
    "encode": _encode,
    "decode": _decode,
    "interpolate": _interpolate,
    "edit": _edit,
    "times": _times,
}


def _make_conditions(
    config: DictConfig, pipeline: SamplingPipeline, count: int, images: Split | None
) -> Batch:
    """Return the conditions that `config.label`, `config.text` or `images` set."""
    return pipeline.make_conditions(count, *_label_and_text(config), images)


def _label_and_text(config: DictConfig) -> tuple[Any, Any]:
    label, text = (
        OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for value in (config.label, config.text)
    )
    return label, text


def _held_out_images(run: RunDir) -> Split | None:
    """Return the held-out split for a super-resolution model, else None."""
    low_res_shape = run.pipeline.denoiser.conditioner.low_res_shape
    return None if low_res_shape is None else run.data.test


def _images_to_upsample(config: DictConfig, run: RunDir, stage: SamplingPipeline) -> Split | None:
    """Return the images of `config.input` for a super-resolution model, else None."""
    low_res_shape = stage.denoiser.conditioner.low_res_shape
    if low_res_shape is not None:
        return read_samples(config, low_res_shape, run, None)
    if config.input != "test":
        raise UserError(
            f"input={config.input} is for a super-resolution model, but this one samples from "
            "noise; try mode=edit, encode or interpolate"
        )
    return None


def _save_decoded(
    config: DictConfig,
    pipeline: SamplingPipeline,
    x_T: Tensor,
    conditions: Batch,
    streams: Sequence[int],
    desc: str,
    columns: int = 10,
) -> None:
    """Decode `x_T` (N, ...) and save the samples; `streams` number the noise of each."""
    options = {"seed": config.seed, "batch_size": config.batch_size}
    total = pipeline.num_steps * math.ceil(len(x_T) / config.batch_size)
    with tqdm(total=total, desc=desc, unit="step", leave=False, disable=None) as bar:
        samples = pipeline.decode_samples(x_T, conditions, streams, **options, bar=bar)
    save_samples(samples, make_directory(config.out), columns)
