"""evaluate.py and sample.py beyond FID: bits, densities, the analytic tier, and the modes of sampling."""

import json

import numpy as np
import pytest
import torch
from conftest import FAST, composed
from PIL import Image
from safetensors.torch import load_file

from ddpm_lab.commands.build import build
from ddpm_lab.data.digits import digits
from ddpm_lab.data.points import gaussian_mixture
from ddpm_lab.data.splits import Data, Images
from ddpm_lab.diffusion.condition import Condition
from ddpm_lab.diffusion.denoiser import Estimate
from ddpm_lab.diffusion.exact import GaussianDenoiser, MixtureDenoiser
from ddpm_lab.diffusion.flow import log_prob
from ddpm_lab.diffusion.likelihood import bound_terms, prior_term
from ddpm_lab.diffusion.noise import SampleNoise
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.schedules import cosine, linear
from ddpm_lab.diffusion.spacings import stops
from ddpm_lab.diffusion.variances import BetaTilde
from ddpm_lab.evaluation import analytic
from ddpm_lab.evaluation.exact import sliced_wasserstein
from ddpm_lab.evaluation.likelihood import assess_likelihood


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of ten steps with a learned variance."""
    from ddpm_lab.commands import main as verbs

    where = tmp_path_factory.mktemp("evaluation") / "r"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py", *FAST, "callbacks.quality.count=4", "objective=hybrid",
                                   "variance=learned_range", f"hydra.run.dir={where}"])  # fmt: skip
        verbs.train()
    return where


def found(folder):
    return json.loads((folder / "metrics.json").read_text())


def system(*overrides):
    """A digits system whose network says something, and its data."""
    torch.manual_seed(0)
    config = composed("model.channels=8", "model.multipliers=[1]", "data.batch_size=16", *overrides)
    data = build(config, "data")
    made = build(config, "system", **data.spec)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made, data


def test_bits_per_dim_are_the_terms_of_the_chain_and_their_standard_errors():
    made, data = system("schedule.steps=40", "sampler.steps=5")
    options = {"weights": "raw", "split": "test", "count": 6, "spacing": "uniform", "clip": 1.0, "seed": 3}
    result = assess_likelihood(made, made.denoiser, data, steps=8, batch_size=4, **options)
    x0, cond = data.test.x0[:6], made.condition(made.denoiser, {"label": data.test.labels[:6]})
    terms = list(
        bound_terms(
            made.denoiser.eval(),
            x0,
            stops(40, 8, "uniform"),
            bin_width=2 / 255,
            cond=cond,
            noise=SampleNoise(3, range(6)),
        )
    )
    bits = torch.stack([term.bits for term in terms])
    prior = prior_term(made.denoiser.process, x0.double(), torch.full((6,), 40))
    total = prior + bits.sum(0)
    assert result["bits_per_dim"] == pytest.approx(total.mean().item(), rel=1e-5)
    assert result["standard_error"] == pytest.approx(total.std().item() / 6**0.5, rel=1e-4)
    assert result["L_T"]["bits"] == pytest.approx(prior.mean().item()) and len(result["terms"]) == 8
    assert result["L_0"]["bits"] == pytest.approx(bits[-1].mean().item(), rel=1e-5)
    for i, (term, said) in enumerate(zip(terms, result["terms"], strict=True)):
        assert (said["t"], said["s"]) == (term.t, term.s)
        assert said["rate"] == pytest.approx(prior.mean().item() + bits[:i].mean(1).sum().item(), rel=1e-5, abs=1e-9)
        assert said["rmse"] == pytest.approx(127.5 * term.square_error.mean().item() ** 0.5, rel=1e-5)
    other = assess_likelihood(made, made.denoiser, data, steps=8, batch_size=6, **options)
    assert other["bits_per_dim"] == pytest.approx(result["bits_per_dim"], rel=1e-6), "whatever the batch"


def test_the_network_hears_the_labels_of_the_pictures_it_is_measured_on():
    made, data = system("schedule.steps=10", "sampler.steps=5")
    heard = []

    class Spy(torch.nn.Module):
        process, variance, reverse = made.denoiser.process, BetaTilde(), made.denoiser.reverse
        conditioner = made.denoiser.conditioner

        def forward(self, x_t, t, cond=Condition()):
            heard.append(cond)
            return Estimate(torch.zeros_like(x_t))

    assess_likelihood(made, Spy(), data, weights="raw", split="test", count=5, steps=2, spacing="uniform", clip=1.0,
                      seed=0, batch_size=5)  # fmt: skip
    assert all(torch.equal(cond.label, data.test.labels[:5]) and cond.dropped is None for cond in heard) and heard


def test_nll_of_a_run_says_what_it_measured_with(run, typed, tmp_path):
    status, said, _ = typed("evaluate", f"run={run}", "metrics=[nll,fid]", "nll.steps=4", "nll.count=5", "count=4",
                            "nll.spacing=quadratic", f"hydra.run.dir={tmp_path}/e")  # fmt: skip
    result = found(tmp_path / "e")
    assert status == 0 and "bits/dim" in said and "FID" in said and result["fid"] > 0
    protocol = result["nll"]["protocol"]
    assert (protocol["steps"], protocol["T"], protocol["count"], protocol["spacing"]) == (4, 1000, 5, "quadratic")
    assert (protocol["variance"], protocol["split"], protocol["clip"]) == ("LearnedRange", "test", 1.0)
    assert len(set(Image.open(tmp_path / "e" / "bound.png").convert("L").getdata())) > 5


def test_an_analytic_variance_is_estimated_once_and_kept(run, typed, tmp_path):
    words = ("evaluate", f"run={run}", "metrics=[nll]", "nll.steps=4", "nll.count=5", "variance=analytic",
             "variance.samples=1")  # fmt: skip
    assert typed(*words, f"hydra.run.dir={tmp_path}/a")[0] == 0
    (file,) = (run / "variances").iterdir()
    mse = load_file(file)["mse"]
    assert mse.shape == (1001,) and mse[0] == 0 and (mse[1:] > 0).all() and mse.dtype == torch.float64
    written = file.stat().st_mtime_ns
    assert typed(*words, f"hydra.run.dir={tmp_path}/b")[0] == 0
    first, second = (found(tmp_path / name)["nll"] for name in "ab")
    assert file.stat().st_mtime_ns == written and first == second and first["protocol"]["variance"] == "Analytic"
    fixed = [*words[:-2], "variance=beta_tilde"]
    assert typed(*fixed, f"hydra.run.dir={tmp_path}/c")[0] == 0
    assert first["bits_per_dim"] < found(tmp_path / "c")["nll"]["bits_per_dim"]


def test_the_estimated_variance_is_the_error_of_the_denoiser():
    made, _ = system("schedule.steps=5", "sampler.steps=5", "conditioner=none")
    pixels = (127.5 + 64 * torch.randn(4000, 1, 8, 8)).clamp(0, 255).byte()
    data = Data("noise", Images(pixels, None), Images(pixels, None), classes=None, batch_size=16)
    x0 = data.train.x0.double()
    exact = GaussianDenoiser(made.denoiser.process, BetaTilde(), torch.full((64,), x0.mean().item()).double(),
                             x0.var() * torch.eye(64, dtype=torch.float64))  # fmt: skip
    # Clipped pixels are not quite Gaussian, so the error is a little below that of a Gaussian.
    estimated = analytic.estimate(made, exact, data, samples=400).mse
    torch.testing.assert_close(estimated, exact.mse(), rtol=0.03, atol=1e-4)


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_the_flows_density_is_that_of_the_data_under_the_exact_denoiser(schedule):
    process, data = ForwardProcess(schedule()), gaussian_mixture(modes=3, std=0.1)
    denoiser = MixtureDenoiser(process, BetaTilde(), data.mixture)
    points, labels = data.test.x0[:100].double(), data.test.labels[:100]
    times = stops(1000, 200, "quadratic_full")
    for label in (None, labels):
        # Where the chain begins, at x_1, the data are blurred by noise_1.
        signal, noise = process.table[1, :2].tolist()
        blurred = data.mixture._replace(std=float(np.hypot(0.1, noise / signal)))
        expected = MixtureDenoiser(process, BetaTilde(), blurred).log_prob(points, label)
        torch.testing.assert_close(log_prob(denoiser, points, times, Condition(label)), expected, rtol=0, atol=0.02)
        assert (expected - denoiser.log_prob(points, label)).abs().max() < 0.1
        assert expected.std() > 0.5


@pytest.mark.slow
def test_points_train_in_seconds_and_know_their_likelihood(typed, tmp_path):
    status, said, error = typed("train", "data=gaussian_mixture", "logger=csv", "trainer.max_steps=300",
                                "callbacks.density.count=200", f"hydra.run.dir={tmp_path}/r")  # fmt: skip
    assert status == 0 and "the law of the data itself" in said, error
    density = found(tmp_path / "r")["density"]
    # 300 steps gave -2.93 against -3.15 of the data itself; a network that learns nothing is above 2.
    assert density["data"] - 0.1 < density["nll"] < density["data"] + 0.8
    assert {file.name for file in (tmp_path / "r" / "pictures").iterdir()} == {"samples-000300.png", "losses.png"}
    for words in (["metrics=[nll]"], ["metrics=[fid]"]):
        status, _, error = typed("evaluate", f"run={tmp_path}/r", *words)
        assert status == 2 and words[0] in error and "try metrics=[density]" in error
    status, said, _ = typed("evaluate", f"run={tmp_path}/r", "density.count=200", f"hydra.run.dir={tmp_path}/e")
    assert status == 0 and found(tmp_path / "e")["density"]["nll"] == pytest.approx(density["nll"], rel=1e-4)
    assert typed("sample", f"run={tmp_path}/r", "count=8", f"hydra.run.dir={tmp_path}/s")[0] == 0
    assert np.load(tmp_path / "s" / "samples.npz")["points"].shape == (8, 2)
    assert typed("sample", f"run={tmp_path}/r", "mode=encode", "count=8", f"hydra.run.dir={tmp_path}/x")[0] == 0


def test_the_analytic_tier_is_the_table_of_systems(typed, tmp_path):
    status, said, _ = typed("evaluate", "model=exact", "steps=[10,50]", f"hydra.run.dir={tmp_path}/e")
    result = found(tmp_path / "e")
    assert status == 0 and "0.3616" in said and "0.4719" in said and (tmp_path / "e" / "exact.png").is_file()
    assert result["std"]["DDIM sigma-hat (beta)"] == pytest.approx([0.5988, 0.5176], abs=5.1e-5)
    bits = result["bits_per_dim"]
    assert bits["analytic"] == pytest.approx([result["entropy"]] * 2, abs=1e-6)
    assert bits["learned_range at its optimum"] == pytest.approx(bits["analytic"], abs=1e-9)
    for worse in ("beta", "beta_tilde"):
        assert min(bits[worse]) > result["entropy"] + 0.01


@pytest.mark.parametrize("data", ["gaussian_mixture", "digits"])
def test_the_analytic_tier_of_other_laws(data, typed, tmp_path):
    words = ["model=exact", f"data={data}", "schedule.steps=100", "steps=[5,100]", "count=300"]
    assert typed("evaluate", *words, f"hydra.run.dir={tmp_path}/e")[0] == 0
    result = found(tmp_path / "e")
    distance = result["sliced_wasserstein"]
    assert all(row[1] < 3 * distance["data"][1] + 0.05 for row in distance.values())
    assert ("entropy" in result) == (data == "gaussian_mixture"), "a finite set has no density"
    if data == "gaussian_mixture":
        gap = np.array(result["bits_per_dim"]["analytic"]) - result["entropy"]
        assert gap[0] > gap[1] > 0 and gap[1] < 0.5


def test_sliced_wasserstein_is_the_shift_of_shifted_points():
    points, shift = torch.randn(500, 3, dtype=torch.float64), torch.tensor([1.0, 0, 0], dtype=torch.float64)
    assert sliced_wasserstein(points, points) == 0
    assert sliced_wasserstein(points + shift, points) == pytest.approx(3**-0.5, rel=0.15)


def test_encode_decode_and_interpolate(run, typed, tmp_path):
    words = [f"run={run}", "sampler.steps=20", "count=12", "batch_size=5"]
    status, said, error = typed("sample", *words, "mode=encode", f"hydra.run.dir={tmp_path}/e")
    assert status == 0 and "mean square error" in said, error
    saved = np.load(tmp_path / "e" / "x_T.npz")
    assert saved["x_T"].shape == (12, 1, 8, 8) and saved["labels"].tolist() == digits().test.labels[:12].tolist()
    status, _, error = typed(
        "sample", *words, "mode=decode", f"input={tmp_path}/e/x_T.npz", f"hydra.run.dir={tmp_path}/d"
    )
    assert status == 0, error
    decoded = np.load(tmp_path / "d" / "samples.npz")
    assert decoded["labels"].tolist() == saved["labels"].tolist() and decoded["images"].shape == (12, 8, 8, 1)
    status, said, error = typed("sample", *words, "mode=encode", f"input={tmp_path}/d/samples.npz",
                                f"hydra.run.dir={tmp_path}/again")  # fmt: skip
    assert status == 0 and "12 encoded" in said, error
    words[2] = "count=2"
    assert typed("sample", *words, "mode=interpolate", "frames=4", f"hydra.run.dir={tmp_path}/i")[0] == 0
    rows = np.load(tmp_path / "i" / "samples.npz")["images"].reshape(2, 4, 64).astype(int)
    assert np.abs(rows[:, 0] - rows[:, -1]).max() > 50
    assert [len(set(np.load(tmp_path / "i" / "samples.npz")["labels"][row * 4 :][:4])) for row in range(2)] == [1, 1]


def test_encoding_hears_the_label_that_is_asked_for_and_so_many_of_a_file(run, typed, tmp_path):
    words = ["sample", f"run={run}", "sampler.steps=5"]
    typed(*words, "count=8", f"hydra.run.dir={tmp_path}/s")
    file = f"input={tmp_path}/s/samples.npz"
    assert typed(*words, "mode=encode", file, "count=3", "label=7", f"hydra.run.dir={tmp_path}/e")[0] == 0
    saved = np.load(tmp_path / "e" / "x_T.npz")
    assert saved["labels"].tolist() == [7, 7, 7] and saved["x_T"].shape == (3, 1, 8, 8)


def test_the_ends_of_an_interpolation_are_the_samples_between_which_it_goes(run, typed, tmp_path):
    one = ["sample", f"run={run}", "label=3"]
    typed(*one, "count=2", f"hydra.run.dir={tmp_path}/s")
    typed(*one, "mode=interpolate", "count=1", "frames=3", f"hydra.run.dir={tmp_path}/i")
    ends, row = (np.load(tmp_path / name / "samples.npz")["images"].astype(int) for name in "si")
    assert np.abs(row[[0, 2]] - ends).max() <= 1


def test_the_visited_pairs_are_printed(run, typed):
    _, said, _ = typed("sample", f"run={run}", "mode=times", "sampler.spacing=[700,20,0]", "sampler.steps=null")
    assert "(700,20) (20,0)" in said
