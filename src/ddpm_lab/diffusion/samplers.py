"""Samplers: chains from x_T to x_0 in steps (t, s), s < t.

This module has the shared sampling loop, DDPM and DDIM; see also ode_solvers and langevin.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, ClassVar, NamedTuple, Self

import torch
from annotated_types import Gt, Le
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike, Estimate, check_inputs
from ddpm_lab.diffusion.process import ForwardProcess, as_times, per_pixel
from ddpm_lab.diffusion.rng import NoiseSampler, PerSampleGenerator
from ddpm_lab.diffusion.timestep_spacing import chain_times, check_spacing
from ddpm_lab.utils.errors import UserError, choice_name
from ddpm_lab.utils.ranges import Count, Fraction, Positive, check_ranges


class Step(NamedTuple):
    """A step of a trajectory from x_t to x_s, before it is made."""

    x_t: Tensor
    """(B, ...)"""
    t: Tensor
    """() on the CPU, or (B,), int64 or float64, as in `ForwardProcess`"""
    s: Tensor
    """like t"""
    estimate: Estimate
    """The clipped x_0 estimate at t"""
    last: bool
    """True if s is 0"""
    previous: "Step | None"
    """The step that led to x_t, for multistep solvers, with at most `Sampler.history` ancestors"""

    def forget(self, history: int) -> "Step | None":
        """Return the step with `history` - 1 previous ones, or None if `history` is 0."""
        if history == 0:
            return None
        previous = self.previous.forget(history - 1) if self.previous else None
        return self._replace(previous=previous)


@check_ranges
@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """The sampling loop.

    `steps` and `spacing` define the times (see `timestep_spacing.chain_times`). `clip` bounds x_0
    estimates to [-clip, clip]; None: unbounded. With `dynamic_threshold` p, an estimate whose
    p-quantile of |x_0| exceeds `clip` is clipped at the quantile and rescaled to the bound (Saharia
    et al., 2022, section 2.3).
    """

    steps: Count | None = None
    spacing: str | list[int | float] = "uniform"
    clip: Positive | None = 1.0
    dynamic_threshold: Annotated[float, Gt(0), Le(1)] | None = None
    uses_reverse: ClassVar[bool] = False
    """True if steps are drawn from the denoiser's `reverse`"""
    history: ClassVar[int] = 1
    """Number of previous steps on which a step depends, at most"""
    min_steps: ClassVar[int] = 1
    """Smallest number of steps in which a multistep solver reaches its order"""

    def __post_init__(self) -> None:
        check_spacing(self.spacing)
        if self.dynamic_threshold is not None and self.clip is None:
            raise ValueError(
                f"dynamic_threshold={self.dynamic_threshold:g} scales to the bound clip, which is "
                "null; try clip=1"
            )

    @property
    def deterministic(self) -> bool:
        """True if x_T determines the sample."""
        return False

    def timesteps(self, process: ForwardProcess, t_end: int = 0) -> Sequence[float]:
        """Return the times from T to `t_end`: integers, or floats if the spacing needs them.

        Raises ValueError if they do not fit the schedule or the order of the solver.
        """
        times = chain_times(process, self.steps, self.spacing)
        if len(times) <= self.min_steps:
            raise ValueError(
                f"steps={len(times) - 1} are too few for the order of this solver; "
                f"try steps={self.min_steps}, or sampler=ddim"
            )
        return [*(t for t in times if t > t_end), t_end]

    def starting_at(self, process: ForwardProcess, t: int) -> Self:
        """Return this sampler with a chain that begins at `t`."""
        times = chain_times(process, self.steps, self.spacing)
        return replace(self, steps=None, spacing=[t, *(s for s in times if s < t)])

    def prior(self, process: ForwardProcess, z: Tensor) -> Tensor:
        """Return the initial x_T from standard normal `z`, (B, ...)."""
        return process.prior(z, as_times(self.timesteps(process)[0]))

    def trajectory(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        cond: Condition = Condition(),
        noise: NoiseSampler = torch.randn_like,
        t_end: int = 0,
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield each timestep s below T with its x_s, (B, ...), from x_T = `x` down to `t_end`."""
        for step, x_s in self.chain(denoiser, x, cond, noise, t_end):
            yield step.s.item(), x_s

    def chain(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        cond: Condition = Condition(),
        noise: NoiseSampler = torch.randn_like,
        t_end: int = 0,
    ) -> Iterator[tuple[Step, Tensor]]:
        """Yield each step of `trajectory` with its result x_s, (B, ...)."""
        previous = None
        for t, s in pairwise(as_times(self.timesteps(denoiser.process, t_end)).unbind()):
            step = self.begin(denoiser, x, t, s, previous, cond, noise)
            if denoiser.self_conditioning:
                cond = replace(cond, previous_x0=step.estimate.x0)
            x = self.step(denoiser, step, cond, noise)
            previous = step.forget(self.history)
            yield step, x

    def __call__(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        cond: Condition = Condition(),
        noise: NoiseSampler = torch.randn_like,
    ) -> Tensor:
        """Return x_0 (B, ...), the end of the trajectory from x_T = `x` (B, ...).

        `sample` also draws x_T.
        """
        return deque(self.trajectory(denoiser, x, cond, noise), maxlen=1)[0][1]

    @torch.no_grad()
    def sample(
        self,
        denoiser: DenoiserLike,
        shape: tuple[int, ...],
        cond: Condition = Condition(),
        seed: int = 0,
    ) -> Tensor:
        """Return samples in `shape` (B, ...). Sample i depends on (seed, i) only, not on B.

        `cond` has B rows. A network with dropout must be in evaluation mode. Raises ValueError if
        B is 0, or if `cond` does not fit.
        """
        check_inputs(denoiser, shape[0], cond)
        noise = PerSampleGenerator(seed, range(shape[0]))
        z = noise(torch.empty(shape, device=denoiser.process.table.device))
        return self(denoiser, self.prior(denoiser.process, z), cond, noise)

    def begin(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        previous: Step | None,
        cond: Condition,
        noise: NoiseSampler,
    ) -> Step:
        """Return the step of `x` (B, ...) from t to s, with its x_0 estimate, before it is made."""
        estimate = self.estimate(denoiser, x, t, cond)
        last = not (s.any() if s.ndim else s.item())
        return Step(x, t, s, estimate, last, previous)

    def estimate(self, denoiser: DenoiserLike, x_t: Tensor, t: Tensor, cond: Condition) -> Estimate:
        """Run the denoiser and clip its x_0, and thus everything derived from x_0."""
        estimate = denoiser(x_t, t, cond)
        if self.clip is None:
            return estimate
        if self.dynamic_threshold is None:
            return estimate._replace(x0=estimate.x0.clamp(-self.clip, self.clip))
        sizes = estimate.x0.abs().flatten(1)
        rank = max(1, round(self.dynamic_threshold * sizes.shape[1]))
        bound = per_pixel(sizes.kthvalue(rank, dim=1).values.clamp(min=self.clip), x_t)
        x0 = torch.maximum(torch.minimum(estimate.x0, bound), -bound) * (self.clip / bound)
        return estimate._replace(x0=x0)

    @abstractmethod
    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        """Return x_s, (B, ...)."""

    def encode(
        self, denoiser: DenoiserLike, x: Tensor, cond: Condition = Condition()
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield each timestep t with its x_t, from data `x` (B, ...) up to x_T.

        Raises ValueError for samplers that add noise.
        """
        raise UserError(
            f"sampler={choice_name(self)} cannot be run backwards; try sampler=ddim sampler.eta=0"
        )


class DDPM(Sampler):
    """Ancestral sampling with the denoiser's variance (Ho et al., 2020, algorithm 2), on any chain.

    The last step returns the mean.
    """

    uses_reverse = True
    history = 0

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        reverse = denoiser.reverse(step.estimate, step.x_t, step.t, step.s, cond)
        return reverse.mean if step.last else reverse.rsample(noise(step.x_t))


@check_ranges
@dataclass(frozen=True, kw_only=True)
class DDPMClipped(DDPM):
    """DDPM whose noise in the step to time 1 has a standard deviation of at most `max_last_std`.

    No later step removes that noise. With few steps, the optimal variance at this step is large,
    and its white noise would stay visible. Bao et al. (2022) bound E|noise| for CIFAR-10 by 2 gray
    levels, which is a standard deviation of 0.0197.
    """

    max_last_std: Positive = 0.0197

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        reverse = denoiser.reverse(step.estimate, step.x_t, step.t, step.s, cond)
        if step.last:
            return reverse.mean
        clipped = reverse.log_var.clamp(max=2 * math.log(self.max_last_std))
        log_var = torch.where(per_pixel(step.s == 1, clipped).bool(), clipped, reverse.log_var)
        return reverse._replace(log_var=log_var).rsample(noise(step.x_t))


@check_ranges
@dataclass(frozen=True, kw_only=True)
class RePaint(DDPM):
    """DDPM that returns to noise and repeats, for `guidance=inpainting` (Lugmayr et al., 2022).

    After `jump` steps the chain returns by q(x_t | x_s) to their beginning, until each block of
    `jump` steps has been made `resamples` times; 1 is DDPM. The step to the data is made once. The
    return also calls the network, whose output is not used.
    """

    resamples: Count = 10
    jump: Count = 10

    def timesteps(self, process: ForwardProcess, t_end: int = 0) -> Sequence[float]:
        """Return the timesteps, which also ascend."""
        *body, end = super().timesteps(process, t_end)
        times = body[:1]
        for first in range(0, len(body) - 1, self.jump):
            block = body[first + 1 : first + 1 + self.jump]
            times += ([*block, body[first]] * self.resamples)[:-1]
        return [*times, end]

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        ascends = step.s > step.t
        if not ascends.any():
            return super().step(denoiser, step, cond, noise)
        x = denoiser.process.rediffuse(step.x_t, noise(step.x_t), step.t, step.s)
        if ascends.all():
            return x
        # A batch of several steps, in `analytic_propagation`.
        below = super().step(denoiser, step, cond, noise)
        return torch.where(per_pixel(ascends, x).bool(), x, below)


@check_ranges
@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps + std z (Song et al., 2021, eq. 12).

    std = eta sqrt(beta_tilde): `eta` 0 is deterministic, 1 is DDPM with beta_tilde. `sigma_hat`
    keeps the mean of eta = 1 and adds noise of the larger variance beta (their appendix D.3).
    """

    eta: Fraction = 0.0
    sigma_hat: bool = False
    history: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_hat and self.eta != 1:
            raise ValueError(
                f"sigma_hat=true keeps the mean of eta=1 (got eta={self.eta:g}); try eta=1"
            )

    @property
    def deterministic(self) -> bool:
        return self.eta == 0

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        x_t, t, s, process = step.x_t, step.t, step.s, denoiser.process
        if self.eta == 0 or step.last:
            return process.ddim_update(x_t, step.estimate.x0, t, s)
        x_s = process.ddim_update(x_t, step.estimate.x0, t, s, self.eta)
        variance = process.beta(t, s) if self.sigma_hat else self.eta**2 * process.beta_tilde(t, s)
        return x_s + per_pixel(variance.sqrt(), x_t) * noise(x_t)

    def encode(
        self, denoiser: DenoiserLike, x: Tensor, cond: Condition = Condition()
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield Euler steps of the probability-flow ODE upwards (Song et al., 2021, section 5.4).

        The first step takes the data for x_1, because the network was not trained at t = 0.
        Raises ValueError unless eta is 0.
        """
        if self.eta:
            raise ValueError(f"eta={self.eta:g} adds noise and cannot be run backwards; try eta=0")
        for s, t in pairwise(as_times(self.timesteps(denoiser.process)).flip(0).unbind()):
            s = s.clamp(min=1)
            x0 = self.estimate(denoiser, x, s, cond).x0
            x = denoiser.process.ddim_update(x, x0, s, t)
            if denoiser.self_conditioning:
                cond = replace(cond, previous_x0=x0)
            yield t.item(), x


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Interpolate spherically from `a` to `b`, (...), by `share` (N,): (N, ...) (Shoemake, 1985).

    Unlike linear interpolation it preserves the norm of Gaussian noise.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    share = per_pixel(share, a[None])
    if angle < 1e-4:
        return (1 - share) * a + share * b
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
