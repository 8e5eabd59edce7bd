"""Schedules against closed forms, in float64."""

import logging

import numpy as np
import pytest
import torch
from conftest import composed, options
from hydra.utils import instantiate

from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.schedules import (
    constant,
    cosine,
    from_betas,
    geometric,
    jsd,
    linear,
    quadratic,
    sigmoid,
    warmup,
)

CONFIGS = {name: composed(f"schedule={name}").schedule for name in options("schedule")}
SCHEDULES = {name: instantiate(config) for name, config in CONFIGS.items()}
PRESERVING = [name for name in SCHEDULES if name not in ("geometric", "edm", "flow")]
BETAS = (linear, quadratic, sigmoid, constant, warmup)


def betas_of_the_papers(name, steps, start=1e-4, end=0.02):
    """Return Ho et al.'s `get_beta_schedule`, DDIM's sigmoid or improved-diffusion's cosine."""

    def rising(share):
        betas = end * np.ones(steps)
        betas[: int(steps * share)] = np.linspace(start, end, int(steps * share))
        return betas

    def f(t):
        return np.cos((t / steps + 0.008) / 1.008 * np.pi / 2) ** 2

    t = np.arange(1, steps + 1)
    return {
        "linear": np.linspace(start, end, steps),
        "quadratic": np.linspace(start**0.5, end**0.5, steps) ** 2,
        "sigmoid": 1 / (1 + np.exp(-np.linspace(-6, 6, steps))) * (end - start) + start,
        "constant": end * np.ones(steps),
        "warmup10": rising(0.1),
        "warmup50": rising(0.5),
        "jsd": np.minimum(1 / np.linspace(steps, 1, steps), 0.999),
        "cosine": np.minimum(1 - f(t) / f(t - 1), 0.999),
    }[name]


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_runs_from_data_to_noise(name):
    alpha, sigma, _ = SCHEDULES[name]
    assert (alpha[0], sigma[0]) == (1, 0) and alpha.dtype == sigma.dtype == torch.float64
    assert (sigma[1:] > sigma[:-1]).all()
    assert alpha[-1] ** 2 / (alpha[-1] ** 2 + sigma[-1] ** 2) < 1e-3


@pytest.mark.parametrize("name", SCHEDULES)
def test_variance_is_preserved_or_explodes(name):
    alpha, sigma, _ = SCHEDULES[name]
    total = alpha**2 + sigma**2
    if name == "flow":
        assert (alpha + sigma == 1).all()
    elif name not in PRESERVING:
        high = {"geometric": 50, "edm": 80}[name]
        assert (alpha == 1).all() and total[-1] == pytest.approx(1 + high**2)
    else:
        assert (alpha[1:] < alpha[:-1]).all() and (total - 1).abs().max() < 1e-15


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("steps", [1000, 4000])
@pytest.mark.parametrize("name", PRESERVING)
def test_alpha_bar_matches_the_papers_betas(name, steps, rescale):
    scale = 1000 / steps if rescale else 1.0
    overrides = {"steps": steps}
    if name not in ("jsd", "cosine"):
        overrides["rescale"] = rescale
    elif not rescale:
        pytest.skip("no betas to rescale")
    betas = betas_of_the_papers(name, steps, 1e-4 * scale, 0.02 * scale)
    alpha, sigma = (number.numpy() for number in instantiate(CONFIGS[name], **overrides)[:2])
    alpha_bar = np.concatenate([[1], np.cumprod(1 - betas)])
    assert np.abs(alpha**2 - alpha_bar).max() < 1e-10
    assert np.abs(sigma**2 - (1 - alpha_bar)).max() < 1e-10
    assert np.abs(1 - (alpha[1:] / alpha[:-1]) ** 2 - betas).max() < 1e-10
    assert sigma[1] ** 2 == pytest.approx(betas[0], rel=1e-12), "no cancellation"


@pytest.mark.parametrize("steps", [50, 1000, 4000])
def test_cosine_matches_nichol_dhariwal(steps):
    t = np.arange(steps)
    f = np.cos((t / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = cosine(steps).alpha.numpy() ** 2
    assert np.abs(alpha_bar[:-1] - f / f[0]).max() < 1e-12, "only the last beta is clipped"
    assert alpha_bar[-1] / alpha_bar[-2] == pytest.approx(1e-3)


@pytest.mark.parametrize("steps", [1000, 4000])
def test_jsd_alpha_bar_is_linear(steps):
    alpha_bar = jsd(steps).alpha.numpy() ** 2
    assert np.abs(alpha_bar[:-1] - (1 - np.arange(steps) / steps)).max() < 1e-10
    assert alpha_bar[-1] == pytest.approx(1e-3 / steps), "the last beta is clipped to 0.999"


@pytest.mark.parametrize("steps", [2, 1000, 4000])
def test_geometric_sigma_grows_in_equal_ratios(steps):
    alpha, sigma = (number.numpy() for number in geometric(steps)[:2])
    expected = 0.01 * 5000 ** (np.arange(steps) / (steps - 1))
    assert np.abs(sigma[1:] / expected - 1).max() < 1e-10 and sigma[0] == 0 and (alpha == 1).all()
    assert np.ptp(sigma[2:] / sigma[1:-1]) < 1e-10


def test_rescale_preserves_terminal_snr():
    at_1000 = linear(1000).alpha[-1] ** 2
    for steps in (100, 4000):
        assert 0.5 < linear(steps).alpha[-1] ** 2 / at_1000 < 1.1
    assert linear(100, rescale=False).alpha[-1] ** 2 == pytest.approx(
        np.prod(1 - np.linspace(1e-4, 0.02, 100))
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_chains_of_one_and_two_steps(steps):
    unscaled = (f(steps, rescale=False) for f in BETAS)
    for schedule in (*unscaled, cosine(steps), jsd(steps), geometric(steps)):
        assert torch.isfinite(torch.stack(schedule[:2])).all()
        assert len(schedule.alpha) == len(schedule.sigma) == steps + 1
        assert (schedule.sigma[1:] > 0).all() and (schedule.alpha > 0).all()
    assert geometric(1).sigma[1] == 50 and jsd(1).alpha[1] ** 2 == pytest.approx(1e-3)


def test_nonzero_terminal_snr_warns_with_alpha_bar(caplog):
    with caplog.at_level(logging.WARNING):
        ForwardProcess(linear(100, rescale=False))
    (record,) = caplog.records
    assert "t = 100" in record.message and "alpha_bar = 0.36" in record.message
    assert np.prod(1 - np.linspace(1e-4, 0.02, 100)) == pytest.approx(0.36, abs=0.005)
    caplog.clear()
    ForwardProcess(geometric(high=10.0))
    assert "alpha_bar = 0.0099 is above 1e-3" in caplog.text


@pytest.mark.parametrize("name", SCHEDULES)
def test_zero_terminal_snr_does_not_warn(name, caplog):
    with caplog.at_level(logging.WARNING):
        ForwardProcess(SCHEDULES[name])
    assert not caplog.records


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, float("nan")])
def test_from_betas_rejects_beta_outside_0_1(beta):
    with pytest.raises(ValueError, match="beta_2"):
        from_betas(torch.tensor([0.1, beta, 0.2], dtype=torch.float64))


@pytest.mark.parametrize(
    ("function", "kwargs", "message"),
    [
        *[(f, {"steps": 0}, r"steps.*got 0") for f in (*BETAS, cosine, jsd, geometric)],
        *[(f, {"start": 0.0}, r"^start.*got 0\b") for f in (linear, quadratic, sigmoid, warmup)],
        *[(f, {"end": 1.0}, r"^end.*got 1\b") for f in (linear, quadratic, sigmoid, warmup)],
        *[(f, {"steps": 10}, r"steps=21") for f in BETAS],
        (linear, {"steps": 20}, r"^end=0\.02 rescaled to 20 steps"),
        (constant, {"beta": -0.1}, r"^beta.*got -0\.1"),
        (sigmoid, {"width": 0.0}, r"^width.*got 0\b"),
        (sigmoid, {"width": float("nan")}, "^width"),
        (warmup, {"share": 1.1}, r"^share.*got 1\.1"),
        (cosine, {"offset": -0.1}, r"^offset.*got -0\.1"),
        (cosine, {"max_beta": 1.0}, r"^max_beta.*got 1\b"),
        (jsd, {"max_beta": 0.0}, r"^max_beta.*got 0\b"),
        (geometric, {"low": 60.0}, r"^low.*high=50.*got 60"),
        (geometric, {"low": 0.0}, r"^low.*got 0\b"),
        (geometric, {"high": float("inf")}, "^high.*got inf"),
    ],
)
def test_invalid_parameters_raise(function, kwargs, message):
    with pytest.raises(ValueError, match=message):
        function(**kwargs)


def test_number_of_steps_in_the_hint_is_valid():
    assert torch.isfinite(linear(21).alpha).all()
