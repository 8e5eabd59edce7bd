"""Samplers: ways down from x_T to x_0. Every step is a pair (t, s), s < t.

Here is the walk that they share, and the samplers of Ho et al. and Song et al.; solvers.py and langevin.py have others.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike, Estimate
from ddpm_lab.diffusion.process import ForwardProcess, per_pixel, per_sample
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.diffusion.timestep_spacing import timesteps


class Step(NamedTuple):
    """One step of a walk, about to be made."""

    x_t: Tensor
    """(B, ...)"""
    t: Tensor
    """() int64 on the CPU, or (B,), as in `ForwardProcess`"""
    s: Tensor
    estimate: Estimate
    """Of x_0 at t, bounded."""
    last: bool
    """Whether s is 0."""
    previous: "Step | None"
    """The step that led to x_t, for multistep solvers; it forgets its own predecessor."""


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """The walk that samplers share.

    `steps` and `spacing` say where it stops (`spacings.stops`). `clip` bounds guesses of x_0, in the data's units
    (None: no bound). With `dynamic_threshold` p, a guess whose p-quantile of |x_0| exceeds `clip` is first scaled so
    that the quantile lands on the bound (Saharia et al., 2022, section 2.3).
    """

    steps: int | None = None
    spacing: str | list[int] = "uniform"
    clip: float | None = 1.0
    dynamic_threshold: float | None = None
    uses_reverse: ClassVar[bool] = False
    """Whether its steps are drawn from the denoiser's `reverse`"""

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(
                f"clip must be above 0, or null (got {self.clip:g}); 1 is right for images in [-1, 1]"
            )
        if self.dynamic_threshold is not None:
            if not 0 < self.dynamic_threshold <= 1:
                raise ValueError(
                    f"dynamic_threshold is a quantile and must lie in (0, 1] (got "
                    f"{self.dynamic_threshold:g}); try 0.995"
                )
            if self.clip is None:
                raise ValueError(
                    f"dynamic_threshold={self.dynamic_threshold:g} scales to the bound clip, which is "
                    "null; try clip=1"
                )

    def timesteps(self, last: int, t_end: int = 0) -> list[int]:
        """The stops from T = `last` to `until`. Raises ValueError where `steps` and `spacing` do not fit."""
        return [*(t for t in timesteps(last, self.steps, self.spacing) if t > t_end), t_end]

    def prior(self, process: ForwardProcess, z: Tensor) -> Tensor:
        """Where the walk begins, given standard normal `z`, (B, ...)."""
        return process.prior(z, torch.tensor(self.timesteps(process.steps)[0]))

    def trajectory(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        cond: Condition = Condition(),
        noise: NoiseSampler = torch.randn_like,
        t_end: int = 0,
    ) -> Iterator[tuple[int, Tensor]]:
        """Each stop s below T with its x_s, (B, ...), from `x`, which is x_T (see `prior`), to the time `until`."""
        previous = None
        for t, s in pairwise(torch.tensor(self.timesteps(denoiser.process.steps, t_end)).unbind()):
            step = Step(x, t, s, self.estimate(denoiser, x, t, cond), int(s) == 0, previous)
            if denoiser.self_conditioning:
                cond = replace(cond, previous=step.estimate.x0)
            x = self.step(denoiser, step, cond, noise)
            previous = step._replace(previous=None)
            yield int(s), x

    def __call__(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        cond: Condition = Condition(),
        noise: NoiseSampler = torch.randn_like,
    ) -> Tensor:
        """x_0, the end of the walk."""
        return deque(self.trajectory(denoiser, x, cond, noise), maxlen=1)[0][1]

    def estimate(self, denoiser: DenoiserLike, x_t: Tensor, t: Tensor, cond: Condition) -> Estimate:
        """The denoiser's estimate with x_0 bounded, so that whatever follows from it is bounded too."""
        estimate = denoiser(x_t, per_sample(t, x_t), cond)
        if self.clip is None:
            return estimate
        if self.dynamic_threshold is None:
            return estimate._replace(x0=estimate.x0.clamp(-self.clip, self.clip))
        sizes = estimate.x0.abs().flatten(1)
        rank = max(1, round(self.dynamic_threshold * sizes.shape[1]))
        bound = per_pixel(sizes.kthvalue(rank, dim=1).values.clamp(min=self.clip), x_t)
        return estimate._replace(
            x0=torch.maximum(torch.minimum(estimate.x0, bound), -bound) * (self.clip / bound)
        )

    @abstractmethod
    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        """x_s, (B, ...)."""

    def encode(
        self, denoiser: DenoiserLike, x: Tensor, cond: Condition = Condition()
    ) -> Iterator[tuple[int, Tensor]]:
        """The walk upwards, from data `x`, (B, ...): each stop t with its x_t. Only a sampler without noise has one."""
        raise ValueError(
            f"_target_={type(self).__name__} cannot be run backwards; try sampler=ddim sampler.eta=0"
        )


@dataclass(frozen=True, kw_only=True)
class DDPM(Sampler):
    """Ancestral sampling with the model's own variance (Ho et al., 2020, algorithm 2), on any chain. The last step
    shows the mean.
    """

    uses_reverse: ClassVar[bool] = True

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        reverse = denoiser.reverse(step.estimate, step.x_t, step.t, step.s, cond)
        return reverse.mean if step.last else reverse.rsample(noise(step.x_t))


@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """Song et al., 2021, eq. 12. `eta` scales the standard deviation: 0 is deterministic, 1 is DDPM with beta tilde.

    With `hat`, the mean is that of eta = 1 and the noise has the larger variance beta (their sigma-hat, appendix D.3).
    """

    eta: float = 0.0
    sigma_hat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(
                f"eta must lie in [0, 1] (got {self.eta:g}): above 1 the noise exceeds what x_s holds; "
                "for larger variances try eta=1 sigma_hat=true"
            )
        if self.sigma_hat and self.eta != 1:
            raise ValueError(
                f"sigma_hat=true keeps the mean of eta=1 (got eta={self.eta:g}); try eta=1"
            )

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        x_t, t, s, process = step.x_t, step.t, step.s, denoiser.process
        if self.eta == 0 or step.last:
            return process.ddim_update(x_t, step.estimate.x0, t, s)
        variance = self.eta**2 * process.beta_tilde(t, s)
        kept = (process.alpha_sigma(s)[1] ** 2 - variance).clamp(min=0).sqrt()
        x_s = process.ddim_update(x_t, step.estimate.x0, t, s, kept)
        return x_s + per_pixel(
            (process.beta(t, s) if self.sigma_hat else variance).sqrt(), x_t
        ) * noise(x_t)

    def encode(
        self, denoiser: DenoiserLike, x: Tensor, cond: Condition = Condition()
    ) -> Iterator[tuple[int, Tensor]]:
        """The same Euler steps of the probability-flow ODE upwards (Song et al., 2021, section 5.4); the first takes
        the data for x_1, where the network was trained. Raises ValueError unless eta is 0.
        """
        if self.eta:
            raise ValueError(
                f"eta={self.eta:g} adds noise, and so cannot be run backwards; try eta=0"
            )
        for s, t in pairwise(torch.tensor(self.timesteps(denoiser.process.steps)).flip(0).unbind()):
            s = s.clamp(min=1)
            x0 = self.estimate(denoiser, x, s, cond).x0
            x = denoiser.process.ddim_update(x, x0, s, t)
            if denoiser.self_conditioning:
                cond = replace(cond, previous=x0)
            yield int(t), x


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Between `a` and `b`, (...), on the sphere, at `share` (N,) of the way, (N, ...) (Shoemake, 1985): unlike their
    weighted mean, what lies between two normal vectors is as long as they are.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    share = per_pixel(share, a[None])
    if angle < 1e-4:
        return (1 - share) * a + share * b
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
