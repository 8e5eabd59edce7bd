"""What the network is asked for, and how x_0 is read from its answer. All else is derived from x_0."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ddpm_lab.diffusion.process import ForwardProcess, per_pixel


class Prediction(ABC):
    """The maps between x_0 and the network's terms; images are (B, ...), `t` is (B,)."""

    @abstractmethod
    def target(
        self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        """What a perfect network would answer."""

    @abstractmethod
    def preconditioning(self, process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        """a and b, each (B,) float64, of x_0 = a x_t + b answer."""

    def x0(self, process: ForwardProcess, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The x_0 that an answer implies."""
        a, b = self.preconditioning(process, t)
        return per_pixel(a, x_t) * x_t + per_pixel(b, x_t) * output

    def x0_error_scale(self, process: ForwardProcess, t: Tensor) -> Tensor:
        """|d x0 / d answer|, (B,): by how much an error in the answer is one in x_0."""
        return self.preconditioning(process, t)[1].abs()


class Eps(Prediction):
    """The noise (Ho et al., 2020, eq. 12)."""

    def target(
        self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        return eps

    def preconditioning(self, process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = process.alpha_sigma(t)
        return 1 / alpha, -sigma / alpha


class X0(Prediction):
    """The data."""

    def target(
        self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        return x0

    def preconditioning(self, process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        scale = process.scale(t)
        return torch.zeros_like(scale), torch.ones_like(scale)


class V(Prediction):
    """v = signal eps - noise x_0 (Salimans & Ho, 2022, appendix D), over hypot(signal, noise), which is 1 if it is
    VP.
    """

    def target(
        self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        (alpha, sigma), scale = process.alpha_sigma(t), process.scale(t)
        return per_pixel(alpha / scale, x0) * eps - per_pixel(sigma / scale, x0) * x0

    def preconditioning(self, process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        (alpha, sigma), scale = process.alpha_sigma(t), process.scale(t)
        return alpha / scale**2, -sigma / scale


class Mean(Prediction):
    """The mean of q(x_{t-1} | x_t, x_0) (Ho et al., 2020, eq. 8; the baseline of their table 2)."""

    def target(
        self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        return process.posterior_mean(x0, x_t, t, t - 1)

    def preconditioning(self, process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        posterior_coef_x0 = process.posterior_coef_x0(t, t - 1)
        return -process.posterior_coef_xt(t, t - 1) / posterior_coef_x0, 1 / posterior_coef_x0


class Score(Prediction):
    """The score, -eps / noise (Song & Ermon, 2019, eq. 4)."""

    def target(
        self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        return -eps / per_pixel(process.alpha_sigma(t)[1], eps)

    def preconditioning(self, process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = process.alpha_sigma(t)
        return 1 / alpha, sigma**2 / alpha
