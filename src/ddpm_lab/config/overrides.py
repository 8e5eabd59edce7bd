"""Command-line arguments in the form that Hydra takes."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.config import messages
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.safe_load import regular_file, sha256_of_text

PACKAGE = Path(__file__).parents[1]
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parents[1] / "configs"
METRICS = sorted(file.stem for file in (CONFIGS / "metric").glob("*.yaml"))
"""Metrics of this package; those of a --config-dir are added by `run_config`"""


def split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """Return the verb of the arguments of train.py, "train" or "ablate", and Hydra's arguments."""
    ablation, search = (
        any(argument.startswith(key) for argument in arguments) for key in ("ablation=", "search=")
    )
    multirun = not {"-m", "--multirun"}.isdisjoint(arguments)
    if ablation and multirun:
        raise UserError("ablation= already makes several runs; remove -m")
    launcher = [argument for argument in arguments if re.match("(jobs|dry)=", argument)]
    if launcher and not (ablation or multirun or search):
        raise UserError(f"{launcher[0]} needs several runs; try -m, search= or ablation=")
    arguments = [re.sub("^(jobs|dry)=", r"hydra.launcher.\1=", argument) for argument in arguments]
    if search and not multirun:
        # The choice sets it too, but too late for Hydra's messages.
        arguments = ["-m", *arguments]
    return ("ablate", move_positional(arguments, "ablate")) if ablation else ("train", arguments)


def slug(overrides: Iterable[str], digits: str | None = None) -> str:
    """Return a folder name: a readable part of `overrides`, and `digits` to make it unique."""
    words = [*overrides]
    digits = digits or sha256_of_text("\n".join(words))[:8]
    text = re.sub(r"[^\w.]+", "-", "_".join(words)).strip("-")[:80]
    return "-".join(filter(None, [text, digits]))


def move_positional(arguments: list[str], verb: str) -> list[str]:
    """Move arguments that `verb` has no key for into its lists `overrides` and `evaluate`.

    `evaluate` has those that begin with `evaluate.`, and `overrides` those for training runs.
    Raises UserError for a key without dots that train.py does not have either.
    """
    own = {str(key) for key in OmegaConf.load(CONFIGS / f"{verb}.yaml")}
    groups = {group.name for group in CONFIGS.iterdir() if group.is_dir()}
    roots = own | groups | {"ablation", "seed"}
    rest: list[str] = []
    lists: dict[str, list[str]] = {"overrides": [], "evaluate": []}
    for argument in arguments:
        argument = re.sub("^ablation=", "ablations=", argument)  # ablation is a group for Hydra
        key = argument.partition("=")[0]
        if re.fullmatch(r"\w+", key) and key not in roots:
            hint = messages.suggest(key, roots)
            raise UserError(f"{argument}: neither {verb} nor train.py has a key {key}{hint}")
        if key.startswith("evaluate."):
            lists["evaluate"].append(argument.removeprefix("evaluate."))
        elif key in own or key.startswith(("hydra", "-")):
            rest.append(argument)
        else:
            lists["overrides"].append(argument)
    return rest + [
        f"{name}=[{','.join(map(quote, words))}]" for name, words in lists.items() if words
    ]


def parse_override(word: str) -> Override | None:
    """Return the parsed override; None for a syntax error, which Hydra will report."""
    with suppress(HydraException):
        return OverridesParser.create().parse_override(word)
    return None


def quote(text: str) -> str:
    """Return `text` in quotes for Hydra; it may contain any characters."""
    return "'" + text.replace("'", "\\'") + "'"


def format_override(key: str, value: object) -> str:
    """Return the override that sets `key` to `value`, in quotes only if Hydra needs them."""
    text = str(value)
    return f"{key}={text if re.fullmatch('[A-Za-z0-9_./+-]+', text) else quote(text)}"


def shell_value(value: object) -> str:
    """Quote `value` for Hydra and a shell, to be typed after `key=`."""
    return shlex.quote(format_override("", value)[1:])


def config_hash(config: DictConfig, root: Path) -> str:
    """Return 12 digits that are equal for configurations that compute the same results.

    They include the configurations of other runs that the configuration refers to, but not output
    folders, nor the place of `root`, the folder with the jobs that others read.
    """
    content: Any = OmegaConf.to_container(config, resolve=False)
    for key in ("hydra", "logger", "metric", "out", "trust"):
        content.pop(key, None)
    content.get("trainer", {}).pop("default_root_dir", None)
    if "run" in content:  # its config.yaml has the data
        content.pop("data", None)
    text = json.dumps(content, sort_keys=True, default=str).replace(f"{root}/", "runs/ablations/")
    for word in sorted(_texts(content)):
        file = Path(word.split()[0], "config.yaml")
        if root not in file.parents and file.is_file():
            text += regular_file(file).read_text()
    return sha256_of_text(text)[:12]


def _texts(content: Any) -> Iterator[str]:
    match content:
        case dict():
            for value in content.values():
                yield from _texts(value)
        case list():
            for value in content:
                yield from _texts(value)
        case str() if content.strip() and len(content) < 1000:
            yield content
