"""Guidance is a denoiser around a denoiser; samplers and metrics never hear of it."""

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
    """A denoiser like the one that it is around, and here all the same."""

    reversing = False
    """Whether only samplers that draw from `reverse` feel it"""

    def __init__(self, denoiser: DenoiserLike) -> None:
        self.denoiser, self.process = denoiser, denoiser.process
        self.shape, self.space = denoiser.shape, denoiser.space
        self.classes, self.supports_cfg, self.self_conditioning = (
            denoiser.classes,
            denoiser.supports_cfg,
            denoiser.self_conditioning,
        )
        self.cond_dims = denoiser.cond_dims

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        return self.denoiser(x_t, t, cond)

    def reverse(
        self, estimate: Estimate, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition = Condition()
    ) -> Gaussian:
        return self.denoiser.reverse(estimate, x_t, t, s, cond)


MAX_SCALE = 10_000
"""Beyond it, a difference in the last of float32's digits moves x_0 by as much as the data's range"""


def check_strength(**said: float) -> None:
    """Raises ValueError unless each is in 0..`STRONGEST`."""
    for name, value in said.items():
        if not 0 <= value <= MAX_SCALE:
            raise ValueError(
                f"{name} must be a number of at least 0, and at most {MAX_SCALE} (got {value}); "
                f"try {name}=2"
            )


class ClassifierFreeGuidance(Guidance):
    """eps = (1 + w) eps(x, y) - w eps(x, null) (Ho & Salimans, 2022, eq. 6); w = 0 is off. `scale` = 1 + w says it in
    the terms of other papers: 1 is off, 0 the model without its condition.

    Said of x_0, which is affine in eps; a learned variance stays that of the given condition. `interval` (low, high):
    only at low <= t <= high (Kynkaanniemi et al., 2024). `rescale` in [0, 1] is that part of the way to the standard
    deviation, per image, that x_0 had unguided (Lin et al., 2024, section 3.4). One network call of twice the batch
    per step.
    Raises ValueError if it is not off and the denoiser was not trained with dropped conditions.
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
                f"w={w:g} and scale={scale:g} both say how strong it is: scale = 1 + w; give one of them"
            )
        if not 0 <= rescale <= 1:
            raise ValueError(
                f"rescale must lie in [0, 1] (got {rescale:g}); 0 is off, try rescale=0.7"
            )
        said = f"w={w:g}" if scale is None else f"scale={scale:g}"
        super().__init__(denoiser)
        self.w = w if scale is None else scale - 1
        if self.w and not denoiser.supports_cfg:
            raise ValueError(
                f"{said} needs a model that hears a condition, of which training dropped some; try w=0, "
                "or train with conditioner=label or conditioner.dropout=0.1"
            )
        self.said, self.rescale = said, rescale
        self.interval = _interval(interval, denoiser.process)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        if self.w == 0:
            return self.denoiser(x_t, t, cond)
        if cond.said is None:
            raise UserError(
                f"guidance.{self.said} needs a condition to strengthen, and there is none"
            )
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), cond.cat(cond.null()))
        given, absent = both.x0.chunk(2)
        variance_output = None if both.variance_output is None else both.variance_output.chunk(2)[0]
        return Estimate(
            apply_guidance(given, absent, self.w, t, self.interval, self.rescale), variance_output
        )


class Autoguidance(Guidance):
    """x_0 moved by `w` of its difference to what `weak` says: a denoiser of the same data under the same condition that
    is smaller, or was trained for less long (Karras et al., 2024, eq. 5, whose w is w + 1). `interval` and `rescale`
    are those of `ClassifierFree`.

    Raises ValueError where the two are not of the same images, classes and schedule.
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
        if not 0 <= rescale <= 1:
            raise ValueError(
                f"rescale must lie in [0, 1] (got {rescale:g}); 0 is off, try rescale=0.7"
            )
        check_compatible("weak", weak, denoiser)
        if "context" in weak.cond_dims or weak.cond_dims != denoiser.cond_dims:
            raise ValueError(
                "weak must hear the same condition as this model, of label, none or low_res; tokens come "
                "from an encoder of its own"
            )
        super().__init__(denoiser)
        self.self_conditioning = denoiser.self_conditioning or weak.self_conditioning
        self.w, self.rescale, self.interval = w, rescale, _interval(interval, denoiser.process)
        self.weak = weak.to(denoiser.process.table.device).eval()

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        strong = self.denoiser(x_t, t, cond)
        x0 = apply_guidance(
            strong.x0, self.weak(x_t, t, cond).x0, self.w, t, self.interval, self.rescale
        )
        return strong._replace(x0=x0)


class _Trained(Protocol):
    shape: tuple[int, ...] | None
    space: str
    classes: int | None
    process: ForwardProcess


def check_compatible(
    name: str, other: _Trained, denoiser: DenoiserLike, hears: bool = True
) -> None:
    """Raises ValueError, which begins with `name`, unless both are of the same images, classes and schedule; without
    `hears`, a denoiser may also know no classes.
    """
    for what in ("shape", "classes"):
        own, its = getattr(denoiser, what), getattr(other, what)
        if own != its and (hears or own is not None):
            raise ValueError(
                f"{name} was trained on data of {what} {its}, and this model on {own}; they must agree"
            )
    if denoiser.space != other.space:
        own, its = (
            f"latents {part.space[:8]}" if part.space else "pixels" for part in (denoiser, other)
        )
        raise ValueError(f"{name} was trained in {its}, and this model in {own}; they must agree")
    table, its_table = (part.process.table.cpu() for part in (denoiser, other))
    if table.shape != its_table.shape or not torch.equal(table, its_table):
        raise ValueError(
            f"{name} was trained with another schedule (T = {other.process.steps}) than this model "
            f"(T = {denoiser.process.steps}); they must agree"
        )


def _interval(interval: Sequence[int] | None, process: ForwardProcess) -> tuple[int, int] | None:
    if interval is None:
        return None
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= process.steps:
        raise ValueError(
            f"interval={list(interval)} must be two times, low < high, in 0..{process.steps}; "
            f"try interval=[{process.steps // 5},{process.steps * 4 // 5}]"
        )
    return interval[0], interval[1]


def apply_guidance(
    given: Tensor,
    absent: Tensor,
    w: float,
    t: Tensor,
    interval: tuple[int, int] | None,
    rescale: float,
) -> Tensor:
    """`given` moved away from `absent` by `w` of their difference, (B, ...)."""
    guided = given + w * (given - absent)
    if rescale:
        axes = list(range(1, given.ndim))
        ratio = given.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp(min=1e-12)
        guided = guided * (1 - rescale + rescale * ratio)
    if interval is None:
        return guided
    inside = (t >= interval[0]) & (t <= interval[1])
    return torch.where(per_pixel(inside, given).bool(), guided, given)
