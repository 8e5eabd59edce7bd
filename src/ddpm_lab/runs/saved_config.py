"""Configurations of runs: untrusted ones are validated before use, and secrets are redacted."""

import re
import sysconfig
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from omegaconf.resolvers import oc

from ddpm_lab.config.overrides import CONFIGS
from ddpm_lab.utils.errors import CorruptFileError, UnsafeFileError, UserError
from ddpm_lab.utils.safe_load import regular_file

FIXED = re.compile(
    r"\$\{hydra:runtime\.output_dir\}|"
    r"\$\{oc\.decode:\$\{oc\.env:"
    r"(SLURM_(JOB_NUM_NODES|NTASKS_PER_NODE)|(GROUP|LOCAL)_WORLD_SIZE),(1|auto)\}\}"
)
"""Interpolations that are allowed in addition to references such as ${model.channels}"""
TRUSTED: list[str] = []
"""Packages of trust=, whose classes runs may build as well"""


def set_trusted(arguments: list[str]) -> None:
    """Set `TRUSTED` from the arguments. Raises UserError."""
    TRUSTED.clear()
    for argument in arguments:
        if argument.startswith("trust="):
            packages = argument.removeprefix("trust=").strip("[]'\"")
            TRUSTED[:] = [package.strip("'\" ") for package in packages.split(",") if package]
    if invalid := [package for package in TRUSTED if not re.fullmatch(r"\w+(\.\w+)*", package)]:
        raise UserError(f"trust={invalid[0]} is not a package; try trust=[my_package]")


def load_saved_config(file: Path, trusted: Sequence[str] = ()) -> DictConfig:
    """Return the validated content of a config.yaml, which may come from someone else.

    Each `_target_` must be one that configs/ has in the same group, or in a package of `trusted`.
    References lead to values, or to groups that configs/ refers to. Nothing is imported.
    Raises CorruptFileError, UnsafeFileError, and OSError if the file is missing.
    """
    regular_file(file)
    try:
        content = _read(file)
        for group in content:
            _check(content, group, (str(group),), content, trusted)
        return OmegaConf.create(content)
    except (CorruptFileError, UnsafeFileError) as error:
        raise type(error)(f"{file} {error}") from error
    except (ValueError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CorruptFileError(f"{file} is damaged, or not a configuration ({reason})") from error


def _read(file: Path) -> dict[Any, Any]:
    """Return the plain content of a YAML file without tags and aliases."""
    text = file.read_text("utf-8")
    if not text.endswith("\n"):
        raise CorruptFileError("is truncated: its last line has no newline" if text else "is empty")
    for event in yaml.parse(text, yaml.SafeLoader):
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise UnsafeFileError("has YAML tags or aliases, which ddpm-lab does not write")
    content: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    if not isinstance(content, dict):
        raise CorruptFileError("is not a list of groups")
    if "hydra" in content:  # Hydra's logging and callbacks may name any class
        raise UnsafeFileError("has the key hydra, which is not part of a run")
    return content


def _check(
    parent: Any, key: Any, path: tuple[str, ...], root: Any, trusted: Collection[str]
) -> None:
    """Raise UnsafeFileError unless `parent[key]` and all below it are allowed at `path`."""
    value = parent[key]
    entry = f"has {'.'.join(path)}={value}, which"
    for name, _ in _items(value):
        _check(value, name, (*path, str(name)), root, trusted)
    if type(key) is not int and not re.fullmatch(r"\w[\w. -]*", str(key), re.ASCII):
        raise UnsafeFileError(f"{entry} has an invalid key")
    if key == "_target_":
        _check_target(value, entry, path[0], trusted)
    elif key == "_partial_":
        if type(value) is not bool:
            raise UnsafeFileError(f"{entry} is not one of true, false")
    elif str(key).startswith("_") or key == "defaults":
        raise UnsafeFileError(f"{entry} is not a key of ddpm-lab")
    if not _references_allowed(value, path[0], root):
        if _allowed()[path[0]].targets and path[0] != "logger":
            raise UnsafeFileError(f"{entry} refers to a value that a run must not read")
        parent[key] = "???"  # may be a secret, and no run needs it


def _check_target(value: Any, entry: str, group: str, trusted: Collection[str]) -> None:
    targets = _allowed()[group].targets
    packages = tuple(f"{package}." for package in trusted)
    name = str(value)
    valid = value == name and re.fullmatch(r"\w+(\.\w+)+", name, re.ASCII)
    if not valid or not (name in targets or name.startswith(packages)):
        package = name.partition(".")[0]
        hint = "PACKAGE" if not valid or _is_library(package) else package
        raise UnsafeFileError(
            f"{entry} is not a _target_ of this group in configs/; if you trust it: trust=[{hint}]"
        )


def _is_library(package: str) -> bool:
    """Return True for an installed package, which nobody wrote for ddpm-lab. Imports nothing."""
    if package == "__main__":
        return True
    spec = find_spec(package)
    folders = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    return spec is not None and str(spec.origin).startswith(("built-in", "frozen", *folders))


def _references_allowed(value: Any, group: str, root: Any) -> bool:
    """Return False for an interpolation that is not fixed, a value, or a group of configs/."""
    groups = _allowed()[group].references
    text = FIXED.sub(" ", value) if type(value) is str else ""
    for part in text.split("${")[1:]:
        reference = re.match(r"([a-z_]\w*)(\.\w+)*\}", part, re.ASCII)
        if reference is None:
            return False
        target = root
        for name in reference[0][:-1].split("."):
            target = dict(_items(target)).get(name)
        if type(target) in (dict, list) and reference[1] not in groups:
            return False
    return True


class Allowed(NamedTuple):
    """Contents that configs/ has in a group."""

    targets: set[str]
    references: set[str]
    """Groups that the files refer to"""


@cache
def _allowed() -> defaultdict[str, Allowed]:
    """Return the allowed contents of each group."""
    allowed: defaultdict[str, Allowed] = defaultdict(lambda: Allowed(set(), set()))
    for file in CONFIGS.glob("*/*.yaml"):
        text = file.read_text("utf-8")
        content = yaml.load(text, yaml.CSafeLoader) or {}
        is_global = "@package _global_" in text.partition("\n")[0]
        for group, part in content.items() if is_global else [(file.parent.name, content)]:
            for key, value in _leaves(part):
                if key == "_target_":
                    allowed[group].targets.add(value)
                allowed[group].references.update(re.findall(r"\$\{(\w+)", str(value)))
    return allowed


def foreign_packages(config: DictConfig) -> list[str]:
    """Return the packages that trust= must name for a run of `config` to be read."""
    content: Any = OmegaConf.to_container(config)
    packages = {
        str(value).partition(".")[0]
        for group, part in content.items()
        for key, value in _leaves(part)
        if key == "_target_" and value not in _allowed()[group].targets
    }
    return sorted(packages)


def _items(node: Any) -> list[tuple[Any, Any]]:
    """Return the (key or index, value) pairs of a dict or list; [] for anything else."""
    match node:
        case dict():
            return [*node.items()]
        case list():
            return [*enumerate(node)]
        case _:
            return []


def _leaves(node: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in _items(node):
        yield key, value
        yield from _leaves(value)


def redact(config: DictConfig) -> dict[str, Any]:
    """Return `config` resolved for logs, except for values that depend on environment variables."""

    def hide(name: str, *default: Any) -> str:
        raise ValueError(name)

    OmegaConf.register_new_resolver("oc.env", hide, replace=True)
    try:
        content: dict[str, Any] = _redact(config)
        return content
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _redact(node: Any) -> Any:
    content: Any = OmegaConf.to_container(node, resolve=False)
    for key, _ in _items(content):
        with suppress(InterpolationResolutionError, MissingMandatoryValue):
            content[key] = _redact(node[key]) if OmegaConf.is_config(node[key]) else node[key]
    return content
