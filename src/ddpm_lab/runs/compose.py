"""Configurations of commands in Python, with errors that name key and value."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ddpm_lab.config import messages
from ddpm_lab.config.overrides import CONFIGS, quote
from ddpm_lab.runs import trusted_paths
from ddpm_lab.runs.run_config import register_run_choices
from ddpm_lab.runs.saved_config import set_trusted
from ddpm_lab.utils.errors import UserError


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
