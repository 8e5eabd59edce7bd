"""What the network is asked for, and how x_0 is read from its answer. All else is derived from x_0."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ddpm_lab.diffusion.process import ForwardProcess, per_pixel


class Prediction(ABC):
    """The maps between x_0 and the network's terms; images are (B, ...), `t` is (B,)."""

    @abstractmethod
    def target(self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """What a perfect network would answer."""

    @abstractmethod
    def x0(self, process: ForwardProcess, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The x_0 that an answer implies."""

    @abstractmethod
    def gain(self, process: ForwardProcess, t: Tensor) -> Tensor:
        """|d x0 / d answer|, (B,): by how much an error in the answer is one in x_0."""


class Eps(Prediction):
    """The noise (Ho et al., 2020, eq. 12)."""

    def target(self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return eps

    def x0(self, process: ForwardProcess, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return process.x0(x_t, answer, t)

    def gain(self, process: ForwardProcess, t: Tensor) -> Tensor:
        signal, noise = process.scales(t)
        return noise / signal


class X0(Prediction):
    """The data."""

    def target(self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x0

    def x0(self, process: ForwardProcess, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return answer

    def gain(self, process: ForwardProcess, t: Tensor) -> Tensor:
        return torch.ones_like(process.scale(t))


class V(Prediction):
    """v = signal eps - noise x_0 (Salimans & Ho, 2022, appendix D), over hypot(signal, noise), which is 1 if it is
    VP.
    """

    def target(self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        (signal, noise), scale = process.scales(t), process.scale(t)
        return per_pixel(signal / scale, x0) * eps - per_pixel(noise / scale, x0) * x0

    def x0(self, process: ForwardProcess, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        (signal, noise), scale = process.scales(t), process.scale(t)
        return per_pixel(signal / scale**2, x_t) * x_t - per_pixel(noise / scale, x_t) * answer

    def gain(self, process: ForwardProcess, t: Tensor) -> Tensor:
        return process.scales(t)[1] / process.scale(t)


class Mean(Prediction):
    """The mean of q(x_{t-1} | x_t, x_0) (Ho et al., 2020, eq. 8; the baseline of their table 2)."""

    def target(self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return process.posterior_mean(x0, x_t, t, t - 1)

    def x0(self, process: ForwardProcess, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        rest = answer - per_pixel(process.from_x_t(t, t - 1), x_t) * x_t
        return per_pixel(self.gain(process, t), x_t) * rest

    def gain(self, process: ForwardProcess, t: Tensor) -> Tensor:
        return 1 / process.from_x0(t, t - 1)


class Score(Prediction):
    """The score, -eps / noise (Song & Ermon, 2019, eq. 4)."""

    def target(self, process: ForwardProcess, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return -eps / per_pixel(process.scales(t)[1], eps)

    def x0(self, process: ForwardProcess, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return process.x0(x_t, -per_pixel(process.scales(t)[1], x_t) * answer, t)

    def gain(self, process: ForwardProcess, t: Tensor) -> Tensor:
        signal, noise = process.scales(t)
        return noise**2 / signal
