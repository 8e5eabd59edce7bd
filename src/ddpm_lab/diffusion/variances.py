"""The variance of a reverse step p(x_s | x_t)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ddpm_lab.diffusion.process import ForwardProcess, per_pixel


class Variance(ABC):
    """A choice of sigma^2."""

    outputs = 1
    """Images that the network must answer with: 2 where it says the spread beside its prediction."""

    @abstractmethod
    def log_var(
        self,
        process: ForwardProcess,
        variance_output: Tensor | None,
        like: Tensor,
        t: Tensor,
        s: Tensor,
    ) -> Tensor:
        """log sigma^2 of the step from t to s, finite, in the type of `like` (B, ...) and broadcasting against it.

        `spread` is what the network said of it, (B, ...); None where it was not asked.
        """


class BetaTilde(Variance):
    """The posterior's variance, the lower bound, optimal for a single known x_0 ("fixed small")."""

    def log_var(
        self,
        process: ForwardProcess,
        variance_output: Tensor | None,
        like: Tensor,
        t: Tensor,
        s: Tensor,
    ) -> Tensor:
        return per_pixel(process.log_beta_tilde(t, s), like)


class Beta(Variance):
    """beta, the upper bound, optimal for x_0 ~ N(0, I) ("fixed large"); the step to the data takes beta tilde, as in
    Ho et al.'s code, for a better decoder.
    """

    def log_var(
        self,
        process: ForwardProcess,
        variance_output: Tensor | None,
        like: Tensor,
        t: Tensor,
        s: Tensor,
    ) -> Tensor:
        log_beta = torch.where(s == 0, process.log_beta_tilde(t, s), process.beta(t, s).log())
        return per_pixel(log_beta, like)


class LearnedRange(Variance):
    """Between the bounds: exp(v log beta + (1 - v) log beta_tilde), v = (spread + 1) / 2 (Nichol & Dhariwal, 2021,
    eq. 15). v is not held to [0, 1].
    """

    outputs = 2

    def log_var(
        self,
        process: ForwardProcess,
        variance_output: Tensor | None,
        like: Tensor,
        t: Tensor,
        s: Tensor,
    ) -> Tensor:
        assert variance_output is not None
        high, low = process.beta(t, s).log(), process.log_beta_tilde(t, s)
        return (
            per_pixel((high + low) / 2, like) + per_pixel((high - low) / 2, like) * variance_output
        )


class LearnedDiagonal(Variance):
    """Free in every dimension (the "learned diagonal" of Ho et al.'s table 2), said relative to the upper bound,
    beta exp(spread), so that a network that says nothing has a working variance on every chain.
    """

    outputs = 2

    def log_var(
        self,
        process: ForwardProcess,
        variance_output: Tensor | None,
        like: Tensor,
        t: Tensor,
        s: Tensor,
    ) -> Tensor:
        assert variance_output is not None
        return per_pixel(process.beta(t, s).log(), like) + variance_output


class Analytic(Variance):
    """The optimum for a given denoiser: beta_tilde + (coefficient of x_0)^2 mse_t (Bao et al., 2022, theorem 1).

    `mse` (T + 1,) is E|x_0 - x0(x_t)|^2 per dimension of that denoiser. For the true E[x_0 | x_t] this is Bao et al.'s
    (1 - E|eps(x_t)|^2) noise^2 / signal^2; for a trained network it is the value that makes the bound smallest (Bao et
    al., 2022, "imperfect mean", theorem 1), and unlike the former never negative.
    """

    def __init__(self, mse: Tensor) -> None:
        self.mse = mse

    def log_var(
        self,
        process: ForwardProcess,
        variance_output: Tensor | None,
        like: Tensor,
        t: Tensor,
        s: Tensor,
    ) -> Tensor:
        mse = self.mse.to(t.device)[t]
        return per_pixel(
            (process.beta_tilde(t, s) + process.posterior_coef_x0(t, s) ** 2 * mse).log(), like
        )
