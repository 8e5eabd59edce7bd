"""The one thing that training and sampling know: (x_t, t, condition) -> an estimate of x_0."""

from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ddpm_lab.diffusion.condition import Condition
from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.predictions import Prediction
from ddpm_lab.diffusion.process import ForwardProcess, per_pixel
from ddpm_lab.diffusion.variances import Variance


class Estimate(NamedTuple):
    """What a denoiser believes. x_0 is the canonical form; eps follows from it, so the two cannot disagree."""

    x0: Tensor
    """(B, C, H, W)"""


class Denoises(Protocol):
    """`Denoiser`, every guidance around one, and the exact denoisers."""

    process: ForwardProcess
    knows_null: bool
    """Whether it gives a meaningful answer where the condition is dropped."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = ...) -> Estimate: ...

    def reverse(self, guess: Estimate, x_t: Tensor, t: Tensor, s: Tensor) -> Gaussian: ...


class Denoiser(nn.Module):
    """A network, and what its answers mean.

    Running the network (`answer`), reading x_0 out of it (`read`) and turning that into a step (`reverse`) are three
    calls: a loss needs the first, a sampler all of them.
    """

    def __init__(
        self,
        network: nn.Module,
        process: ForwardProcess,
        prediction: Prediction,
        variance: Variance,
        knows_null: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.process = process
        self.prediction = prediction
        self.variance = variance
        self.knows_null = knows_null

    def answer(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The network's own words, (B, C, H, W). It sees time on a scale of 1000, so that its weights suit any T."""
        return self.network(x_t, t * (1000 / self.process.steps), cond).to(x_t.dtype)

    def read(self, answer: Tensor, x_t: Tensor, t: Tensor) -> Estimate:
        return Estimate(self.prediction.x0(self.process, answer, x_t, t))

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        return self.read(self.answer(x_t, t, cond), x_t, t)

    def reverse(self, guess: Estimate, x_t: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """p(x_s | x_t): the posterior with the guess in place of the truth."""
        log_var = self.variance.log_var(self.process, t, s)
        return Gaussian(self.process.posterior_mean(guess.x0, x_t, t, s), per_pixel(log_var, x_t))
