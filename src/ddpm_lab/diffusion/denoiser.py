"""The one thing that training and sampling know: (x_t, t, condition) -> an estimate of x_0."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition, Conditioner, Unconditional
from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.predictions import Prediction
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.variances import Variance


class Estimate(NamedTuple):
    """What a denoiser believes. x_0 is the canonical form; eps follows from it, so the two cannot disagree."""

    x0: Tensor
    """(B, ...)"""
    variance_output: Tensor | None = None
    """(B, ...), what a network with a learned variance says of it, else None"""


class NetworkOutput(NamedTuple):
    """The network's own words."""

    prediction: Tensor
    """(B, ...), in the terms of its prediction"""
    variance_output: Tensor | None
    """(B, ...), of a network with a learned variance"""
    preconditioning: tuple[Tensor, Tensor]
    """a and b of x_0 = a x_t + b own"""


class DenoiserLike(Protocol):
    """`Denoiser`, every guidance around one, and the exact denoisers."""

    process: ForwardProcess
    shape: tuple[int, ...] | None
    """That of x_0, without the batch, where it is known"""
    space: str
    """What tells spaces of latents apart; "" for that of the data"""
    classes: int | None
    """How many labels it understands; None: none"""
    supports_cfg: bool
    """Whether it gives a meaningful answer where the condition is dropped"""
    self_conditioning: bool
    """Whether it wants to hear its guess before (self-conditioning)"""
    cond_dims: Mapping[str, int]
    """By which it hears a condition; see `Conditioner`"""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = ...) -> Estimate: ...

    def reverse(
        self, estimate: Estimate, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition = ...
    ) -> Gaussian: ...


class BaseDenoiser(nn.Module, ABC):
    """An estimate of x_0 and a variance: together they are a step of the reverse chain."""

    shape: tuple[int, ...] | None = None
    """That of x_0, without the batch, where it is known"""
    space = ""
    """What tells spaces of latents apart; "" for that of the data"""
    classes: int | None = None
    """How many labels it understands; None: none"""
    cond_dims: Mapping[str, int] = MappingProxyType({})
    """By which it hears a condition; see `Conditioner`"""
    self_conditioning = False
    """Whether it wants to hear its guess before (self-conditioning)"""
    origin = ""
    """Where it was read from, for reports"""

    def __init__(self, process: ForwardProcess, variance: Variance, supports_cfg: bool) -> None:
        super().__init__()
        self.process, self.variance, self.supports_cfg = process, variance, supports_cfg
        self.conditioner: Conditioner = Unconditional()

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate: ...

    def reverse(
        self, estimate: Estimate, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition = Condition()
    ) -> Gaussian:
        """p(x_s | x_t): the posterior with the guess in place of the truth."""
        log_var = self.variance.log_var(self.process, estimate.variance_output, x_t, t, s)
        return Gaussian(self.process.posterior_mean(estimate.x0, x_t, t, s), log_var)


class Denoiser(BaseDenoiser):
    """A network, what it is told, and what its answers mean.

    Running the network (`answer`), reading x_0 out of it (`read`) and turning that into a step (`reverse`) are three
    calls: a loss needs the first, a sampler all of them.
    """

    preconditioning: Tensor
    """(T + 1, 3) float64: 1 / scale, and what its prediction's `reading` is at all times"""

    def __init__(
        self,
        network: nn.Module,
        process: ForwardProcess,
        prediction: Prediction,
        variance: Variance,
        conditioner: Conditioner | None = None,
        shape: tuple[int, ...] | None = None,
        space: str = "",
    ) -> None:
        conditioner = Unconditional() if conditioner is None else conditioner
        super().__init__(process, variance, supports_cfg=conditioner.dropout > 0)
        self.shape, self.space = shape, space
        self.classes, self.cond_dims = conditioner.classes, conditioner.cond_dims
        self.network, self.self_conditioning = network, getattr(network, "self_conditioning", False)
        self.prediction, self.conditioner = prediction, conditioner
        t = torch.arange(process.steps + 1, device=process.table.device)
        preconditioning = torch.stack(
            [1 / process.scale(t), *prediction.preconditioning(process, t)], dim=1
        )
        self.register_buffer("preconditioning", preconditioning, persistent=False)

    def run_network(self, x_t: Tensor, t: Tensor, cond: Condition) -> NetworkOutput:
        """It sees x_t at unit variance and time on a scale of 1000, so that its weights suit any schedule and T."""
        numbers = self.preconditioning[t].to(x_t.dtype).view(-1, 3, *[1] * (x_t.ndim - 1))
        narrowed, a, b = numbers.unbind(1)
        said = self.network(narrowed * x_t, t * (1000 / self.process.steps), cond).to(x_t.dtype)
        if said.shape == x_t.shape:
            return NetworkOutput(said, None, (a, b))
        prediction, variance_output = said.chunk(2, dim=1)
        return NetworkOutput(prediction, variance_output, (a, b))

    def to_estimate(self, output: NetworkOutput, x_t: Tensor) -> Estimate:
        a, b = output.preconditioning
        return Estimate(torch.addcmul(a * x_t, b, output.prediction), output.variance_output)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        return self.to_estimate(self.run_network(x_t, t, cond), x_t)
