"""Data whose denoiser is known in closed form, the exact law of what a sampler makes of it, and the exact bound."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import BaseDenoiser, Estimate
from ddpm_lab.diffusion.process import ForwardProcess, per_pixel
from ddpm_lab.diffusion.samplers import Sampler, Step
from ddpm_lab.diffusion.variances import BetaTilde, LearnedRange, Variance


class GaussianDenoiser(BaseDenoiser):
    """E[x_0 | x_t] for x_0 ~ N(mean, covariance); x is (B, ...) of d numbers, mean (d,), covariance (d, d), float64."""

    def __init__(
        self, process: ForwardProcess, variance: Variance, mean: Tensor, covariance: Tensor
    ) -> None:
        super().__init__(process, variance, supports_cfg=True)
        self.mean = mean
        self.eigenvalues, self.axes = torch.linalg.eigh(covariance)
        if self.eigenvalues.min() < -1e-12 * self.eigenvalues.max():
            raise ValueError("covariance must be positive semi-definite")

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        alpha, noise = (number[:, None] for number in self.process.alpha_sigma(t))
        gain = alpha * self.eigenvalues / (alpha**2 * self.eigenvalues + noise**2)
        centred = (x_t.double().flatten(1) - alpha * self.mean) @ self.axes
        return Estimate((self.mean + gain * centred @ self.axes.T).view_as(x_t).to(x_t.dtype))

    def mse(self) -> Tensor:
        """E|x_0 - E[x_0 | x_t]|^2 per dimension, (T + 1,) float64."""
        alpha, noise = (number[:, None] for number in self.process.table[:, :2].unbind(1))
        return (noise**2 * self.eigenvalues / (alpha**2 * self.eigenvalues + noise**2)).mean(1)

    def entropy(self) -> float:
        """Of the data, in bits/dim."""
        return (2 * math.pi * math.e * self.eigenvalues).log2().mean().item() / 2

    def second_moment(self) -> float:
        """E[x_0^2], per dimension."""
        return (self.mean**2 + self.eigenvalues).mean().item()


class Mixture(NamedTuple):
    """A mixture of Gaussians N(mean_k, std^2 I); with std = 0, a finite data set."""

    means: Tensor
    """(K, d) float64"""
    weights: Tensor
    """(K,) float64, which sum to 1"""
    std: float
    labels: Tensor | None
    """(K,) int64, the class of each component"""

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points (count, d) float64, and the component of each (count,)."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[component] + self.std * z, component

    def labelled(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Points (count, d) float64, and the label of each (count,), where there are labels."""
        x, component = self.sample(count, generator)
        return x, None if self.labels is None else self.labels[component]

    def second_moment(self) -> float:
        """E[x_0^2], per dimension."""
        return (self.weights @ self.means.square()).mean().item() + self.std**2


class MixtureDenoiser(BaseDenoiser):
    """E[x_0 | x_t] for a mixture. Where its components have labels, a condition that is given admits those of its
    label.
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
        """log w_k q(x_t | k), but for what is the same for all k, of each component that the condition admits (else
        -inf), (B, K).
        """
        alpha, noise = (number[:, None] for number in self.process.alpha_sigma(t))
        gain = alpha / ((alpha * self.std) ** 2 + noise**2)
        # |x_t - signal mean_k|^2 multiplied out, as one product of matrices.
        rows = torch.cat(
            [gain * x_t.double().flatten(1), -0.5 * alpha * gain, torch.ones_like(gain)], dim=1
        )
        logits = rows @ self.table.T
        if cond.label is None or self.labels is None:
            return logits
        admitted = cond.label[:, None] == self.labels
        if cond.dropped is not None:
            admitted |= cond.dropped[:, None]
        return logits.masked_fill(~admitted, -math.inf)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        alpha, noise = (number[:, None] for number in self.process.alpha_sigma(t))
        gain = alpha * self.std**2 / ((alpha * self.std) ** 2 + noise**2)
        mean = self.logits(x_t, t, cond).softmax(1) @ self.means
        x0 = mean + gain * (x_t.double().flatten(1) - alpha * mean)
        return Estimate(x0.view_as(x_t).to(x_t.dtype))

    def mse(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Tensor:
        """E[|x_0 - E[x_0 | x_t]|^2 | x_t] per dimension, (B,)."""
        alpha, noise = self.process.alpha_sigma(t)
        shrink = noise**2 / (
            (alpha * self.std) ** 2 + noise**2
        )  # of the distance between means, given x_t
        weights = self.logits(x_t, t, cond).softmax(1)
        between = weights @ self.means.square().sum(1) - (weights @ self.means).square().sum(1)
        return self.std**2 * shrink + shrink**2 * between / self.means.shape[1]

    def log_prob(self, x0: Tensor, label: Tensor | None = None) -> Tensor:
        """log p(x_0), or log p(x_0 | label), in nats, (B,), of a mixture with std > 0."""
        at_0 = torch.zeros(len(x0), dtype=torch.int64)
        exponents = (
            -0.5 * (x0.double() / self.std).square()
            - 0.5 * math.log(2 * math.pi)
            - math.log(self.std)
        )
        log_prob = self.logits(x0, at_0, Condition(label)).logsumexp(1) + exponents.flatten(1).sum(
            1
        )
        if label is None or self.labels is None:
            return log_prob
        return log_prob - torch.where(
            label[:, None] == self.labels, self.log_weights, -math.inf
        ).logsumexp(1)


class MixtureClassifier:
    """log p(y | x_t) for a mixture whose components have labels."""

    shape: tuple[int, ...] | None = None
    space = ""
    origin = "exact"

    def __init__(self, process: ForwardProcess, mixture: Mixture) -> None:
        assert mixture.labels is not None
        self.process, self.classes = process, int(mixture.labels.max()) + 1
        self.denoiser, self.labels = MixtureDenoiser(process, BetaTilde(), mixture), mixture.labels

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, classes)"""
        logits = self.denoiser.logits(x_t, t)
        of = [logits[:, self.labels == label].logsumexp(1) for label in range(self.classes)]
        return torch.stack(of, dim=1).log_softmax(1)


def propagate(sampler: Sampler, denoiser: GaussianDenoiser) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of the x_0 that `sampler` makes, without sampling.

    With a Gaussian denoiser and no clipping a step is affine in x_t, in the x of the step before (which multistep
    solvers remember) and in each draw of noise, and acts on each principal axis alone. So all steps are probed in one
    batch, but for the first, which has none before, and the last.
    """
    times = sampler.timesteps(denoiser.process.steps)
    cuts = [0, 1, max(len(times) - 2, 1), len(times) - 1]
    parts = [_affine(sampler, denoiser, times, i, j) for i, j in pairwise(cuts) if i < j]
    mean, before = torch.zeros(2, len(denoiser.mean), dtype=torch.float64)
    var, cov, var_before = (
        sampler.prior(denoiser.process, torch.ones(1, 1, dtype=torch.float64))[0] ** 2,
        mean,
        mean,
    )
    for offset, of_x, of_before, added in zip(
        *(torch.cat(part) for part in zip(*parts, strict=True)), strict=True
    ):
        mean, before = offset + of_x * mean + of_before * before, mean
        to = of_x**2 * var + 2 * of_x * of_before * cov + of_before**2 * var_before + added
        var, cov, var_before = to, of_x * var + of_before * cov, var
    return denoiser.axes @ mean, (denoiser.axes * var) @ denoiser.axes.T


def _affine(
    sampler: Sampler, denoiser: GaussianDenoiser, times: Sequence[int], first: int, end: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the steps numbered `first` to `end`, exclusive: what each makes of nothing, its coefficients of x_t and of the
    x before, and the variance of its noise, on each principal axis, (K, d) each.
    """
    t, s, u = (torch.tensor(times[max(first + i, 0) :][: end - first]) for i in (0, 1, -1))
    along, probes = (
        denoiser.axes.sum(1),
        3,
    )  # 1 on every axis; nothing, x_t, the x before, then every draw of noise

    def respond(rows: int) -> tuple[Tensor, int]:
        x, before = torch.zeros(2, rows, len(t), len(along), dtype=torch.float64)
        x[1], before[2] = along, along
        draws = 0

        def noise(like: Tensor) -> Tensor:
            nonlocal draws
            z = torch.zeros(rows, len(t), len(along), dtype=torch.float64)
            z[probes + draws : probes + draws + 1] = along  # none where rows do not reach so far
            draws += 1
            return z.flatten(0, 1)

        def step(x: Tensor, t: Tensor, s: Tensor, earlier: Step | None) -> Step:
            x, t, s = x.flatten(0, 1), t.repeat(rows), s.repeat(rows)
            return Step(
                x,
                t,
                s,
                sampler.estimate(denoiser, x, t, Condition()),
                end == len(times) - 1,
                earlier,
            )

        told = step(x, t, s, step(before, u, t, None) if first else None)
        return sampler.step(denoiser, told, Condition(), noise).view_as(x) @ denoiser.axes, draws

    made, _ = respond(probes + respond(probes)[1])
    response = made[1:] - made[0]
    return made[0], response[0], response[1], response[2:].square().sum(0)


def analytic_vlb(
    process: ForwardProcess,
    variance: Variance,
    times: Sequence[int],
    mse: Tensor,
    second_moment: float,
    variance_output: Tensor | None = None,
) -> dict[str, Tensor]:
    """The expected bound of real-valued data in bits/dim, in closed form: "L_T" (), and "terms" (K,) of the chain
    `times`, the last of them -log p(x_0 | x_t), a density.

    Of the data it needs only E[x_0^2], `second_moment`, and of the denoiser only its `mse` (T + 1,), both per
    dimension, because the variances are the same in all. `spread` (K,) is what a learned variance is told at each step.
    """
    t, s = torch.tensor([*pairwise(times)], device=mse.device).T
    alpha, noise = process.alpha_sigma(t[:1])
    reached = (alpha**2 * second_moment + noise**2) / process.scale(t[:1]) ** 2
    prior = 0.5 * (reached - 1 - 2 * (noise / process.scale(t[:1])).log())
    log_var = variance.log_var(process, variance_output, mse[t], t, s)
    missed = process.posterior_coef_x0(t, s) ** 2 * mse[t]
    ratio = process.beta_tilde(t, s).clamp(min=1e-300).log() - log_var
    kl = 0.5 * (torch.expm1(ratio) - ratio + missed * (-log_var).exp())
    decoder = 0.5 * (math.log(2 * math.pi) + log_var + mse[t] * (-log_var).exp())
    return {"L_T": prior[0] / math.log(2), "terms": torch.where(s == 0, decoder, kl) / math.log(2)}


def optimal_variance_output(
    process: ForwardProcess, optimum: Variance, times: Sequence[int]
) -> Tensor:
    """What `LearnedRange` must be told in each step of `times` to come nearest to `optimum` within its range, (K,)."""
    t, s = torch.tensor([*pairwise(times)], device=process.table.device).T
    like = torch.zeros(len(t), dtype=torch.float64, device=process.table.device)
    low, high = (LearnedRange().log_var(process, like + end, like, t, s) for end in (-1, 1))
    wanted = optimum.log_var(process, None, like, t, s)
    return (
        (2 * (wanted - low) / (high - low) - 1).nan_to_num(0).clamp(-1, 1)
    )  # one leap from T to 0 has no range


class OptimalRange(Variance):
    """What `LearnedRange` is where its network says `optimal_spread`: `optimum`, held within the range."""

    def __init__(self, optimum: Variance) -> None:
        self.optimum = optimum

    def log_var(
        self,
        process: ForwardProcess,
        variance_output: Tensor | None,
        like: Tensor,
        t: Tensor,
        s: Tensor,
    ) -> Tensor:
        low, high = process.log_beta_tilde(t, s), process.beta(t, s).log()
        return per_pixel(self.optimum.log_var(process, None, low, t, s).clamp(low, high), like)
