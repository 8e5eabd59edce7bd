"""Hydra's complaints in one or two lines: the key, the value, the choices."""

import difflib
import re
from argparse import Action
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.utils.errors import UnsafeFileError, UserError, escape_control

SHORT = {"train": ("ablation", "jobs", "dry")}
"""What a verb hears at its root that is no key of its configuration"""

MODES = ("run", "multirun", "cfg", "info", "shell_completion")
"""Options of Hydra, of which it takes one at a time"""


def normalize_flags(arguments: Sequence[str], configs: Path) -> list[str]:
    """Return the arguments as Hydra takes them: options first, and overrides without the dashes that W&B's sweeps put
    before them (`--trainer.max_steps=5`). Raise UserError for an override whose value stands apart.
    """
    known = _options()
    keys = {key for file in configs.glob("*.yaml") for key in OmegaConf.load(file)} | {
        *SHORT["train"]
    }
    keys |= {folder.name for folder in configs.iterdir() if folder.is_dir()}
    options: list[str] = []
    overrides: list[str] = []
    left = [*arguments]
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if name in known and not (equals and known[name].nargs == 0):  # --run=DIR is the key run
            options.append(argument)
            apart = known[name].nargs is None or (left and left[0] in (known[name].choices or ()))
            options += [left.pop(0)] if apart and left and not equals else []
            continue
        key = name.lstrip("-")
        following = left[0] if left else ""
        if (
            re.fullmatch(r"[a-z_][\w.]*", key, re.I)
            and not value
            and following
            and (following[0] == "=" or not re.search(r"=|^[-+~]", following))
        ):
            meant = following.lstrip("=") or (left[1] if len(left) > 1 else "")
            typed = " ".join([argument, *left[: 1 + (following == "=")]])
            raise UserError(f"{typed}: a key, = and its value are one word; try {key}={meant}")
        dashed = (
            key != name
            and equals
            and (re.split(r"[./@]", key)[0] in keys or not suggest(name, known))
        )
        if argument.startswith("-") and not dashed:
            options.append(argument)
        else:
            overrides.append(f"{key}={value}" if dashed else argument)
    return [*options, *overrides]


def _options() -> dict[str, Action]:
    """Hydra's own, by name."""
    return get_args_parser()._option_string_actions


def check_overrides(arguments: Iterable[str], configs: Path) -> None:
    """Raises Unsafe for names that would lead Hydra elsewhere, and for what makes it run code from a file; UserError
    where there is no name.
    """
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        if not key:
            raise UserError(f"{argument or 'an empty argument'} names no key; try KEY=VALUE")
        if argument.startswith("--e"):  # which argparse takes for --experimental-rerun
            raise UnsafeFileError(
                f"{argument} is not offered, for it would unpickle a file; type the command again"
            )
        if "\0" in argument or (key.startswith("hydra.") and re.search(r"[\0-\x1f]", value)):
            raise UnsafeFileError(
                f"{escape_control(argument)} has characters that no name may have"
            )
        group = key.partition("@")[0]
        if not re.fullmatch(r"\w+(/\w+)*", group) or not (configs / group).is_dir():
            continue
        if len(value) > 300 or re.search(r"(^|[\s,(\['\"])[/~]|\.\.|[\0-\x1f]", value):
            raise UnsafeFileError(
                f"{group}={escape_control(value[:80])} is not the name of a choice, which is a file in configs/{group}"
            )
        if argument.startswith("+"):
            raise UserError(f"{argument}: a choice of a group has no +; try {key}={value}")
        if argument.startswith("~") or re.fullmatch(
            r"|null|true|false|\[\s*\]|[+-]?[\d.]+(e[+-]?\d+)?", value, re.I
        ):
            choices = ", ".join(sorted(file.stem for file in (configs / group).glob("*.yaml")))
            raise UserError(f"{argument} chooses nothing; choices: {choices}")


def explain_error(error: Exception, verb: str, configs: Path, arguments: list[str]) -> str:
    """What was wrong with the command line. Whatever is not recognised is told in Hydra's own first lines."""
    text = f"{error}\n{error.__cause__ or ''}"
    if option := re.search(r"Could not find '(\S+)/([^/\s]+)'", text):
        choices = [
            choice for choice in re.findall(r"^\t(\S+)$", text, re.M) if choice != "run"
        ]  # of runs.offer
        return f"{option[1]}={option[2]} is not a choice{suggest(option[2], choices)}; choices: {', '.join(choices)}"
    if also := re.search(r"In '(\w+)/(\w+)': Could not override '(\w+)'", text):
        group, choice, other = also.groups()
        return f"{group}={choice} also chooses {other}, which only train.py can; try {group}.KEY=... alone"
    failed = r"(?:override|find|delete from config\.)"
    if existing := re.search(r"append to config\. An item is already at '([^'@]+)'", text):
        typed = _typed(existing[1], arguments)
        return f"{typed}: {existing[1]} is there already, and + is for new keys; try {typed.lstrip('+')}"
    if key := re.search(rf"Could not {failed} '([^'@]+)'", text):
        return _unknown(key[1], verb, _config(verb, configs, arguments), arguments)
    if missing := re.search(r"Missing mandatory value: (\S+)|Missing key (\S+)", text):
        wanted = missing[1] or missing[2]
        return f"{wanted} must be given; try {wanted}=..."
    if several := re.search(r"Ambiguous value for argument '(\S+?)=(.+)'", text):
        return f"{several[1]}={several[2]} is several values; try -m for a run of each, or brackets for a list"
    if isinstance(error, OverrideParseException):  # Hydra's words for it are those of its grammar
        return _unread(error.override)
    return "; ".join(line.strip() for line in text.splitlines()[:2] if line.strip())


def explain_broken_file(error: Exception, arguments: list[str]) -> str:
    """Message about the configuration file, of a folder behind --config-dir, that raised `error` when it was read."""
    said = " ".join(str(error).split())[:200]
    mark = getattr(error, "problem_mark", error)
    if name := getattr(mark, "name", None):
        return f"{name} is not YAML: {said}"
    folders = [
        argument.partition("=")[2] or following
        for argument, following in pairwise([*arguments, ""])
        if argument.startswith(("--config-dir", "-cd", "--config-path", "-cp"))
    ]
    for file in sorted(
        file for folder in folders for file in Path(folder).rglob("*.yaml") if file.is_file()
    ):
        try:
            file.read_text("utf-8")
        except UnicodeDecodeError:
            return f"{file} is not text in UTF-8: {said}"
    return f"a configuration file is not text in UTF-8: {said}"


def _unread(argument: str) -> str:
    """An argument that Hydra's grammar does not know."""
    name, equals, value = argument.partition("=")
    if not equals:
        return f"{argument} sets nothing; try {argument}=..."
    if value[:1] in "[{":
        return f"{argument} is not a whole list; try '{name}=[1,2]', in quotes or without spaces"
    if value.endswith(","):
        return f"{argument} ends in a comma; try {name}={value.rstrip(',')}"
    quoted = (
        "quotes inside need a backslash"
        if "'" in value or '"' in value
        else f"try \"{name}='{value}'\""
    )
    return f"{argument} has a character that must stand in quotes; {quoted}"


def check_flags(arguments: Sequence[str], keys: Iterable[object]) -> None:
    """Raises UserError for a flag that Hydra does not know; it would print all that it knows. `keys` have no dashes."""
    known = _options()
    for flag in (argument.partition("=")[0] for argument in arguments if argument.startswith("-")):
        if flag not in known:
            if (key := flag.lstrip("-")) in keys:
                raise UserError(f"{flag} is a key and no option; try {key}=...")
            raise UserError(
                f"{flag} is no option{suggest(flag, known)}; options: {', '.join(sorted(known, key=len))}"
            )
    modes = {
        known[flag].dest: flag
        for flag in (argument.partition("=")[0] for argument in arguments)
        if flag in known and known[flag].dest in MODES
    }
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes.values())} exclude one another; leave one out")


def _unknown(key: str, verb: str, config: DictConfig, arguments: Iterable[str]) -> str:
    """A key that is neither a group nor a value."""
    typed = _typed(key, arguments)
    if (
        "/" in key and OmegaConf.select(config, dotted := key.replace("/", "."), default="") != ""
    ):  # it may be null
        return f"{typed}: only groups have a /; try {typed.replace(key, dotted)}"
    parent, node = "", config
    *parents, name = key.split(".")
    for i, part in enumerate(parents):
        if part not in node or not isinstance(node._get_node(part), DictConfig):
            name = part
            break
        parent, node = ".".join(parents[: i + 1]), node[part]
    keys = [str(key) for key in node if not str(key).startswith("_")]
    if not parent:
        groups = [group.split("@")[0] for group in config.hydra.runtime.choices if "/" not in group]
        keys = [*dict.fromkeys([*keys, *groups, *SHORT.get(verb, ())])]
        keys.remove("hydra")
    leaves = [
        leaf
        for leaf in _all(config)
        if "." not in key
        and leaf.endswith(f".{name}")
        and not leaf.startswith("hydra.")
        and "system." not in leaf
    ]
    hint = f" (did you mean {' or '.join(leaves)}?)" if leaves else suggest(name, keys)
    return f"{typed}: {parent or 'the configuration'} has no key {name}{hint}; keys: {', '.join(keys) or 'none'}"


def _typed(key: str, arguments: Iterable[str]) -> str:
    """The argument that sets `key`, or `key` where there is none."""
    return next(
        (argument for argument in arguments if argument.lstrip("+~").startswith(f"{key}=")), key
    )


def suggest(word: str, overrides: Iterable[object]) -> str:
    """ " (did you mean X?)" with the one of `words` that the fewest slips make `word` of; "" where none is near."""
    known = [str(one) for one in overrides]
    if same := [one for one in known if one.lower() == word.lower()]:
        return f" (did you mean {same[0]}?)"
    likeness = {one: difflib.SequenceMatcher(None, word, one).ratio() for one in known}
    best = min(known, key=lambda one: (_edit_distance(word, one), -likeness[one]), default="")
    close = best and (_edit_distance(word, best) <= (len(word) + 1) // 3 or likeness[best] >= 0.6)
    return f" (did you mean {best}?)" if close else ""


def _edit_distance(a: str, b: str) -> int:
    """How many letters must be added, left out, replaced, or exchanged with the next, to make `b` of `a` (Damerau's
    distance).
    """
    rows = [[*range(len(b) + 1)]]
    for i, x in enumerate(a, 1):
        rows.append(row := [i])
        for j, y in enumerate(b, 1):
            row.append(min(rows[i - 1][j] + 1, row[j - 1] + 1, rows[i - 1][j - 1] + (x != y)))
            if i > 1 and j > 1 and (x, a[i - 2]) == (b[j - 2], y):
                row[j] = min(row[j], rows[i - 2][j - 2] + 1)
    return rows[-1][-1]


def _all(node: DictConfig, prefix: str = "") -> list[str]:
    names = [prefix + str(key) for key in node if not str(key).startswith("_")]
    return names + [
        name
        for key in node
        if isinstance(value := node._get_node(key), DictConfig)
        for name in _all(value, f"{prefix}{key!s}.")
    ]


def _config(verb: str, configs: Path, arguments: Iterable[str]) -> DictConfig:
    """The configuration of the groups that were chosen, without what was set in them."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(configs), version_base="1.3"):
        groups = {
            choice.split("@")[0]
            for choice in compose(verb, return_hydra_config=True).hydra.runtime.choices
        }
        chosen = [argument for argument in arguments if re.fullmatch(r"[\w/]+=\w+", argument)]
        known = [choice for choice in chosen if choice.partition("=")[0] in groups]
        return compose(verb, overrides=known, return_hydra_config=True)
