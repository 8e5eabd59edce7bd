"""What training minimises: (denoiser, draw) -> one loss per sample."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import Denoiser, NetworkOutput
from ddpm_lab.diffusion.likelihood import vlb_term
from ddpm_lab.diffusion.process import ForwardProcess


class NoisedBatch(NamedTuple):
    """One noised batch."""

    x0: Tensor
    """(B, ...) in [-1, 1]"""
    eps: Tensor
    """(B, ...)"""
    x_t: Tensor
    """(B, ...)"""
    t: Tensor
    """(B,) int64 in 1..T"""
    cond: Condition
    bin_width: float | None
    """That of the bins that x_0 was rounded to, 2 / 255 for bytes; None: it was not"""


class Objective(ABC):
    """Losses that training averages."""

    trains_variance = False
    """Whether it teaches a learned variance; one that does not leaves it as it began."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> Tensor:
        """Losses, (B,)."""


def prediction_mse(denoiser: Denoiser, batch: NoisedBatch, output: NetworkOutput) -> Tensor:
    """Mean squared error in the network's own terms, over dimensions, (B,)."""
    target = denoiser.prediction.target(denoiser.process, batch.x0, batch.eps, batch.x_t, batch.t)
    return (output.prediction - target).square().flatten(1).mean(1)


class Simple(Objective):
    """The error in the network's own terms, for every t alike (Ho et al., 2020, eq. 14)."""

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> Tensor:
        return prediction_mse(denoiser, batch, denoiser.run_network(batch.x_t, batch.t, batch.cond))


class Weighted(Objective):
    """The mean squared error of x_0, over dimensions, times a weight of t: the same whatever the network predicts."""

    @abstractmethod
    def weight(self, process: ForwardProcess, t: Tensor) -> Tensor:
        """(B,)"""

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> Tensor:
        error = prediction_mse(
            denoiser, batch, denoiser.run_network(batch.x_t, batch.t, batch.cond)
        )
        weight = denoiser.prediction.x0_error_scale(denoiser.process, batch.t) ** 2 * self.weight(
            denoiser.process, batch.t
        )
        return weight.to(error.dtype) * error


class Snr(Weighted):
    """SNR_t |x_0 error|^2, which is |eps error|^2, and for scores Song & Ermon's (2019, eq. 5) noise^2 |error|^2."""

    def weight(self, process: ForwardProcess, t: Tensor) -> Tensor:
        return process.log_snr(t).exp()


class MinSnr(Weighted):
    """min(SNR_t, gamma) |x_0 error|^2 (Hang et al., 2023)."""

    def __init__(self, gamma: float = 5.0) -> None:
        if not 0 < gamma < float("inf"):
            raise ValueError(f"gamma must be above 0 (got {gamma:g}); try 5")
        self.gamma = gamma

    def weight(self, process: ForwardProcess, t: Tensor) -> Tensor:
        return process.log_snr(t).exp().clamp(max=self.gamma)


class MeanMatching(Weighted):
    """|error of the posterior's mean|^2, unweighted (Ho et al., 2020, table 2)."""

    def weight(self, process: ForwardProcess, t: Tensor) -> Tensor:
        return process.posterior_coef_x0(t, t - 1) ** 2


class Vlb(Objective):
    """T times the bound's term at t, in bits/dim: on average over uniform t the bound, but for L_T, which has nothing
    to learn (Ho et al., 2020, eq. 5).
    """

    trains_variance = True

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> Tensor:
        return _vlb(
            denoiser, batch, denoiser.run_network(batch.x_t, batch.t, batch.cond), frozen=False
        )


class Hybrid(Objective):
    """L_simple + `weight` L_vlb, of which the mean feels only the former (Nichol & Dhariwal, 2021, eq. 16)."""

    trains_variance = True

    def __init__(self, weight: float = 0.001) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be at least 0 (got {weight:g}); try 0.001")
        self.weight = weight

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> Tensor:
        output = denoiser.run_network(batch.x_t, batch.t, batch.cond)
        return prediction_mse(denoiser, batch, output) + self.weight * _vlb(
            denoiser, batch, output, frozen=True
        )


def _vlb(denoiser: Denoiser, batch: NoisedBatch, output: NetworkOutput, frozen: bool) -> Tensor:
    """T times the bound's term, (B,); `frozen` keeps its gradient from the mean."""
    output = output._replace(prediction=output.prediction.detach()) if frozen else output
    estimate = denoiser.to_estimate(output, batch.x_t)
    term = vlb_term(denoiser, estimate, batch.x0, batch.x_t, batch.t, batch.t - 1, batch.bin_width)
    return denoiser.process.steps * term
