"""python sample.py run=DIR"""

import logging
import re
import shlex
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.cli.sample_io import SPLITS, read_array, read_samples, save_samples, to_arrays
from ddpm_lab.conditioners.low_res import LowRes
from ddpm_lab.config.instantiate import check_minimum
from ddpm_lab.config.messages import suggest
from ddpm_lab.config.overrides import format_override
from ddpm_lab.data.datasets import Batch, Split, select_rows, to_batch, to_uint8
from ddpm_lab.diffusion.rng import NoiseSampler, PerSampleGenerator
from ddpm_lab.diffusion.samplers import slerp
from ddpm_lab.evaluation.reconstruction import reconstruct
from ddpm_lab.reports.figures import save_grid, save_scatter
from ddpm_lab.runs import data_check
from ddpm_lab.runs.load import load_earlier_stages, load_system, make_deterministic
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.atomic_io import make_directory
from ddpm_lab.utils.distributed import all_gather, init_process_group, is_rank_zero
from ddpm_lab.utils.errors import UserError, prefix_errors
from ddpm_lab.utils.shell import quiet_libraries, script_command

LOG = logging.getLogger(__name__)


def sample(config: DictConfig) -> None:
    """What `config.mode` says, of a run, into `config.out`."""
    quiet_libraries()
    check_minimum(
        config,
        {"batch_size": 1, "seed": 0, "frames": 2} | ({} if config.count is None else {"count": 1}),
    )
    if config.mode not in MODES:
        raise UserError(
            f"mode={config.mode} is not one of {', '.join(MODES)}{suggest(str(config.mode), MODES)}"
        )
    if config.cascade is not None and config.mode != "sample":
        raise UserError(
            f"mode={config.mode} is for one model, and cascade={config.cascade} has several; try run=DIR"
        )
    init_process_group()
    if not is_rank_zero() and config.mode != "sample":
        return  # which alone is shared
    if config.mode in ("encode", "decode", "interpolate"):
        make_deterministic(config)
    system = load_system(config)
    with torch.inference_mode(), prefix_errors("sampler"):
        MODES[config.mode](config, system)


def _sample(config: DictConfig, system: Diffusion) -> None:
    """`config.count` samples from noise: a image of all, an .npz and, of images, a folder of PNGs; of each stage of
    a cascade.
    """
    cascade = Cascade([*load_earlier_stages(config), system])
    given = _given(config, cascade.stages[0])
    count = config.count or (100 if given is None or config.input in SPLITS else given.size)
    conditions = _ask(config, cascade.stages[0], count, given)
    cascade.check(conditions)
    labels = conditions.get("label")
    columns = 10 if config.label != "all" or labels is None else int((labels == 0).sum())
    if is_rank_zero():
        make_directory(config.out)  # before any work
    how = {"seed": config.seed, "batch_size": config.batch_size}
    total = cascade.steps(count, config.batch_size)
    with tqdm(total=total, desc=f"sampling {count}", unit="step", disable=None, leave=False) as bar:
        drawn, conditions = cascade.sample_earlier_stages(conditions, count, **how, bar=bar)
        batches = all_gather(
            [
                to_batch[0].cpu()
                for to_batch in system.sample(
                    system.denoiser, count, conditions=conditions, **how, bar=bar
                )
            ]
        )
    if not is_rank_zero():
        return
    out = make_directory(config.out)
    for number, (stage, split) in enumerate(zip(cascade.stages, drawn, strict=False), 1):
        save_samples(
            stage, split[0].cpu(), labels, make_directory(f"{out}/stage-{number}"), columns
        )
    save_samples(system, torch.cat(batches), labels, out, columns)


def _encode(config: DictConfig, system: Diffusion) -> None:
    """Data to x_T and back (Song et al., 2021, section 5.4): x_T in an .npz, and the three side by side."""
    given = read_samples(config, system.shape, system)
    chosen = config.label is not None or config.text is not None
    conditions = _ask(config, system, given.size, given) if chosen else to_batch(given)
    if not chosen and system.denoiser.classes is not None and given.labels is None:
        raise UserError(
            f"input={config.input} says no labels, and this model needs them; try label=..."
        )
    conditions = system.resolve(conditions)
    labels, data = conditions.get("label"), given.x0.to(system.device)
    x_T, decoded, error = reconstruct(system, system.denoiser, data, conditions, config.batch_size)
    out = make_directory(config.out)
    np.savez_compressed(out / "x_T.npz", **to_arrays("x_T", x_T.cpu(), conditions))
    if system.bin_width is None:
        shown = {"given": (data, labels), "x_T": (x_T, labels), "decoded": (decoded, labels)}
        file, how = save_scatter(shown, out / "scatter.png"), "given, x_T, decoded"
    else:
        rows_of = [to_uint8(data[:40]), system.to_images(x_T[:40], None)[0], to_uint8(decoded[:40])]
        threes = torch.stack([part.to(system.device) for part in rows_of], dim=1).flatten(0, 1)
        file, how = (
            save_grid(threes, out / "grid.png", 30 if len(data) >= 10 else 3),
            "in threes: given, x_T, decoded",
        )
    LOG.info(
        "%d encoded and decoded in %d steps each: mean square error %.2g, in units of the data's range\n"
        "  x_T         %s\n  a image   %s (%s)\n  next        %s",
        len(data),
        len(system.sampler.timesteps(system.denoiser.process.steps)) - 1,
        error,
        out / "x_T.npz",
        file,
        how,
        _decoding(out / "x_T.npz"),
    )


def _decoding(file: Path) -> str:
    """Return the command that decodes `file` in the way in which this one encoded it."""
    aside = ("mode", "input", "count", "label", "text", "out", "hydra")
    overrides = [
        word for word in HydraConfig.get().overrides.task if re.split("[.=]", word)[0] not in aside
    ]
    return f"{script_command('sample')} {shlex.join([*overrides, 'mode=decode', format_override('input', file)])}"


def _decode(config: DictConfig, system: Diffusion) -> None:
    """x_T from an .npz to samples, deterministically but for the sampler's own noise."""
    if config.input in SPLITS:
        raise UserError(
            f"input={config.input} is data, and mode=decode needs the x_T.npz that mode=encode wrote; "
            "try input=FILE"
        )
    x_T, known = read_array(config.input, "x_T", system.codec.shape, system.classes)
    if not known or config.label is not None or config.text is not None:
        conditions = _ask(config, system, len(x_T), _held_out(config, system))
    else:
        conditions = known
        for name, value in system.resolve(
            _ask(config, system, 1, _held_out(config, system))
        ).items():
            kept = conditions.get(name)
            # A caption that is not there is chosen for the label.
            if (kept is None and name != "text") or (
                kept is not None and kept.shape[1:] != value.shape[1:]
            ):
                raise UserError(
                    f"input={config.input} is of a model that hears {' and '.join(known)}, and this one "
                    f"hears {name} {tuple(value.shape[1:])}; try mode=encode with this run"
                )
    x_T = x_T.to(system.device)

    def fall(some: Tensor) -> Iterator[tuple[int, Tensor]]:
        return _fall(system, x_T, conditions, some, PerSampleGenerator(config.seed, some.tolist()))

    made = _shown(_walk(fall, len(x_T), config, system, "decoding"), config, system)
    save_samples(system, made, conditions.get("label"), make_directory(config.out))


def _interpolate(config: DictConfig, system: Diffusion) -> None:
    """`config.count` rows, each from one x_T to another on the sphere, with one label and one stream of noise a row."""
    count, frames = config.count or 100, config.frames
    ends = PerSampleGenerator(config.seed, range(2 * count))(
        torch.empty(2 * count, *system.codec.shape)
    )
    share = torch.linspace(0, 1, frames)
    z = torch.cat([slerp(a, b, share) for a, b in zip(ends[::2], ends[1::2], strict=True)]).to(
        system.device
    )
    conditions = _ask(config, system, count, _held_out(config, system))
    conditions = {
        name: value.repeat_interleave(frames, dim=0) for name, value in conditions.items()
    }
    x_T = system.sampler.prior(system.denoiser.process, z)

    def fall(some: Tensor) -> Iterator[tuple[int, Tensor]]:
        return _fall(
            system,
            x_T,
            conditions,
            some,
            PerSampleGenerator(config.seed, (2 * count + some // frames).tolist()),
        )

    made = _shown(_walk(fall, len(x_T), config, system, "interpolating"), config, system)
    save_samples(system, made, conditions.get("label"), make_directory(config.out), columns=frames)


def _times(config: DictConfig, system: Diffusion) -> None:
    """The pairs (t, s) that the sampler visits."""
    pairs = list(pairwise(system.sampler.timesteps(system.denoiser.process.steps)))
    LOG.info(
        "%d steps (t, s) of T = %d:\n%s",
        len(pairs),
        system.denoiser.process.steps,
        " ".join(f"({t},{s})" for t, s in pairs),
    )


MODES = {
    "sample": _sample,
    "encode": _encode,
    "decode": _decode,
    "interpolate": _interpolate,
    "times": _times,
}


def _ask(config: DictConfig, system: Diffusion, count: int, given: Split | None) -> Batch:
    """What `config.label` and `config.text` ask `count` samples to be; one that enlarges images is `given` some."""
    label: Any
    text: Any
    label, text = (
        OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for value in (config.label, config.text)
    )
    if label is not None and text is not None:
        raise UserError(f"label={label} and text={text} both say what to draw; give one of them")
    return system.make_conditions(count, label, text, given)


def _held_out(config: DictConfig, system: Diffusion) -> Split | None:
    """What a model that enlarges images is given where nothing else is; None for one that does not."""
    enlarges = isinstance(system.denoiser.conditioner, LowRes)
    found: Split | None = data_check.load_data(config).test if enlarges else None
    return found


def _given(config: DictConfig, system: Diffusion) -> Split | None:
    """What `config.input` gives to a model that enlarges images; None for one that does not."""
    conditioner = system.denoiser.conditioner
    if isinstance(conditioner, LowRes):
        return read_samples(config, conditioner.small, system, None)
    if config.input != "test":
        raise UserError(
            f"input={config.input} is for a model that enlarges images, and this one draws them from "
            "noise; try input=test, or mode=encode"
        )
    return None


def _shown(x: Tensor, config: DictConfig, system: Diffusion) -> Tensor:
    """Ends of walks as uint8 images, or float points."""
    return torch.cat([system.to_images(some, None)[0].cpu() for some in x.split(config.batch_size)])


def _fall(
    system: Diffusion, x_T: Tensor, conditions: Batch, some: Tensor, noise: NoiseSampler
) -> Iterator[tuple[int, Tensor]]:
    """The steps down from the x_T numbered `some`, without x_T itself."""
    return islice(
        system.decode(system.denoiser, x_T[some], select_rows(conditions, some), noise), 1, None
    )


def _walk(
    trajectory: Callable[[Tensor], Iterator[tuple[int, Tensor]]],
    count: int,
    config: DictConfig,
    system: Diffusion,
    what: str,
) -> Tensor:
    """The ends (count, *shape) of walks that are made for batches of sample numbers."""
    batches = torch.arange(count).split(config.batch_size)
    steps = len(system.sampler.timesteps(system.denoiser.process.steps)) - 1
    ends = []
    with tqdm(total=steps * len(batches), desc=what, unit="step", leave=False, disable=None) as bar:
        for some in batches:
            x = torch.empty(0)
            for _, x in trajectory(some):  # noqa: B007 (the last is the end)
                bar.update()
            ends.append(x)
    return torch.cat(ends)
