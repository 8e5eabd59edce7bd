"""What the network is asked for, and how x_0 is read from its answer. All else is derived from x_0."""

from abc import ABC, abstractmethod

from torch import Tensor

from ddpm_lab.diffusion.process import ForwardProcess, per_pixel


class Prediction(ABC):
    """The pair of maps between x_0 and the network's terms; images are (B, C, H, W), `t` is (B,)."""

    @abstractmethod
    def target(self, process: ForwardProcess, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What a perfect network would answer."""

    @abstractmethod
    def x0(self, process: ForwardProcess, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The x_0 that an answer implies."""


class Eps(Prediction):
    """The noise (Ho et al., 2020, eq. 12)."""

    def target(self, process: ForwardProcess, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps

    def x0(self, process: ForwardProcess, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return process.x0(x_t, answer, t)


class X0(Prediction):
    """The data."""

    def target(self, process: ForwardProcess, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return x0

    def x0(self, process: ForwardProcess, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return answer


class V(Prediction):
    """v = signal eps - noise x_0 (Salimans & Ho, 2022, appendix D)."""

    def target(self, process: ForwardProcess, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        signal, noise = process.scales(t)
        return per_pixel(signal, x0) * eps - per_pixel(noise, x0) * x0

    def x0(self, process: ForwardProcess, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = process.scales(t)
        return per_pixel(signal, x_t) * x_t - per_pixel(noise, x_t) * answer
