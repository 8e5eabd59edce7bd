"""The variance of a reverse step p(x_s | x_t)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ddpm_lab.diffusion.process import ForwardProcess


class Variance(ABC):
    """A choice of sigma^2."""

    @abstractmethod
    def log_var(self, process: ForwardProcess, t: Tensor, s: Tensor) -> Tensor:
        """log sigma^2 of the step from t to s, (B,) float64."""


class BetaTilde(Variance):
    """The posterior's variance, the lower bound, optimal for a single known x_0 ("fixed small")."""

    def log_var(self, process: ForwardProcess, t: Tensor, s: Tensor) -> Tensor:
        return process.log_beta_tilde(t, s)


class Beta(Variance):
    """beta, the upper bound, optimal for x_0 ~ N(0, I) ("fixed large"); the step to the data takes beta tilde, as in
    Ho et al.'s code, for a better decoder.
    """

    def log_var(self, process: ForwardProcess, t: Tensor, s: Tensor) -> Tensor:
        return torch.where(s == 0, process.log_beta_tilde(t, s), process.beta(t, s).log())
