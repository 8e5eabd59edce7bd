"""Timesteps of a strided chain. A spacing is `steps` distinct times, ascending, in 1..T."""

import re
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

Spacing = str | Sequence[int]


def uniform(T: int, steps: int) -> list[int]:
    """Evenly spaced from 1 to T, both included."""
    stride = (T - 1) / max(steps - 1, 1)
    return [int(T - i * stride + 0.5) for i in range(steps)][::-1]


def quadratic(T: int, steps: int) -> list[int]:
    """Squares of even steps from 0 to sqrt(0.8 T), densest near the data.

    From the code of DDIM (Song et al., 2021). A repeated time is replaced by the next higher one.
    The chain begins at 0.8 T, where x_t is noise under the linear schedule but not under cosine.
    """
    return _squares(T, 0.0, (0.8 * T) ** 0.5, steps, 1)


def quadratic_full(T: int, steps: int) -> list[int]:
    """Squares of even steps from 1 to sqrt(T), both included: `quadratic` for any schedule."""
    return _squares(T, 1.0, T**0.5, steps, 0.5)


def _squares(T: int, start: float, end: float, steps: int, shift: float) -> list[int]:
    """floor(square + shift), each above the previous one."""
    stride = (end - start) / max(steps - 1, 1)  # as numpy.linspace, for equal rounding
    roots = [*(start + i * stride for i in range(steps - 1)), end if steps > 1 else T**0.5]
    times: list[int] = []
    for root in roots:
        times.append(min(max(int(root**2 + shift), times[-1] + 1 if times else 1), T))
    return times


def leading(T: int, steps: int) -> list[int]:
    """1, 1 + c, 1 + 2c, ... with c = T // steps (diffusers' "leading" without offset).

    The chain begins below T.
    """
    return [1 + i * (T // steps) for i in range(steps)]


def trailing(T: int, steps: int) -> list[int]:
    """T, T - T/K, T - 2T/K, ... for K steps, halves rounded to even.

    diffusers' "trailing" (Lin et al., 2024, table 2).
    """
    stride = (T - T / steps) - T  # as numpy.arange, for equal rounding
    return [round(T + i * stride) for i in range(steps)][::-1]


def sections(T: int, counts: Sequence[int]) -> list[int]:
    """Divide 1..T into equal sections, with counts[i] evenly spaced times in section i.

    Both ends of a section are included. `space_timesteps` of Nichol & Dhariwal's code (Dhariwal &
    Nichol, 2021, table 15). The stride is accumulated in floating point as in that code, because
    a product rounds differently.
    """
    size, extra = divmod(T, len(counts))
    times, start = [], 1
    for i, count in enumerate(counts):
        length = size + (i < extra)
        if not 1 <= count <= length:
            raise ValueError(
                f"spacing={','.join(map(str, counts))} has {count} times in a section of "
                f"{length}; each number must be in 1..{size}"
            )
        stride = (length - 1) / max(count - 1, 1)
        times += [start + round(offset) for offset in accumulate([0.0, *[stride] * (count - 1)])]
        start += length
    return times


def strided(T: int, count: int) -> list[int]:
    """1, 1 + c, 1 + 2c, ..., with the smallest integer c that gives `count` times up to T.

    "ddimN" of `space_timesteps`.
    """
    counts = {stride: -(-T // stride) for stride in range(1, T)}
    strides = [stride for stride in counts if counts[stride] == count]
    if not strides:
        nearest = min(sorted({*counts.values()}), key=lambda other: abs(other - count), default=1)
        raise ValueError(
            f"spacing=ddim{count} needs an integer stride that makes {count} steps of T = {T}, but "
            f"no stride does; try spacing=ddim{nearest}, or spacing=uniform"
        )
    return [*range(1, T + 1, strides[0])]


SPACINGS: dict[str, Callable[[int, int], list[int]]] = {
    spacing.__name__: spacing for spacing in (uniform, quadratic, quadratic_full, leading, trailing)
}


def timesteps(T: int, steps: int | None, spacing: Spacing) -> list[int]:
    """Return the timesteps of a chain, descending to 0.

    `spacing` is a key of `SPACINGS`, counts per section ("90,60,60,20,20", which sum to `steps`),
    "ddim" and a number of steps ("ddim25"), or the timesteps themselves. `steps` None is all T, or
    the number that `spacing` gives. Raises ValueError if they disagree.
    """
    if steps is not None and not (isinstance(steps, int) and 1 <= steps <= T):
        raise ValueError(f"steps must be in 1..{T}, the T of the schedule (got {steps})")
    match spacing:
        case [*times]:
            _check_descent(T, times)
        case _:  # on the command line, a name may be a number
            times = [*reversed(_from_name(T, steps, str(spacing))), 0]
    if steps not in (None, len(times) - 1):
        raise ValueError(
            f"spacing={_text(spacing)} makes {len(times) - 1} steps, but steps={steps}; "
            f"try steps={len(times) - 1}, or steps=null"
        )
    return times


def check_spacing(spacing: Spacing) -> None:
    """Raise ValueError for a text that is not the name of a spacing."""
    name = str(spacing).replace(" ", "")
    if not isinstance(spacing, str) or name in SPACINGS:
        return
    if not re.fullmatch(r"ddim\d{1,7}|\d+(,\d+)*", name):
        raise ValueError(
            f"spacing={spacing} is not one of {', '.join(SPACINGS)}, ddimN such as "
            'ddim25, a text of sections such as "90,60,60,20,20", or a list of times'
        )


def _from_name(T: int, steps: int | None, name: str) -> list[int]:
    if name in SPACINGS:
        return SPACINGS[name](T, T if steps is None else steps)
    check_spacing(name)
    if ddim := re.fullmatch(r"ddim(\d+)", name):
        return strided(T, int(ddim[1]))
    return sections(T, [int(count) for count in name.split(",")])


def _check_descent(T: int, times: Sequence[int]) -> None:
    if (
        len(times) < 2
        or not all(isinstance(t, int) for t in times)
        or times[-1] != 0
        or times[0] > T
        or any(s >= t for t, s in pairwise(times))
    ):
        raise ValueError(
            f"spacing={_text(times)} must descend from at most {T}, the T of the schedule, to 0; "
            f"try [{T},{T // 2},0]"
        )


def _text(spacing: Spacing) -> str:
    return str(spacing).replace(" ", "")
