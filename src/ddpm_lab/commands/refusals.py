"""Hydra's complaints in one or two lines: the key, the value, the choices."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.errors import Unsafe, shown


def check(arguments: Iterable[str], configs: Path) -> None:
    """Raises Unsafe for names that would lead Hydra elsewhere, and for what makes it run code from a file."""
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        if argument.startswith("--e"):  # which argparse takes for --experimental-rerun
            raise Unsafe(f"{argument} is not offered, for it would unpickle a file; type the command again")
        if "\0" in argument or (key.startswith("hydra.") and re.search(r"[\0-\x1f]", value)):
            raise Unsafe(f"{shown(argument)} has characters that no name may have")
        group = key.partition("@")[0]
        if re.fullmatch(r"\w+(/\w+)*", group) and (configs / group).is_dir() and (
                len(value) > 300 or re.search(r"(^|[\s,(\['\"])[/~]|\.\.|[\0-\x1f]", value)):  # fmt: skip
            raise Unsafe(f"{group}={shown(value[:80])} is not the name of a choice, which is a file in configs/{group}")


def explain(error: Exception, verb: str, configs: Path, arguments: list[str]) -> str:
    """What was wrong with the command line. Whatever is not recognised is told in Hydra's own first lines."""
    text = f"{error}\n{error.__cause__ or ''}"
    if option := re.search(r"Could not find '([^/']+)/(\S+)'", text):
        choices = re.findall(r"^\t(\S+)$", text, re.M)
        return f"{option[1]}={option[2]} is not a choice{_near(option[2], choices)}; choices: {', '.join(choices)}"
    if also := re.search(r"In '(\w+)/(\w+)': Could not override '(\w+)'", text):
        group, choice, other = also.groups()
        return f"{group}={choice} also chooses {other}, which only train.py can; try {group}.KEY=... alone"
    if key := re.search(r"Could not (?:override|append to config\. An item is already at|find) '([^'@]+)'", text):
        return _unknown(key[1], _config(verb, configs, arguments), arguments)
    if missing := re.search(r"Missing mandatory value: (\S+)|Missing key (\S+)", text):
        wanted = missing[1] or missing[2]
        return f"{wanted} must be given; try {wanted}=..."
    if unread := re.search(r"LexerNoViableAltException: ([\w.]+)=(.+)", text):
        name, value = unread.groups()
        quoted = "quotes inside need a backslash" if "'" in value or '"' in value else f"try \"{name}='{value}'\""
        return f"{name}={value} has a character that must stand in quotes; {quoted}"
    return "; ".join(line.strip() for line in text.splitlines()[:2] if line.strip())


def _unknown(key: str, config: DictConfig, arguments: Iterable[str]) -> str:
    """A key that is neither a group nor a value."""
    typed = next((argument for argument in arguments if argument.lstrip("+~").startswith(f"{key}=")), key)
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig):
        return f"{typed}: there is no {parent}{_near(parent.split('.')[0], config)}"
    keys = [str(key) for key in node if not str(key).startswith("_")]
    leaves = [] if parent else [leaf for leaf in _all(config) if leaf.endswith(f".{name}") and "system." not in leaf]
    near = f" (did you mean {' or '.join(leaves)}?)" if leaves else _near(name, keys)
    return f"{typed}: {parent or 'the configuration'} has no key {name}{near}; keys: {', '.join(keys) or 'none'}"


def _near(word: str, words: Iterable[object]) -> str:
    found = difflib.get_close_matches(word, [str(word) for word in words], 1, 0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def _all(node: DictConfig, prefix: str = "") -> list[str]:
    names = [prefix + str(key) for key in node if not str(key).startswith("_")]
    return names + [name for key in node if isinstance(value := node._get_node(key), DictConfig)
                    for name in _all(value, f"{prefix}{key!s}.")]  # fmt: skip


def _config(verb: str, configs: Path, arguments: Iterable[str]) -> DictConfig:
    """The configuration of the groups that were chosen, without what was set in them."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(configs), version_base="1.3"):
        groups = {choice.split("@")[0] for choice in compose(verb, return_hydra_config=True).hydra.runtime.choices}
        chosen = [argument for argument in arguments if re.fullmatch(r"\w+=\w+", argument)]
        return compose(verb, overrides=[choice for choice in chosen if choice.partition("=")[0] in groups])
