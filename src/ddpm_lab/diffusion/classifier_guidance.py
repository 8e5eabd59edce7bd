"""Guidance by a classifier of noisy images."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike, DiffusionModel, Estimate, network_time
from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.guidance import Guidance, Strength, check_compatible
from ddpm_lab.diffusion.process import ForwardProcess, per_pixel, per_sample
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.ranges import check_ranges


class BaseClassifier(DiffusionModel):
    """log p(y | x_t), the class of a noisy image of a forward process, in pixels."""

    classes: int

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return log p(y | x_t), (B, classes), for noisy x_t (B, ...) at times t (B,)."""


class NoisyClassifier(BaseClassifier):
    """A network that classifies noisy images.

    Like a denoiser's network it receives x_t at unit variance and time rescaled to 0..1000.
    """

    def __init__(
        self,
        network: nn.Module,
        process: ForwardProcess,
        shape: tuple[int, ...],
        classes: int,
        captions: Sequence[Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.process, self.captions = network, process, captions
        self.shape, self.classes = shape, classes

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        x = x_t / per_pixel(self.process.scale(t), x_t)
        logits: Tensor = self.network(x, network_time(self.process, t), Condition())
        return logits.float().log_softmax(1)


@check_ranges
class ClassifierGuidance(Guidance):
    """Sampling from p(x) p(y | x)^scale with a classifier's gradient (Dhariwal & Nichol, 2021).

    A scale of 0 is off. On a conditional denoiser it strengthens the condition.

    `form="score"`: eps - sigma_t scale grad (their algorithm 2), for any sampler.
    `form="mean"`: the mean of a step + scale variance grad (their algorithm 1), for samplers with
    `uses_reverse`. `at` is where the gradient is taken: "x_t" (their code) or "mean" (their text).

    Raises ValueError unless image shape, classes and schedule of the classifier agree.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        classifier: BaseClassifier,
        scale: Strength = 1.0,
        form: str = "score",
        at: str = "x_t",
    ) -> None:
        if form not in ("score", "mean"):
            raise ValueError(f"form={form} is not one of score, mean")
        if at not in ("x_t", "mean") or (at == "mean" and form == "score"):
            raise ValueError(f"at={at} must be x_t, or with form=mean also mean")
        check_compatible("classifier", classifier, denoiser, require_classes=False)
        super().__init__(denoiser)
        self.classifier = classifier.to(denoiser.process.table.device).eval()
        self.classes = classifier.classes
        self.scale, self.form, self.at = scale, form, at
        if form == "mean":
            self.requires_reverse = (
                "form=mean shifts the means of ancestral steps, but {sampler} has none; "
                "try sampler=ddpm or guidance.form=score"
            )

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        estimate = self.denoiser(x_t, t, cond)
        if self.form == "mean" or self.scale == 0:
            return estimate
        # eps - sigma scale grad, expressed in x_0.
        alpha, sigma = self.process.alpha_sigma(t)
        # An x_t without signal (alpha = 0) does not depend on x_0.
        strength = self.scale * torch.where(alpha > 0, sigma**2 / alpha, 0)
        shift = per_pixel(strength, x_t) * self.gradient(x_t, t, cond)
        return estimate._replace(x0=estimate.x0 + shift)

    def reverse(
        self, estimate: Estimate, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition = Condition()
    ) -> Gaussian:
        """p(x_s | x_t, y)"""
        step = self.denoiser.reverse(estimate, x_t, t, s, cond)
        if self.form == "score" or self.scale == 0:
            return step
        # The classifier was not trained at t = 0: the step to the data uses t = 1.
        x, time = (x_t, t) if self.at == "x_t" else (step.mean, s.clamp(min=1))
        shift = self.scale * step.log_var.exp() * self.gradient(x, time, cond)
        return step._replace(mean=step.mean + shift)

    def gradient(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """grad_x log p(y | x), (B, ...); 0 for rows whose label is dropped."""
        if cond.label is None:
            raise UserError(f"guidance.scale={self.scale:g} needs labels, but sampling has none")
        t = per_sample(t, x)
        # Tensors of inference mode cannot take part in autograd, so clone them.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.clone().requires_grad_()
            log_prob = self.classifier(leaf, t.clone()).gather(1, cond.label.clone()[:, None])
            (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
        return cond.replace_dropped(gradient, 0)
