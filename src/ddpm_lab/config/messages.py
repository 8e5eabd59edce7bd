"""Checks of the command line, and Hydra's errors rewritten as key, value and choices."""

import difflib
import json
import re
from argparse import Action
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.utils.errors import UnsafeFileError, UserError, escape_control

SHORT = {"train": ("ablation", "jobs", "dry")}
"""Keys that a verb accepts in addition to those of its configuration"""
MODES = ("run", "multirun", "cfg", "info", "shell_completion")
"""Options of Hydra that exclude one another"""


def hydra_flags() -> dict[str, Action]:
    """Return Hydra's own options by name, from private parts of Hydra and argparse."""
    return get_args_parser()._option_string_actions


def normalize_flags(arguments: Sequence[str], configs: Path) -> list[str]:
    """Return the arguments in the form that Hydra takes: options first, and keys without dashes.

    W&B's sweeps add dashes (`--trainer.max_steps=5`).
    Raises UserError for an override that is separated from its value.
    """
    flags = hydra_flags()
    texts = [file.read_text("utf-8") for file in configs.glob("*.yaml")]
    keys = {key for text in texts for key in yaml.load(text, yaml.CSafeLoader)}
    keys |= {*SHORT["train"], *(folder.name for folder in configs.iterdir() if folder.is_dir())}
    options: list[str] = []
    overrides: list[str] = []
    rest = [*arguments]
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        # --run=DIR is the key run: Hydra's flag --run takes no value.
        if name in flags and not (equals and flags[name].nargs == 0):
            options.append(argument)
            optional = rest and rest[0] in (flags[name].choices or ())
            if not equals and rest and (flags[name].nargs is None or optional):
                options.append(rest.pop(0))
            continue
        if not value:
            _check_value_attached(argument, rest)
        key = name.lstrip("-")
        root = re.split(r"[./@]", key)[0]
        dashed = key != name and equals and (root in keys or not suggest(name, flags))
        if argument.startswith("-") and not dashed:
            options.append(argument)
        else:
            overrides.append(f"{key}={value}" if dashed else argument)
    return [*options, *overrides]


def _check_value_attached(argument: str, rest: Sequence[str]) -> None:
    """Raise UserError if `argument` is a key and the next argument its value."""
    key = argument.partition("=")[0].lstrip("-")
    following = rest[0] if rest else ""
    if not following or not re.fullmatch(r"[a-z_][\w.]*", key, re.I):
        return
    if following[0] == "=" or not re.search(r"=|^[-+~]", following):
        value = following.lstrip("=") or (rest[1] if len(rest) > 1 else "")
        words = " ".join([argument, *rest[: 1 + (following == "=")]])
        raise UserError(f"{words}: a key and its value must be one word; try {key}={value}")


def check_overrides(arguments: Iterable[str], configs: Path) -> None:
    """Check overrides before Hydra reads them. Raises UserError and UnsafeFileError."""
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        if not key:
            raise UserError(f"{argument or 'an empty argument'} names no key; try KEY=VALUE")
        if argument.startswith("--e"):  # argparse accepts it for --experimental-rerun
            raise UnsafeFileError(f"{argument} would unpickle a file; retype the command instead")
        if "\0" in argument or (key.startswith("hydra.") and re.search(r"[\0-\x1f]", value)):
            raise UnsafeFileError(f"{escape_control(argument)} has invalid characters")
        group = key.partition("@")[0]
        if re.fullmatch(r"\w+(/\w+)*", group) and (configs / group).is_dir():
            _check_choice(argument, group, configs)


def _check_choice(argument: str, group: str, configs: Path) -> None:
    key, _, value = argument.lstrip("+~").partition("=")
    if len(value) > 300 or re.search(r"(^|[\s,(\['\"])[/~]|\.\.|[\0-\x1f]", value):
        word = f"{group}={escape_control(value[:80])}"
        raise UnsafeFileError(f"{word} is not the name of a file in configs/{group}")
    if argument.startswith("+"):
        raise UserError(f"{argument}: a group takes no +; try {key}={value}")
    empty = r"|null|true|false|\[\s*\]|[+-]?[\d.]+(e[+-]?\d+)?"
    if argument.startswith("~") or re.fullmatch(empty, value, re.I):
        choices = ", ".join(sorted(file.stem for file in (configs / group).glob("*.yaml")))
        raise UserError(f"{argument} has no value; choices: {choices}")


def explain_error(error: Exception, verb: str, configs: Path, arguments: list[str]) -> str:
    """Return a message for an error of Hydra, or its own first lines if it is not recognized."""
    text = f"{error}\n{error.__cause__ or ''}"
    if option := re.search(r"Could not find '(\S+)/([^/\s]+)'", text):
        group, choice = option.groups()
        # The choice "run" is internal, see run_config.register_run_choices.
        choices = [name for name in re.findall(r"^\t(\S+)$", text, re.M) if name != "run"]
        hint = suggest(choice, choices)
        return f"{group}={choice} is not a choice{hint}; choices: {', '.join(choices)}"
    if both := re.search(r"In '(\w+)/(\w+)': Could not override '(\w+)'", text):
        group, choice, other = both.groups()
        only_train = f"also chooses {other}, which only train.py can"
        return f"{group}={choice} {only_train}; try {group}.KEY=... alone"
    if nested := re.search(r"In '(\w+)/(\w+)': Could not override '(\w+)@\1\.", text):
        group, choice, other = nested.groups()
        first = "begin its file with the line # @package _global_"
        return f"{group}={choice} chooses {other}, which is not below {group}; {first}"
    if existing := re.search(r"append to config\. An item is already at '([^'@]+)'", text):
        argument, new = _argument_of(existing[1], arguments), "but + is for new keys"
        return f"{argument}: {existing[1]} already exists, {new}; try {argument.lstrip('+')}"
    if key := re.search(r"Could not (?:override|find|delete from config\.) '([^'@]+)'", text):
        config = _chosen_config(verb, configs, arguments)
        return _explain_unknown_key(key[1], verb, config, arguments)
    if missing := re.search(r"Missing (?:mandatory value:|key) (\S+)", text):
        return f"{missing[1]} must be given; try {missing[1]}=..."
    if absent := re.search(r"Interpolation key '(\S+)' not found(?:\s+full_key: (\S+))?", text):
        owner = absent[2] or "another key"
        return f"{absent[1]} is not in the configuration, but {owner} refers to it; add it"
    if several := re.search(r"Ambiguous value for argument '(\S+?=.+)'", text):
        return f"{several[1]} has several values; try -m for a run of each, or brackets for a list"
    if isinstance(error, OverrideParseException):  # Hydra's message uses terms of its grammar
        return _explain_syntax(error.override)
    return "; ".join(line.strip(" .") for line in text.splitlines()[:2] if line.strip())


def explain_broken_file(error: Exception, arguments: list[str]) -> str:
    """Return a message about the file in a --config-dir that raised `error` when it was read."""
    message = " ".join(str(error).split())[:200]
    mark = getattr(error, "problem_mark", error)
    if name := getattr(mark, "name", None):
        return f"{name} is not YAML: {message}"
    folders = config_folders(arguments, "--config-path", "-cp")
    files = (file for folder in folders for file in Path(folder).rglob("*.yaml"))
    for file in sorted(filter(Path.is_file, files)):
        try:
            file.read_text("utf-8")
        except UnicodeDecodeError:
            return f"{file} is not text in UTF-8: {message}"
    return f"a configuration file is not text in UTF-8: {message}"


def config_folders(arguments: Sequence[str], *options: str) -> list[str]:
    """Return the values of --config-dir, and of more `options`."""
    return [
        argument.partition("=")[2] or following
        for argument, following in pairwise([*arguments, ""])
        if argument.partition("=")[0] in ("--config-dir", "-cd", *options)
    ]


def _explain_syntax(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if not equals:
        hint = f"run={argument}" if Path(argument).is_dir() else f"{argument}=..."
        return f"{argument} has no value; try {hint}"
    if value[:1] in "[{":
        return f"{argument} is an incomplete list; try '{name}=[1,2]', in quotes or without spaces"
    if value.endswith(","):
        return f"{argument} ends in a comma; try {name}={value.rstrip(',')}"
    quoted = re.search("['\"]", value)
    hint = "escape inner quotes with a backslash" if quoted else f"try \"{name}='{value}'\""
    return f"{argument} has a character that must be quoted; {hint}"


def check_flags(arguments: Sequence[str], keys: Iterable[object]) -> None:
    """Raise UserError for an unknown option, with a hint from `keys`, and for two that conflict."""
    flags = hydra_flags()
    names = [argument.partition("=")[0] for argument in arguments]
    for flag in (name for name in names if name.startswith("-") and name not in flags):
        if (key := flag.lstrip("-")) in keys:
            raise UserError(f"{flag} is a key, not an option; try {key}=...")
        options = ", ".join(sorted(flags, key=len))
        raise UserError(f"{flag} is not an option{suggest(flag, flags)}; options: {options}")
    modes = {flags[name].dest: name for name in names if name in flags}
    modes = {mode: flag for mode, flag in modes.items() if mode in MODES}
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes.values())} exclude one another; leave one out")


def _explain_unknown_key(key: str, verb: str, config: DictConfig, arguments: Iterable[str]) -> str:
    argument_text = _argument_of(key, arguments)
    # A key may be null: "" marks a missing one.
    if "/" in key and OmegaConf.select(config, dotted := key.replace("/", "."), default="") != "":
        return f"{argument_text}: / is for groups only; try {argument_text.replace(key, dotted)}"
    tree: Any = OmegaConf.to_container(config, resolve=False)
    parts, node, depth = key.split("."), tree, 0
    for part in parts[:-1]:
        match node.get(part):
            case dict() as child:
                node, depth = child, depth + 1
            case _:
                break
    parent, name = ".".join(parts[:depth]), parts[depth]
    keys = [str(key) for key in node if not str(key).startswith("_")]
    if not parent:
        groups = [group.split("@")[0] for group in config.hydra.runtime.choices if "/" not in group]
        keys = [*dict.fromkeys([*keys, *groups, *SHORT.get(verb, ())])]
        keys.remove("hydra")
    leaves = [leaf for leaf in _dotted_keys(tree) if "." not in key and leaf.endswith(f".{name}")]
    leaves = [leaf for leaf in leaves if not re.search(r"^hydra\.|system\.", leaf)]
    hint = f" (did you mean {' or '.join(leaves)}?)" if leaves else suggest(name, keys)
    owner = parent or "the configuration"
    choices = "" if hint else f"; keys: {', '.join(keys) or 'none'}"
    return f"{argument_text}: {owner} has no key {name}{hint}{choices}"


def _argument_of(key: str, arguments: Iterable[str]) -> str:
    """Return the argument that sets `key`; without one, `key`."""
    prefix = f"{key}="
    return next((word for word in arguments if word.lstrip("+~").startswith(prefix)), key)


def suggest(word: str, choices: Iterable[object]) -> str:
    """Return " (did you mean X?)" with the most similar choice; "" if none is similar enough."""
    names = {str(choice).lower(): choice for choice in choices}
    matches = difflib.get_close_matches(word.lower(), names, 1)
    return f" (did you mean {names[matches[0]]}?)" if matches else ""


def _dotted_keys(node: Any, prefix: str = "") -> Iterator[str]:
    match node:
        case dict():
            for key, value in node.items():
                if not str(key).startswith("_"):
                    yield f"{prefix}{key}"
                    yield from _dotted_keys(value, f"{prefix}{key}.")


def _chosen_config(verb: str, configs: Path, arguments: Sequence[str]) -> DictConfig:
    """Compose the configuration with the group choices only, without other overrides."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(configs), version_base="1.3"):
        defaults = compose(verb, return_hydra_config=True).hydra.runtime.choices
        groups = {choice.split("@")[0] for choice in defaults}
        words = [word for word in arguments if re.fullmatch(r"[\w/]+=\w+", word)]
        choices = [word for word in words if word.partition("=")[0] in groups]
        choices += [word for word in arguments if word.startswith("hydra.searchpath=")]
        if folders := [str(Path(folder).absolute()) for folder in config_folders(arguments)]:
            choices.append(f"hydra.searchpath={json.dumps(folders)}")
        return compose(verb, overrides=choices, return_hydra_config=True)
