"""Files, folders and sets of the Hub that a run reads: those of someone else's run must be named by the user as well.

Each training run adds its own to a list in the user's state directory, so that one's own runs need no confirmation.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.config.overrides import format_override
from ddpm_lab.utils.errors import UnsafeFileError, escape_control

DATA = ("data.path", "data.name", "data.cache")
MODELS = ("conditioner.model",)
"""Of a pretrained text encoder, which is loaded with the model"""


def trusted_file() -> Path:
    """The list: $XDG_STATE_HOME/ddpm-lab/places, or ~/.local/state/ddpm-lab/places."""
    return (
        Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
        / "ddpm-lab"
        / "places"
    )


def remember_paths(config: DictConfig) -> None:
    """Add the places of `config`, which the user trains, to the list."""
    new = [line for line in map(_line, *_named(config, DATA + MODELS)) if line not in _trusted()]
    with suppress(OSError):  # then a run of one's own is asked about as well
        trusted_file().parent.mkdir(parents=True, exist_ok=True)
        with trusted_file().open("a") as file:
            file.writelines(new)


def require_named(config: DictConfig, run: object, keys: tuple[str, ...]) -> None:
    """Raises Unsafe for a place of `keys` in `config`, that of `run`, which the user neither typed nor trained on."""
    for key, value in zip(*_named(config, keys), strict=True):
        if _line(key, value) not in {*_trusted(), *(_line(key, typed) for typed in _typed(key))}:
            raise UnsafeFileError(
                f"{escape_control(run)} reads {key}={escape_control(value)}, which no training run of yours named on this "
                f"machine; if you mean it, add {escape_control(format_override(key, value))}"
            )


def _named(config: DictConfig, keys: tuple[str, ...]) -> tuple[list[str], list[str]]:
    found = {key: OmegaConf.select(config, key, throw_on_missing=False) for key in keys}
    named = {key: value for key, value in found.items() if isinstance(value, str)}
    return [*named], [*named.values()]


def _line(key: str, value: str) -> str:
    place = Path(value).expanduser()
    return (
        json.dumps(
            [
                key,
                os.path.abspath(place)
                if key in ("data.path", "data.cache") or place.exists()
                else value,
            ]
        )
        + "\n"
    )


def _trusted() -> set[str]:
    try:
        return {*trusted_file().read_text("utf-8").splitlines(keepends=True)}
    except (OSError, ValueError):
        return set()


def _typed(key: str) -> list[str]:
    """Values of `key` on the command line."""
    found = []
    for word in (word for word in sys.argv[1:] if word.lstrip("+").startswith(f"{key}=")):
        try:
            found.append(str(OverridesParser.create().parse_override(word).value()))
        except HydraException:  # of which Hydra tells
            continue
    return found
