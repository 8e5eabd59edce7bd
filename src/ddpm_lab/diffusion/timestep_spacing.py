"""Timesteps of a strided chain. A spacing is `steps` distinct times, ascending, in 1..T.

Spacings in noise levels, `karras` and `sigmas`, have float times.
"""

import math
import re
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch

from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.utils.errors import pluralize

Spacing = str | Sequence[float]
_NUMBER = r"\d+\.?\d*(?:e[-+]?\d+)?"
KARRAS = rf"karras({_NUMBER})?(?::({_NUMBER}),({_NUMBER}))?"
"""rho, and the smallest and largest noise level"""
SIGMAS = rf"sigmas:{_NUMBER}(?:,{_NUMBER})*"


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
        case [*listed]:
            _check_descent(T, listed)
            times = [int(t) for t in listed]
        case _:  # on the command line, a name may be a number
            times = [*reversed(_from_name(T, steps, str(spacing))), 0]
    _check_steps(_text(spacing), steps, len(times) - 1)
    return times


def karras(low: float, high: float, steps: int, rho: float) -> list[float]:
    """Noise levels from `high` to `low` with equal steps of their `rho`-th roots.

    Karras et al. (2022, eq. 5), without the last level, 0.
    """
    start, end = high ** (1 / rho), low ** (1 / rho)
    return [(start + i / max(steps - 1, 1) * (end - start)) ** rho for i in range(steps)]


def chain_times(process: ForwardProcess, steps: int | None, spacing: Spacing) -> list[float]:
    """Return the times of a sampling chain, descending to 0.

    They are `timesteps`, or the float times of noise levels sigma_t / alpha_t:

    - "karras": see `karras`, with rho = 7 and the range of the schedule; it begins at T - 1 if
      x_T has no signal. "karras5" has rho = 5, and "karras7:0.002,80" a range.
    - "sigmas:80,10,1,0.1": the levels themselves.

    A list may have floats.

    Raises ValueError if the levels are not in the range of the schedule.
    """
    text = _text(spacing)
    first, before, last = (
        process.noise_level(torch.tensor(t)).item() for t in (1, process.steps - 1, process.steps)
    )
    if match := re.fullmatch(KARRAS, text):
        rho, low, high = (float(part) if part else None for part in match.groups())
        high = high or (last if math.isfinite(last) else before)
        levels = karras(low or first, high, steps or process.steps, rho or 7.0)
    elif re.fullmatch(SIGMAS, text):
        levels = [float(level) for level in text.removeprefix("sigmas:").split(",")]
    else:
        if not isinstance(spacing, str) and any(isinstance(t, float) for t in spacing):
            _check_descent(process.steps, spacing, float)
            _check_steps(text, steps, len(spacing) - 1)
            return [*spacing]
        return [*timesteps(process.steps, steps, spacing)]
    inside = 0.999 * first <= levels[-1] and levels[0] <= 1.001 * last
    if not inside or any(one <= next_one for one, next_one in pairwise(levels)):
        raise ValueError(
            f"spacing={text} must descend from at most {last:.4g} to at least {first:.4g}, the "
            f'noise levels of the schedule; try spacing="sigmas:{last:.3g},1,{1.01 * first:.3g}"'
        )
    _check_steps(text, steps, len(levels))
    times = process.time(torch.tensor(levels, dtype=torch.float64))
    return [*times.clamp(min=1).tolist(), 0.0]


def _check_steps(text: str, steps: int | None, count: int) -> None:
    if steps not in (None, count):
        raise ValueError(
            f"spacing={text} makes {pluralize(count, 'step')}, but steps={steps}; try "
            f"steps={count}, or steps=null"
        )


def check_spacing(spacing: Spacing) -> None:
    """Raise ValueError for a text that is not the name of a spacing."""
    name = str(spacing).replace(" ", "")
    if not isinstance(spacing, str) or name in SPACINGS:
        return
    if not re.fullmatch(rf"ddim\d{{1,7}}|\d+(,\d+)*|{KARRAS}|{SIGMAS}", name):
        raise ValueError(
            f"spacing={spacing} is not one of {', '.join(SPACINGS)}, karras, ddimN such as "
            'ddim25, a text of sections such as "90,60,60,20,20" or of noise levels such as '
            '"sigmas:80,10,1,0.1", or a list of times'
        )


def _from_name(T: int, steps: int | None, name: str) -> list[int]:
    if name in SPACINGS:
        return SPACINGS[name](T, T if steps is None else steps)
    check_spacing(name)
    if re.match("karras|sigmas", name):
        raise ValueError(
            f"spacing={name} has times between those of the schedule, which only samplers take; "
            "try spacing=quadratic_full"
        )
    if ddim := re.fullmatch(r"ddim(\d+)", name):
        return strided(T, int(ddim[1]))
    return sections(T, [int(count) for count in name.split(",")])


def _check_descent(T: int, times: Sequence[float], kind: type[float] = int) -> None:
    if (
        len(times) < 2
        or not all(isinstance(t, int | kind) for t in times)
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
