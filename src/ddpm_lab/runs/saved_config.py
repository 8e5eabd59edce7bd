"""Configurations: that of a run, which may come from elsewhere, is data until all of it is known; and what of one's own
may be shown.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from ddpm_lab.utils.errors import CorruptFileError, UnsafeFileError, UserError, escape_control
from ddpm_lab.utils.safe_load import regular_file

LARGEST = 2**20
"""Bytes of a config.yaml"""
FIXED = re.compile(
    r"\$\{hydra:runtime\.output_dir\}|"
    r"\$\{oc\.decode:\$\{oc\.env:SLURM_(JOB_NUM_NODES|NTASKS_PER_NODE),1\}\}"
)
"""All that is resolved besides references such as ${model.channels}"""
TRUSTED: list[str] = []
"""Packages that the user typed behind trust=, from which runs may build as well"""


def set_trusted(arguments: list[str]) -> None:
    """Makes `TRUSTED` what `arguments` say. Raises UserError."""
    TRUSTED.clear()
    for argument in arguments:
        if argument.startswith("trust="):
            packages = argument.removeprefix("trust=").strip("[]'\"")
            TRUSTED[:] = [package.strip("'\" ") for package in packages.split(",") if package]
    if wrong := [package for package in TRUSTED if not re.fullmatch(r"\w+(\.\w+)*", package)]:
        raise UserError(f"trust={wrong[0]} is no package; try trust=[my_package]")


def load_saved_config(file: Path, trusted: Sequence[str] = ()) -> DictConfig:
    """What a config.yaml says. Raises Damaged, Unsafe, and OSError where there is none.

    Its `_target_`s are those that configs/ has in the same group, or begin with a package of `trusted`; nothing is
    imported. References lead to what configs/ refers to from there, or to a value.
    """
    try:
        if (size := regular_file(file).stat().st_size) > LARGEST:
            raise CorruptFileError(
                f"{escape_control(file)} has {size} bytes, and a configuration has at most {LARGEST}"
            )
        text = file.read_text("utf-8")
        if not text.endswith("\n"):
            raise CorruptFileError(
                f"{escape_control(file)} is {'cut short: its last line has no end' if text else 'empty'}"
            )
        for event in yaml.parse(text, yaml.SafeLoader):
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise UnsafeFileError(
                    f"{escape_control(file)} has tags or aliases, which no configuration of ours has"
                )
        content: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        if not isinstance(content, dict):
            raise CorruptFileError(
                f"{escape_control(file)} is not a configuration of ddpm-lab, which is a list of groups"
            )
        if "hydra" in content:  # whose logging and callbacks may name any class
            raise UnsafeFileError("hydra is no part of what a run was trained with")
        for group in content:
            _check(content, group, (str(group),), content, trusted)
        return OmegaConf.create(content)
    except UnsafeFileError as error:
        told = str(error)
        raise UnsafeFileError(
            told if told.startswith(escape_control(file)) else f"{escape_control(file)}: {told}"
        ) from error
    except (CorruptFileError, OSError):
        raise
    except (ValueError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise CorruptFileError(
            f"{escape_control(file)} is damaged, and no configuration of ddpm-lab any more "
            f"({' '.join(str(error).split())[:160]})"
        ) from error


def _check(
    parent: Any, key: Any, path: tuple[str, ...], whole: Any, trusted: Collection[str]
) -> None:
    """Raises Unsafe unless `parent[key]` is what may stand there."""
    value, where = parent[key], escape_control(".".join(path))
    targets, groups = _own().get(path[0], (frozenset(), frozenset()))
    if isinstance(value, dict | list):
        for name in [*value] if isinstance(value, dict) else range(len(value)):
            _check(value, name, (*path, str(name)), whole, trusted)
    if not isinstance(key, int) and not re.fullmatch(r"\w[\w. -]*", str(key), re.ASCII):
        raise UnsafeFileError(f"{where} is no name of a key")
    if str(key).startswith("_") or key == "defaults":
        if key == "_target_":
            if (
                not isinstance(value, str)
                or not re.fullmatch(r"\w+(\.\w+)+", value, re.ASCII)
                or not (
                    value in targets
                    or value.startswith(tuple(f"{package}." for package in trusted))
                )
            ):
                raise UnsafeFileError(
                    f"{where}={escape_control(value)} is nothing that configs/ has there, and is not imported; "
                    "packages that you trust can be named: trust=[PACKAGE]"
                )
        elif key != "_partial_" or not isinstance(value, bool):
            raise UnsafeFileError(f"{where}={escape_control(value)} is no key of ours")
    if isinstance(value, str) and "${" in value:
        parts = FIXED.sub(" ", value).split("${")
        for part in parts[1:]:
            to = re.match(r"([a-z_]\w*)(\.\w+)*\}", part, re.ASCII)
            if to is None or (
                isinstance(_at(whole, to[0][:-1]), dict | list) and to[1] not in groups
            ):
                if path[0] in _own() and path[0] != "logger":
                    raise UnsafeFileError(
                        f"{where}={escape_control(value)} refers to what it must not"
                    )
                parent[key] = "???"  # such as a secret; of a run nothing is built from here


def _at(whole: Any, path: str) -> Any:
    for part in path.split("."):
        whole = whole.get(part) if isinstance(whole, dict) else None
    return whole


@cache
def _own() -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """By group: what configs/ builds there, and what groups are referred to."""
    from ddpm_lab.config.overrides import CONFIGS

    targets: dict[str, set[str]] = {}
    groups: dict[str, set[str]] = {}
    for file in CONFIGS.glob("*/*.yaml"):
        text = file.read_text("utf-8")
        parts = yaml.safe_load(text) or {}
        everywhere = "@package _global_" in text.splitlines()[0:1][0] if text else False
        for group, part in parts.items() if everywhere else [(file.parent.name, parts)]:
            for key, value in _leaves(part):
                if key == "_target_":
                    targets.setdefault(group, set()).add(value)
                groups.setdefault(group, set()).update(re.findall(r"\$\{(\w+)", str(value)))
    return {
        group: (frozenset(targets.get(group, ())), frozenset(groups[group])) for group in groups
    }


def foreign_packages(config: DictConfig) -> list[str]:
    """The packages that must be trusted for a run of `config` to be read: those of `_target_`s that configs/ does not
    have in the same group.
    """
    content: Any = OmegaConf.to_container(config)
    return sorted(
        {
            str(value).partition(".")[0]
            for group, part in content.items()
            for key, value in _leaves(part)
            if key == "_target_" and value not in _own().get(group, (frozenset(),))[0]
        }
    )


def _leaves(node: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    ):
        yield key, value
        yield from _leaves(value)


def redact(config: DictConfig) -> dict[str, Any]:
    """`config` resolved, but for what is, or refers to, an environment variable, as a secret is typed: of that the
    reference. For all that is kept or shown.
    """
    asked: list[str] = []

    def veiled(name: str, *default: Any) -> str:
        asked.append(name)
        return "null"

    OmegaConf.register_new_resolver("oc.env", veiled, replace=True)
    try:
        found: dict[str, Any] = _public(config, asked)
        return found
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _public(node: Any, asked: list[str]) -> Any:
    found = {}
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        asked.clear()
        try:
            value = node[key]
        except OmegaConfBaseException:
            value = None
            if not asked and not OmegaConf.is_missing(node, key):
                raise
        raw = node._get_node(key)
        if asked or OmegaConf.is_missing(node, key):
            found[key] = raw._value()
        else:
            found[key] = (
                _public(value, asked) if isinstance(value, DictConfig | ListConfig) else value
            )
    return found if isinstance(node, DictConfig) else [*found.values()]
