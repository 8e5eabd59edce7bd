"""The inputs of the network and the conversion of its output."""

import pytest
import torch
from torch import nn

from ddpm_lab.conditioners.labels import Label
from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser, Mixture, MixtureDenoiser
from ddpm_lab.diffusion.conditioning import Condition, DataSpec
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.guidance import ClassifierFreeGuidance
from ddpm_lab.diffusion.predictions import X0, Eps
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.schedules import cosine, geometric
from ddpm_lab.diffusion.variances import BetaTilde, LearnedRange

FIXED, EPS = BetaTilde(), Eps()


class Recorder(nn.Module):
    """Network that records its inputs and outputs channels of 0, 1, 2, ..."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x, t, cond):
        self.x, self.t, self.cond = x, t, cond
        return torch.arange(float(self.channels)).view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])


def run(schedule, t, x_t, channels=2, variance=FIXED, prediction=EPS):
    network = Recorder(channels)
    denoiser = Denoiser(network, ForwardProcess(schedule), prediction, variance)
    return network, denoiser(x_t, t, Condition())


@pytest.mark.parametrize("steps", [100, 1000, 4000])
def test_network_time_is_rescaled_to_1000(steps):
    network, _ = run(cosine(steps), torch.tensor([steps // 4, steps]), torch.randn(2, 2, 4, 4))
    assert network.t.tolist() == [250, 1000]


def test_network_time_is_neither_shifted_nor_an_index():
    network, _ = run(cosine(1000), torch.tensor([1, 2]), torch.randn(2, 2, 4, 4))
    assert network.t.tolist() == [1, 2]


def test_network_input_has_unit_variance():
    process, t = ForwardProcess(geometric()), torch.tensor([1, 500, 1000])
    x_t = process.diffuse(torch.randn(3, 2, 64, 64), torch.randn(3, 2, 64, 64), t)
    network, _ = run(geometric(), t, x_t)
    assert network.x.flatten(1).std(1).tolist() == pytest.approx([1, 1, 1], abs=0.03)
    network, _ = run(cosine(), t, x_t)
    assert torch.equal(network.x, x_t), "scale is 1 if VP"


def test_output_channels_are_prediction_then_variance():
    x_t, t = torch.randn(2, 2, 4, 4), torch.tensor([10, 20])
    _, estimate = run(cosine(), t, x_t, channels=4, variance=LearnedRange(), prediction=X0())
    assert estimate.x0[0, :, 0, 0].tolist() == [0, 1]
    assert estimate.variance_output[0, :, 0, 0].tolist() == [2, 3]
    _, estimate = run(cosine(), t, x_t, prediction=X0())
    assert estimate.x0[0, :, 0, 0].tolist() == [0, 1] and estimate.variance_output is None


@pytest.mark.parametrize("t", [400, 400.5])
@pytest.mark.parametrize("schedule", [cosine(), geometric()])
def test_time_of_all_samples_equals_a_time_per_sample(schedule, t):
    process, x_t = ForwardProcess(schedule), torch.randn(2, 2, 4, 4)
    mixture = Mixture(torch.randn(3, 32).double(), torch.full((3,), 1 / 3).double(), 0.1, None)
    conditioner = Label(DataSpec((2, 4, 4), classes=3), dropout=0.1)
    own = Denoiser(Recorder(4), process, EPS, LearnedRange(), conditioner)
    denoisers = [
        own,
        ClassifierFreeGuidance(own, w=1.0),
        MixtureDenoiser(process, FIXED, mixture),
        GaussianDenoiser(process, FIXED, torch.zeros(32).double(), torch.ones(32).double()),
    ]
    cond = Condition(torch.tensor([0, 2]))
    for denoiser in denoisers:
        one, each = (denoiser(x_t, time, cond) for time in (torch.tensor(t), torch.full((2,), t)))
        assert torch.equal(one.x0, each.x0)
        assert one.variance_output is None or torch.equal(*(e.variance_output for e in (one, each)))


def test_x0_estimate_inverts_eps_prediction():
    x_t, t, process = torch.randn(2, 2, 4, 4), torch.tensor([10, 500]), ForwardProcess(cosine())
    network, estimate = run(cosine(), t, x_t)
    torch.testing.assert_close(process.diffuse(estimate.x0, network(x_t, t, None), t), x_t)


def test_reverse_is_posterior_at_the_estimate():
    process, t, s = ForwardProcess(cosine()), torch.tensor([10, 500]), torch.tensor([9, 100])
    x_t = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    denoiser = Denoiser(Recorder(2), process, X0(), BetaTilde())
    estimate = denoiser(x_t, t)
    step, posterior = (
        denoiser.reverse(estimate, x_t, t, s),
        process.posterior(estimate.x0, x_t, t, s),
    )
    torch.testing.assert_close(step.mean, posterior.mean)
    torch.testing.assert_close(step.log_var, posterior.log_var)
