"""What a network hears and how its answer is read."""

import pytest
import torch
from torch import nn

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.predictions import X0, Eps
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.schedules import cosine, geometric
from ddpm_lab.diffusion.variances import BetaTilde, LearnedRange

FIXED, EPS = BetaTilde(), Eps()


class Listens(nn.Module):
    """Remembers what it heard, and answers with channels of 0, 1, 2, ..."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x, t, cond):
        self.x, self.t, self.cond = x, t, cond
        return torch.arange(float(self.channels)).view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])


def heard(schedule, t, x_t, channels=2, variance=FIXED, prediction=EPS):
    network = Listens(channels)
    return network, Denoiser(network, ForwardProcess(schedule), prediction, variance)(
        x_t, t, Condition()
    )


@pytest.mark.parametrize("steps", [100, 1000, 4000])
def test_time_is_heard_on_a_scale_of_1000_whatever_the_chain(steps):
    network, _ = heard(cosine(steps), torch.tensor([steps // 4, steps]), torch.randn(2, 2, 4, 4))
    assert network.t.tolist() == [250, 1000]


def test_the_last_image_is_heard_at_the_first_time():
    network, _ = heard(cosine(1000), torch.tensor([1, 2]), torch.randn(2, 2, 4, 4))
    assert network.t.tolist() == [1, 2], "neither shifted nor as indices of a table"


def test_x_is_heard_at_unit_variance_where_it_explodes():
    process, t = ForwardProcess(geometric()), torch.tensor([1, 500, 1000])
    x_t = process.diffuse(torch.randn(3, 2, 64, 64), torch.randn(3, 2, 64, 64), t)
    network, _ = heard(geometric(), t, x_t)
    assert network.x.flatten(1).std(1).tolist() == pytest.approx([1, 1, 1], abs=0.03)
    network, _ = heard(cosine(), t, x_t)
    assert torch.equal(network.x, x_t), "where the variance is preserved nothing is changed"


def test_the_first_half_of_an_answer_is_the_prediction_and_the_second_the_spread():
    x_t, t = torch.randn(2, 2, 4, 4), torch.tensor([10, 20])
    _, estimate = heard(cosine(), t, x_t, channels=4, variance=LearnedRange(), prediction=X0())
    assert estimate.x0[0, :, 0, 0].tolist() == [0, 1] and estimate.variance_output[
        0, :, 0, 0
    ].tolist() == [2, 3]
    _, estimate = heard(cosine(), t, x_t, prediction=X0())
    assert estimate.x0[0, :, 0, 0].tolist() == [0, 1] and estimate.variance_output is None


def test_x0_is_that_from_which_the_noise_that_was_answered_leads_to_x_t():
    x_t, t, process = torch.randn(2, 2, 4, 4), torch.tensor([10, 500]), ForwardProcess(cosine())
    network, estimate = heard(cosine(), t, x_t)
    torch.testing.assert_close(process.diffuse(estimate.x0, network(x_t, t, None), t), x_t)


def test_a_step_is_the_posterior_with_the_guess_for_the_truth():
    process, t, s = ForwardProcess(cosine()), torch.tensor([10, 500]), torch.tensor([9, 100])
    x_t = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    denoiser = Denoiser(Listens(2), process, X0(), BetaTilde())
    estimate = denoiser(x_t, t)
    step, wanted = denoiser.reverse(estimate, x_t, t, s), process.posterior(estimate.x0, x_t, t, s)
    torch.testing.assert_close(step.mean, wanted.mean)
    torch.testing.assert_close(step.log_var, wanted.log_var)
