"""Guidance: a denoiser around a denoiser. Samplers and metrics are unaware of it."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import BaseDenoiser, DenoiserLike, DiffusionModel, Estimate
from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.ranges import Fraction, check_ranges

Strength = Annotated[float, Ge(0), Le(10_000)]
"""Above 10,000, a change of float32's last digit moves x_0 by the range of the data"""


def none(denoiser: DenoiserLike) -> DenoiserLike:
    """No guidance."""
    return denoiser


class Guidance:
    """A wrapper with the interface of its denoiser; this base class changes nothing."""

    requires_reverse = ""
    """Message about a {sampler} without `uses_reverse`, if guidance acts in `reverse` only"""

    def __init__(self, denoiser: DenoiserLike) -> None:
        self.denoiser, self.process = denoiser, denoiser.process
        self.shape, self.space, self.classes = denoiser.shape, denoiser.space, denoiser.classes
        self.supports_cfg, self.cond_dims = denoiser.supports_cfg, denoiser.cond_dims
        self.self_conditioning = denoiser.self_conditioning

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        return self.denoiser(x_t, t, cond)

    def reverse(
        self, estimate: Estimate, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition = Condition()
    ) -> Gaussian:
        return self.denoiser.reverse(estimate, x_t, t, s, cond)


class _Extrapolation(Guidance):
    """x_0 + w (x_0 - baseline), within an interval of times, and rescaled."""

    def __init__(
        self, denoiser: DenoiserLike, w: float, interval: Sequence[int] | None, rescale: float
    ) -> None:
        super().__init__(denoiser)
        self.w, self.interval, self.rescale = w, interval, rescale
        T = self.process.steps
        if interval is not None and (len(interval) != 2 or not 0 <= interval[0] < interval[1] <= T):
            raise ValueError(
                f"interval={list(interval)} must be two times, low < high, in 0..{T}; "
                f"try interval=[{T // 5},{T * 4 // 5}]"
            )

    def extrapolate(self, x0: Tensor, baseline: Tensor, t: Tensor) -> Tensor:
        """Return the guided x_0, (B, ...)."""
        guided = x0 + self.w * (x0 - baseline)
        if self.rescale:
            axes = list(range(1, x0.ndim))
            ratio = x0.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp(min=1e-12)
            guided = guided * (1 - self.rescale + self.rescale * ratio)
        if self.interval is None:
            return guided
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        return torch.where(per_pixel(inside, x0).bool(), guided, x0)


@check_ranges
class ClassifierFreeGuidance(_Extrapolation):
    """eps = (1 + w) eps(x, y) - w eps(x, null) (Ho & Salimans, 2022, eq. 6).

    w = 0 is off. `scale` = 1 + w is the other convention: 1 is off, 0 is unconditional. Guidance is
    applied to x_0, which is affine in eps. A learned variance is that of the conditional output.
    Each step is one network call with twice the batch.

    Args:
        denoiser: A conditional denoiser.
        w: Strength, in 0..10,000.
        scale: Strength in the other convention (None: 1 + w).
        interval: Timesteps (low, high) in 0..T, both included, outside of which guidance is off
            (Kynkaanniemi et al., 2024; None: all).
        rescale: Share in 0..1 by which the standard deviation of each image of x_0 is moved to the
            one without guidance (Lin et al., 2024, section 3.4; 0: off).

    Raises ValueError if it is on and the denoiser was not trained with dropped conditions.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        w: Strength = 0.0,
        scale: Strength | None = None,
        interval: Sequence[int] | None = None,
        rescale: Fraction = 0.0,
    ) -> None:
        if w and scale is not None:
            raise ValueError(
                f"w={w:g} and scale={scale:g} both set the strength (scale = 1 + w); remove one"
            )
        super().__init__(denoiser, w if scale is None else scale - 1, interval, rescale)
        self.option = f"w={w:g}" if scale is None else f"scale={scale:g}"
        if self.w and not denoiser.supports_cfg:
            raise ValueError(
                f"{self.option} needs a conditional model, trained with some conditions dropped; "
                "try w=0, or train with conditioner=label or conditioner.dropout=0.1"
            )

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        if self.w == 0:
            return self.denoiser(x_t, t, cond)
        if cond.value is None:
            raise UserError(
                f"guidance.{self.option} needs conditions, but sampling has none; try label=0, or "
                "another class"
            )
        times = torch.cat([t, t]) if t.ndim else t
        both = self.denoiser(torch.cat([x_t, x_t]), times, cond.cat(cond.null()))
        conditional, null = both.x0.chunk(2)
        variance_output = None if both.variance_output is None else both.variance_output.chunk(2)[0]
        return Estimate(self.extrapolate(conditional, null, t), variance_output)


@check_ranges
class Autoguidance(_Extrapolation):
    """x_0 + w (x_0 - x_0 of `weak`) (Karras et al., 2024, eq. 5, whose w is w + 1).

    `weak` denoises the same data under the same condition, but is smaller or was trained for a
    shorter time. See `ClassifierFreeGuidance` for `interval` and `rescale`.

    Raises ValueError unless both have the same image shape, classes, schedule and condition.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        weak: BaseDenoiser,
        w: Strength = 1.0,
        interval: Sequence[int] | None = None,
        rescale: Fraction = 0.0,
    ) -> None:
        check_compatible("weak", weak, denoiser)
        if "context" in weak.cond_dims or weak.cond_dims != denoiser.cond_dims:
            raise ValueError(
                "weak must have the conditioner of this model: label, none or low_res; tokens "
                "depend on each model's own encoder"
            )
        super().__init__(denoiser, w, interval, rescale)
        self.self_conditioning = denoiser.self_conditioning or weak.self_conditioning
        self.weak = weak.to(self.process.table.device).eval()

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        strong, weak = self.denoiser(x_t, t, cond), self.weak(x_t, t, cond)
        return strong._replace(x0=self.extrapolate(strong.x0, weak.x0, t))


def check_compatible(
    name: str, other: DiffusionModel, denoiser: DenoiserLike, require_classes: bool = True
) -> None:
    """Raise ValueError, which begins with `name`, unless image shape, classes and schedule agree.

    Without `require_classes`, the denoiser may be unconditional.
    """
    origin = f", as in {other.origin}" if other.origin else ""
    for key in ("shape", "classes"):
        ours, theirs = getattr(denoiser, key), getattr(other, key)
        if ours != theirs and (require_classes or ours is not None):
            raise ValueError(
                f"{name} was trained on data of {key} {theirs}, but this model on {ours}; try the "
                f"same data= for both{origin}"
            )
    if denoiser.space != other.space:
        ours, theirs = (
            f"latents {part.space[:8]}" if part.space else "pixels" for part in (denoiser, other)
        )
        raise ValueError(
            f"{name} was trained in {theirs}, but this model in {ours}; try the same codec= for "
            f"both{origin}"
        )
    if not torch.equal(denoiser.process.table.cpu(), other.process.table.cpu()):
        raise ValueError(
            f"{name} was trained with another schedule (T = {other.process.steps}) than this model "
            f"(T = {denoiser.process.steps}); try {other.schedule or 'one schedule'} for both"
        )
