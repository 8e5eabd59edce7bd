"""Configurations of commands in Python, with errors that name key and value."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ddpm_lab.config import messages
from ddpm_lab.config.overrides import CONFIGS, quote
from ddpm_lab.diffusion.samplers import Sampler
from ddpm_lab.runs import trusted_paths
from ddpm_lab.runs.run_config import register_run_choices
from ddpm_lab.runs.saved_config import set_trusted
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.ranges import Count

ARGUMENTS = {
    "sample": (
        *("run", "cascade", "mode", "count", "label", "text", "seed", "batch_size"),
        *("input", "frames", "strength", "out", "hydra"),
    ),
    "evaluate": ("run", "cascade", "sweep", "values", "wandb", "out", "hydra"),
}
"""Keys of a command for which Python has arguments and methods"""


class SamplingChoices(TypedDict, total=False):
    """Options of `Model.sample` that the other methods take, too."""

    sampler: str | Sampler | None
    steps: Count | None
    guidance: float | str | None
    overrides: Sequence[str]


def compose_command(
    verb: str, overrides: Sequence[str], config_dir: str | Path | None = None
) -> DictConfig:
    """Return the configuration of a command, with the choices in `config_dir`. Raises UserError."""
    words = messages.normalize_flags(overrides, CONFIGS)
    for word in words:
        if word.startswith("-") or word.partition("=")[0] in (*messages.SHORT["train"], "search"):
            raise UserError(f"{word} is for the command line; Python composes one run at a time")
    messages.check_overrides(words, CONFIGS)
    set_trusted(words)
    trusted_paths.TYPED.update(words)
    options: list[str] = []
    if config_dir is not None:
        folder = Path(config_dir).absolute()
        if not folder.is_dir():
            raise UserError(f"config_dir={config_dir} is not a directory")
        options = ["--config-dir", str(folder)]
        words.append(f"hydra.searchpath=[{quote(str(folder))}]")
    if verb != "train":
        register_run_choices([*options, *words])
    with user_errors(verb, words), _own_hydra():
        return hydra.compose(verb, overrides=words)


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Compose from `CONFIGS` inside the context, also in a program that uses Hydra itself."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


@contextmanager
def user_errors(verb: str, overrides: Sequence[str]) -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf into UserError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        message = messages.explain_error(error, verb, CONFIGS, [*overrides])
        raise UserError(message) from error


def compose_method(
    verb: str, own: Sequence[str], overrides: Sequence[str], config_dir: str | Path | None
) -> DictConfig:
    """Return the configuration of a method of `Model`, which has `own` overrides before others.

    Raises UserError for `overrides` for which Python has arguments.
    """
    for word in overrides:
        if (key := re.split("[.=]", word.lstrip("+~"))[0]) in ARGUMENTS[verb]:
            raise UserError(
                f"{word}: {key} is not an override in Python; see the arguments of load and "
                "the methods of Model"
            )
    return compose_command(verb, [*own, *overrides], config_dir)


def choice_overrides(choices: SamplingChoices) -> list[str]:
    """Return the overrides that `choices` stand for. Raises UserError if two set the same key."""
    sampler, guidance = choices.get("sampler"), choices.get("guidance")
    strength = "guidance" if isinstance(guidance, str) else "guidance.w"
    values = {"sampler.steps": choices.get("steps"), strength: guidance}
    if not isinstance(sampler, Sampler):
        values = {"sampler": sampler, **values}
    words = [f"{key}={value}" for key, value in values.items() if value is not None]
    overrides = choices.get("overrides", ())
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0]
        if values.get(key) is not None:
            raise UserError(f"{word}: an argument sets {key}, too; remove one of them")
    words += overrides
    if isinstance(sampler, Sampler):
        for word in words:
            if re.match(r"[+~]*sampler\b", word):
                name = type(sampler).__name__
                raise UserError(
                    f"{word}: the argument sampler= is an object, which has its own options; "
                    f"try sampler=ddpm_lab.{name}(steps=25)"
                )
    return words
