"""Which times a strided chain visits. A spacing places `steps` distinct times, ascending, in 1..T."""

from collections.abc import Callable, Sequence
from itertools import pairwise

Spacing = str | Sequence[int]


def uniform(last: int, steps: int) -> list[int]:
    """Evenly from 1 to T, both ends visited."""
    stride = (last - 1) / max(steps - 1, 1)
    return [int(last - i * stride + 0.5) for i in range(steps)][::-1]


def quadratic(last: int, steps: int) -> list[int]:
    """Squares of even steps from 0 to sqrt(0.8 T), densest near the data (the code of Song et al.'s DDIM). The chain
    begins at 0.8 T, where the linear schedule is noise already and the cosine schedule is not.
    """
    return _squares(last, steps, 0.0, (0.8 * last) ** 0.5, 1)


def quadratic_full(last: int, steps: int) -> list[int]:
    """Squares of even steps from 1 to sqrt(T), both ends visited: `quadratic` for any schedule."""
    return _squares(last, steps, 1.0, last**0.5, 0.5)


def _squares(last: int, steps: int, start: float, end: float, shift: float) -> list[int]:
    """floor(square + shift); where two fall on the same time, the later moves up."""
    times: list[int] = []
    for i in range(steps):
        root = start + (end - start) * i / (steps - 1) if steps > 1 else last**0.5
        times.append(min(max(int(root**2 + 1e-9 + shift), times[-1] + 1 if times else 1), last))
    return times


def leading(last: int, steps: int) -> list[int]:
    """1, 1 + c, 1 + 2c, ... with c = T // K, so that the chain begins below T (the code of Song et al.'s DDIM)."""
    return [1 + i * (last // steps) for i in range(steps)]


def trailing(last: int, steps: int) -> list[int]:
    """T, T - T/K, T - 2T/K, ... (Lin et al., 2024, table 2)."""
    return [int(last - i * last / steps + 0.5) for i in range(steps)][::-1]


def sections(last: int, counts: Sequence[int]) -> list[int]:
    """So many times in each of as many equal parts of 1..T, from the data up; within a part evenly, both ends visited
    (Nichol & Dhariwal's code; Dhariwal & Nichol, 2021, table 15).
    """
    size, extra = divmod(last, len(counts))
    times, start = [], 1
    for i, count in enumerate(counts):
        length = size + (i < extra)
        if not 1 <= count <= length:
            raise ValueError(f"spacing={_text(counts)} asks for {count} times in a section that has {length}; "
                             f"each number must lie in 1..{size}")  # fmt: skip
        stride = (length - 1) / max(count - 1, 1)
        times += [start + round(stride * j) for j in range(count)]
        start += length
    return times


SPACINGS: dict[str, Callable[[int, int], list[int]]] = {
    spacing.__name__: spacing for spacing in (uniform, quadratic, quadratic_full, leading, trailing)
}


def stops(last: int, steps: int | None, spacing: Spacing) -> list[int]:
    """The stops of a chain from its first time, T = `last` for most spacings, down to 0.

    `spacing` is a name, a text of sections ("90,60,60,20,20", which sum to `steps`), or the stops themselves.
    `steps` is the number of steps; None: all T, or as many as `spacing` says. Raises ValueError that names either.
    """
    if steps is not None and not (isinstance(steps, int) and 1 <= steps <= last):
        raise ValueError(f"steps must lie in 1..{last}, the T of the schedule (got {steps})")
    spacing = spacing if isinstance(spacing, Sequence) else str(spacing)  # what was typed may be a number
    if isinstance(spacing, str) and spacing in SPACINGS:
        return [*reversed(SPACINGS[spacing](last, last if steps is None else steps)), 0]
    if isinstance(spacing, str):
        counts = spacing.replace(" ", "").split(",")
        if not all(count.isdecimal() for count in counts):
            raise ValueError(f"spacing={spacing} is not one of {', '.join(SPACINGS)}, a text of sections such as "
                             "\"90,60,60,20,20\", or a list of times")  # fmt: skip
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
            raise ValueError(f"spacing={_text(times)} must descend from at most {last}, the T of the schedule, to 0; "
                             f"try [{last},{last // 2},0]")  # fmt: skip
    if steps not in (None, len(times) - 1):
        raise ValueError(f"spacing={_text(spacing)} makes {len(times) - 1} steps, and steps={steps} were asked for; "
                         f"try steps={len(times) - 1}, or steps=null")  # fmt: skip
    return times


def _text(spacing: Spacing) -> str:
    return spacing if isinstance(spacing, str) else f"[{','.join(map(str, spacing))}]"
