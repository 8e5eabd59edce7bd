"""The variance of a reverse step p(x_s | x_t)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ddpm_lab.diffusion.process import ForwardProcess, per_pixel
from ddpm_lab.utils.errors import UserError

BETWEEN = (
    "variance=analytic is estimated at the times of the schedule, but this spacing has times "
    "between them; try sampler.spacing=quadratic_full, or variance=beta_tilde"
)


class Variance(ABC):
    """A choice of the variance of a reverse step."""

    outputs = 1
    """Images per network output: 2 if the network also outputs the variance."""

    @abstractmethod
    def log_var(
        self, process: ForwardProcess, output: Tensor | None, like: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        """Return the finite log variance of the step from t to s, for x_t `like` (B, ...).

        It broadcasts against `like` and has its dtype. `output` (B, ...) is the network's output
        for the variance, None unless `outputs` is 2.
        """


class BetaTilde(Variance):
    """beta_tilde, the lower bound, optimal for data of a single point ("fixedsmall")."""

    def log_var(
        self, process: ForwardProcess, output: Tensor | None, like: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        return per_pixel(process.log_beta_tilde(t, s), like)


class Beta(Variance):
    """beta, the upper bound, optimal for x_0 ~ N(0, I) ("fixedlarge").

    The step to the data uses beta_tilde for a better decoder, as in Ho et al.'s code.
    """

    def log_var(
        self, process: ForwardProcess, output: Tensor | None, like: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        log_beta = torch.where(s == 0, process.log_beta_tilde(t, s), process.beta(t, s).log())
        return per_pixel(log_beta, like)


class LearnedRange(Variance):
    """exp(v log beta + (1 - v) log beta_tilde), v = (output + 1) / 2.

    Nichol & Dhariwal (2021, eq. 15). v is not clamped to [0, 1].
    """

    outputs = 2

    def log_var(
        self, process: ForwardProcess, output: Tensor | None, like: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        assert output is not None
        high, low = process.beta(t, s).log(), process.log_beta_tilde(t, s)
        middle, half = per_pixel((high + low) / 2, like), per_pixel((high - low) / 2, like)
        return middle + half * output


class LearnedDiagonal(Variance):
    """beta exp(output) in each dimension (the "learned diagonal" of Ho et al., 2020, table 2).

    Relative to the upper bound, so that an output of zeros is a valid variance on every chain.
    """

    outputs = 2

    def log_var(
        self, process: ForwardProcess, output: Tensor | None, like: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        assert output is not None
        return per_pixel(process.beta(t, s).log(), like) + output


class Analytic(Variance):
    """The optimum for a denoiser: beta_tilde + posterior_coef_x0^2 mse_t.

    `mse` (T + 1,) is the denoiser's E|x_0 - x0(x_t)|^2 per dimension. If x0(x_t) is E[x_0 | x_t],
    mse is (1 - E|eps(x_t)|^2) sigma^2 / alpha^2 (Bao et al., 2022, Analytic-DPM, theorem 1). For a
    trained network, this variance minimizes the bound (Bao et al., 2022, "imperfect mean", theorem
    1). Unlike that expression, mse is never negative.
    """

    def __init__(self, mse: Tensor) -> None:
        self.mse = mse

    def log_var(
        self, process: ForwardProcess, output: Tensor | None, like: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        if t.is_floating_point():
            raise UserError(BETWEEN)
        mse = self.mse.to(t.device)[t]
        variance = process.beta_tilde(t, s) + process.posterior_coef_x0(t, s) ** 2 * mse
        return per_pixel(variance.log(), like)
