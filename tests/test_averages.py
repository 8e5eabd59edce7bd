"""Averages of weights of any length, against quadrature and against averages that are tracked."""

import numpy as np
import pytest
import torch
from conftest import FAST
from torch import nn

from ddpm_lab.diffusion.power_averages import PowerAverage, Profile, combine, profile
from ddpm_lab.sampling import averages
from ddpm_lab.sampling.averages import read_average
from ddpm_lab.utils.safe_load import load_checkpoint, load_tensors


def density(t, each):
    return np.where(
        t <= each.step, (each.gamma + 1) * t**each.gamma / each.step ** (each.gamma + 1), 0
    )


@pytest.mark.parametrize("length", [0.03, 0.1, 0.25])
def test_length_is_the_relative_standard_deviation_of_the_profile(length):
    t = (np.arange(1_000_000) + 0.5) / 1e6
    p = density(t, profile(1, length)) / 1e6
    mean = (t * p).sum()
    assert p.sum() == pytest.approx(1, abs=1e-6)
    assert ((t - mean) ** 2 * p).sum() ** 0.5 == pytest.approx(length, rel=1e-5)


def test_combination_is_the_least_squares_fit_of_profiles():
    stored = [profile(step, length) for length in (0.05, 0.1) for step in (0.25, 0.5, 0.75, 1)]
    target = profile(1, 0.08)
    t = (np.arange(200_000) + 0.5) / 2e5
    matrix = np.stack([density(t, each) for each in stored], 1)
    p = density(t, target)
    fit, *_ = np.linalg.lstsq(matrix, p, rcond=None)
    coefficients, error = combine(stored, target)
    np.testing.assert_allclose(coefficients, fit / fit.sum(), rtol=1e-3, atol=1e-4)
    measured = np.linalg.norm(matrix @ coefficients - p) / np.linalg.norm(p)
    assert error == pytest.approx(measured, rel=1e-3)


def path(steps=2000, size=50):
    """Return weights that drift and shake along training, (steps, size) float64."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, steps, size, generator=generator, dtype=torch.float64)
    return 0.02 * noise[0].cumsum(0) + 0.3 * noise[1] + torch.arange(1, steps + 1)[:, None].log()


def tracked(weights, length):
    """Return the average after each step."""
    model = nn.ParameterList([torch.zeros_like(weights[0])])
    average = PowerAverage(model, length)
    values = []
    for each in weights:
        model[0].data.copy_(each)
        average.update()
        values.append(average.average[0].detach().clone())
    return values


def test_averages_of_other_lengths_follow_from_two():
    weights = path()
    steps = [len(weights) * (i + 1) // 16 for i in range(16)]
    stored = [profile(step, length) for length in (0.05, 0.1) for step in steps]
    values = {length: tracked(weights, length) for length in (0.03, 0.05, 0.075, 0.1, 0.15)}
    snapshots = torch.stack([values[length][step - 1] for length in (0.05, 0.1) for step in steps])
    limits = {0.05: 1e-12, 0.1: 1e-12, 0.075: 8e-4, 0.15: 8e-4, 0.03: 3e-3}
    for length, limit in limits.items():
        coefficients, _ = combine(stored, profile(steps[-1], length))
        combination = torch.from_numpy(coefficients) @ snapshots
        truth = values[length][-1]
        assert (combination - truth).norm() / truth.norm() < limit, length


def test_the_first_update_is_the_weights():
    weights = path(3)
    torch.testing.assert_close(tracked(weights, 0.1)[0], weights[0], rtol=0, atol=0)
    gamma = profile(1, 0.1).gamma
    second = (1 - 0.5 ** (gamma + 1)) * weights[1] + 0.5 ** (gamma + 1) * weights[0]
    torch.testing.assert_close(tracked(weights, 0.1)[1], second)


LENGTHS = ("callbacks=averages", "callbacks.ema.snapshots=20", "trainer.max_steps=40")
BEST = "callbacks.checkpoints.best=loss"


@pytest.fixture(scope="module")
def run(typed, tmp_path_factory):
    """Return a run with snapshots of two averages."""
    folder = tmp_path_factory.mktemp("averages") / "run"
    status, out, err = typed("train", *FAST, *LENGTHS, BEST, f"hydra.run.dir={folder}")
    assert status == 0, out + err
    return folder


def test_weights_of_a_run_have_the_length_of_an_average_that_was_tracked(run, typed, tmp_path):
    assert len([*(run / "averages").iterdir()]) == 20
    options = (
        "callbacks=averages",
        "callbacks.ema.lengths=[0.07]",
        *LENGTHS[1:],
        f"hydra.run.dir={tmp_path}/other",
    )
    status, out, err = typed("train", *FAST, *options)
    assert status == 0, out + err
    (file,) = (tmp_path / "other" / "checkpoints").glob("step-*40.ckpt")
    content = load_checkpoint(file)
    (truth,) = content["callbacks"]["EMA"]["power_averages"]
    combination = read_average(run, "ema:0.07")
    change = distance = 0.0
    for name, value in truth.items():
        distance += (combination[name] - value).square().sum().item()
        change += (content["state_dict"][f"denoiser.{name}"] - value).square().sum().item()
    assert distance < 1e-3 * change
    status, out, err = typed("sample", f"run={run}", "weights=ema:0.07", "count=2")
    assert status == 0, out + err


def test_snapshots_are_equal_after_an_interruption(run, typed, tmp_path, monkeypatch):
    folder = f"hydra.run.dir={tmp_path}/run"
    short = (*LENGTHS[:1], "callbacks.ema.snapshots=20", folder)
    every = "callbacks.checkpoints.every=7"
    from ddpm_lab.callbacks.ema import EMA

    update = EMA.on_train_batch_end

    def interrupt(self, trainer, *args):
        update(self, trainer, *args)
        if trainer.global_step == 17:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EMA, "on_train_batch_end", interrupt)
        typed("train", *FAST, *short, every, LENGTHS[2])
    assert len([*(tmp_path / "run" / "averages").iterdir()]) < 20
    status, out, err = typed("train", *FAST, *short, every, LENGTHS[2])
    assert status == 0, out + err
    for file in (run / "averages").iterdir():
        assert (tmp_path / "run" / "averages" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("ema:0.3", "weights=ema:0.3: the snapshots reach lengths from 0.0"),
        ("ema:x", "; try weights=ema:0.1"),
        ("ema:0", "; try weights=ema:0.1"),
        ("ema:0.005", "weights=ema:0.005: the snapshots reach lengths from 0.0"),
        ("emaa", "weights=emaa is not one of ema, raw, ema:LENGTH (did you mean ema?)"),
        ("ema:0.1 checkpoint=best", "weights=ema:0.1 is that of the last step"),
    ],
)
def test_lengths_out_of_reach_are_refused(run, typed, weights, message):
    status, _, err = typed("sample", f"run={run}", *f"weights={weights}".split(), "count=1")
    assert status == 2 and message in err, err


def test_each_snapshot_is_read_once(run, monkeypatch):
    read = []
    monkeypatch.setattr(
        averages, "load_tensors", lambda file: read.append(file) or load_tensors(file)
    )
    read_average(run, "ema:0.1")
    assert len(read) == len({*read}) == 20


def test_a_sweep_over_lengths_names_its_jobs_without_backslashes(run, typed):
    values = r"weights=ema\:0.05,ema\:0.1"
    status, out, err = typed("evaluate", "-m", f"run={run}", values, "hydra.launcher.dry=true")
    assert status == 0 and "\n  weights=ema:0.05  " in out, out + err


def test_runs_without_snapshots_name_the_option(tiny, typed):
    status, _, err = typed("sample", f"run={tiny()}", "weights=ema:0.1", "count=1")
    assert status == 2 and "callbacks=averages" in err


def test_one_profile_is_a_line_of_the_table():
    coefficients, error = combine([Profile(1.0, 2.0)], Profile(1.0, 2.0))
    assert coefficients.tolist() == [1] and error == 0
