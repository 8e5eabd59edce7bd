"""Data with a denoiser in closed form: Gaussians and mixtures of Gaussians."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lab.diffusion.classifier_guidance import BaseClassifier
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import BaseDenoiser, Estimate
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.variances import BetaTilde, Variance


class GaussianDenoiser(BaseDenoiser):
    """E[x_0 | x_t] for x_0 ~ N(mean, covariance).

    Args:
        process: The forward process.
        variance: The variance of a reverse step, which DDPM uses.
        mean: (d,) float64; x is (B, ...) of d numbers.
        covariance: (d, d) float64, or (d,), the diagonal of a diagonal one.

    Raises ValueError unless the covariance is positive semi-definite.
    """

    axes: Tensor | None
    """Principal axes as columns, (d, d); None if they are those of x"""

    def __init__(
        self, process: ForwardProcess, variance: Variance, mean: Tensor, covariance: Tensor
    ) -> None:
        super().__init__(process, variance, supports_cfg=True)
        self.mean = mean
        if covariance.ndim == 1:
            self.eigenvalues, self.axes = covariance, None
        else:
            self.eigenvalues, self.axes = torch.linalg.eigh(covariance)
        if self.eigenvalues.min() < -1e-12 * self.eigenvalues.max():
            raise ValueError("covariance must be positive semi-definite")

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        alpha, sigma = (number.view(-1, 1) for number in self.process.alpha_sigma(t))
        gain = alpha * self.eigenvalues / (alpha**2 * self.eigenvalues + sigma**2)
        deviation = self.to_axes(x_t.double().flatten(1) - alpha * self.mean)
        x0 = self.mean + self.from_axes(gain * deviation)
        return Estimate(x0.view_as(x_t).to(x_t.dtype))

    def to_axes(self, x: Tensor) -> Tensor:
        """Return the coordinates of `x` (..., d) on the principal axes."""
        return x if self.axes is None else x @ self.axes

    def from_axes(self, coordinates: Tensor) -> Tensor:
        """Return the points (..., d) with these coordinates on the principal axes."""
        return coordinates if self.axes is None else coordinates @ self.axes.T

    def mse(self) -> Tensor:
        """E|x_0 - E[x_0 | x_t]|^2 per dimension, (T + 1,) float64."""
        alpha, sigma = (number[:, None] for number in self.process.table[:, :2].unbind(1))
        return (sigma**2 * self.eigenvalues / (alpha**2 * self.eigenvalues + sigma**2)).mean(1)

    def entropy(self) -> float:
        """Entropy of the data in bits/dim."""
        return (2 * math.pi * math.e * self.eigenvalues).log2().mean().item() / 2

    def second_moment(self) -> float:
        """E[x_0^2] per dimension."""
        return (self.mean**2 + self.eigenvalues).mean().item()


class Mixture(NamedTuple):
    """A mixture of Gaussians N(mean_k, std^2 I); a finite data set if std is 0."""

    means: Tensor
    """(K, d) float64"""
    weights: Tensor
    """(K,) float64, which sum to 1"""
    std: float
    """Standard deviation of each component"""
    labels: Tensor | None
    """(K,) int64, the class of each component"""

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw points (count, d) float64 and return them with their components (count,)."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[component] + self.std * z, component

    def sample_with_labels(
        self, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Draw points (count, d) float64 and return them with their labels (count,), if any."""
        x, component = self.sample(count, generator)
        return x, None if self.labels is None else self.labels[component]

    def second_moment(self) -> float:
        """E[x_0^2] per dimension."""
        return (self.weights @ self.means.square()).mean().item() + self.std**2


class MixtureDenoiser(BaseDenoiser):
    """E[x_0 | x_t, y] for a mixture; a label y restricts it to the components of that label.

    Args:
        process: The forward process.
        variance: The variance of a reverse step, which DDPM uses.
        mixture: The distribution of the data.
    """

    def __init__(self, process: ForwardProcess, variance: Variance, mixture: Mixture) -> None:
        super().__init__(process, variance, supports_cfg=True)
        self.means, self.std, self.labels = mixture.means, mixture.std, mixture.labels
        self.classes = None if self.labels is None else int(self.labels.max()) + 1
        self.log_weights = mixture.weights.log()
        self.table = torch.cat(
            [self.means, self.means.square().sum(1, keepdim=True), self.log_weights[:, None]], dim=1
        )

    def logits(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Tensor:
        """log w_k q(x_t | k) up to a constant, (B, K); -inf for components of other labels."""
        alpha, sigma = (number.view(-1, 1) for number in self.process.alpha_sigma(t))
        gain = alpha / ((alpha * self.std) ** 2 + sigma**2)
        # |x_t - alpha mean_k|^2 expanded into one matrix product.
        scaled = gain * x_t.double().flatten(1)
        constants = torch.cat([-0.5 * alpha * gain, torch.ones_like(gain)], dim=1)
        rows = torch.cat([scaled, constants.expand(len(scaled), 2)], dim=1)
        logits = rows @ self.table.T
        if cond.label is None or self.labels is None:
            return logits
        match = cond.replace_dropped(cond.label[:, None] == self.labels, True)
        return logits.masked_fill(~match, -math.inf)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        alpha, sigma = (number.view(-1, 1) for number in self.process.alpha_sigma(t))
        gain = alpha * self.std**2 / ((alpha * self.std) ** 2 + sigma**2)
        mean = self.logits(x_t, t, cond).softmax(1) @ self.means
        x0 = mean + gain * (x_t.double().flatten(1) - alpha * mean)
        return Estimate(x0.view_as(x_t).to(x_t.dtype))

    def mse(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Tensor:
        """E[|x_0 - E[x_0 | x_t]|^2 | x_t] per dimension, (B,)."""
        alpha, sigma = self.process.alpha_sigma(t)
        shrink = sigma**2 / ((alpha * self.std) ** 2 + sigma**2)
        weights = self.logits(x_t, t, cond).softmax(1)
        between = weights @ self.means.square().sum(1) - (weights @ self.means).square().sum(1)
        return self.std**2 * shrink + shrink**2 * between / self.means.shape[1]

    def log_prob(self, x0: Tensor, label: Tensor | None = None) -> Tensor:
        """log p(x_0), or log p(x_0 | label), in nats, (B,), for std > 0."""
        t = torch.zeros(len(x0), dtype=torch.int64)
        squares = -0.5 * (x0.double() / self.std).square()
        constants = squares - 0.5 * math.log(2 * math.pi) - math.log(self.std)
        logits = self.logits(x0, t, Condition(label))
        log_prob = logits.logsumexp(1) + constants.flatten(1).sum(1)
        if label is None or self.labels is None:
            return log_prob
        match = label[:, None] == self.labels
        return log_prob - torch.where(match, self.log_weights, -math.inf).logsumexp(1)


class MixtureClassifier(BaseClassifier):
    """log p(y | x_t) for a mixture with labels."""

    origin = "exact"

    def __init__(self, process: ForwardProcess, mixture: Mixture) -> None:
        super().__init__()
        assert mixture.labels is not None
        self.process, self.classes = process, int(mixture.labels.max()) + 1
        self.denoiser, self.labels = MixtureDenoiser(process, BetaTilde(), mixture), mixture.labels

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        logits = self.denoiser.logits(x_t, t)
        classes = [logits[:, self.labels == label].logsumexp(1) for label in range(self.classes)]
        return torch.stack(classes, dim=1).log_softmax(1)
