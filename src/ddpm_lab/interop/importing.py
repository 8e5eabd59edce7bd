"""Recognition of files and folders of other codebases."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_lab.interop import diffusers, dit, ho, ldm, openai
from ddpm_lab.interop.files import read_file, select_tensors
from ddpm_lab.interop.layout import Tensors
from ddpm_lab.interop.network import Network
from ddpm_lab.interop.released import MD5, RELEASED
from ddpm_lab.utils.errors import CLIError, CorruptFileError, UserError
from ddpm_lab.utils.shell import optional_package

FORMATS = (
    "improved-diffusion and guided-diffusion (.pt), pytorch_diffusion (.ckpt), latent-diffusion "
    "(.ckpt), DiT (.pt), and folders of diffusers"
)
OPTION_FORMATS = {
    "attention_order": ("guided-diffusion",),
    "weights": ("latent-diffusion", "DiT"),
}
"""Formats that an option applies to"""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Options(NamedTuple):
    """Options of an import that are not part of a configuration."""

    attention_order: openai.AttentionOrder | None = None
    """See `interop.layout`; None: that of the released file, or "old" """
    weights: str | None = None
    """"ema" or "raw", for a file with both; None: "ema" """


def locate(source: str | Path) -> Path:
    """Return the file or folder `source`, downloaded if it is a name on the Hugging Face Hub.

    Raises UserError if it does not exist.
    """
    path = Path(source)
    if path.exists():
        return path
    if not HUB_NAME.fullmatch(str(source)):
        raise UserError(f"SOURCE={source} does not exist")
    with optional_package(
        "huggingface-hub", f"SOURCE={source} does not exist; the download", UserError
    ):
        from huggingface_hub import snapshot_download
    try:
        patterns = ["*.json", "*.safetensors", "*.bin"]
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except Exception as error:  # of the hub, requests and httpx
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"SOURCE={source} is neither a file nor a folder, and cannot be downloaded from the "
            f"Hugging Face Hub ({type(error).__name__}: {reason})"
        ) from error


def recognize(source: Path, options: Options) -> Network:
    """Return the network in a file or a folder. Raises UserError, which names `source`."""
    with source_errors(source):
        if source.is_dir():
            network = _recognize_folder(source)
        else:
            _check_md5(source)
            network = _recognize_tensors(read_file(source), source, options)
        for name, formats in OPTION_FORMATS.items():
            if (value := getattr(options, name)) is not None and network.format not in formats:
                raise UserError(f"{name}={value} is not an option of {network.format}; omit it")
    if network.format == "guided-diffusion":
        released = {**RELEASED.get(source.stem, {})}
        released.pop("attention_order", None)
        network.overrides |= released
    return network


@contextmanager
def source_errors(source: str | Path) -> Iterator[None]:
    """Name `source` in errors, and turn those of unusual contents into CorruptFileError."""
    try:
        yield
    except UserError as error:
        message = str(error)
        prefix = "" if str(source) in message else f"SOURCE={source}: "
        raise type(error)(f"{prefix}{message}") from error
    except CLIError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        raise CorruptFileError(
            f"SOURCE={source} does not describe a network that can be built ({reason})"
        ) from error


def _recognize_folder(folder: Path) -> Network:
    if (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is a run of this project already; try sample.py run={folder}")
    return diffusers.read_folder(folder)


def _recognize_tensors(content: Mapping[str, Any], file: Path, options: Options) -> Network:
    match content:
        case {"state_dict": dict(state)}:
            tensors = select_tensors(state)
        case {"ema": dict(average), "model": dict(raw)}:
            tensors = select_tensors(raw if options.weights == "raw" else average)
        case _:
            tensors = select_tensors(content)
    if not tensors:
        raise CorruptFileError(f"{file} has no tensors")
    order = options.attention_order or RELEASED.get(file.stem, {}).get("attention_order", "old")
    has = tensors.__contains__
    if any(name.startswith(ldm.UNET) for name in tensors):
        return ldm.latent_diffusion(tensors, options.weights or "ema")
    if has("x_embedder.proj.weight"):
        return dit.dit(tensors)
    if has("temb.dense.0.weight"):
        return ho.unet(tensors)
    if has("input_blocks.0.0.weight"):
        describe = openai.unet if _has(tensors, "output_blocks.") else openai.classifier
        return describe(tensors, order)
    if has("encoder.conv_in.weight") and has("encoder.down.0.block.0.conv1.weight"):
        return ho.autoencoder(tensors)
    if _has(tensors, "down_blocks.") or _has(tensors, "encoder.down_blocks."):
        raise UserError(
            f"{file} is a file of diffusers, whose options are in config.json; try its folder"
        )
    raise UserError(
        f"{file} has no known format (its first tensor is {min(tensors)}); the formats are "
        f"{FORMATS}"
    )


def _has(tensors: Tensors, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def _check_md5(file: Path) -> None:
    """Raise CorruptFileError if `file` has the name of a released file but other content."""
    expected = MD5.get(f"{file.parent.name}-{file.stem}")
    if expected is None:
        return
    with file.open("rb") as stream:
        actual = hashlib.file_digest(stream, "md5").hexdigest()
    if actual != expected:
        raise CorruptFileError(
            f"{file} is not the released file of this name (MD5 {actual}, not {expected}); "
            "download it again, or rename it"
        )


def missing_keys(network: Network, overrides: Sequence[str]) -> list[str]:
    """Return hints for the keys that neither the file nor `overrides` determine."""
    own = {re.split("=", word)[0] for word in overrides}
    keys = own | {*network.overrides}
    heads = {"model.heads", "model.head_channels"}
    if keys & heads:
        keys |= heads
    times = {"model.time_scale", "model.time_shift"}
    steps = [word.partition("=")[2] for word in overrides if word.startswith("schedule.steps=")]
    if own & times or [*steps, str(network.overrides.get("schedule.steps", 1000))][0] == "1000":
        keys |= times  # with 1,000 steps, rescale_timesteps has no effect
    return [hint for key, hint in network.missing.items() if key not in keys]
