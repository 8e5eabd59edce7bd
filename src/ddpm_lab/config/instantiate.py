"""Objects from the configuration. A constructor is the schema of its node: names and types are checked against it."""

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from ddpm_lab.config.messages import suggest
from ddpm_lab.utils.errors import UserError, prefix_message


def build(config: DictConfig, key: str, **given: Any) -> Any:
    """What `config[key]` describes, completed by what Python already knows (`given`). Raises UserError."""
    node = config[key]
    _check(node, key, config)
    try:
        if (
            given
        ):  # beside OmegaConf, which would read names of classes such as ${x} and ??? as its own
            return instantiate(node, _convert_="all", _partial_=True)(**given)
        return instantiate(node, _convert_="all")
    except (
        InstantiationException,
        ValueError,
        MisconfigurationException,
        TypeError,
        ImportError,
    ) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        path = re.search(r"full_key: (\S+)", str(error))
        where = f"{key}.{path[1].removeprefix(key).removeprefix('.')}".rstrip(".") if path else key
        part = OmegaConf.select(config, where)
        names, foreign = _names(part, where, config)
        said = " ".join(str(cause).split())
        named = re.match(r"\w+", said)
        own = named is not None and named[0] in names
        if isinstance(cause, UserError) and not (own and named and named[0] not in config):
            raise cause from cause.__cause__
        others = (
            (TypeError, ImportError) if foreign else ()
        )  # which are how libraries of others refuse a value
        if isinstance(cause, (ValueError, MisconfigurationException, *others)):
            kind = type(cause) if isinstance(cause, UserError) else UserError
            meant = (
                ""
                if own
                else next((f".{key}" for key in names if re.search(rf"\b{key}\b", said)), "")
            )
            typed = _typed(where, config)
            said = prefix_message(said, typed, [name for name in names if name not in config])
            raise kind(f"{typed}{'.' if own else f'{meant}: '}{said}") from error
        raise


def check_minimum(config: DictConfig, bounds: Mapping[str, int]) -> None:
    """Raises UserError unless each key is a whole number of at least its bound, and of 63 bits, as torch has it."""
    for key, bound in bounds.items():
        value = OmegaConf.select(config, key)
        if isinstance(value, float) and value.is_integer():  # 1e3
            OmegaConf.update(config, key, value := int(value))
        if not isinstance(value, int) or isinstance(value, bool) or not bound <= value < 2**63:
            most = " and below 2**63" if isinstance(value, int) and value >= 2**63 else ""
            raise UserError(
                f"{key} must be a whole number of at least {bound}{most} (got {as_typed(config, key)})"
            )


def check_booleans(config: DictConfig, *keys: str) -> None:
    """Raises UserError unless each key is true or false."""
    for key in keys:
        if not isinstance(value := OmegaConf.select(config, key), bool):
            raise UserError(f"{key}={value} is not one of true, false")


def check_above(config: DictConfig, bounds: Mapping[str, float], equal: bool = False) -> None:
    """Raises UserError unless each key is a finite number above its bound, or `equal` to it."""
    for key, bound in bounds.items():
        value = OmegaConf.select(config, key)
        typed = as_typed(config, key)
        number = _valid(key, value, float, typed)
        if not bound < number < math.inf and not (equal and number == bound):
            what = f"of at least {bound:g}" if equal else f"above {bound:g}"
            raise UserError(f"{key} must be a number {what} (got {typed})")


def as_typed(config: DictConfig, key: str) -> Any:
    """The value, or where that comes from elsewhere, such as a secret from the environment, from where."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return node._get_node(name) if OmegaConf.is_interpolation(node, name) else node[name]


def _check(node: Any, path: str, config: DictConfig) -> None:
    """Every node's keys and types against its `_target_`; a value that says the same otherwise (1e3 for an int) is put
    right in place.
    """
    if not isinstance(node, DictConfig):
        return
    names = (
        inspect.signature(_target(node, _typed(path, config))).parameters
        if "_target_" in node
        else {}
    )
    variadic = any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values())
    for key in [str(key) for key in node if not str(key).startswith("_")]:
        value, where = node[key], _typed(f"{path}.{key}", config)
        if names and key not in names and not variadic:
            raise UserError(
                f"{where} is no key of {node._target_}{suggest(key, names)}; keys: {', '.join(names)}"
            )
        elif isinstance(value, DictConfig):
            _check(value, f"{path}.{key}", config)
        elif key in names and names[key].annotation is not inspect.Parameter.empty:
            meant = _valid(where, value, names[key].annotation, as_typed(node, key))
            if isinstance(meant, bool | int | float) and not OmegaConf.is_interpolation(node, key):
                node[key] = meant


def _names(node: Any, where: str, config: DictConfig) -> tuple[Iterable[str], bool]:
    """What the arguments of the node's `_target_` are called, and whether that is of another package."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return (), False
    parameters = inspect.signature(_target(node, _typed(where, config))).parameters
    return parameters, not node._target_.startswith("ddpm_lab.")


def _target(node: DictConfig, where: str) -> Any:
    try:
        return get_object(node._target_)
    except Exception as error:  # whatever a foreign module raises when it is imported
        raise UserError(
            f"{where}._target_={node._target_} cannot be imported: {' '.join(str(error).split())}"
        ) from error


def _valid(where: str, value: Any, annotation: Any, typed: Any) -> Any:
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return value
    try:
        meant = adapter.validate_python(list(value) if hasattr(value, "_content") else value)
    except ValidationError as error:
        first = error.errors()[0]
        told = (
            "has too few entries"
            if first["type"] == "missing"
            else first["msg"].removeprefix("Input ")
        )
        raise UserError(f"{where}={typed} is of the wrong kind: it {told}") from error
    if isinstance(value, bool) and not isinstance(meant, bool):  # which pydantic takes for 0 or 1
        raise UserError(f"{where}={typed} is of the wrong kind: it should be a valid number")
    return meant


def _typed(path: str, config: DictConfig) -> str:
    """The key as the user types it: what `system` and `callbacks` hold refers to groups, so system.process.schedule is
    schedule.
    """
    parts = ["model" if part == "network" else part for part in path.split(".")]
    referring = parts[0] in ("system", "callbacks")
    start = next((i for i, part in enumerate(parts) if i and part in config), 0) if referring else 0
    return ".".join(parts[start:])
