"""Guidance by a classifier of noisy images."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike, Estimate
from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.guidance import Guidance, check_compatible, check_strength
from ddpm_lab.diffusion.process import ForwardProcess, per_pixel, per_sample
from ddpm_lab.utils.errors import UserError


class NoisyClassifierLike(Protocol):
    """`Classifier`, and the exact ones."""

    shape: tuple[int, ...] | None
    space: str
    classes: int | None
    process: ForwardProcess

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(y | x_t), (B, classes), for noisy x_t (B, ...) at times t (B,)."""
        ...


class NoisyClassifier(nn.Module):
    """A network that names the class of noisy images of a process; like a denoiser's it sees x_t at unit variance and
    time on a scale of 1000.
    """

    origin = ""
    """Where it was read from, for reports"""
    space = ""
    """It looks at the data itself"""

    def __init__(
        self,
        network: nn.Module,
        process: ForwardProcess,
        shape: tuple[int, ...],
        classes: int,
        captions: Sequence[Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.captions = captions
        self.network, self.process = network, process
        self.shape: tuple[int, ...] | None = shape
        self.classes: int | None = classes

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(y | x_t), (B, classes), for x_t (B, ...) at t (B,)."""
        x = x_t / per_pixel(self.process.scale(t), x_t)
        said: Tensor = self.network(x, t * (1000 / self.process.steps), Condition())
        return said.float().log_softmax(1)


class ClassifierGuidance(Guidance):
    """Sampling from p(x) p(y | x)^scale by the gradient of a classifier of noisy images (Dhariwal & Nichol, 2021); 0
    is off, and where the model hears the label as well, that is strengthened.

    `form` says where the gradient enters. "score": eps - noise_t scale grad (their algorithm 2), for any sampler.
    "mean": the mean of a step + scale sigma^2 grad (their algorithm 1), for samplers that draw from it; `at` says
    whether the gradient is that at "x_t", as in their code, or at the "mean", as in their text. Raises ValueError where
    the classifier is of other images, classes or another schedule.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        classifier: NoisyClassifierLike,
        scale: float = 1.0,
        form: str = "score",
        at: str = "x_t",
    ) -> None:
        check_strength(scale=scale)
        if form not in ("score", "mean"):
            raise ValueError(f"form={form} is not one of score, mean")
        if at not in ("x_t", "mean") or (at == "mean" and form == "score"):
            raise ValueError(f"at={at} must be x_t, or with form=mean also mean")
        if classifier.classes is None:
            raise ValueError("classifier knows no classes")
        check_compatible("classifier", classifier, denoiser, hears=False)
        super().__init__(denoiser)
        self.classifier, self.classes, self.scale, self.form, self.rsample = (
            classifier,
            classifier.classes,
            scale,
            form,
            at,
        )
        self.reversing = form == "mean"
        if isinstance(classifier, nn.Module):
            classifier.to(denoiser.process.table.device).eval()

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        estimate = self.denoiser(x_t, t, cond)
        if self.form == "mean" or self.scale == 0:
            return estimate
        # eps - noise scale grad, said of x_0.
        alpha, noise = self.process.alpha_sigma(t)
        push = per_pixel(self.scale * noise**2 / alpha, x_t) * self.gradient(x_t, t, cond)
        return estimate._replace(x0=estimate.x0 + push)

    def reverse(
        self, estimate: Estimate, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition = Condition()
    ) -> Gaussian:
        """p(x_s | x_t, y)"""
        step = self.denoiser.reverse(estimate, x_t, t, s, cond)
        if self.form == "score" or self.scale == 0:
            return step
        # The classifier has not seen the data itself: the last step asks it at t = 1.
        where, when = (x_t, t) if self.rsample == "x_t" else (step.mean, s.clamp(min=1))
        return step._replace(
            mean=step.mean + self.scale * step.log_var.exp() * self.gradient(where, when, cond)
        )

    def gradient(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """grad_x log p(y | x), (B, ...); 0 where the label was dropped."""
        if cond.label is None:
            raise UserError(
                f"guidance.scale={self.scale:g} needs labels to go to, and there are none"
            )
        t = per_sample(t, x)
        # Clones, because tensors of inference mode cannot take part in a gradient.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.clone().requires_grad_()
            wanted = self.classifier(leaf, t.clone()).gather(1, cond.label.clone()[:, None])
            (gradient,) = torch.autograd.grad(wanted.sum(), leaf)
        return (
            gradient
            if cond.dropped is None
            else torch.where(per_pixel(cond.dropped, x).bool(), 0, gradient)
        )
