"""Ranges of numbers, stated in annotations and checked at every call."""

import inspect
import math
import operator
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Annotated, Any, TypeVar, get_args

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
PositiveFraction = Annotated[float, Gt(0), Le(1)]
OpenFraction = Annotated[float, Gt(0), Lt(1)]
RELATIONS = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "above"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "below"),
}
T = TypeVar("T", bound=Callable[..., Any])


def check_ranges(target: T) -> T:
    """Make a function, or the constructor of a class, raise ValueError for numbers out of range.

    Annotations state the ranges: `steps: Count`, `eta: Fraction`, `clip: Positive | None`. The
    message begins with the name of the argument. NaN and infinity are out of every range.
    """
    if inspect.isclass(target):
        target.__init__ = check_ranges(target.__init__)  # type: ignore[method-assign]
        return target
    signature = inspect.signature(target)
    ranges = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if any(_limits(parameter.annotation))
    }

    @wraps(target)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in ranges:
                check_range(name, value, ranges[name].annotation, ranges[name].default)
        return target(*args, **kwargs)

    return checked  # type: ignore[return-value]


def check_range(name: str, value: Any, annotation: Any, default: Any = None) -> None:
    """Raise ValueError that begins with `name`, for a number that `annotation` does not allow."""
    limits = [*_limits(annotation)] if isinstance(value, int | float) else []
    if not limits or (
        math.isfinite(value) and all(RELATIONS[key][0](value, bound) for key, bound in limits)
    ):
        return
    allowed = " and ".join(f"{RELATIONS[key][1]} {bound:g}" for key, bound in limits)
    hint = f"; try {name}={default:g}" if isinstance(default, int | float) else ""
    raise ValueError(f"{name} must be {allowed} (got {value}){hint}")


def _limits(annotation: Any) -> Iterator[tuple[str, float]]:
    """Yield the limits of `Annotated[...]`, also within a union such as `Count | None`."""
    for metadata in getattr(annotation, "__metadata__", ()):
        for key in RELATIONS:
            if (bound := getattr(metadata, key, None)) is not None:
                yield key, bound
    for part in get_args(annotation):
        yield from _limits(part)
