"""python sample.py run=DIR"""

import logging
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

from ddpm_lab.commands.build import at_least, build
from ddpm_lab.commands.output import output, quiet
from ddpm_lab.commands.runs import config as saved_config
from ddpm_lab.commands.runs import load
from ddpm_lab.data.splits import Images, Points, Split, batch, rows
from ddpm_lab.diffusion.noise import Noise, SampleNoise
from ddpm_lab.diffusion.samplers import slerp
from ddpm_lab.errors import UserError, naming
from ddpm_lab.evaluation.pictures import save_grid, save_scatter
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.systems.training import Batch

LOG = logging.getLogger(__name__)
SAID = {"label": "labels", "text": "text", "low_res": "low_res"}
"""What samples were asked to be, and under which names an .npz has it"""


def sample(config: DictConfig) -> None:
    """What `config.mode` says, of a run, into `config.out`."""
    quiet()
    at_least(config, {"count": 1, "batch_size": 1, "seed": 0, "frames": 2})
    if config.mode not in MODES:
        raise UserError(f"mode={config.mode} is not one of {', '.join(MODES)}")
    system = load(config)
    with torch.inference_mode(), naming("sampler"):
        MODES[config.mode](config, system)


def _draw(config: DictConfig, system: Diffusion) -> None:
    """`config.count` samples from noise: a picture of all, an .npz and, of pictures, a folder of PNGs."""
    asked = _ask(config, system, config.count)
    labels = asked.get("label")
    columns = 10 if config.label != "all" or labels is None else int((labels == 0).sum())
    out = output(config.out)
    batches = list(system.sample(system.denoiser, config.count, asked=asked, seed=config.seed,
                                 batch_size=config.batch_size, progress=True))  # fmt: skip
    _save(system, torch.cat([batch[0] for batch in batches]).cpu(), labels, out, columns)


def _encode(config: DictConfig, system: Diffusion) -> None:
    """Data to x_T and back (Song et al., 2021, section 5.4): x_T in an .npz, and the three side by side."""
    given = _input(config, system)
    chosen = config.label is not None or config.text is not None
    asked = _ask(config, system, len(given[0])) if chosen else batch(given)
    if not chosen and system.denoiser.classes is not None and given.labels is None:
        instead = "input=test" if system.denoiser.conditioner.reads == "x0" else "label=..."
        raise UserError(f"input={config.input} says no labels, and this model needs them; try {instead}")
    asked = system.settle(asked)
    labels = asked.get("label")
    data = given.x0.to(system.device)
    x0 = system.codec.encode(data, torch.zeros_like)

    def rise(some: Tensor) -> Iterator[tuple[int, Tensor]]:
        return system.encode(system.denoiser, x0[some], rows(asked, some))

    x_T = _walk(rise, len(x0), config, system, "encoding")
    back = _walk(lambda some: _fall(system, x_T, asked, some, torch.zeros_like), len(x0), config, system, "decoding")
    out = output(config.out)
    error = ((system.codec.decode(back) - data) / 2).square().mean().item()
    np.savez_compressed(out / "x_T.npz", **_arrays("x_T", x_T.cpu(), asked))
    if system.bin_width is None:
        shown = {"given": (x0, labels), "x_T": (x_T, labels), "decoded": (back, labels)}
        file, how = save_scatter(shown, out / "scatter.png"), "given, x_T, decoded"
    else:
        threes = system.show(torch.stack([x0, x_T, back], dim=1)[:40].flatten(0, 1), None)[0]
        file, how = save_grid(threes, out / "grid.png", 30 if len(x0) >= 10 else 3), "in threes: given, x_T, decoded"
    LOG.info("%d encoded and decoded in %d steps each: mean square error %.2g, in units of the data's range\n"
             "  x_T         %s\n  a picture   %s (%s)\n  next        mode=decode input=%s",
             len(x0), len(system.sampler.times(system.denoiser.process.steps)) - 1, error, out / "x_T.npz", file,
             how, out / "x_T.npz")  # fmt: skip


def _decode(config: DictConfig, system: Diffusion) -> None:
    """x_T from an .npz to samples, deterministically but for the sampler's own noise."""
    if config.input in ("train", "test"):
        raise UserError(f"input={config.input} is data, and mode=decode needs the x_T.npz that mode=encode wrote; "
                        "try input=FILE")  # fmt: skip
    x_T, known = _array(config.input, "x_T", system.codec.shape, system.classes)
    if not known or config.label is not None or config.text is not None:
        asked = _ask(config, system, len(x_T))
    else:
        asked = known
        for name, value in system.settle(_ask(config, system, 1)).items():
            kept = asked.get(name)
            # A caption that is not there is chosen for the label.
            if (kept is None and name != "text") or (kept is not None and kept.shape[1:] != value.shape[1:]):
                raise UserError(f"input={config.input} is of a model that hears {' and '.join(known)}, and this one "
                                f"hears {name} {tuple(value.shape[1:])}; try mode=encode with this run")  # fmt: skip
    x_T = x_T.to(system.device)

    def fall(some: Tensor) -> Iterator[tuple[int, Tensor]]:
        return _fall(system, x_T, asked, some, SampleNoise(config.seed, some.tolist()))

    made = system.show(_walk(fall, len(x_T), config, system, "decoding"), None)
    _save(system, made[0].cpu(), asked.get("label"), output(config.out))


def _interpolate(config: DictConfig, system: Diffusion) -> None:
    """`config.count` rows, each from one x_T to another on the sphere, with one label and one stream of noise a row."""
    count, frames = config.count, config.frames
    ends = SampleNoise(config.seed, range(2 * count))(torch.empty(2 * count, *system.codec.shape))
    share = torch.linspace(0, 1, frames)
    z = torch.cat([slerp(a, b, share) for a, b in zip(ends[::2], ends[1::2], strict=True)]).to(system.device)
    asked = {name: value.repeat_interleave(frames, dim=0) for name, value in _ask(config, system, count).items()}
    x_T = system.sampler.prior(system.denoiser.process, z)

    def fall(some: Tensor) -> Iterator[tuple[int, Tensor]]:
        return _fall(system, x_T, asked, some, SampleNoise(config.seed, (2 * count + some // frames).tolist()))

    made = system.show(_walk(fall, len(x_T), config, system, "interpolating"), None)
    _save(system, made[0].cpu(), asked.get("label"), output(config.out), columns=frames)


def _times(config: DictConfig, system: Diffusion) -> None:
    """The pairs (t, s) that the sampler visits."""
    pairs = list(pairwise(system.sampler.times(system.denoiser.process.steps)))
    LOG.info("%d steps (t, s) of T = %d:\n%s", len(pairs), system.denoiser.process.steps,
             " ".join(f"({t},{s})" for t, s in pairs))  # fmt: skip


MODES = {"draw": _draw, "encode": _encode, "decode": _decode, "interpolate": _interpolate, "times": _times}


def _ask(config: DictConfig, system: Diffusion, count: int) -> Batch:
    """What `config.label` and `config.text` ask `count` samples to be; enlarged are the data's held-out pictures."""
    label: Any
    text: Any
    label, text = (OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
                   for value in (config.label, config.text))  # fmt: skip
    if label is not None and text is not None:
        raise UserError(f"label={label} and text={text} both say what to draw; give one of them")
    enlarges = system.denoiser.conditioner.reads == "x0"
    return system.ask(count, label, text, build(saved_config(config.run), "data").test if enlarges else None)


def _fall(system: Diffusion, x_T: Tensor, asked: Batch, some: Tensor, noise: Noise) -> Iterator[tuple[int, Tensor]]:
    """The steps down from the x_T numbered `some`, without x_T itself."""
    return islice(system.decode(system.denoiser, x_T[some], rows(asked, some), noise), 1, None)


def _walk(
    walk: Callable[[Tensor], Iterator[tuple[int, Tensor]]], count: int, config: DictConfig, system: Diffusion, what: str
) -> Tensor:
    """The ends (count, *shape) of walks that are made for batches of sample numbers."""
    batches = torch.arange(count).split(config.batch_size)
    steps = len(system.sampler.times(system.denoiser.process.steps)) - 1
    ends = []
    with tqdm(total=steps * len(batches), desc=what, unit="step", leave=False, disable=None) as bar:
        for some in batches:
            x = torch.empty(0)
            for _, x in walk(some):  # noqa: B007 (the last is the end)
                bar.update()
            ends.append(x)
    return torch.cat(ends)


def _input(config: DictConfig, system: Diffusion) -> Split:
    """`config.count` samples of the data's split that `config.input` names, or those in a file."""
    if config.input in ("train", "test"):
        data = build(saved_config(config.run), "data")
        return getattr(data, config.input).at(slice(config.count))
    if system.bin_width is None:
        points, said = _array(config.input, "points", system.shape, system.classes)
        return Points(points, said.get("label")).at(slice(config.count))
    channels, height, width = system.shape
    pixels, said = _array(config.input, "images", (height, width, channels), system.classes, np.uint8)
    return Images(pixels.permute(0, 3, 1, 2), said.get("label")).at(slice(config.count))


def _array(
    file: str, name: str, shape: tuple[int, ...], classes: int | None, kind: type = np.float32
) -> tuple[Tensor, Batch]:
    """The array `name` (N, *shape) of an .npz, and what its rows are said to be. Raises UserError where it is not
    there, or does not fit.
    """
    try:
        with np.load(Path(file), allow_pickle=False) as saved:
            array = saved[name]
            said = {key: torch.as_tensor(saved[stored]) for key, stored in SAID.items() if stored in saved}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"input={file} holds no array {name} ({type(error).__name__}); "
                        "it is an .npz that sample.py wrote") from error  # fmt: skip
    if array.shape[1:] != shape or array.dtype != kind:
        raise UserError(f"input={file}: {name} is {array.shape} {array.dtype}, and this run wants (N, "
                        f"{', '.join(map(str, shape))}) {np.dtype(kind)}")  # fmt: skip
    labels = said.get("label")
    if labels is not None and classes is not None and not ((labels >= 0) & (labels < classes)).all():
        raise UserError(f"input={file} has labels in {labels.min()}..{labels.max()}, and this model knows 0.."
                        f"{classes - 1}")  # fmt: skip
    return torch.as_tensor(array), said


def _arrays(name: str, values: Tensor, said: Batch) -> dict[str, Any]:
    return {name: values.numpy()} | {SAID[key]: value.cpu().numpy() for key, value in said.items()}


def _save(system: Diffusion, values: Tensor, labels: Tensor | None, out: Path, columns: int = 10) -> None:
    """Samples as `show` gives them, uint8 pictures or float points, to `out`."""
    said: Batch = {} if labels is None else {"label": labels}
    if system.bin_width is None:
        lines: list[tuple[str, Path | str]] = [
            ("a picture", save_scatter({"samples": (values, labels)}, out / "scatter.png"))
        ]
        arrays = _arrays("points", values, said)
    else:
        (out / "images").mkdir(exist_ok=True)
        for i, picture in enumerate(values):
            to_pil_image(picture).save(out / "images" / f"{i:06d}.png")
        grid = save_grid(values[:400], out / "grid.png", columns=min(columns, len(values)))
        lines = [("a grid", grid), ("one by one", out / "images")]
        arrays = _arrays("images", values.permute(0, 2, 3, 1), said)
    np.savez_compressed(out / "samples.npz", **arrays)
    what = " and ".join(f"{name} {array.shape} {array.dtype}" for name, array in arrays.items())
    lines.append(("an array", f"{out / 'samples.npz'}, {what}"))
    LOG.info("%d samples of %s\n%s", len(values), "x".join(map(str, system.shape)),
             "\n".join(f"  {name:<11} {where}" for name, where in lines))  # fmt: skip
