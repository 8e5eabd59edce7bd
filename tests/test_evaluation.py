"""NLL, reconstruction, the analytic tier, and the modes of sample.py."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import FAST, composed
from PIL import Image
from safetensors.torch import load_file

from ddpm_lab.ablations.results import numbers
from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.data.datasets import Images, Splits
from ddpm_lab.data.digits import digits
from ddpm_lab.data.module import Data
from ddpm_lab.data.toy import gaussian_mixture
from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser, MixtureDenoiser
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import Estimate
from ddpm_lab.diffusion.likelihood import prior_term, vlb_terms
from ddpm_lab.diffusion.ode_likelihood import log_prob
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.diffusion.samplers import DDIM
from ddpm_lab.diffusion.schedules import cosine, linear
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.diffusion.variances import BetaTilde
from ddpm_lab.evaluation import analytic_variance
from ddpm_lab.evaluation.analytic_tables import (
    gaussian_distances,
    mixture_data,
    sliced_wasserstein,
    spectral_data,
)
from ddpm_lab.evaluation.extractors import digits as digits_extractor
from ddpm_lab.evaluation.memorization import Memorization
from ddpm_lab.evaluation.nll import NLL
from ddpm_lab.evaluation.reconstruction import Reconstruction
from ddpm_lab.evaluation.sample_quality import SampleQuality
from ddpm_lab.reports.grids import read_caption
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.utils.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of ten steps with a learned variance."""
    from ddpm_lab.cli import main

    folder = tmp_path_factory.mktemp("evaluation") / "r"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv",
            [
                "train.py",
                *FAST,
                "callbacks.fid.count=4",
                "objective=hybrid",
                "variance=learned_range",
                f"hydra.run.dir={folder}",
            ],
        )
        main.train()
    return folder


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def build_pipeline(*overrides):
    """Return the pipeline of a digits system with random weights, and its data."""
    torch.manual_seed(0)
    config = composed("model.channels=8", "model.multipliers=[1]", "data.batch_size=16", *overrides)
    data = build(config, "data")
    diffusion = build_system(config, data)
    for parameter in diffusion.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return diffusion.pipeline, data


def test_nll_is_the_sum_of_its_terms():
    pipeline, data = build_pipeline("schedule.steps=40", "sampler.steps=5")
    cascade, nll = Cascade([pipeline]), NLL(count=6, steps=8, seed=3, batch_size=4)
    result = nll.compute(cascade, data, "raw")
    x0, cond = data.test.x0[:6], pipeline.condition({"label": data.test.labels[:6]})
    terms = list(
        vlb_terms(
            pipeline.denoiser.eval(),
            x0,
            timesteps(40, 8, "uniform"),
            bin_width=2 / 255,
            cond=cond,
            noise=PerSampleGenerator(3, range(6)),
        )
    )
    bits = torch.stack([term.bits for term in terms])
    prior = prior_term(pipeline.process, x0.double(), torch.full((6,), 40))
    total = prior + bits.sum(0)
    assert result["bits_per_dim"] == pytest.approx(total.mean().item(), rel=1e-5)
    assert result["standard_error"] == pytest.approx(total.std().item() / 6**0.5, rel=1e-4)
    assert result["L_T"]["bits"] == pytest.approx(prior.mean().item()) and len(result["terms"]) == 8
    assert result["L_0"]["bits"] == pytest.approx(bits[-1].mean().item(), rel=1e-5)
    for i, (term, result_term) in enumerate(zip(terms, result["terms"], strict=True)):
        assert (result_term["t"], result_term["s"]) == (term.t, term.s)
        rate = prior.mean().item() + bits[:i].mean(1).sum().item()
        assert result_term["rate"] == pytest.approx(rate, rel=1e-5, abs=1e-9)
        rmse = 127.5 * term.square_error.mean().item() ** 0.5
        assert result_term["rmse"] == pytest.approx(rmse, rel=1e-5)
    other = replace(nll, batch_size=6).compute(cascade, data, "raw")
    # Independent of the batch size.
    assert other["bits_per_dim"] == pytest.approx(result["bits_per_dim"], rel=1e-6)


def test_nll_is_conditional_on_the_labels():
    pipeline, data = build_pipeline("schedule.steps=10", "sampler.steps=5")
    conditions = []

    class Spy(torch.nn.Module):
        process, variance, reverse = pipeline.process, BetaTilde(), pipeline.denoiser.reverse
        conditioner, classes = pipeline.denoiser.conditioner, pipeline.denoiser.classes

        def forward(self, x_t, t, cond=Condition()):
            conditions.append(cond)
            return Estimate(torch.zeros_like(x_t))

    cascade = Cascade([pipeline.with_denoiser(Spy())])
    NLL(count=5, steps=2, batch_size=5).compute(cascade, data, "raw")
    assert conditions and all(cond.dropped is None for cond in conditions)
    assert all(torch.equal(cond.label, data.test.labels[:5]) for cond in conditions)


def test_nll_of_a_run_has_its_protocol(run, typed, tmp_path):
    status, out, _ = typed(
        "evaluate",
        f"run={run}",
        "metrics=[nll,fid]",
        "nll.steps=4",
        "nll.count=5",
        "count=4",
        "nll.spacing=quadratic",
        f"hydra.run.dir={tmp_path}/e",
    )
    result = read_metrics(tmp_path / "e")
    assert status == 0 and "bits/dim" in out and "FID" in out and result["fid"] > 0
    protocol = result["nll"]["protocol"]
    expected = {
        "steps": 4,
        "T": 1000,
        "count": 5,
        "spacing": "quadratic",
        "variance": "LearnedRange",
        "split": "test",
        "clip": 1.0,
    }
    assert protocol | expected == protocol
    assert len(set(Image.open(tmp_path / "e" / "bound.png").convert("L").getdata())) > 5


def test_memorization_shares_the_samples_of_fid_and_has_a_picture(run, typed, tmp_path):
    results = {}
    for name, overrides in {
        "fid": ["metrics=[fid]"],
        "both": ["metrics=[fid,memorization]"],
        "test": ["metrics=[memorization]", "split=test"],
    }.items():
        folder = tmp_path / name
        status, out, error = typed(
            "evaluate", f"run={run}", *overrides, "count=12", f"hydra.run.dir={folder}"
        )
        assert status == 0, error
        results[name] = read_metrics(folder)
    assert f"{tmp_path}/test/memorization.png" in out and "memorization (pixels)" in out
    assert results["both"]["fid"] == results["fid"]["fid"] and "memorization" not in results["fid"]
    assert results["both"]["memorization"] == results["test"]["memorization"]
    assert len(results["both"]["memorization"]["closest"]) == 10
    picture = Image.open(tmp_path / "both" / "memorization.png").convert("L")
    assert picture.width > 3 * picture.height and len(set(picture.getdata())) > 20
    assert f"{tmp_path}/test/samples.png" in out
    grid = tmp_path / "test" / "samples.png"
    assert "3 steps, ema weights. Labels 0 to 9 in columns." in read_caption(grid)
    assert Image.open(grid).size == Image.open(tmp_path / "fid" / "samples.png").size
    assert grid.read_bytes() == (tmp_path / "fid" / "samples.png").read_bytes()
    assert numbers()["memorization.pixels"].label == "memorization (pixels)"
    assert numbers()["fid_held_out"].label == "FID to held-out images"
    status, _, error = typed("evaluate", f"run={run}", "metrics=[memorization]", "count=9")
    assert status == 2 and "count must be at least 10 (got 9); try count=1000" in error


def test_fewer_training_images_train_resume_and_evaluate(tiny, typed, tmp_path):
    run = tiny("data.train_count=100", "callbacks.fid.count=4")
    record = json.loads((run / "run.json").read_text())["data"]
    assert (record["train"]["size"], record["test"]["size"]) == (100, 360)
    command = ["evaluate", f"run={run}", "metrics=[fid,memorization]", "count=12"]
    status, _, error = typed(*command, f"hydra.run.dir={tmp_path}/e")
    assert status == 0, error
    results, data = read_metrics(tmp_path / "e"), digits()
    protocol = results["protocol"]
    assert (protocol["data_count"], protocol["other_count"]) == (100, 360)
    assert protocol["data_sha256"] == digits(train_count=100).train.digest()
    assert protocol["other_sha256"] == data.test.digest()
    assert all(pair["train"] < 100 for pair in results["memorization"]["closest"])
    resumed = tmp_path / "r"
    shutil.copytree(run, resumed)
    command = ["train", *FAST, "callbacks.fid.count=4", f"hydra.run.dir={resumed}"]
    status, _, error = typed(*command, "data.train_count=100", "trainer.max_steps=12")
    assert status == 0, error
    status, _, error = typed(*command, "data.train_count=50")
    assert status == 2 and "data.train_count=50 was 100" in error
    status, _, error = typed("train", *FAST, "data.train_count=2000")
    assert status == 2 and "data.train_count must be in 2..1437" in error
    assert "try data.train_count=null" in error


def test_metrics_of_samples_need_held_out_images_and_no_points():
    pipeline, data = build_pipeline("schedule.steps=5", "sampler.steps=5")
    data.test = data.test.select(slice(0))
    with pytest.raises(UserError, match="needs held-out images, and digits has none"):
        SampleQuality(digits_extractor, count=10).compute(Cascade([pipeline]), data, "raw")
    quality = SampleQuality(digits_extractor, image_metrics=[Memorization()])
    pipeline.bin_width = None
    with pytest.raises(UserError, match=r"but this run samples points; try metrics=\[ode_nll\]"):
        quality.check(Cascade([pipeline]))


def test_analytic_variance_is_estimated_once_per_run(run, typed, tmp_path):
    overrides = (
        "evaluate",
        f"run={run}",
        "metrics=[nll]",
        "nll.steps=4",
        "nll.count=5",
        "variance=analytic",
        "variance.samples=1",
    )
    assert typed(*overrides, f"hydra.run.dir={tmp_path}/a")[0] == 0
    (file,) = (run / "variances").iterdir()
    mse = load_file(file)["mse"]
    assert mse.shape == (1001,) and mse.dtype == torch.float64
    assert mse[0] == 0 and (mse[1:] > 0).all()
    mtime = file.stat().st_mtime_ns
    assert typed(*overrides, f"hydra.run.dir={tmp_path}/b")[0] == 0
    first, second = (read_metrics(tmp_path / name)["nll"] for name in "ab")
    assert file.stat().st_mtime_ns == mtime and first == second
    assert first["protocol"]["variance"] == "Analytic"
    fixed = [*overrides[:-2], "variance=beta_tilde"]
    assert typed(*fixed, f"hydra.run.dir={tmp_path}/c")[0] == 0
    assert first["bits_per_dim"] < read_metrics(tmp_path / "c")["nll"]["bits_per_dim"]


def test_estimated_variance_matches_the_exact_error():
    pipeline, _ = build_pipeline("schedule.steps=5", "sampler.steps=5", "conditioner=none")
    pixels = (127.5 + 64 * torch.randn(4000, 1, 8, 8)).clamp(0, 255).byte()
    images = Images(pixels, None)
    data = Data(Splits("noise", images, images), batch_size=16)
    x0 = data.train.x0.double()
    exact = GaussianDenoiser(
        pipeline.process,
        BetaTilde(),
        torch.full((64,), x0.mean().item()).double(),
        x0.var() * torch.eye(64, dtype=torch.float64),
    )
    # Clipped pixels are not quite Gaussian, so the error is a little below that of a Gaussian.
    estimated = analytic_variance.estimate_variance(
        pipeline.with_denoiser(exact), data, samples=400
    ).mse
    torch.testing.assert_close(estimated, exact.mse(), rtol=0.03, atol=1e-4)


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_ode_likelihood_of_the_exact_denoiser_is_the_density_of_the_data(schedule):
    process, data = ForwardProcess(schedule()), gaussian_mixture(modes=3, std=0.1)
    denoiser = MixtureDenoiser(process, BetaTilde(), data.mixture)
    points, labels = data.test.x0[:100].double(), data.test.labels[:100]
    times = timesteps(1000, 100, "quadratic_full")
    for label in (None, labels):
        # The ODE starts at x_1, where the data are blurred by sigma_1.
        alpha, sigma = process.table[1, :2].tolist()
        blurred = data.mixture._replace(std=float(np.hypot(0.1, sigma / alpha)))
        expected = MixtureDenoiser(process, BetaTilde(), blurred).log_prob(points, label)
        torch.testing.assert_close(
            log_prob(denoiser, points, times, Condition(label)), expected, rtol=0, atol=0.02
        )
        assert (expected - denoiser.log_prob(points, label)).abs().max() < 0.1
        assert expected.std() > 0.5


@pytest.mark.nightly
def test_points_train_in_seconds_to_a_good_likelihood(typed, tmp_path):
    status, out, error = typed(
        "train",
        "data=gaussian_mixture",
        "logger=csv",
        "trainer.max_steps=300",
        "callbacks.ode_nll.count=200",
        f"hydra.run.dir={tmp_path}/r",
    )
    assert status == 0 and "the distribution of the data" in out, error
    density = read_metrics(tmp_path / "r")["ode_nll"]
    # After 300 steps: -2.93, and -3.15 for the data. A network that has not learned is above 2.
    assert density["data"] - 0.1 < density["nll"] < density["data"] + 0.8
    assert {file.name for file in (tmp_path / "r" / "images").iterdir()} == {
        "samples-000300.png",
        "losses.png",
    }
    for overrides in (["metrics=[nll]"], ["metrics=[fid]"]):
        status, _, error = typed("evaluate", f"run={tmp_path}/r", *overrides)
        assert status == 2 and overrides[0] in error and "try metrics=[ode_nll]" in error
    status, out, _ = typed(
        "evaluate", f"run={tmp_path}/r", "ode_nll.count=200", f"hydra.run.dir={tmp_path}/e"
    )
    assert status == 0 and read_metrics(tmp_path / "e")["ode_nll"]["nll"] == pytest.approx(
        density["nll"], rel=1e-4
    )
    assert typed("sample", f"run={tmp_path}/r", "count=8", f"hydra.run.dir={tmp_path}/s")[0] == 0
    assert np.load(tmp_path / "s" / "samples.npz")["points"].shape == (8, 2)
    assert (
        typed(
            "sample", f"run={tmp_path}/r", "mode=encode", "count=8", f"hydra.run.dir={tmp_path}/x"
        )[0]
        == 0
    )


def test_analytic_tier_matches_the_published_table(typed, tmp_path):
    status, out, _ = typed(
        "evaluate", "model=exact", "steps=[10,50]", f"hydra.run.dir={tmp_path}/e"
    )
    result = read_metrics(tmp_path / "e")
    assert (
        status == 0
        and "0.3616" in out
        and "0.4719" in out
        and (tmp_path / "e" / "exact.png").is_file()
    )
    assert result["std"]["DDIM sigma-hat (beta)"] == pytest.approx([0.5988, 0.5176], abs=5.1e-5)
    bits = result["bits_per_dim"]
    assert bits["analytic"] == pytest.approx([result["entropy"]] * 2, abs=1e-6)
    assert bits["learned_range at its optimum"] == pytest.approx(bits["analytic"], abs=1e-9)
    for worse in ("beta", "beta_tilde"):
        assert min(bits[worse]) > result["entropy"] + 0.01


@pytest.mark.parametrize("data", ["gaussian_mixture", "digits"])
def test_analytic_tier_accepts_other_data(data, typed, tmp_path):
    overrides = ["model=exact", f"data={data}", "schedule.steps=100", "steps=[5,100]", "count=300"]
    assert typed("evaluate", *overrides, f"hydra.run.dir={tmp_path}/e")[0] == 0
    result = read_metrics(tmp_path / "e")
    distance = result["sliced_wasserstein"]
    assert all(row[1] < 3 * distance["data"][1] + 0.05 for row in distance.values())
    assert ("entropy" in result) == (data == "gaussian_mixture"), "a finite set has no density"
    if data == "gaussian_mixture":
        gap = np.array(result["bits_per_dim"]["analytic"]) - result["entropy"]
        assert gap[0] > gap[1] > 0 and gap[1] < 0.5


MIXTURE = ("data=gaussian_mixture", "data.std=0.2", "schedule.steps=100")


@pytest.fixture(scope="module")
def case(typed, tmp_path_factory):
    """A function that runs one case of the analytic tier and returns its metrics."""

    def measure(*overrides):
        folder = tmp_path_factory.mktemp("case") / "e"
        overrides = ["model=exact", *overrides, f"hydra.run.dir={folder}"]
        status, out, error = typed("evaluate", *overrides)
        assert status == 0 and str(folder) in out, error
        return read_metrics(folder)

    return measure


def test_analytic_case_matches_the_tables(case):
    tables = case("steps=[25]", "schedule.steps=400")
    one = case(
        "sampler=ddim",
        "sampler.steps=25",
        "sampler.eta=0.2",
        "variance=beta",
        "nll.steps=25",
        "schedule.steps=400",
    )
    assert one["std"] == pytest.approx(tables["std"]["DDIM eta=0.2"][0]) and one[
        "std_of_data"
    ] == pytest.approx(0.5)
    assert one["wasserstein"] == pytest.approx(tables["wasserstein"]["DDIM eta=0.2"][0])
    assert (
        one["nll"]["bits_per_dim"] == pytest.approx(tables["bits_per_dim"]["beta"][0])
        and "reconstruction" not in one
    )
    nll, protocol = one["nll"], one["protocol"]
    assert (
        nll["gap"] == pytest.approx(nll["bits_per_dim"] - tables["entropy"])
        and len(nll["terms"]) == 25
    )
    assert nll["bits_per_dim"] == pytest.approx(
        nll["L_T"] + sum(term["bits"] for term in nll["terms"])
    )
    assert (nll["terms"][0]["t"], nll["terms"][-1]["s"], nll["terms"][-1]["bits"]) == (
        400,
        0,
        nll["L_0"],
    )
    assert protocol["sampler"] == {
        "name": "DDIM",
        "steps": 25,
        "spacing": "uniform",
        "clip": None,
        "dynamic_threshold": None,
        "eta": 0.2,
        "sigma_hat": False,
    }
    assert (protocol["T"], protocol["variance"], protocol["nll"]) == (
        400,
        "Beta",
        {"steps": 25, "spacing": "uniform"},
    )
    rows = {
        "analytic": "analytic",
        "learned_diagonal": "analytic",
        "learned_range": "learned_range at its optimum",
    }
    for variance, row in rows.items():
        one = case(
            "sampler=ddpm",
            "sampler.steps=25",
            f"variance={variance}",
            "nll.steps=25",
            "schedule.steps=400",
        )
        assert one["nll"]["bits_per_dim"] == pytest.approx(
            tables["bits_per_dim"][row][0], abs=1e-12
        )
        assert one["std"] == pytest.approx(tables["std"]["DDPM analytic variance"][0], rel=1e-3)


def test_schedule_curve_matches_its_definition(case):
    curve = case("sampler=ddim", "schedule=cosine", "schedule.steps=4000", "nll.steps=9")[
        "schedule_curve"
    ]
    assert len(curve) == 101 and curve[0] == {
        "t": 0,
        "alpha_bar": 1,
        "beta": None,
        "beta_tilde_over_beta": None,
    }

    def alpha_bar(t):
        return (
            np.cos((t / 4000 + 0.008) / 1.008 * np.pi / 2) ** 2
            / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
        )

    for i in (1, 50, 99):
        t = 40 * i
        beta = 1 - alpha_bar(t) / alpha_bar(t - 1)
        assert curve[i] == pytest.approx(
            {
                "t": i / 100,
                "alpha_bar": alpha_bar(t),
                "beta": beta,
                "beta_tilde_over_beta": (1 - alpha_bar(t - 1)) / (1 - alpha_bar(t)),
            },
            rel=1e-6,
        )


def test_the_spectrum_of_images_has_the_order_of_ddims_table_1(case):
    def frechet(steps, eta, sigma_hat=False):
        sampler = ["sampler=ddim", "sampler.spacing=quadratic", f"sampler.steps={steps}"]
        options = [f"sampler.eta={eta}", f"sampler.sigma_hat={sigma_hat}", "spectrum=1.5"]
        return case(*sampler, *options)["frechet"]

    few = [frechet(10, eta) for eta in (0, 0.2, 0.5, 1)] + [frechet(10, 1, sigma_hat=True)]
    assert few == pytest.approx([0.0599, 0.0614, 0.0704, 0.138, 0.442], rel=5e-3)
    assert frechet(1000, 1, sigma_hat=True) < frechet(1000, 0) / 10 < frechet(1000, 1) / 30


def test_whitened_frechet_distance_weighs_axes_equally(case):
    # One step from pure noise returns the mean; each axis then has the distance 1.
    one = case("sampler=ddim", "sampler.steps=1", "spectrum=2", "dims=7", "schedule.steps=50")
    assert one["frechet"] == pytest.approx(1, abs=0.05)
    data = spectral_data(ForwardProcess(linear(50)), 2.0, 7).denoiser(BetaTilde())
    wide = gaussian_distances(data, data.mean + data.eigenvalues.sqrt(), 4 * data.eigenvalues)
    assert wide["frechet"] == pytest.approx(2) and wide["std"] == pytest.approx(1)
    assert wide["wasserstein"] == pytest.approx((2 * 7 * 0.25) ** 0.5)


def test_exact_reconstruction_error_is_the_mean_over_the_data(case):
    overrides = ["sampler=ddim", "sampler.steps=10", "schedule.steps=50"]
    exact = case(*overrides, "mean=[0.3,-0.2]", "covariance=[[0.2,0.1],[0.1,0.3]]")[
        "reconstruction"
    ]
    mean, cov = (
        torch.tensor(part, dtype=torch.float64) for part in ([0.3, -0.2], [[0.2, 0.1], [0.1, 0.3]])
    )
    denoiser = GaussianDenoiser(ForwardProcess(linear(50)), BetaTilde(), mean, cov)
    x = mean + torch.randn(100_000, 2, dtype=torch.float64) @ torch.linalg.cholesky(cov).T
    sampler = DDIM(steps=10, clip=None)
    *_, (_, x_T) = sampler.encode(denoiser, x)
    decoded = sampler(denoiser, x_T)
    assert exact == pytest.approx(((decoded - x) / 2).square().mean().item(), rel=0.02)
    assert case(overrides[0], "sampler.steps=50", overrides[2])["reconstruction"] < exact / 5
    assert case(*overrides, *MIXTURE[:2])["reconstruction"] > 0


def test_bound_of_a_mixture_given_the_label_equals_a_gaussian(case):
    overrides = ["sampler=ddim", "variance=beta_tilde", "nll.steps=10"]
    one, other = (
        case(*overrides, *MIXTURE)["nll"],
        case(*overrides, "schedule.steps=100", "covariance=[[0.04]]")["nll"],
    )
    assert one["entropy"] == pytest.approx(other["entropy"], abs=1e-12)
    for term, same in zip(one["terms"], other["terms"], strict=True):
        assert term == pytest.approx(same, rel=1e-9)
    assert one["L_T"] > other["L_T"], "x_T depends on the means"


def test_error_and_entropy_of_a_mixture_match_monte_carlo():
    process, data = ForwardProcess(linear(100)), gaussian_mixture(std=0.2)
    for conditional in (False, True):
        exact = mixture_data(process, data, 10, 0, times=[5, 60], conditional=conditional)
        x, label = data.mixture.sample_with_labels(200_000, torch.Generator().manual_seed(0))
        denoiser, label = exact.denoiser(BetaTilde()), label if conditional else None
        assert exact.entropy == pytest.approx(
            -denoiser.log_prob(x, label).mean().item() / np.log(4), abs=0.005
        )
        for t in (5, 60):
            time = torch.full((len(x),), t)
            x_t = process.diffuse(x, torch.randn_like(x), time)
            estimate = denoiser(x_t, time, Condition(label)).x0
            assert exact.mse[t].item() == pytest.approx(
                (estimate - x).square().mean().item(), rel=0.01
            )
        assert exact.mse.count_nonzero() == 2


def test_exact_classifier_guidance_equals_conditioning(case):
    # grad log p(x | y) = grad log p(x) + grad log p(y | x): scale 1 of Dhariwal & Nichol, and
    # w = 1 of Ho & Salimans.
    overrides = [*MIXTURE, "sampler=ddim", "sampler.steps=10", "nll.steps=5", "count=300"]
    classifier = ["guidance=classifier", "guidance.scale=1"]
    conditional = case(*overrides)
    guided = case(*overrides, *classifier, "conditional=false")
    unconditional = case(*overrides, "conditional=false")
    free = case(*overrides, "guidance=classifier_free", "guidance.w=1")
    both = case(*overrides, *classifier)
    for one, other in ((conditional, guided), (free, both)):
        for name in ("sliced_wasserstein", "class_accuracy", "inception_score", "reconstruction"):
            assert one[name] == pytest.approx(other[name], rel=1e-9), name
    assert (
        free["class_accuracy"] > conditional["class_accuracy"] + 0.05
        and "class_accuracy" not in unconditional
    )
    assert 8 > free["inception_score"] > conditional["inception_score"] > 1
    assert free["sliced_wasserstein"] > conditional["sliced_wasserstein"]
    assert (
        guided["nll"] == unconditional["nll"]
        and guided["protocol"]["guidance"]["classifier"] == "exact"
    )
    assert unconditional["nll"]["entropy"] > conditional["nll"]["entropy"] + 0.5
    sharp = case("data=gaussian_mixture", *overrides[2:])
    assert sharp["class_accuracy"] > 0.99 and sharp["inception_score"] == pytest.approx(8, rel=0.01)


def test_finite_set_has_class_accuracy_and_clips_pixels(case):
    one = case(
        "data=digits",
        "sampler=ddim",
        "sampler.steps=5",
        "schedule.steps=50",
        "count=200",
        "guidance=classifier_free",
        "guidance.w=1",
    )
    assert one["class_accuracy"] > 0.9 and one["inception_score"] > 9 and "nll" not in one
    assert one["protocol"]["sampler"]["clip"] == 1


def test_reconstruction_matches_explicit_steps_and_improves_with_their_number():
    pipeline, data = build_pipeline(
        "sampler=ddim", "schedule.steps=40", "sampler.steps=5", "sampler.clip=null"
    )
    result = Reconstruction(count=6, batch_size=4).compute(Cascade([pipeline]), data, "raw")
    process, x0 = pipeline.process, data.test.x0[:6]
    cond, x = Condition(data.test.labels[:6]), x0
    times = [0, *reversed(timesteps(40, 5, "uniform")[:-1])]
    pipeline.denoiser.eval()

    def ddim_update(x, t, s):
        t, s = torch.full((6,), t), torch.full((6,), s)
        with torch.no_grad():
            estimate = pipeline.denoiser(x, t, cond).x0
        return process.diffuse(estimate, process.eps(x, estimate, t), s)

    for s, t in pairwise(times):
        x = ddim_update(x, max(s, 1), t)
    for t, s in pairwise(reversed(times)):
        x = ddim_update(x, t, s)
    assert result["mse"] == pytest.approx(((x - x0) / 2).square().mean().item(), rel=1e-4)
    protocol = result["protocol"]
    assert protocol | {"count": 6, "steps": 5, "T": 40, "split": "test"} == protocol
    pipeline, data = build_pipeline("schedule.steps=400", "sampler.clip=null", "conditioner=none")
    cov = 0.25 * torch.eye(64, dtype=torch.float64)
    exact = GaussianDenoiser(
        pipeline.process, BetaTilde(), torch.zeros(64, dtype=torch.float64), cov
    )
    errors = []
    for steps in (5, 20, 80, 400):
        pipeline.sampler = replace(pipeline.sampler, steps=steps, eta=0)
        cascade = Cascade([pipeline.with_denoiser(exact)])
        result = Reconstruction(count=6).compute(cascade, data, "raw")
        errors.append(result["mse"])
    assert all(more > 2 * fewer for more, fewer in pairwise(errors))


def test_reconstruction_of_a_run_matches_encoding(run, typed, tmp_path):
    overrides = [f"run={run}", "sampler.steps=20"]
    status, out, error = typed(
        "evaluate",
        *overrides,
        "metrics=[reconstruction]",
        "reconstruction.count=5",
        "batch_size=3",
        f"hydra.run.dir={tmp_path}/e",
    )
    result = read_metrics(tmp_path / "e")["reconstruction"]
    assert status == 0 and "reconstruction, MSE" in out, error
    assert result["mse"] > 0 and result["protocol"]["count"] == 5
    assert "fid" not in read_metrics(tmp_path / "e")
    out = typed("sample", *overrides, "mode=encode", "count=5", f"hydra.run.dir={tmp_path}/s")[1]
    assert f"mean squared error {result['mse']:.2g}," in out


def test_sliced_wasserstein_of_shifted_points():
    points, shift = (
        torch.randn(500, 3, dtype=torch.float64),
        torch.tensor([1.0, 0, 0], dtype=torch.float64),
    )
    assert sliced_wasserstein(points, points) == 0
    assert sliced_wasserstein(points + shift, points) == pytest.approx(3**-0.5, rel=0.15)


def test_encode_decode_and_interpolate(run, typed, tmp_path):
    overrides = [f"run={run}", "sampler.steps=20", "count=12", "batch_size=5"]
    status, out, error = typed("sample", *overrides, "mode=encode", f"hydra.run.dir={tmp_path}/e")
    assert status == 0 and "mean squared error" in out, error
    saved = np.load(tmp_path / "e" / "x_T.npz")
    assert (
        saved["x_T"].shape == (12, 1, 8, 8)
        and saved["labels"].tolist() == digits().test.labels[:12].tolist()
    )
    status, _, error = typed(
        "sample",
        *overrides,
        "mode=decode",
        f"input={tmp_path}/e/x_T.npz",
        f"hydra.run.dir={tmp_path}/d",
    )
    assert status == 0, error
    decoded = np.load(tmp_path / "d" / "samples.npz")
    assert decoded["labels"].tolist() == saved["labels"].tolist() and decoded["images"].shape == (
        12,
        8,
        8,
        1,
    )
    status, out, error = typed(
        "sample",
        *overrides,
        "mode=encode",
        f"input={tmp_path}/d/samples.npz",
        f"hydra.run.dir={tmp_path}/again",
    )
    assert status == 0 and "12 samples encoded" in out, error
    overrides[2] = "count=2"
    assert (
        typed("sample", *overrides, "mode=interpolate", "frames=4", f"hydra.run.dir={tmp_path}/i")[
            0
        ]
        == 0
    )
    rows = np.load(tmp_path / "i" / "samples.npz")["images"].reshape(2, 4, 64).astype(int)
    assert np.abs(rows[:, 0] - rows[:, -1]).max() > 50
    assert [
        len(set(np.load(tmp_path / "i" / "samples.npz")["labels"][row * 4 :][:4]))
        for row in range(2)
    ] == [1, 1]


def test_encode_takes_a_label_and_a_count(run, typed, tmp_path):
    overrides = ["sample", f"run={run}", "sampler.steps=5"]
    typed(*overrides, "count=8", f"hydra.run.dir={tmp_path}/s")
    file = f"input={tmp_path}/s/samples.npz"
    assert (
        typed(*overrides, "mode=encode", file, "count=3", "label=7", f"hydra.run.dir={tmp_path}/e")[
            0
        ]
        == 0
    )
    saved = np.load(tmp_path / "e" / "x_T.npz")
    assert saved["labels"].tolist() == [7, 7, 7] and saved["x_T"].shape == (3, 1, 8, 8)


def test_interpolation_starts_and_ends_at_the_samples(run, typed, tmp_path):
    one = ["sample", f"run={run}", "label=3", "sampler.eta=0"]
    typed(*one, "count=2", f"hydra.run.dir={tmp_path}/s")
    typed(*one, "mode=interpolate", "count=1", "frames=3", f"hydra.run.dir={tmp_path}/i")
    ends, row = (np.load(tmp_path / name / "samples.npz")["images"].astype(int) for name in "si")
    assert np.abs(row[[0, 2]] - ends).max() <= 1


def test_times_mode_prints_the_steps(run, typed):
    _, out, _ = typed(
        "sample", f"run={run}", "mode=times", "sampler.spacing=[700,20,0]", "sampler.steps=null"
    )
    assert "(700,20) (20,0)" in out
