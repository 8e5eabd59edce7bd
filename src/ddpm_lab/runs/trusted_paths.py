"""Paths and Hub names that a run reads; the user must type those of someone else's run."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.config.overrides import format_override, parse_override
from ddpm_lab.utils.errors import UnsafeFileError

PATHS = ("data.path", "data.val_path", "data.labels", "data.cache")
DATA = (*PATHS, "data.name")
MODELS = ("conditioner.model", "guidance.image", "guidance.mask")
"""Keys of a pretrained text encoder and of measurements, which are loaded with the model"""
TYPED: set[str] = set()
"""Overrides that the user gave in Python"""


def trusted_file() -> Path:
    """Return the list: $XDG_STATE_HOME/ddpm-lab/places, or ~/.local/state/ddpm-lab/places."""
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    return state / "ddpm-lab" / "places"


def add_trusted_paths(config: DictConfig) -> None:
    """Add the paths of `config`, which the user trains, to the list."""
    entries = {_line(key, path) for key, path in _paths(config, DATA + MODELS).items()}
    new = sorted(entries - _trusted())
    with suppress(OSError):  # the user must then name the paths of this run too
        trusted_file().parent.mkdir(parents=True, exist_ok=True)
        with trusted_file().open("a") as file:
            file.writelines(new)


def require_named(config: DictConfig, run: object, keys: tuple[str, ...]) -> None:
    """Raise UnsafeFileError for a path in the `config` of `run` that the user never named."""
    for key, path in _paths(config, keys).items():
        values = {_line(key, value) for value in _command_line_values(key)}
        if _line(key, path) not in _trusted() | values:
            raise UnsafeFileError(
                f"{run} reads {key}={path}, which none of your training runs on this machine "
                f"used; if you trust it, add {format_override(key, path)}"
            )


def _paths(config: DictConfig, keys: tuple[str, ...]) -> dict[str, str]:
    values = {key: OmegaConf.select(config, key, throw_on_missing=False) for key in keys}
    return {key: value for key, value in values.items() if isinstance(value, str)}


def _line(key: str, path: str) -> str:
    """Return the entry of the list: an absolute path, or the name of a data set unchanged."""
    place = Path(path).expanduser()
    if key in PATHS or place.exists():
        path = os.path.abspath(place)
    return json.dumps([key, path]) + "\n"


def _trusted() -> set[str]:
    try:
        return {*trusted_file().read_text("utf-8").splitlines(keepends=True)}
    except (OSError, ValueError):
        return set()


def _command_line_values(key: str) -> list[str]:
    """Return the values of `key` on the command line and in `TYPED`."""
    words = [word for word in (*sys.argv[1:], *TYPED) if word.lstrip("+").startswith(f"{key}=")]
    return [str(override.value()) for override in map(parse_override, words) if override]
