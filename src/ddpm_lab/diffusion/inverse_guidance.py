"""Guidance by a measurement of x_0: inpainting, DPS and PiGDM."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike, Estimate
from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.guidance import ClassifierFreeGuidance, Guidance, Strength
from ddpm_lab.diffusion.operators import Mask, Operator
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.utils.errors import choice_name
from ddpm_lab.utils.ranges import NonNegative, Positive, check_ranges


class InverseProblem(NamedTuple):
    """Measurements y = A(x_0) + noise z."""

    operator: Operator
    """A"""
    y: Tensor
    """(N, ...). Sample i has the measurement i mod N"""
    noise: float = 0.0
    """Standard deviation of the noise"""
    references: Mapping[str, Tensor] = MappingProxyType({})
    """Pictures (N, C, H, W) in [-1, 1] of the problem, by caption"""


class InverseGuidance(Guidance):
    """Guidance by measurements, around classifier-free guidance of strength `w` (0: off).

    Raises ValueError for a nonlinear operator if `needs_inverse`.
    """

    needs_inverse = True
    """True if the operator must be a `LinearOperator`"""

    def __init__(self, denoiser: DenoiserLike, problem: InverseProblem, w: Strength = 0.0) -> None:
        if self.needs_inverse and not problem.operator.linear:
            raise ValueError(
                f"operator={type(problem.operator).__name__.lower()} is not linear and has no "
                "pseudo-inverse; try guidance=dps"
            )
        super().__init__(ClassifierFreeGuidance(denoiser, w))
        self.operator, self.y, self.noise, self.references = problem

    def measurement(self, x: Tensor, cond: Condition) -> Tensor:
        """Return the measurement of each row of `x`, (B, ...)."""
        index = torch.arange(len(x)) if cond.index is None else cond.index
        return self.y.to(x)[index.to(x.device) % len(self.y)]

    def linearize(self, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Estimate]:
        """Return x_t and the estimate as a differentiable function of it.

        Tensors of inference mode cannot take part in autograd, hence the copies.
        """
        leaf = x_t.clone().requires_grad_()
        return leaf, self.denoiser(leaf, t.clone(), cond.clone())


class Inpainting(InverseGuidance):
    """Replacement of the visible pixels of x_0 by y, for `Mask` operators.

    Visible pixels of x_s then follow q(x_s | x_t, x_0 = y), as in the imputation of Song et al.,
    2021, SDE (appendix I.2). Hidden pixels depend on y through x_t only, which biases them; see
    `samplers.RePaint`. Noise in y is not removed.
    """

    def __init__(self, denoiser: DenoiserLike, problem: InverseProblem, w: Strength = 0.0) -> None:
        if not isinstance(problem.operator, Mask):
            raise ValueError(
                f"operator={choice_name(problem.operator)} hides no pixels; try "
                "guidance.operator=box, or guidance=pigdm"
            )
        super().__init__(denoiser, problem, w)
        self.visible = problem.operator.forward(torch.ones_like(self.y[:1])).bool()

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        estimate = self.denoiser(x_t, t, cond)
        x0 = torch.where(self.visible, self.measurement(x_t, cond), estimate.x0)
        return estimate._replace(x0=x0)

    def reverse(
        self, estimate: Estimate, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition = Condition()
    ) -> Gaussian:
        """p(x_s | x_t), with the variance beta_tilde of q(x_s | x_t, x_0) for visible pixels."""
        step = self.denoiser.reverse(estimate, x_t, t, s, cond)
        log_var = per_pixel(self.process.log_beta_tilde(t, s), x_t)
        return step._replace(log_var=torch.where(self.visible, log_var, step.log_var))


@check_ranges
class DPS(InverseGuidance):
    """Diffusion posterior sampling: x_s - zeta grad |y - A(x_0)| (Chung et al., 2023).

    The gradient is with respect to x_t, through the denoiser. The norm is that of one sample and
    not squared, as in their code. Their algorithm 1 states zeta / |y - A(x_0)| times the gradient
    of the square, which is twice as much.

    Each step calls the network twice and differentiates it once.

    Args:
        denoiser: The denoiser.
        problem: The measurements; any operator.
        w: Strength of classifier-free guidance; 0 is off.
        zeta: Step size, at least 0; 0 is off.
        clip: Bound on x_0 inside the norm, as in their code (None: unbounded).
    """

    needs_inverse = False
    requires_reverse = (
        "zeta shifts the means of ancestral steps, but {sampler} has none; try sampler=ddpm"
    )

    def __init__(
        self,
        denoiser: DenoiserLike,
        problem: InverseProblem,
        w: Strength = 0.0,
        zeta: NonNegative = 1.0,
        clip: Positive | None = 1.0,
    ) -> None:
        super().__init__(denoiser, problem, w)
        self.zeta, self.clip = zeta, clip

    def reverse(
        self, estimate: Estimate, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition = Condition()
    ) -> Gaussian:
        """p(x_s | x_t, y)"""
        step = self.denoiser.reverse(estimate, x_t, t, s, cond)
        return step._replace(mean=step.mean - self.zeta * self.gradient(x_t, t, cond))

    @torch.inference_mode(False)
    @torch.enable_grad()
    def gradient(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Gradient of |y - A(x_0)| with respect to x_t, (B, ...)."""
        leaf, estimate = self.linearize(x_t, t, cond)
        x0 = estimate.x0 if self.clip is None else estimate.x0.clamp(-self.clip, self.clip)
        residual = self.measurement(x0, cond) - self.operator.forward(x0)
        norm = torch.linalg.vector_norm(residual.flatten(1), dim=1)
        (gradient,) = torch.autograd.grad(norm.sum(), leaf)
        return gradient


@check_ranges
class PiGDM(InverseGuidance):
    """Pseudoinverse guidance (Song et al., 2023).

    They approximate p(x_0 | x_t) by N(estimate, r_t^2 I), and so p(y | x_t) by N(A x_0, r_t^2 A A^T
    + noise^2 I). Its score moves the estimate by (sigma_t^2 / alpha_t) J^T A^T (r_t^2 A A^T +
    noise^2 I)^-1 (y - A x_0) with the Jacobian J of x_0 in x_t, for any sampler. Their algorithm 1
    weights the score for DDIM in few steps.

    r_t^2 = data_std^2 sigma_t^2 / (data_std^2 alpha_t^2 + sigma_t^2). With data_std = 1 it is their
    sigma_t^2 / (1 + sigma_t^2) for variance exploding. Data N(m, data_std^2 I) have this variance,
    so the guided estimate is then exactly E[x_0 | x_t, y].

    Args:
        denoiser: The denoiser.
        problem: The measurements; a linear operator.
        w: Strength of classifier-free guidance; 0 is off.
        data_std: Standard deviation of the data.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        problem: InverseProblem,
        w: Strength = 0.0,
        data_std: Positive = 1.0,
    ) -> None:
        super().__init__(denoiser, problem, w)
        self.data_std = data_std

    @torch.inference_mode(False)
    @torch.enable_grad()
    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        leaf, estimate = self.linearize(x_t, t, cond)
        alpha, sigma = self.process.alpha_sigma(t)
        signal = (self.data_std * alpha) ** 2
        variance = (self.data_std * sigma) ** 2 / (signal + sigma**2)
        x0 = estimate.x0.detach()
        residual = self.measurement(x0, cond) - self.operator.forward(x0)
        ratio = per_pixel(self.noise**2 / variance, x0)
        vector = self.operator.inverse(residual, ratio) / per_pixel(variance, x0)
        (score,) = torch.autograd.grad(estimate.x0, leaf, vector)
        output = estimate.variance_output
        # At alpha = 0, x_t contains no information about x_0 and J is 0.
        shift = per_pixel(torch.where(alpha > 0, sigma**2 / alpha, 0), x0) * score
        return Estimate(x0 + shift, None if output is None else output.detach())
