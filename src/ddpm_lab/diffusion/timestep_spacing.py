"""Which times a strided chain visits. A spacing places `steps` distinct times, ascending, in 1..T."""

import re
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

Spacing = str | Sequence[int]


def uniform(last: int, steps: int) -> list[int]:
    """Evenly from 1 to T, both ends visited."""
    stride = (last - 1) / max(steps - 1, 1)
    return [int(last - i * stride + 0.5) for i in range(steps)][::-1]


def quadratic(last: int, steps: int) -> list[int]:
    """Squares of even steps from 0 to sqrt(0.8 T), densest near the data (the code of Song et al.'s DDIM). Where that
    repeats a time, the later one moves up. The chain begins at 0.8 T, where the linear schedule is noise already and
    the cosine schedule is not.
    """
    return _squares(last, 0.0, (0.8 * last) ** 0.5, steps, 1)


def quadratic_full(last: int, steps: int) -> list[int]:
    """Squares of even steps from 1 to sqrt(T), both ends visited: `quadratic` for any schedule."""
    return _squares(last, 1.0, last**0.5, steps, 0.5)


def _squares(last: int, start: float, end: float, steps: int, shift: float) -> list[int]:
    """floor(square + shift); where two fall on the same time, the later moves up."""
    stride = (end - start) / max(steps - 1, 1)
    roots = [
        *(start + i * stride for i in range(steps - 1)),
        end if steps > 1 else last**0.5,
    ]  # as numpy.linspace
    times: list[int] = []
    for root in roots:
        times.append(min(max(int(root**2 + shift), times[-1] + 1 if times else 1), last))
    return times


def leading(last: int, steps: int) -> list[int]:
    """1, 1 + c, 1 + 2c, ... with c = T // K, so that the chain begins below T (diffusers' "leading" without offset)."""
    return [1 + i * (last // steps) for i in range(steps)]


def trailing(last: int, steps: int) -> list[int]:
    """T, T - T/K, T - 2T/K, ..., halves rounded to even (diffusers' "trailing"; Lin et al., 2024, table 2)."""
    stride = (last - last / steps) - last  # as numpy.arange
    return [round(last + i * stride) for i in range(steps)][::-1]


def sections(last: int, counts: Sequence[int]) -> list[int]:
    """So many times in each of as many equal parts of 1..T, from the data up; within a part evenly, both ends visited
    (`space_timesteps` of Nichol & Dhariwal's code; Dhariwal & Nichol, 2021, table 15). The stride is accumulated in
    floating point, as in that code: a product rounds differently.
    """
    size, extra = divmod(last, len(counts))
    times, start = [], 1
    for i, count in enumerate(counts):
        length = size + (i < extra)
        if not 1 <= count <= length:
            raise ValueError(
                f"spacing={_text(counts)} asks for {count} times in a section that has {length}; "
                f"each number must lie in 1..{size}"
            )
        stride = (length - 1) / max(count - 1, 1)
        times += [start + round(offset) for offset in accumulate([0.0, *[stride] * (count - 1)])]
        start += length
    return times


def strided(last: int, count: int) -> list[int]:
    """1, 1 + c, 1 + 2c, ... up to T, with the smallest integer c that makes `count` times ("ddimN" of
    `space_timesteps`).
    """
    strides = [stride for stride in range(1, last) if -(-last // stride) == count]
    if not strides:
        possible = sorted(
            {-(-last // stride) for stride in range(1, last)}, key=lambda other: abs(other - count)
        )
        raise ValueError(
            f"spacing=ddim{count} needs an integer stride that makes {count} steps of T = {last}, and "
            f"there is none; try spacing=ddim{possible[0] if possible else 1}, or spacing=uniform"
        )
    return [*range(1, last + 1, strides[0])]


SPACINGS: dict[str, Callable[[int, int], list[int]]] = {
    spacing.__name__: spacing for spacing in (uniform, quadratic, quadratic_full, leading, trailing)
}


def timesteps(last: int, steps: int | None, spacing: Spacing) -> list[int]:
    """The stops of a chain from its first time, T = `last` for most spacings, down to 0.

    `spacing` is a name, a text of sections ("90,60,60,20,20", which sum to `steps`), "ddim" and a number of steps
    ("ddim25"), or the stops themselves.
    `steps` is the number of steps; None: all T, or as many as `spacing` says. Raises ValueError that names either.
    """
    if steps is not None and not (isinstance(steps, int) and 1 <= steps <= last):
        raise ValueError(f"steps must lie in 1..{last}, the T of the schedule (got {steps})")
    spacing = (
        spacing if isinstance(spacing, Sequence) else str(spacing)
    )  # what was typed may be a number
    if isinstance(spacing, str) and spacing in SPACINGS:
        return [*reversed(SPACINGS[spacing](last, last if steps is None else steps)), 0]
    if isinstance(spacing, str) and (fixed := re.fullmatch(r"ddim(\d{1,7})", spacing)):
        times = [*reversed(strided(last, int(fixed[1]))), 0]
    elif isinstance(spacing, str):
        counts = spacing.replace(" ", "").split(",")
        if not all(count.isdecimal() for count in counts):
            raise ValueError(
                f"spacing={spacing} is not one of {', '.join(SPACINGS)}, ddimN such as "
                'ddim25, a text of sections such as "90,60,60,20,20", or a list of times'
            )
        times = [*reversed(sections(last, [int(count) for count in counts])), 0]
    else:
        times = list(spacing)
        if (
            len(times) < 2
            or not all(isinstance(t, int) for t in times)
            or times[-1] != 0
            or times[0] > last
            or any(s >= t for t, s in pairwise(times))
        ):
            raise ValueError(
                f"spacing={_text(times)} must descend from at most {last}, the T of the schedule, to 0; "
                f"try [{last},{last // 2},0]"
            )
    if steps not in (None, len(times) - 1):
        raise ValueError(
            f"spacing={_text(spacing)} makes {len(times) - 1} steps, and steps={steps} were asked for; "
            f"try steps={len(times) - 1}, or steps=null"
        )
    return times


def _text(spacing: Spacing) -> str:
    return spacing if isinstance(spacing, str) else f"[{','.join(map(str, spacing))}]"
