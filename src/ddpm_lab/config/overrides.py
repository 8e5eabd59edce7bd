"""Arguments of the verbs in the form that Hydra takes."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.config import messages
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.safe_load import regular_file

PACKAGE = Path(__file__).parents[1]
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parents[1] / "configs"


def split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """Which configuration the arguments of train.py are for, and they in Hydra's words."""
    ablation = any(argument.startswith("ablation=") for argument in arguments)
    several = {"-m", "--multirun"} & {*arguments}
    if ablation and several:
        raise UserError("ablation= is many runs already; leave out -m")
    of_many = [argument for argument in arguments if re.match("(jobs|dry)=", argument)]
    if of_many and not (
        ablation or several or any(argument.startswith("search=") for argument in arguments)
    ):
        raise UserError(f"{of_many[0]} is for many runs: -m, search= or ablation=")
    arguments = [re.sub("^(jobs|dry)=", r"hydra.launcher.\1=", argument) for argument in arguments]
    if any(argument.startswith("search=") for argument in arguments) and not several:
        arguments = [
            "-m",
            *arguments,
        ]  # which the choice says as well, but too late for Hydra's messages
    return ("ablate", move_positional(arguments, "ablate")) if ablation else ("train", arguments)


def slug(overrides: Iterable[str], digits: str | None = None) -> str:
    """A name for a folder: what can be read of `words`, and digits that tell them from all others."""
    said = [*overrides]
    digits = digits or hashlib.sha256("\n".join(said).encode()).hexdigest()[:8]
    return "-".join(filter(None, [re.sub(r"[^\w.]+", "-", "_".join(said)).strip("-")[:80], digits]))


def move_positional(arguments: list[str], verb: str) -> list[str]:
    """What `verb` has no key for goes into its list `words`, which every training run of the ablation hears; and what
    begins with `evaluate.` into its list `evaluate`, for the evaluations. Raises UserError for a word without dots that
    train.py has no key for either.
    """
    own = {str(key) for key in OmegaConf.load(CONFIGS / f"{verb}.yaml")}
    roots = (
        own | {"ablation", "seed"} | {group.name for group in CONFIGS.iterdir() if group.is_dir()}
    )
    mine: list[str] = []
    said: dict[str, list[str]] = {"overrides": [], "evaluate": []}
    for argument in (
        re.sub("^ablation=", "ablations=", argument) for argument in arguments
    ):  # no group for Hydra
        key = argument.partition("=")[0]
        if re.fullmatch(r"\w+", key) and key not in roots:
            raise UserError(
                f"{argument}: neither {verb} nor train.py has a key {key}{messages.suggest(key, roots)}"
            )
        if key.startswith("evaluate."):
            said["evaluate"].append(argument.removeprefix("evaluate."))
        else:
            (mine if key in own or key.startswith(("hydra", "-")) else said["overrides"]).append(
                argument
            )
    return [
        *mine,
        *(
            f"{name}=[{','.join(map(quote, overrides))}]"
            for name, overrides in said.items()
            if overrides
        ),
    ]


def quote(text: str) -> str:
    """As Hydra reads it, whatever characters it has."""
    return "'" + text.replace("'", "\\'") + "'"


def format_override(key: str, value: object) -> str:
    """A word that Hydra reads as this value, in quotes only where they are needed."""
    text = str(value)
    return f"{key}={text if re.fullmatch('[A-Za-z0-9_./+-]+', text) else quote(text)}"


def shell_value(value: object) -> str:
    """What a shell makes Hydra's word for this value of, to be typed behind `key=`."""
    return shlex.quote(format_override("", value)[1:])


def config_hash(config: DictConfig, root: Path) -> str:
    """12 digits that are the same for configurations that compute the same: where results go does not matter, nor where
    the cells lie whose folders they read, `root`. Of other runs whose folders they read, their configurations matter.
    """
    content: Any = OmegaConf.to_container(config, resolve=False)
    for key in ("hydra", "logger", "out", "trust"):
        content.pop(key, None)
    content.get("trainer", {}).pop("default_root_dir", None)
    if "run" in content:  # whose configuration has the data
        content.pop("data", None)
    said = json.dumps(content, sort_keys=True, default=str).replace(f"{root}/", "runs/ablations/")
    for text in sorted(_texts(content)):
        file = Path(text.split()[0], "config.yaml")
        if root not in file.parents and file.is_file():
            said += regular_file(file).read_text()
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _texts(value)
    elif isinstance(content, str) and content.strip() and len(content) < 1000:
        yield content
