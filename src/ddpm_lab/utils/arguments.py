"""Arguments of the Python interface, checked against the annotations of its functions."""

import inspect
import os
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ddpm_lab.utils.errors import CLIError, UserError

T = TypeVar("T", bound=Callable[..., Any])
STRICT = ConfigDict(arbitrary_types_allowed=True, strict=True)
COUNT = "a whole number of at least 1"
IMAGES = "samples, or a tensor"
FOLDER = "the name of a directory"
MEANINGS = {
    "batch_size": COUNT,
    "columns": COUNT,
    "count": COUNT,
    "frames": COUNT,
    "steps": COUNT,
    "strength": "a number above 0 and at most 1",
    "seed": "a whole number of at least 0",
    "label": "a class by name or number, or a list, array or tensor of them",
    "text": "a text, or a list of texts",
    "images": IMAGES,
    "start": IMAGES,
    "end": IMAGES,
    "x_T": "a tensor; try the return value of encode",
    "tensor": "a tensor",
    "labels": "a tensor",
    "sampler": 'a choice or a Sampler; try sampler="ddim", or sampler=ddpm_lab.Heun(steps=25)',
    "guidance": 'a strength or a choice; try guidance=2.0, or guidance="none"',
    "overrides": 'a list of texts; try overrides=["sampler.eta=0.5"]',
    "*overrides": 'texts; pass words, not a list: "schedule=linear", "trainer.max_steps=100"',
    "metrics": 'a list of names; try metrics=["fid"]',
    "config": 'the return value of compose; try train(compose("schedule=linear"))',
    "run": "the directory of a run, or a list of them for a cascade",
    "target": FOLDER,
    "folder": FOLDER,
    "directory": FOLDER,
    "config_dir": FOLDER,
    "source": "the name of a file or a folder",
    "format": '"diffusers" or "openai"',
    "weights": '"ema" or "raw"',
    "checkpoint": '"newest" or "best"',
    "device": 'a device; try "cpu" or "cuda"',
}
"""Arguments by name: the meaning, and an example after a semicolon; `*` marks several words"""


def check_call(target: T) -> T:
    """Make a function, or the constructor of a class, raise UserError for arguments of wrong types.

    Annotations state the types. Numbers and arrays of numpy become those of Python and tensors.
    Errors of the user are raised without the traceback of the libraries that detected them, unless
    DDPM_LAB_DEBUG is set.
    """
    if inspect.isclass(target):
        target.__init__ = check_call(target.__init__)  # type: ignore[method-assign]
        return target
    signature = inspect.signature(target)

    @cache
    def adapters() -> dict[str, TypeAdapter[Any]]:  # at the first call, when all names exist
        return {name: TypeAdapter(hint, config=STRICT) for name, hint in _hints(target).items()}

    def check(name: str, value: Any) -> Any:
        return _check(name, value, adapters()[name]) if name in adapters() else value

    @wraps(target)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
            if unknown := kwargs.keys() - signature.parameters.keys() - adapters().keys():
                raise TypeError(f"got an unexpected keyword argument '{min(unknown)}'")
        except TypeError as error:
            raise TypeError(f"{target.__qualname__}() {error}") from None
        try:
            for name, value in bound.arguments.items():
                match signature.parameters[name].kind:
                    case inspect.Parameter.VAR_POSITIONAL:
                        value = tuple(check(f"*{name}", word) for word in value)
                    case inspect.Parameter.VAR_KEYWORD:
                        value = {key: check(key, option) for key, option in value.items()}
                    case _:
                        value = check(name, value)
                bound.arguments[name] = value
            return target(*bound.args, **bound.kwargs)
        except CLIError as error:
            if os.environ.get("DDPM_LAB_DEBUG"):
                raise
            raise error.with_traceback(None) from None

    return checked  # type: ignore[return-value]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of the arguments, with `*` before the name of several words."""
    hints = get_type_hints(function, include_extras=True)
    result: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:  # Unpack[...] of a TypedDict
            result |= get_type_hints(get_args(hints[name])[0], include_extras=True)
        elif name in hints:
            several = "*" * (parameter.kind is parameter.VAR_POSITIONAL)
            result[several + name] = hints[name]
    return result


def _check(name: str, value: Any, adapter: TypeAdapter[Any]) -> Any:
    value = _from_numpy(value)
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        meaning, semicolon, example = MEANINGS[name].partition(";")
        text = " ".join(repr(value).split())[:80]
        raise UserError(
            f"{name.lstrip('*')} must be {meaning} (got {text}){semicolon}{example}"
        ) from error
    return value


def _from_numpy(value: Any) -> Any:
    match value:
        case np.generic():
            return value.item()
        case np.ndarray() if value.dtype.kind in "biuf":
            return torch.as_tensor(value)
        case np.ndarray() | range() | list() | tuple():
            return [*map(_from_numpy, value)]
    return value
