"""Samplers on data whose denoiser is exact: the law of what comes out is known."""

import itertools

import numpy as np
import pytest
import torch
from conftest import composed, options
from hydra.utils import instantiate

from ddpm_lab.diffusion import exact
from ddpm_lab.diffusion.noise import SampleNoise
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import DDIM, DDPM
from ddpm_lab.diffusion.schedules import cosine, linear
from ddpm_lab.diffusion.variances import Analytic, Beta, BetaTilde

LINEAR = ForwardProcess(linear())


def GaussianDenoiser(process, variance, mean=0.0, std=0.5):  # noqa: N802
    """Exact, for one number x_0 ~ N(mean, std^2)."""
    numbers = torch.tensor([mean], dtype=torch.float64), torch.tensor([[std**2]], dtype=torch.float64)
    return exact.GaussianDenoiser(process, variance, *numbers)


def law(sampler, denoiser):
    """Mean and standard deviation of the one number that comes out."""
    mean, covariance = exact.law(sampler, denoiser)
    return mean.item(), covariance.item() ** 0.5


STEPS = (10, 20, 50, 100, 1000)
# Standard deviation of the samples for x_0 ~ N(0, 0.5^2), linear schedule, T = 1000: the order of DDIM's table 1.
TABLE = {
    "eta 0": (DDIM, {"eta": 0.0}, BetaTilde(), (0.3616, 0.4305, 0.4719, 0.4858, 0.4985)),
    "eta 0.5": (DDIM, {"eta": 0.5}, BetaTilde(), (0.3551, 0.4224, 0.4661, 0.4821, 0.4980)),
    "eta 1": (DDIM, {"eta": 1.0}, BetaTilde(), (0.3228, 0.3880, 0.4432, 0.4680, 0.4961)),
    "sigma hat": (DDPM, {}, Beta(), (0.5988, 0.5463, 0.5176, 0.5086, 0.5008)),
    "eta 0.2": (DDIM, {"eta": 0.2}, BetaTilde(), (0.3606, 0.4292, 0.4710, 0.4853, 0.4984)),
    "optimal variance": (DDPM, {}, Analytic(GaussianDenoiser(LINEAR, BetaTilde()).mse()), (0.4999, 0.4999, 0.4999, 0.4999, 0.4999)),
}


@pytest.mark.parametrize("row", TABLE)
def test_the_analytic_table_of_ddim(row):
    sampler, kwargs, variance, expected = TABLE[row]
    denoiser = GaussianDenoiser(LINEAR, variance)
    found = [law(sampler(steps=steps, clip=None, **kwargs), denoiser)[1] for steps in STEPS]
    assert np.abs(np.array(found) - expected).max() < 5.1e-5


@pytest.mark.parametrize("schedule", options("schedule"))
@pytest.mark.parametrize("sampler", options("sampler"))
@pytest.mark.parametrize("variance", options("variance"))
def test_every_sampler_finds_the_data_on_every_schedule(sampler, schedule, variance):
    config = composed(f"sampler={sampler}", f"schedule={schedule}", f"variance={variance}", "sampler.steps=1000",
                      "sampler.clip=null")  # fmt: skip
    denoiser = GaussianDenoiser(ForwardProcess(instantiate(config.schedule)), instantiate(config.variance), mean=0.3)
    mean, std = law(instantiate(config.sampler), denoiser)
    assert mean == pytest.approx(0.3, abs=0.01)  # what remains of x_T's mean, and of a thousand finite steps
    assert std == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_ddim_is_song_et_als_recursion(eta, steps):
    process = ForwardProcess(cosine())
    sampler = DDIM(steps=steps, eta=eta, clip=None)
    times, ab, variance = sampler.times(1000), process.table[:, 0].numpy() ** 2, 1.0
    for t, s in itertools.pairwise(times):
        gain = 0.25 * np.sqrt(ab[t]) / (0.25 * ab[t] + 1 - ab[t])
        sigma2 = eta**2 * (1 - ab[s]) / (1 - ab[t]) * (1 - ab[t] / ab[s])
        eps = (1 - np.sqrt(ab[t]) * gain) / np.sqrt(1 - ab[t])
        slope = np.sqrt(ab[s]) * gain + np.sqrt(max(1 - ab[s] - sigma2, 0)) * eps
        variance = slope**2 * variance + sigma2
    assert law(sampler, GaussianDenoiser(process, BetaTilde()))[1] == pytest.approx(variance**0.5, rel=1e-9)


def test_ddim_with_eta_1_is_ddpm_with_beta_tilde():
    denoiser, x = GaussianDenoiser(LINEAR, BetaTilde()), torch.randn(5, 1, dtype=torch.float64)
    made = [sampler(steps=40)(denoiser, x, noise=SampleNoise(0, range(5))) for sampler in
            (DDPM, lambda **kwargs: DDIM(eta=1.0, **kwargs))]  # fmt: skip
    torch.testing.assert_close(*made)


@pytest.mark.parametrize("sampler", [DDPM(steps=30, clip=None), DDIM(steps=30, eta=0.5, clip=None)])
def test_samples_have_the_law(sampler):
    denoiser = GaussianDenoiser(LINEAR, Beta(), mean=0.3)
    mean, std = law(sampler, denoiser)
    x = sampler(denoiser, torch.randn(100_000, 1))
    assert x.mean().item() == pytest.approx(mean, abs=4 * std / 100_000**0.5)
    assert x.std().item() == pytest.approx(std, rel=4 / 200_000**0.5)


@pytest.mark.parametrize("last", [1, 2, 10, 1000])
def test_any_number_of_steps_descends_to_the_data(last):
    for steps in range(1, last + 1):
        times = DDPM(steps=steps).times(last)
        assert times[0] == last and times[-1] == 0 and len(times) == steps + 1
        assert all(t > s for t, s in itertools.pairwise(times))
    assert DDPM().times(last) == list(range(last, -1, -1))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_other_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match=r"steps must lie in 1\.\.1000"):
        DDPM(steps=steps).times(1000)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_0_1_is_refused(eta):
    with pytest.raises(ValueError, match="eta"):
        DDIM(eta=eta)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_bound_that_is_none_is_refused(clip):
    with pytest.raises(ValueError, match="clip"):
        DDPM(clip=clip)


def test_the_last_step_adds_no_noise():
    denoiser = GaussianDenoiser(LINEAR, Beta())
    x = torch.randn(3, 1)
    one = DDPM(steps=1, clip=None)
    torch.testing.assert_close(one(denoiser, x), denoiser(x, torch.full((3,), 1000)).x0)


def test_clipping_bounds_x0_and_what_follows_from_it():
    denoiser, x = GaussianDenoiser(LINEAR, BetaTilde(), mean=3.0), torch.randn(3, 1)
    assert DDIM(steps=10, clip=1.0)(denoiser, x).abs().max() <= 1.0
    assert DDIM(steps=10, clip=None)(denoiser, x).abs().max() > 2.0


def test_a_samples_noise_does_not_depend_on_its_company():
    like = torch.empty(4, 1, 3, 3)
    together, alone = SampleNoise(5, range(4)), SampleNoise(5, [2])
    for _ in range(3):
        assert torch.equal(together(like)[2:3], alone(like[:1]))
    assert not torch.equal(SampleNoise(5, [0])(like[:1]), SampleNoise(5, [1])(like[:1]))
    assert not torch.equal(SampleNoise(5, [1])(like[:1]), SampleNoise(6, [0])(like[:1]))


def test_sample_noise_is_standard_normal():
    drawn = SampleNoise(0, range(2000))(torch.empty(2000, 100))
    assert abs(drawn.mean().item()) < 0.01 and drawn.std().item() == pytest.approx(1, abs=0.01)
    assert torch.corrcoef(drawn[:50]).triu(1).abs().max() < 0.5, "neighbouring seeds are unrelated"
