"""The denoiser, shared by training and sampling: (x_t, t, condition) -> x_0 estimate."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition, Conditioner, Unconditional
from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.predictions import Eps, Prediction
from ddpm_lab.diffusion.process import ForwardProcess, compute_once, per_sample
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.diffusion.variances import BetaTilde, Variance
from ddpm_lab.utils.errors import UserError


class Estimate(NamedTuple):
    """Output of a denoiser. eps, v and score are derived from x_0, so they cannot disagree."""

    x0: Tensor
    """(B, ...)"""
    variance_output: Tensor | None = None
    """(B, ...), the network's output for a learned variance, else None"""


class NetworkOutput(NamedTuple):
    """Output of the network, before it is converted to x_0."""

    prediction: Tensor
    """(B, ...), the quantity of `Prediction`"""
    variance_output: Tensor | None
    """(B, ...), for a learned variance, else None"""
    preconditioning: tuple[Tensor, Tensor]
    """c_skip and c_out of x_0 = c_skip x_t + c_out prediction"""


class DenoiserLike(Protocol):
    """Interface of `Denoiser`, the guidances and the analytic denoisers."""

    process: ForwardProcess
    shape: tuple[int, ...] | None
    """Shape of x_0 without the batch dimension, if fixed"""
    space: str
    """Fingerprint of the latent space; "" for pixels"""
    classes: int | None
    """Number of labels; None: unlabeled"""
    supports_cfg: bool
    """True if training dropped conditions, so that dropped ones are meaningful"""
    self_conditioning: bool
    """True if the previous x_0 estimate is an input"""
    cond_dims: Mapping[str, int]
    """Sizes of the condition; see `Conditioner`"""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = ...) -> Estimate:
        """Estimate x_0 from x_t (B, ...) at times t, (B,) or () as in `ForwardProcess`."""
        ...

    def reverse(
        self, estimate: Estimate, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition = ...
    ) -> Gaussian:
        """Return p(x_s | x_t)."""
        ...


class DiffusionModel(nn.Module, ABC):
    """A denoiser, or a classifier of noisy images."""

    process: ForwardProcess
    shape: tuple[int, ...] | None = None
    classes: int | None = None
    space = ""
    origin = ""
    """Run that it was loaded from, for reports"""
    schedule = ""
    """Overrides of its schedule, for messages"""


class BaseDenoiser(DiffusionModel):
    """An x_0 estimate and a variance, which together define the reverse step."""

    cond_dims: Mapping[str, int] = MappingProxyType({})
    self_conditioning = False

    def __init__(self, process: ForwardProcess, variance: Variance, supports_cfg: bool) -> None:
        super().__init__()
        self.process, self.variance, self.supports_cfg = process, variance, supports_cfg
        self.conditioner: Conditioner = Unconditional()

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        """Estimate x_0 from x_t (B, ...) at times t, int64 in 1..T or floats in (0, T].

        `t` has shape (B,), or () on the CPU for all samples at once.
        """

    def reverse(
        self, estimate: Estimate, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition = Condition()
    ) -> Gaussian:
        """p(x_s | x_t): the mean of q(x_s | x_t, x_0) at the x_0 estimate, with `variance`."""
        process = self.process
        log_var = self.variance.log_var(process, estimate.variance_output, x_t, t, s)
        return Gaussian(process.posterior_mean(estimate.x0, x_t, t, s), log_var)


class Denoiser(BaseDenoiser):
    """A network with its prediction, variance and conditioner.

    Running the network (`run_network`), converting its output to x_0 (`to_estimate`) and making a
    step (`reverse`) are separate calls: a loss needs the first, a sampler needs all of them.

    Args:
        network: A module (x, t, cond) -> output. x (B, ...) has unit variance, and t (B,) is on a
            scale of 1000. The output has the shape of x, or twice the channels with a learned
            variance.
        process: The forward process, on the device of the network.
        prediction: The quantity that the network predicts.
        variance: The variance of a reverse step.
        conditioner: Map from a batch to a condition, which determines classes and dropout
            (None: unconditional).
        shape: Shape of x_0 without the batch, for guidance by another model (None: any).
        space: Fingerprint of the latent space of x_0; "" for pixels.

    Raises UserError if the prediction does not determine x_0 where x_T is noise alone.
    """

    preconditioning: Tensor
    """(T + 1, 3) float64: c_in = 1 / scale, c_skip, c_out"""
    numbers: dict[tuple[Any, ...], Any]
    """Cache of functions with `compute_once`"""

    def __init__(
        self,
        network: nn.Module,
        process: ForwardProcess,
        prediction: Prediction = Eps(),
        variance: Variance = BetaTilde(),
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
        self.numbers = {}
        t = torch.arange(process.steps + 1, device=process.table.device)
        preconditioning = self._precondition(t)
        if not preconditioning[1:].isfinite().all():
            name = type(prediction).__name__.lower()
            raise UserError(
                f"prediction={name} does not determine x_0 at t = {process.steps}, where x_t is "
                "noise alone; try prediction=velocity or v"
            )
        self.register_buffer("preconditioning", preconditioning, persistent=False)

    @compute_once
    def _precondition(self, t: Tensor) -> Tensor:
        """Return c_in, c_skip and c_out at `t` (...), (..., 3) float64."""
        c_skip, c_out = self.prediction.preconditioning(self.process, t)
        return torch.stack([1 / self.process.scale(t), c_skip, c_out], dim=-1)

    def run_network(self, x_t: Tensor, t: Tensor, cond: Condition) -> NetworkOutput:
        """Run the network on c_in x_t, which has unit variance, and on time rescaled to 0..1000.

        Its weights therefore fit any schedule and any T.
        """
        from_table = t.ndim and not t.is_floating_point()
        numbers = self.preconditioning[t] if from_table else self._precondition(t)
        numbers = numbers.to(x_t.dtype).view(*t.shape, 3, *[1] * (x_t.ndim - 1) * t.ndim)
        c_in, c_skip, c_out = numbers.unbind(t.ndim)
        time = per_sample(network_time(self.process, t), x_t)
        output = self.network(c_in * x_t, time, cond).to(x_t.dtype)
        if output.shape == x_t.shape:
            return NetworkOutput(output, None, (c_skip, c_out))
        prediction, variance_output = output.chunk(2, dim=1)
        return NetworkOutput(prediction, variance_output, (c_skip, c_out))

    def loss(
        self,
        x0: Tensor,
        cond: Condition = Condition(),
        noise: NoiseSampler = torch.randn_like,
    ) -> Tensor:
        """L_simple of `x0` (B, ...) in [-1, 1] at uniform times, () (Ho et al., 2020, algorithm 1).

        Rows of `cond` are dropped with the probability of the conditioner, for classifier-free
        guidance. See `objectives` for other losses. Raises ValueError if `x0` or `cond` do not fit.
        """
        if not x0.is_floating_point():
            raise ValueError(f"x0 must be numbers in [-1, 1] (got {x0.dtype}); try x0 / 127.5 - 1")
        check_inputs(self, len(x0), cond)
        t, eps = torch.randint(1, self.process.steps + 1, x0.shape[:1], device=x0.device), noise(x0)
        x_t = self.process.diffuse(x0, eps, t)
        output = self.run_network(x_t, t, cond.drop(self.conditioner.dropout, noise))
        target = self.prediction.target(self.process, x0, eps, x_t, t)
        return F.mse_loss(output.prediction, target)

    def to_estimate(self, output: NetworkOutput, x_t: Tensor) -> Estimate:
        """Convert a network output to x_0 = c_skip x_t + c_out prediction."""
        c_skip, c_out = output.preconditioning
        # The last factor may be a number on the CPU, with images on a GPU.
        x0 = torch.addcmul(c_skip * x_t, output.prediction, c_out)
        return Estimate(x0, output.variance_output)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        return self.to_estimate(self.run_network(x_t, t, cond), x_t)


@compute_once
def network_time(process: ForwardProcess, t: Tensor) -> Tensor:
    """Rescale times to the network's scale of 1000, float32 in the shape of `t`."""
    return (t * (1000 / process.steps)).float()


def check_inputs(denoiser: DenoiserLike, rows: int, cond: Condition) -> None:
    """Raise ValueError unless `cond` has what `denoiser` takes, for each of `rows` > 0 samples."""
    if rows < 1:
        raise ValueError(f"the number of samples must be at least 1 (got {rows})")
    if cond.value is None:
        if denoiser.cond_dims:
            raise ValueError(
                "cond is empty, but this network takes one; try Condition(label), or "
                "Condition(label).null() for the unconditional estimate"
            )
        return
    if len(cond.value) != rows:
        raise ValueError(f"cond must have {rows} rows, as many as samples (got {len(cond.value)})")
    if cond.label is None:
        return
    if denoiser.classes is None:
        raise ValueError("cond has labels, but this denoiser has no classes; try Condition()")
    if cond.label.device.type == "cpu":  # the program would wait for a GPU
        low, high = cond.label.aminmax()
        if low < 0 or high >= denoiser.classes:
            raise ValueError(f"labels must be in 0..{denoiser.classes - 1} (got {low}..{high})")


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the context."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
