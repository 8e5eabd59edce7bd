"""Conversion of published weights to run directories."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from ddpm_lab.config.overrides import quote
from ddpm_lab.diffusion.conditioning import DataSpec
from ddpm_lab.evaluation.cache import cache_dir
from ddpm_lab.interop.importing import (
    HUB_NAME,
    Options,
    locate,
    missing_keys,
    recognize,
    source_errors,
)
from ddpm_lab.interop.network import Network, convert, describe
from ddpm_lab.networks.autoencoder import Autoencoder
from ddpm_lab.runs import run_config, run_record, trusted_paths
from ddpm_lab.runs.compose import compose_command
from ddpm_lab.runs.run_dir import RunDir
from ddpm_lab.runs.shared_folder import make_target, write_folder
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.safe_load import sha256_of_tensors, sha256_of_text

PREFIXES = {
    "diffusion": "denoiser.network.",
    "classifier": "classifier.network.",
    "autoencoder": "autoencoder.",
}
"""Prefixes of the state of a system"""
CHOICES = {"attention_order": ("old", "new"), "weights": ("ema", "raw")}
"""Options of an import that are not overrides"""
SAMPLING = ("sampler", "guidance", "extractor", "trust")
"""Groups whose overrides are for the run and not for its import"""
VERSION = 1
"""Version of the cache"""
BIN_WIDTH = 2 / 255
"""Of 8-bit images in [-1, 1]"""


def import_weights(source: str | Path, target: Path, words: Sequence[str] = ()) -> Network:
    """Write the network in `source` to the new directory `target`, and return its description.

    `words` are weights=, attention_order= and overrides of train.py.
    Raises UserError, CorruptFileError and UnsafeFileError.
    """
    options, overrides = _parse(words)
    network = recognize(locate(source), options)
    if str(network.overrides["model"]).startswith(("unet", "classifier")):
        overrides = [*_other_heads(overrides), *overrides]
    if hints := missing_keys(network, overrides):
        raise UserError(
            f"SOURCE={source} does not determine all options of its network; add {'; '.join(hints)}"
        )
    folder = make_target(target)
    try:
        with source_errors(source):
            _write(network, folder, overrides)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return network


def _other_heads(overrides: Sequence[str]) -> list[str]:
    """Return the override that clears heads if head_channels is typed, or the reverse."""
    keys = [word.partition("=")[0] for word in overrides]
    pair = ("model.heads", "model.head_channels")
    present = [key for key in pair if key in keys]
    return [f"{key}=null" for key in pair if key not in present] if len(present) == 1 else []


def import_once(source: str | Path, words: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the run of `source`, imported into the cache at its first use, and overrides for it.

    `words` are overrides of both import.py and sample.py. A run directory, or a path that does not
    exist, is returned unchanged. For the errors, see `import_weights`.
    """
    path = Path(source)
    is_name = HUB_NAME.fullmatch(str(source)) and not path.parent.exists()
    if (path / "config.yaml").is_file() or not (path.exists() or is_name):
        return path, [*words]
    path = locate(source)
    if path.is_dir() and not {"config.json", "model_index.json"} & {*os.listdir(path)}:
        return path, [*words]
    ours = [word for word in words if re.split("[.=]", word)[0] in SAMPLING]
    theirs = [word for word in words if word not in ours]
    files = sorted(file for file in [path, *path.rglob("*")] if file.is_file())
    identity = [(str(file.resolve()), file.stat().st_mtime_ns) for file in files]
    target = cache_dir() / "imported" / sha256_of_text(f"{VERSION} {identity} {theirs}")[:16]
    if not target.is_dir():
        own = target.with_name(f"{target.name}-{os.getpid()}")
        shutil.rmtree(own, ignore_errors=True)  # of a process that was killed
        import_weights(path, own, theirs)
        try:
            own.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(own)
    return target, ours


def _parse(words: Sequence[str]) -> tuple[Options, list[str]]:
    """Return the options of the import, and the overrides of train.py."""
    options: dict[str, Any] = {}
    overrides = []
    for word in words:
        key, _, value = word.partition("=")
        if key not in CHOICES:
            overrides.append(word)
        elif value not in CHOICES[key]:
            raise UserError(f"{word}: {key} must be {' or '.join(CHOICES[key])}")
        else:
            options[key] = value
    return Options(**options), overrides


def _write(network: Network, folder: Path, overrides: Sequence[str]) -> None:
    """Write the run of `network` to `folder`, after that of its autoencoder, and read it."""
    size = _image_size(network, overrides)
    codec = _value("codec.run", overrides)
    if network.autoencoder is not None:
        codec = run_config.AUTOENCODER
        (folder / codec).mkdir()
        _write(network.autoencoder, folder / codec, [f"data.resolution=[{size[0]},{size[1]}]"])
    values = {"data": "folder", "logger": "csv", **network.overrides}
    shape: tuple[int, ...] = (network.channels, *size)
    image = shape
    state: dict[str, Any] = {}
    if codec is not None:
        place = folder / codec if network.autoencoder is not None else Path(codec)
        autoencoder = RunDir(str(place)).load_autoencoder()
        shape, image = autoencoder.latent_shape, autoencoder.shape
        values |= {"codec": "autoencoder", "codec.run": quote(codec)}
        state = _codec_state(autoencoder, network.scale)
    if network.side not in (None, shape[1]):
        raise UserError(
            f"this network takes inputs of {network.side}x{network.side}, but those of "
            f"{f'codec.run={codec}' if codec else 'data.resolution'} are {shape[1]}x{shape[2]}"
        )
    values |= {"data.resolution": list(image[1:]), "data.channels": image[0]}
    if image[1] == image[2]:
        values["data.resolution"] = image[1]
    if (_value("data", overrides) or values["data"]) != "folder":
        del values["data.resolution"], values["data.channels"]
    if network.attention is not None:
        heights = [shape[1] // 2**level for level, one in enumerate(network.attention) if one]
        values["model.attention"] = heights
    config = compose_command("train", [*describe(values), *overrides])
    config.trainer.default_root_dir = str(folder)
    run_record.resolve_paths(config, Path.cwd())
    trusted_paths.add_trusted_paths(config)  # they were typed
    prefix = PREFIXES[str(network.overrides.get("system", "diffusion"))]
    tensors = convert(network, config.model)
    network.parameters = sum(tensor.numel() for tensor in tensors.values())
    network.tensors = {}  # memory
    state |= {f"{prefix}{name}": tensors.pop(name) for name in [*tensors]}
    spec = DataSpec(image, network.classes, BIN_WIDTH)
    write_folder(folder, config, state, spec._asdict(), "ema")
    del state
    _load(RunDir(str(folder)), prefix)  # raises errors if names or shapes differ


def _load(run: RunDir, prefix: str) -> Any:
    if prefix.startswith("autoencoder"):
        return run.load_autoencoder()
    return run.load_classifier() if prefix.startswith("classifier") else run.pipeline


def _codec_state(autoencoder: Autoencoder, scale: float) -> dict[str, Any]:
    """Return the state of a codec that multiplies latents by `scale`."""
    channels = autoencoder.latent_shape[0]
    return {
        "codec.mean": torch.zeros(channels),
        "codec.std": torch.full((channels,), 1 / scale),
        "codec._extra_state": {"autoencoder": sha256_of_tensors(autoencoder.state_dict())},
    }


def _image_size(network: Network, overrides: Sequence[str]) -> tuple[int, int]:
    """Return the height and width of the images. Raises UserError."""
    value = _value("data.resolution", overrides)
    size = network.overrides.get("data.resolution") if value is None else yaml.safe_load(value)
    match size:
        case int():
            return size, size
        case [int() as height, int() as width]:
            return height, width
    raise UserError(f"data.resolution={value} must be a whole number, or [height,width]")


def _value(key: str, overrides: Sequence[str]) -> str | None:
    """Return the value of the last of `overrides` that sets `key`."""
    values = [word.partition("=")[2] for word in overrides if word.startswith(f"{key}=")]
    return values[-1].strip("'\"") if values else None
