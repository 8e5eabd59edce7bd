"""Instantiation of objects from the configuration.

The signature of a `_target_` is the schema of its node for the names and types of keys.
"""

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from ddpm_lab.config.messages import suggest
from ddpm_lab.utils.errors import UserError, prefix_message
from ddpm_lab.utils.ranges import check_range


def build(config: DictConfig, key: str, **arguments: Any) -> Any:
    """Return the object that `config[key]` describes, with more `arguments` from Python.

    Raises UserError with the config key for a wrong key, type or value.
    """
    node = config[key]
    _check(node, key, config)
    try:
        if arguments:
            # OmegaConf would interpret class names such as ${x} and ??? among the arguments.
            return instantiate(node, _convert_="all", _partial_=True)(**arguments)
        return instantiate(node, _convert_="all")
    except Exception as error:  # _explain returns None for a bug
        user_error = _explain(error, key, config)
        if user_error is None:
            raise
        raise user_error from user_error.__cause__


def _explain(error: Exception, key: str, config: DictConfig) -> UserError | None:
    """Return a UserError that begins with the config key, or None if `error` is a bug."""
    cause: Any = error.__cause__ if isinstance(error, InstantiationException) else error
    path = re.search(r"full_key: (\S+)", str(error))
    where = f"{key}.{path[1].removeprefix(key).removeprefix('.')}".rstrip(".") if path else key
    part = OmegaConf.select(config, where)
    configured = OmegaConf.is_dict(part) and "_target_" in part
    names = [*_parameters(part, _command_line_key(where, config))] if configured else []
    message = " ".join(str(cause).split())
    first = re.match(r"\w+", message)
    argument = first[0] if first and first[0] in names else None
    if isinstance(cause, UserError) and (argument is None or argument in config):
        return cause
    expected: list[type[Exception]] = [ValueError]
    if configured and not part._target_.startswith("ddpm_lab."):
        expected += [TypeError, ImportError]  # raised by other packages for a wrong value
    # By its name, because Lightning takes seconds to import.
    if type(cause).__name__ != "MisconfigurationException" and not isinstance(
        cause, tuple(expected)
    ):
        return None
    text = _command_line_key(where, config)
    prefix = f"{text}."
    if argument is None:
        mentioned = (f".{name}" for name in names if re.search(rf"\b{name}\b", message))
        prefix = f"{text}{next(mentioned, '')}: "
    message = prefix_message(message, text, [name for name in names if name not in config])
    kind = type(cause) if isinstance(cause, UserError) else UserError
    user_error: UserError = kind(prefix + message)
    user_error.__cause__ = error
    return user_error


def check_minimum(config: DictConfig, bounds: Mapping[str, int]) -> None:
    """Raise UserError unless each key is an integer from its bound to 2**63 - 1, torch's maximum.

    A float such as 1e3 is replaced by the integer.
    """
    for key, bound in bounds.items():
        value = OmegaConf.select(config, key)
        if type(value) is float and value.is_integer():
            OmegaConf.update(config, key, value := int(value))
        if type(value) is not int or not bound <= value < 2**63:
            limit = " and below 2**63" if type(value) is int and value >= 2**63 else ""
            raise UserError(
                f"{key} must be a whole number of at least {bound}{limit} "
                f"(got {original_text(config, key)})"
            )


def check_booleans(config: DictConfig, *keys: str) -> None:
    """Raise UserError unless each key is true or false."""
    for key in keys:
        if type(value := OmegaConf.select(config, key)) is not bool:
            raise UserError(f"{key}={value} is not one of true, false")


def check_above(config: DictConfig, bounds: Mapping[str, float], equal: bool = False) -> None:
    """Raise UserError unless each key is a finite number above its bound, or `equal` to it."""
    for key, bound in bounds.items():
        text = original_text(config, key)
        number = _convert(key, OmegaConf.select(config, key), float, text)
        if not bound < number < math.inf and not (equal and number == bound):
            relation = "of at least" if equal else "above"
            raise UserError(f"{key} must be a number {relation} {bound:g} (got {text})")


def original_text(config: DictConfig, key: str) -> Any:
    """Return the value at `key`, or its interpolation, which may refer to a secret."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    raw: Any = OmegaConf.to_container(node, resolve=False)
    return raw[name] if OmegaConf.is_interpolation(node, name) else node[name]


def _check(node: Any, path: str, config: DictConfig) -> None:
    """Validate the keys and types of `node`, and of all nodes below, against their `_target_`s.

    Values of another type with the same meaning, such as 1e3 for an int, are converted in place.
    """
    if not OmegaConf.is_dict(node):
        return
    parameters = _parameters(node, _command_line_key(path, config)) if "_target_" in node else {}
    variadic = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in [str(key) for key in node if not str(key).startswith("_")]:
        value, where = node[key], _command_line_key(f"{path}.{key}", config)
        owner, text = node, original_text(node, key)
        if (match := re.fullmatch(r"\$\{(\w+)\}", str(text))) and match[1] in config:
            where = match[1]  # such as count, for fid.count
            owner, text = config, original_text(config, where)
        if parameters and key not in parameters and not variadic:
            raise UserError(
                f"{where} is not a key of {node._target_}{suggest(key, parameters)}; "
                f"keys: {', '.join(parameters)}"
            )
        if OmegaConf.is_dict(value):
            _check(value, f"{path}.{key}", config)
        elif key in parameters and parameters[key].annotation is not inspect.Parameter.empty:
            try:
                check_range(where, value, parameters[key])
            except ValueError as error:
                raise UserError(str(error)) from error
            number = _convert(where, value, parameters[key].annotation, text)
            name = where if owner is config else key
            if type(number) in (bool, int, float) and not OmegaConf.is_interpolation(owner, name):
                owner[name] = number


def _parameters(node: DictConfig, where: str) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of the `_target_` of `node`."""
    try:
        target = get_object(node._target_)
    except Exception as error:  # the import may run any module of the user's own package
        message = " ".join(str(error).split())
        raise UserError(
            f"{where}._target_={node._target_} cannot be imported: {message}"
        ) from error
    return inspect.signature(target).parameters


def _convert(where: str, value: Any, annotation: Any, text: Any) -> Any:
    """Return `value` converted to `annotation`. Raises UserError with key and value as text."""
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return value
    try:
        result = adapter.validate_python([*value] if OmegaConf.is_config(value) else value)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "literal_error":
            raise UserError(f"{where}={text} must be {first['ctx']['expected']}") from error
        few = first["type"] == "missing"
        problem = "has too few entries" if few else first["msg"].removeprefix("Input ")
        raise UserError(f"{where}={text} is of the wrong kind: it {problem}") from error
    if type(value) is bool and type(result) is not bool:  # pydantic converts true to 1
        raise UserError(f"{where}={text} is of the wrong kind: it should be a valid number")
    return result


def _command_line_key(path: str, config: DictConfig) -> str:
    """Return the key that the user types for `path`.

    Nodes of `system` and `callbacks` refer to groups: system.process.schedule is `schedule`.
    """
    parts = ["model" if part == "network" else part for part in path.split(".")]
    if parts[0] in ("system", "callbacks"):
        start = next((i for i, part in enumerate(parts) if i and part in config), 0)
        parts = parts[start:]
    return ".".join(parts)
