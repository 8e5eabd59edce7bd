"""Training losses: (denoiser, noised batch) -> one loss per sample."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import Denoiser, NetworkOutput
from ddpm_lab.diffusion.likelihood import vlb_term
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import Sampler
from ddpm_lab.diffusion.timestep_samplers import TimestepSampler
from ddpm_lab.utils.errors import UserError, choice_name
from ddpm_lab.utils.ranges import NonNegative, Positive, check_ranges


class NoisedBatch(NamedTuple):
    """A batch with x_t = alpha_t x_0 + sigma_t eps at random times."""

    x0: Tensor
    """(B, ...) in [-1, 1]"""
    eps: Tensor
    """(B, ...)"""
    x_t: Tensor
    """(B, ...)"""
    t: Tensor
    """(B,), int64 in 1..T or floats in [1, T]"""
    cond: Condition
    """The condition, with some rows dropped"""
    bin_width: float | None
    """Width of the bins to which x_0 was quantized, 2 / 255 for bytes; None: continuous"""


class Objective(ABC):
    """A loss per sample, which training averages."""

    trains_variance = False
    """True if a learned variance receives gradients"""
    fits_sampler = False
    """True if the model is trained for the chain of its sampler alone"""
    variance_hint = "objective=hybrid or vlb"
    """Choice to try instead of a learned variance that receives no gradients"""

    def check(
        self, denoiser: Denoiser, timestep_sampler: TimestepSampler, sampler: Sampler
    ) -> None:
        """Raise UserError if the objective cannot train `denoiser` at the times drawn.

        `sampler` is that of the samples after training.
        """
        if denoiser.variance.outputs > 1 and not self.trains_variance:
            raise UserError(
                f"variance={choice_name(denoiser.variance)} is learned from the variational bound, "
                f"which objective={choice_name(self)} does not contain; try {self.variance_hint}"
            )

    @abstractmethod
    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> Tensor:
        """Return the losses, (B,)."""


def prediction_mse(denoiser: Denoiser, batch: NoisedBatch, output: NetworkOutput) -> Tensor:
    """Mean squared error of the predicted quantity (eps, x_0, v, ...) over dimensions, (B,)."""
    target = denoiser.prediction.target(denoiser.process, batch.x0, batch.eps, batch.x_t, batch.t)
    return (output.prediction - target).square().flatten(1).mean(1)


class Simple(Objective):
    """L_simple: the unweighted error of the predicted quantity (Ho et al., 2020, eq. 14)."""

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> Tensor:
        return prediction_mse(denoiser, batch, denoiser.run_network(batch.x_t, batch.t, batch.cond))


class Weighted(Objective):
    """weight(t) |x_0 - x_0 estimate|^2, averaged over dimensions, for any prediction."""

    @abstractmethod
    def weight(self, process: ForwardProcess, t: Tensor) -> Tensor:
        """Return the weights of the x_0 errors, (B,)."""

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> Tensor:
        process, output = denoiser.process, denoiser.run_network(batch.x_t, batch.t, batch.cond)
        error = prediction_mse(denoiser, batch, output)
        scale = denoiser.prediction.x0_error_scale(process, batch.t)
        weight = scale**2 * self.weight(process, batch.t)
        return weight.to(error.dtype) * error


class Snr(Weighted):
    """SNR_t |x_0 error|^2 = |eps error|^2.

    For scores it is sigma^2 |score error|^2 (Song & Ermon, 2019, eq. 5).
    """

    def weight(self, process: ForwardProcess, t: Tensor) -> Tensor:
        return process.log_snr(t).exp()


@check_ranges
class MinSnr(Weighted):
    """min(SNR_t, gamma) |x_0 error|^2 (Hang et al., 2023)."""

    def __init__(self, gamma: Positive = 5.0) -> None:
        self.gamma = gamma

    def weight(self, process: ForwardProcess, t: Tensor) -> Tensor:
        return process.log_snr(t).exp().clamp(max=self.gamma)


class MeanMatching(Weighted):
    """|error of the posterior mean|^2, unweighted (Ho et al., 2020, table 2)."""

    def weight(self, process: ForwardProcess, t: Tensor) -> Tensor:
        return process.posterior_coef_x0(t, t - 1) ** 2


class Vlb(Objective):
    """L_vlb: T times the bound's term at t, in bits/dim (Ho et al., 2020, eq. 5).

    Its mean over uniform t is the bound without L_T, which has no parameters.
    """

    trains_variance = True

    def check(
        self, denoiser: Denoiser, timestep_sampler: TimestepSampler, sampler: Sampler
    ) -> None:
        super().check(denoiser, timestep_sampler, sampler)
        if not timestep_sampler.unbiased:
            raise UserError(
                "objective=vlb is a bound over uniform times, not over those of "
                f"timestep_sampler={choice_name(timestep_sampler)}; try timestep_sampler=uniform, "
                "stratified or importance, or objective=hybrid"
            )

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> Tensor:
        return _vlb(denoiser, batch, denoiser.run_network(batch.x_t, batch.t, batch.cond))


@check_ranges
class Hybrid(Objective):
    """L_simple + `weight` L_vlb (Nichol & Dhariwal, 2021, eq. 16).

    L_vlb has no gradient with respect to the mean.
    """

    trains_variance = True

    def __init__(self, weight: NonNegative = 0.001) -> None:
        self.weight = weight

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> Tensor:
        output = denoiser.run_network(batch.x_t, batch.t, batch.cond)
        simple = prediction_mse(denoiser, batch, output)
        output = output._replace(prediction=output.prediction.detach())
        return simple + self.weight * _vlb(denoiser, batch, output)


def _vlb(denoiser: Denoiser, batch: NoisedBatch, output: NetworkOutput) -> Tensor:
    """T times the bound's term, (B,)."""
    estimate = denoiser.to_estimate(output, batch.x_t)
    term = vlb_term(denoiser, estimate, batch.x0, batch.x_t, batch.t, batch.t - 1, batch.bin_width)
    return denoiser.process.steps * term
