"""Samplers: ways down from x_T to x_0. Every step is a pair (t, s), s < t."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lab.diffusion.condition import Condition
from ddpm_lab.diffusion.denoiser import Denoises, Estimate
from ddpm_lab.diffusion.process import per_pixel

Noise = Callable[[Tensor], Tensor]
"""Standard normal numbers like a tensor: `torch.randn_like`, `SampleNoise`."""


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """The walk that samplers share. `steps` is the number of steps (None: all T), `clip` the bound on guesses of x_0,
    in the data's units (None: no bound).
    """

    steps: int | None = None
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, or null (got {self.clip:g}); 1 is right for pictures in [-1, 1]")

    def times(self, last: int) -> list[int]:
        """The stops from T = `last` to 0: `steps` times spread evenly over 1..T, then 0.

        Raises ValueError if `steps` is not in 1..T.
        """
        steps = last if self.steps is None else self.steps
        if not 1 <= steps <= last:
            raise ValueError(f"steps must lie in 1..{last}, the T of the schedule (got {steps})")
        stride = (last - 1) / max(steps - 1, 1)
        return [int(last - i * stride + 0.5) for i in range(steps)] + [0]

    def walk(
        self,
        denoiser: Denoises,
        x: Tensor,
        cond: Condition = Condition(),
        noise: Noise = torch.randn_like,
    ) -> Iterator[tuple[int, Tensor]]:
        """Each stop s below T with its x_s, (B, C, H, W), from `x`, which is x_T. The last step adds no noise."""
        # The loop runs on Python's integers: a time read back from a tensor would stall a GPU at every step.
        for t, s in pairwise(self.times(denoiser.process.steps)):
            at_t, at_s = (torch.full((len(x),), time, device=x.device) for time in (t, s))
            x = self.step(denoiser, x, at_t, at_s, cond, noise if s else torch.zeros_like)
            yield s, x

    def __call__(
        self,
        denoiser: Denoises,
        x: Tensor,
        cond: Condition = Condition(),
        noise: Noise = torch.randn_like,
    ) -> Tensor:
        """x_0, the end of the walk."""
        return deque(self.walk(denoiser, x, cond, noise), maxlen=1)[0][1]

    def guess(self, denoiser: Denoises, x_t: Tensor, t: Tensor, cond: Condition) -> Estimate:
        """The denoiser's estimate with x_0 clipped, so that whatever follows from it is clipped too."""
        guess = denoiser(x_t, t, cond)
        return guess if self.clip is None else guess._replace(x0=guess.x0.clamp(-self.clip, self.clip))

    @abstractmethod
    def step(self, denoiser: Denoises, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition, noise: Noise) -> Tensor:
        """x_s, (B, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class DDPM(Sampler):
    """Ancestral sampling with the model's own variance (Ho et al., 2020, algorithm 2), on any chain."""

    def step(self, denoiser: Denoises, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition, noise: Noise) -> Tensor:
        guess = self.guess(denoiser, x_t, t, cond)
        return denoiser.reverse(guess, x_t, t, s).at(noise(x_t))


@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """Song et al., 2021, eq. 12. `eta` scales the standard deviation: 0 is deterministic, 1 is DDPM with beta tilde."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1] (got {self.eta:g}): above 1 the noise exceeds what x_s holds; "
                             "for larger variances try sampler=ddpm variance=beta")  # fmt: skip

    def step(self, denoiser: Denoises, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition, noise: Noise) -> Tensor:
        x0 = self.guess(denoiser, x_t, t, cond).x0
        eps = denoiser.process.eps(x_t, x0, t)
        signal, level = denoiser.process.scales(s)
        if self.eta == 0:
            return per_pixel(signal, x_t) * x0 + per_pixel(level, x_t) * eps
        variance = self.eta**2 * denoiser.process.beta_tilde(t, s)
        kept = (level**2 - variance).clamp(min=0).sqrt()
        x_s = per_pixel(signal, x_t) * x0 + per_pixel(kept, x_t) * eps
        return x_s + per_pixel(variance.sqrt(), x_t) * noise(x_t)
