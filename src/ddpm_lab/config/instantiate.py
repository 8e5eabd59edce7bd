"""Instantiation of objects: the signature of a `_target_` is the schema of its node."""

import inspect
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
    """Return the object that `config[key]` describes. Raises UserError that names the key."""
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
    text = _command_line_key(where, config)
    names = [*_parameters(part, text)] if configured else []
    message = " ".join(str(cause).split())
    first = re.match(r"\w+", message)
    argument = first[0] if first and first[0] in names else None
    if isinstance(cause, UserError) and (argument is None or argument in config):
        return cause
    expected: tuple[type[Exception], ...] = (ValueError,)
    if configured and not part._target_.startswith("ddpm_lab."):
        expected = (ValueError, TypeError, ImportError)  # errors of other packages about a value
    # Lightning takes seconds to import.
    is_lightning = type(cause).__name__ == "MisconfigurationException"
    if not is_lightning and not isinstance(cause, expected):
        return None
    prefix = f"{text}."
    if argument is None:
        mentioned = (f".{name}" for name in names if re.search(rf"\b{name}\b", message))
        prefix = f"{text}{next(mentioned, '')}: "
    message = prefix_message(message, text, [name for name in names if name not in config])
    kind = type(cause) if isinstance(cause, UserError) else UserError
    user_error: UserError = kind(prefix + message)
    user_error.__cause__ = error
    return user_error


def check_settings(config: DictConfig, annotations: Mapping[str, Any]) -> None:
    """Validate keys that `config` has, such as `trainer.max_steps`: `Count | None`."""
    for key, annotation in annotations.items():
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        if node is not None and name in node:
            _check_value(node, name, key, annotation)


def original_text(node: DictConfig, key: str) -> Any:
    """Return the value at `key`, interpolations unresolved, because they may refer to a secret."""
    raw: Any = OmegaConf.to_container(node, resolve=False)
    return raw[key] if OmegaConf.is_interpolation(node, key) else node[key]


def _check(node: Any, path: str, config: DictConfig) -> None:
    """Validate the keys and values of `node`, and of all nodes below, against their `_target_`s."""
    if not OmegaConf.is_dict(node):
        return
    parameters = _parameters(node, _command_line_key(path, config)) if "_target_" in node else {}
    variadic = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in [str(key) for key in node if not str(key).startswith("_")]:
        where = _command_line_key(f"{path}.{key}", config)
        if OmegaConf.is_missing(node, key):
            raise UserError(f"{where} must be given; try {where}=...")
        value = node[key]
        if parameters and key not in parameters and not variadic:
            hint = f"{suggest(key, parameters)}; keys: {', '.join(parameters)}"
            raise UserError(f"{where} is not a key of {node._target_}{hint}")
        if OmegaConf.is_dict(value):
            _check(value, f"{path}.{key}", config)
        elif key in parameters and parameters[key].annotation is not inspect.Parameter.empty:
            owner, name = node, key
            reference = re.fullmatch(r"\$\{(?:(\w+)\.)?(\w+)\}", str(original_text(node, key)))
            if reference and (reference[1] or reference[2]) in config:
                # Such as seed for data.seed, and sampler.steps for objective.steps.
                owner, name = config[reference[1]] if reference[1] else config, reference[2]
                where = ".".join(filter(None, reference.groups()))
            parameter = parameters[key]
            _check_value(owner, name, where, parameter.annotation, parameter.default)


def _check_value(
    node: DictConfig, key: str, where: str, annotation: Any, default: Any = None
) -> None:
    """Validate the type and the range of `node[key]`, and convert values such as 1e3 for an int."""
    try:
        check_range(where, node[key], annotation, default)
    except ValueError as error:
        raise UserError(str(error)) from error
    number = _convert(where, node[key], annotation, original_text(node, key))
    if type(number) in (bool, int, float) and not OmegaConf.is_interpolation(node, key):
        node[key] = number


def _parameters(node: DictConfig, where: str) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of the `_target_` of `node`."""
    try:
        target = get_object(node._target_)
    except Exception as error:  # the import may run any module of the user's own package
        reason = " ".join(str(error).split())
        message = f"{where}._target_={node._target_} cannot be imported: {reason}"
        raise UserError(message) from error
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
        first, text = error.errors()[0], "null" if text is None else text
        if first["type"] == "literal_error":
            choices = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
            hint = suggest(str(text), choices.split(", "))
            raise UserError(f"{where}={text} is not one of {choices}{hint}") from error
        few = first["type"] == "missing"
        problem = "has too few entries" if few else first["msg"].removeprefix("Input ")
        raise UserError(f"{where}={text} has the wrong type: it {problem}") from error
    if type(value) is bool and type(result) is not bool:  # pydantic converts true to 1
        raise UserError(f"{where}={text} has the wrong type: it should be a valid number")
    if type(result) is int and result >= 2**63:
        raise UserError(f"{where} must be below 2**63 (got {text})")
    return result


def _command_line_key(path: str, config: DictConfig) -> str:
    """Return the key that the user types for `path`: system.process.schedule is `schedule`."""
    parts = ["model" if part == "network" else part for part in path.split(".")]
    if parts[0] in ("system", "callbacks"):
        start = next((i for i, part in enumerate(parts) if i and part in config), 0)
        parts = parts[start:]
    return ".".join(parts)
