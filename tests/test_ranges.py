"""Ranges that annotations state."""

from dataclasses import dataclass
from typing import Any

import pytest

from ddpm_lab.utils.ranges import Count, Fraction, NonNegative, Positive, check_ranges


@check_ranges
@dataclass(frozen=True)
class Sampler:
    eta: Fraction = 1.0
    clip: Positive | None = 2.0
    steps: Count | None = None


@check_ranges
def schedule(steps: Count, start: NonNegative = 0.1, limit: float = 1.0) -> tuple[Any, ...]:
    return steps, start, limit


@pytest.mark.parametrize("options", [{}, {"eta": 0, "clip": None}, {"eta": 1, "steps": 1}])
def test_values_in_range_are_accepted(options: dict[str, Any]) -> None:
    assert all(getattr(Sampler(**options), name) == value for name, value in options.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.5}, r"eta must be at least 0 and at most 1 \(got 1.5\); try eta=1$"),
        ({"clip": 0}, r"clip must be above 0 \(got 0\); try clip=2$"),
        ({"clip": float("inf")}, r"clip must be above 0 \(got inf\)"),
        ({"eta": float("nan")}, r"eta must be .* \(got nan\)"),
        ({"steps": 0}, r"steps must be at least 1 \(got 0\)$"),
    ],
)
def test_values_out_of_range_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**options)


def test_functions_check_positional_and_keyword_arguments() -> None:
    assert schedule(3, limit=float("inf")) == (3, 0.1, float("inf"))
    for arguments in ((0,), (1, -0.1)):
        with pytest.raises(ValueError, match="must be at least"):
            schedule(*arguments)
