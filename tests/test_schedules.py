"""Schedules against closed forms, in float64."""

import numpy as np
import pytest
import torch
from conftest import composed, options
from hydra.utils import instantiate

from ddpm_lab.diffusion.schedules import cosine, from_betas, linear, quadratic

SCHEDULES = {name: instantiate(composed(f"schedule={name}").schedule) for name in options("schedule")}


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_runs_from_the_data_to_noise(name):
    signal, noise = SCHEDULES[name]
    assert (signal[0], noise[0]) == (1, 0) and signal.dtype == torch.float64
    assert (signal[1:] < signal[:-1]).all() and (noise[1:] > noise[:-1]).all()
    assert torch.allclose(signal**2 + noise**2, torch.ones_like(signal), atol=1e-15, rtol=0)
    assert signal[-1] ** 2 < 1e-3


@pytest.mark.parametrize("steps", [1000, 4000])
@pytest.mark.parametrize(("function", "power"), [(linear, 1), (quadratic, 2)])
def test_alpha_bar_is_the_product_of_alphas(function, power, steps):
    scale = 1000 / steps
    betas = np.linspace((1e-4 * scale) ** (1 / power), (0.02 * scale) ** (1 / power), steps) ** power
    product = np.array([np.prod(1 - betas[:t]) for t in range(0, steps + 1, 97)])
    schedule = function(steps)
    assert np.abs(schedule.signal[::97].numpy() ** 2 - product).max() < 1e-12
    first = schedule.noise[1].item() ** 2
    assert first == pytest.approx(betas[0], rel=1e-12), "1 - alpha_bar_1 is beta_1, without cancellation"


@pytest.mark.parametrize("steps", [50, 1000, 4000])
def test_cosine_is_nichol_and_dhariwals(steps):
    def f(t):
        return np.cos((t / steps + 0.008) / 1.008 * np.pi / 2) ** 2

    t = np.arange(steps + 1)
    alpha_bar = cosine(steps).signal.numpy() ** 2
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    unclipped = 1 - f(t[1:]) / f(t[:-1]) < 0.999
    assert np.abs(alpha_bar[:-1] - f(t[:-1]) / f(0)).max() < 1e-12
    assert unclipped.sum() == steps - 1 and not unclipped[-1], "only the last beta is cut"
    assert betas[-1] == pytest.approx(0.999)


def test_rescaling_keeps_the_last_picture_and_is_a_choice():
    at_1000 = linear(1000).signal[-1] ** 2
    for steps in (100, 4000):
        assert 0.5 < linear(steps).signal[-1] ** 2 / at_1000 < 1.1
    assert linear(100, rescale=False).signal[-1] ** 2 == pytest.approx(np.prod(1 - np.linspace(1e-4, 0.02, 100)))


def test_one_step_is_a_chain():
    for schedule in (linear(1, rescale=False), cosine(1)):
        assert torch.isfinite(torch.stack(schedule)).all() and len(schedule.signal) == 2


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, float("nan")])
def test_a_beta_outside_0_1_is_refused(beta):
    with pytest.raises(ValueError, match="beta_2"):
        from_betas(torch.tensor([0.1, beta, 0.2], dtype=torch.float64))


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [({"steps": 0}, "steps"), ({"start": 0.0}, "start"), ({"end": 1.0}, "end"), ({"steps": 10}, "steps=21")],
)
def test_ends_that_cannot_be_are_refused_by_name(kwargs, told):
    with pytest.raises(ValueError, match=told):
        linear(**kwargs)
