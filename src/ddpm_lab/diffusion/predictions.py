"""Parameterizations: the quantity that the network predicts, and the x_0 that follows from it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ddpm_lab.diffusion.process import ForwardProcess, per_pixel


class Prediction(ABC):
    """A quantity that is affine in x_0 given x_t. Images are (B, ...), times (B,)."""

    @abstractmethod
    def target(
        self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        """Return the output of a perfect network."""

    @abstractmethod
    def preconditioning(self, process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return c_skip and c_out of x_0 = c_skip x_t + c_out output, each (B,) float64.

        Names as in Karras et al. (2022, eq. 7).
        """

    def x0_error_scale(self, process: ForwardProcess, t: Tensor) -> Tensor:
        """|d x_0 / d output| = |c_out|, (B,): the error of x_0 per error of the output."""
        return self.preconditioning(process, t)[1].abs()


class Eps(Prediction):
    """The noise eps (Ho et al., 2020, eq. 12)."""

    def target(
        self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        return eps

    def preconditioning(self, process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = process.alpha_sigma(t)
        return 1 / alpha, -sigma / alpha


class X0(Prediction):
    """The data x_0."""

    def target(
        self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        return x0

    def preconditioning(self, process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        scale = process.scale(t)
        return torch.zeros_like(scale), torch.ones_like(scale)


class V(Prediction):
    """v = (alpha d eps - sigma x_0 / d) / scale, with the schedule's standard deviation d of x_0.

    Salimans & Ho (2022, appendix D) for d = 1, where scale is 1 if VP. For VE schedules it is the
    negative of the network output of Karras et al. (2022, table 1) with sigma_data = d.
    """

    def target(
        self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        (alpha, sigma), scale, std = process.alpha_sigma(t), process.scale(t), process.data_std
        return per_pixel(std * alpha / scale, x0) * eps - per_pixel(sigma / scale / std, x0) * x0

    def preconditioning(self, process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        (alpha, sigma), scale, std = process.alpha_sigma(t), process.scale(t), process.data_std
        return std**2 * alpha / scale**2, -std * sigma / scale


class Velocity(Prediction):
    """eps - x_0, the velocity dx_t / du of `schedules.flow` (Lipman et al., 2023, eq. 23)."""

    def target(
        self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        return eps - x0

    def preconditioning(self, process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = process.alpha_sigma(t)
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)


class Mean(Prediction):
    """The mean of q(x_{t-1} | x_t, x_0) (Ho et al., 2020, eq. 8; the baseline of their table 2)."""

    def target(
        self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        return process.posterior_mean(x0, x_t, t, t - 1)

    def preconditioning(self, process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        coef_x0 = process.posterior_coef_x0(t, t - 1)
        return -process.posterior_coef_xt(t, t - 1) / coef_x0, 1 / coef_x0


class Score(Prediction):
    """The score -eps / sigma (Song & Ermon, 2019, eq. 4)."""

    def target(
        self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        return -eps / per_pixel(process.alpha_sigma(t)[1], eps)

    def preconditioning(self, process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = process.alpha_sigma(t)
        return 1 / alpha, sigma**2 / alpha
