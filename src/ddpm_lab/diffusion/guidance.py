"""Guidance: a denoiser around a denoiser. Samplers and metrics are unaware of it."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import BaseDenoiser, DenoiserLike, Estimate
from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.process import ForwardProcess, per_pixel
from ddpm_lab.utils.errors import UserError


def none(denoiser: DenoiserLike) -> DenoiserLike:
    """No guidance."""
    return denoiser


class Guidance:
    """A wrapper with the interface of the denoiser inside; this base class changes nothing."""

    requires_reverse = False
    """True if guidance acts in `reverse` only, which requires a sampler with `uses_reverse`"""

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


MAX_SCALE = 10_000
"""Above it, a difference in float32's last digit moves x_0 by as much as the range of the data"""


def check_strength(**strengths: float) -> None:
    """Raise ValueError unless each number is in 0..`MAX_SCALE`."""
    for name, value in strengths.items():
        if not 0 <= value <= MAX_SCALE:
            raise ValueError(
                f"{name} must be a number of at least 0, and at most {MAX_SCALE} (got {value}); "
                f"try {name}=2"
            )


class ClassifierFreeGuidance(Guidance):
    """eps = (1 + w) eps(x, y) - w eps(x, null) (Ho & Salimans, 2022, eq. 6).

    w = 0 is off. `scale` = 1 + w is the other convention: 1 is off, 0 is unconditional. Guidance is
    applied to x_0, which is affine in eps. A learned variance is that of the conditional output.
    `interval` (low, high) limits guidance to low <= t <= high (Kynkaanniemi et al., 2024).
    `rescale` in [0, 1] moves each image's standard deviation of x_0 towards the conditional one
    (Lin et al., 2024, section 3.4). Each step is one network call with twice the batch.

    Raises ValueError if it is on and the denoiser was not trained with dropped conditions.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        w: float = 0.0,
        scale: float | None = None,
        interval: Sequence[int] | None = None,
        rescale: float = 0.0,
    ) -> None:
        check_strength(w=w)
        if scale is not None:
            check_strength(scale=scale)
        if w and scale is not None:
            raise ValueError(
                f"w={w:g} and scale={scale:g} both set the strength, scale = 1 + w; try one of them"
            )
        _check_rescale(rescale)
        super().__init__(denoiser)
        self.w = w if scale is None else scale - 1
        self.option = f"w={w:g}" if scale is None else f"scale={scale:g}"
        if self.w and not denoiser.supports_cfg:
            raise ValueError(
                f"{self.option} needs a conditional model, trained with some conditions dropped; "
                "try w=0, or train with conditioner=label or conditioner.dropout=0.1"
            )
        self.rescale, self.interval = rescale, _check_interval(interval, denoiser.process)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        if self.w == 0:
            return self.denoiser(x_t, t, cond)
        if cond.value is None:
            raise UserError(f"guidance.{self.option} needs conditions, but sampling has none")
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), cond.cat(cond.null()))
        conditional, null = both.x0.chunk(2)
        variance_output = None if both.variance_output is None else both.variance_output.chunk(2)[0]
        x0 = apply_guidance(conditional, null, self.w, t, self.interval, self.rescale)
        return Estimate(x0, variance_output)


class Autoguidance(Guidance):
    """x_0 + w (x_0 - x_0 of `weak`) (Karras et al., 2024, eq. 5, whose w is w + 1).

    `weak` denoises the same data under the same condition, but is smaller or was trained for a
    shorter time. `interval` and `rescale` are those of `ClassifierFreeGuidance`.

    Raises ValueError unless both have the same image shape, classes, schedule and condition.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        weak: BaseDenoiser,
        w: float = 1.0,
        interval: Sequence[int] | None = None,
        rescale: float = 0.0,
    ) -> None:
        check_strength(w=w)
        _check_rescale(rescale)
        check_compatible("weak", weak, denoiser)
        if "context" in weak.cond_dims or weak.cond_dims != denoiser.cond_dims:
            raise ValueError(
                "weak must have the conditioner of this model, label, none or low_res; "
                "tokens depend on each model's own encoder"
            )
        super().__init__(denoiser)
        self.self_conditioning = denoiser.self_conditioning or weak.self_conditioning
        self.w, self.rescale = w, rescale
        self.interval = _check_interval(interval, denoiser.process)
        self.weak = weak.to(denoiser.process.table.device).eval()

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        strong, weak = self.denoiser(x_t, t, cond), self.weak(x_t, t, cond)
        x0 = apply_guidance(strong.x0, weak.x0, self.w, t, self.interval, self.rescale)
        return strong._replace(x0=x0)


class _Model(Protocol):
    shape: tuple[int, ...] | None
    space: str
    process: ForwardProcess

    @property
    def classes(self) -> int | None: ...


def check_compatible(
    name: str, other: _Model, denoiser: DenoiserLike, require_classes: bool = True
) -> None:
    """Raise ValueError, which begins with `name`, unless image shape, classes and schedule agree.

    Without `require_classes`, the denoiser may be unconditional.
    """
    for key in ("shape", "classes"):
        ours, theirs = getattr(denoiser, key), getattr(other, key)
        if ours != theirs and (require_classes or ours is not None):
            raise ValueError(
                f"{name} was trained on data of {key} {theirs}, and this model on {ours}; "
                "they must agree"
            )
    if denoiser.space != other.space:
        ours, theirs = (
            f"latents {part.space[:8]}" if part.space else "pixels" for part in (denoiser, other)
        )
        raise ValueError(
            f"{name} was trained in {theirs}, and this model in {ours}; they must agree"
        )
    table, other_table = (part.process.table.cpu() for part in (denoiser, other))
    if table.shape != other_table.shape or not torch.equal(table, other_table):
        raise ValueError(
            f"{name} was trained with another schedule (T = {other.process.steps}) than this model "
            f"(T = {denoiser.process.steps}); they must agree"
        )


def _check_rescale(rescale: float) -> None:
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must lie in [0, 1] (got {rescale:g}); 0 is off, try rescale=0.7")


def _check_interval(
    interval: Sequence[int] | None, process: ForwardProcess
) -> tuple[int, int] | None:
    if interval is None:
        return None
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= process.steps:
        raise ValueError(
            f"interval={list(interval)} must be two times, low < high, in 0..{process.steps}; "
            f"try interval=[{process.steps // 5},{process.steps * 4 // 5}]"
        )
    return interval[0], interval[1]


def apply_guidance(
    x0: Tensor,
    baseline: Tensor,
    w: float,
    t: Tensor,
    interval: tuple[int, int] | None,
    rescale: float,
) -> Tensor:
    """x_0 + w (x_0 - baseline), (B, ...), for times `t` within `interval`."""
    guided = x0 + w * (x0 - baseline)
    if rescale:
        axes = list(range(1, x0.ndim))
        ratio = x0.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp(min=1e-12)
        guided = guided * (1 - rescale + rescale * ratio)
    if interval is None:
        return guided
    inside = (t >= interval[0]) & (t <= interval[1])
    return torch.where(per_pixel(inside, x0).bool(), guided, x0)
