"""Commands for models of several stages: latent diffusion and cascades."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAST, assert_decode_inverts_encode, options
from PIL import Image

import ddpm_lab
from ddpm_lab.config.instantiate import build
from ddpm_lab.data.datasets import Images, to_uint8
from ddpm_lab.evaluation.extractors import digits
from ddpm_lab.evaluation.fid import FIDEvaluator, indexed_batches
from ddpm_lab.runs import run_config, weights
from ddpm_lab.runs.run_dir import RunDir
from ddpm_lab.sampling.codecs import Latents

SMALL = (
    "trainer=debug",
    "logger=csv",
    "model.channels=8",
    "callbacks.losses.every=5",
    "data.batch_size=16",
)


@pytest.fixture(scope="module")
def latent_runs(tmp_path_factory, typed):
    """Folder with runs of ten steps: autoencoders `kl` and `vq`, and `latent` diffusion on `kl`."""
    folder = tmp_path_factory.mktemp("two-stage")
    for name in ("kl", "vq"):
        overrides = [
            "system=autoencoder",
            f"model=autoencoder_{name}",
            "callbacks.reconstructions.every=5",
        ]
        status, output, error = typed("train", *SMALL, *overrides, f"hydra.run.dir={folder}/{name}")
        assert status == 0, error
        (folder / name / "stdout").write_text(output)
    overrides = ["codec=autoencoder", f"codec.run={folder}/kl"]
    status, _, error = typed("train", *FAST, *overrides, f"hydra.run.dir={folder}/latent")
    assert status == 0, error
    return folder


def test_autoencoder_writes_reconstructions_and_metrics(latent_runs):
    for name in ("kl", "vq"):
        metrics = json.loads((latent_runs / name / "metrics.json").read_text())
        assert (
            metrics["psnr"] > 5
            and -1 <= metrics["ssim"] <= 1
            and metrics["rfid"] > 0
            and metrics["training"]["steps"] == 10
        )
        assert ("codes_used" in metrics) == (name == "vq") and 0 < metrics.get("codes_used", 1) <= 1
        assert {file.name for file in (latent_runs / name / "images").iterdir()} == {
            "reconstructions-000005.png",
            "reconstructions-000010.png",
            "losses.png",
        }
        output = (latent_runs / name / "stdout").read_text()
        assert (
            "PSNR" in output
            and "python train.py data.batch_size=16 codec=autoencoder "
            f"codec.run={latent_runs / name}"
            in output
        )
        assert "eval/psnr" in (latent_runs / name / "metrics.csv").read_text()
        image = Image.open(latent_runs / name / "images" / "reconstructions-000010.png")
        pixels = np.asarray(image)[4:, 4:, 0]
        original = build(run_config.load_config(str(latent_runs / name)), "data").test.pixels[20]
        assert np.array_equal(pixels[2 * 68 :][:64:8, :64:8], original[0]), (
            "images are above their reconstructions"
        )
        assert image.width > 20 * 64 and len(np.unique(pixels)) > 16


def test_autoencoder_metrics_match_recomputation(latent_runs):
    saved = run_config.load_config(str(latent_runs / "kl"))
    data = build(saved, "data")
    autoencoder = RunDir(str(latent_runs / "kl")).load_autoencoder().eval()
    with torch.no_grad():
        images = autoencoder.decode(autoencoder.encode(data.test.x0, torch.zeros_like).z).clamp(
            -1, 1
        )
    mse = (images - data.test.x0).square().mean((1, 2, 3))
    metrics = json.loads((latent_runs / "kl" / "metrics.json").read_text())
    assert metrics["psnr"] == pytest.approx((10 * torch.log10(4 / mse)).mean().item(), abs=1e-3)
    evaluator = FIDEvaluator(digits(), data.test)
    assert metrics["rfid"] == pytest.approx(
        evaluator(indexed_batches(Images(to_uint8(images), None)), len(images))["fid"], rel=1e-3
    )
    assert metrics["training"]["val_loss"] == pytest.approx(
        (images - data.test.x0).abs().mean().item(), rel=0.2
    )
    columns = (latent_runs / "kl" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/l1", "train/penalty"} <= {*columns}


def test_latent_scale_is_measured_on_training_split(latent_runs, typed, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(Latents, "measure", lambda self, data: sizes.append(len(data[0])))
    overrides = [
        "codec=autoencoder",
        f"codec.run={latent_runs}/kl",
        "callbacks=classifier",
        "trainer.max_steps=1",
    ]
    assert typed("train", *SMALL, *overrides, f"hydra.run.dir={tmp_path}/r")[0] == 0 and sizes == [
        1437
    ]


def test_gradient_accumulation_writes_reconstructions_once_per_step(typed, tmp_path):
    overrides = [
        "system=autoencoder",
        "callbacks.reconstructions.every=2",
        "trainer.accumulate_grad_batches=3",
    ]
    status, output, _ = typed(
        "train",
        *SMALL,
        *overrides,
        "extractor=inception",
        "extractor.weights=nowhere",
        "trainer.max_steps=4",
        f"hydra.run.dir={tmp_path}/r",
    )
    assert status == 0 and "rFID will not be measured: " in output
    names = sorted(file.name for file in (tmp_path / "r" / "images").glob("rec*"))
    assert names == ["reconstructions-000002.png", "reconstructions-000004.png"]


def test_latent_model_samples_images_and_saves_only_latent_scale(latent_runs, typed, tmp_path):
    trained = f"run={latent_runs}/latent"
    content = torch.load(weights.checkpoint_files(latent_runs / "latent")[0], weights_only=True)[
        "state_dict"
    ]
    assert {name for name in content if name.startswith("codec")} == {
        "codec.mean",
        "codec.std",
        "codec._extra_state",
    }
    status, _, error = typed("sample", trained, "count=3", f"hydra.run.dir={tmp_path}/s")
    assert status == 0, error
    assert np.load(tmp_path / "s" / "samples.npz")["images"].shape == (3, 8, 8, 1)
    assert_decode_inverts_encode(typed, trained, tmp_path)
    assert np.load(tmp_path / "x" / "x_T.npz")["x_T"].shape == (2, 4, 4, 4)
    grid = np.asarray(Image.open(tmp_path / "x" / "grid.png"))[4:, 4:, 0][:64:8, :64:8]
    assert np.array_equal(
        grid, build(run_config.load_config(f"{latent_runs}/latent"), "data").test.pixels[0, 0]
    ), "the grid begins with the image itself"
    assert (
        typed("sample", trained, "mode=interpolate", "count=1", f"hydra.run.dir={tmp_path}/i")[0]
        == 0
    )
    chain = [
        "variance=analytic",
        "variance.samples=50",
        "sampler=ddpm",
        "sampler.clip=null",
        "sampler.steps=3",
    ]
    chain += ["count=20", "metrics=[memorization]"]
    status, _, error = typed("evaluate", trained, *chain, f"hydra.run.dir={tmp_path}/e")
    assert status == 0, error
    results = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert results["fid"] > 0 and 0 <= results["memorization"]["pixels"] <= 1
    assert (tmp_path / "e" / "memorization.png").is_file()


def test_latent_model_edits_images_and_refuses_inpainting(latent_runs, typed, tmp_path):
    run = f"run={latent_runs}/latent"
    words = ["mode=edit", "count=2", "strength=0.3", f"out={tmp_path}/edit"]
    status, _, error = typed("sample", run, *words)
    assert status == 0, error
    assert np.load(tmp_path / "edit" / "samples.npz")["images"].shape == (2, 8, 8, 1)
    image = tmp_path / "edit" / "images" / "000000.png"
    words = ["guidance=pigdm", "guidance.operator=box", f"guidance.image={image}"]
    status, _, error = typed("sample", run, *words, "count=1")
    assert status == 2 and "is for models of pixels, but this one samples latents" in error


def test_latent_run_requires_its_own_autoencoder(latent_runs, typed, tmp_path):
    codec = tmp_path / "kl"
    overrides = ["codec=autoencoder", f"codec.run={codec}", "callbacks=classifier"]
    shutil.copytree(latent_runs / "kl", codec)
    status, _, error = typed("train", *SMALL, *overrides, f"hydra.run.dir={tmp_path}/r")
    assert status == 0, error
    shutil.rmtree(codec)
    status, _, error = typed("sample", f"run={tmp_path}/r", "weights=raw", "count=1")
    assert status == 2 and f"codec.run={codec} is not a run directory" in error
    shutil.copytree(latent_runs / "kl", tmp_path / "moved")
    moved = f"codec.run={tmp_path}/moved"
    status, _, error = typed("sample", f"run={tmp_path}/r", "weights=raw", "count=1", moved)
    assert status == 0, error
    content = torch.load(weights.checkpoint_files(tmp_path / "moved")[0], weights_only=True)
    content["state_dict"]["autoencoder.last.bias"] += 0.01
    torch.save(content, weights.checkpoint_files(tmp_path / "moved")[0])
    status, _, error = typed("sample", f"run={tmp_path}/r", "weights=raw", "count=1", moved)
    assert (
        status == 2
        and f"codec.run={tmp_path}/moved has changed since this model was trained" in error
    )


def test_autoencoder_with_nonfinite_weights_is_rejected(latent_runs, typed, tmp_path):
    shutil.copytree(latent_runs / "kl", tmp_path / "kl")
    file = weights.checkpoint_files(tmp_path / "kl")[0]
    content = torch.load(file, weights_only=True)
    overrides = ["codec=autoencoder", f"codec.run={tmp_path}/kl", f"hydra.run.dir={tmp_path}/r"]
    for value, message in (
        (
            float("nan"),
            "step-000010.ckpt has non-finite weights: state_dict.autoencoder.quant_conv.2",
        ),
        (3e38, ": the channels of its latents have standard deviations ["),
    ):
        content["state_dict"]["autoencoder.quant_conv.2.weight"][0] = value
        torch.save(content, file)
        status, _, error = typed("train", *SMALL, *overrides)
        assert status == 2 and f"codec.run={tmp_path}/kl" in error and message in error
        assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("verb", "overrides", "message"),
    [
        ("train", ["codec=autoencoder"], "codec.run must be given"),
        (
            "train",
            ["codec=autoencoder", "codec.run=nowhere"],
            "codec.run=nowhere is not a run directory",
        ),
        (
            "train",
            ["codec=autoencoder", "codec.run=MADE/latent"],
            "codec.run=MADE/latent is a diffusion model, not an autoencoder",
        ),
        (
            "train",
            ["codec=autoencoder", "codec.run=MADE/kl", "data=synthetic"],
            "codec.run=MADE/kl was trained on data of shape (1, 8, 8), but this data has shape (3, "
            "16, 16)",
        ),
        (
            "train",
            ["codec=autoencoder", "codec.run=MADE/kl", "data=toy", "model=mlp"],
            "was trained on data of shape (1, 8, 8), but this data has shape (2,)",
        ),
        (
            "train",
            ["codec=autoencoder", "codec.run=MADE/kl", "sampler.clip=1"],
            "sampler.clip=1 bounds pixels",
        ),
        (
            "train",
            ["codec=autoencoder", "codec.run=MADE/kl", "conditioner=low_res"],
            "conditioner=low_res concatenates an image of the data's size with x_t, but "
            "with codec=latents x_t is 4x4x4",
        ),
        ("train", ["system=autoencoder", "callbacks=default"], "EMA is not for an autoencoder"),
        (
            "train",
            ["model=autoencoder_kl"],
            "autoencoder_kl and autoencoder_vq for system=autoencoder",
        ),
        (
            "train",
            ["callbacks=autoencoder"],
            "Reconstructions is not for images; try callbacks=default",
        ),
        (
            "train",
            ["system=autoencoder", "model.bottleneck.weight=-1"],
            "error: model.bottleneck.weight must be at",
        ),
        (
            "train",
            ["system=autoencoder", "model.multipliers=[1,1,1,1,1]"],
            "model.multipliers=[1, 1, 1, 1, 1] halves",
        ),
        ("sample", ["run=MADE/kl"], "run=MADE/kl is an autoencoder, not a diffusion model"),
        ("sample", ["run=MADE/latent", "sampler=ddim"], "sampler.clip=1 bounds pixels"),
        ("sample", ["run=MADE/latent", "codec.run=MADE/vq"], "codec.run=MADE/vq has changed since"),
        (
            "sample",
            ["run=MADE/latent", "codec=pixels"],
            "codec is fixed, because run=MADE/latent was trained with it; of codec, only run can "
            "be changed",
        ),
        (
            "sample",
            ["run=MADE/latent", "codec=autoencoder", "codec.run=MADE/kl"],
            "codec=autoencoder also chooses prediction, which only train.py can; try "
            "codec.KEY=... alone",
        ),
        (
            "sample",
            ["run=MADE/latent", "sampler.dynamic_threshold=0.9", "sampler.clip=1"],
            "sampler.dynamic_threshold=0.9 saturates pixels in [-1, 1], not latents",
        ),
        (
            "train",
            ["system=autoencoder", "codec=autoencoder", "codec.run=MADE/kl"],
            "codec=autoencoder is for system",
        ),
        (
            "train",
            ["system=classifier", "codec=autoencoder", "codec.run=MADE/kl"],
            "codec=autoencoder is for system",
        ),
        (
            "evaluate",
            ["run=MADE/latent", "metrics=[nll]"],
            "but latents have no bins; try metrics=[fid]",
        ),
    ],
)
def test_invalid_latent_override_is_explained(
    verb, overrides, message, latent_runs, typed, tmp_path
):
    overrides = [word.replace("MADE", str(latent_runs)) for word in overrides]
    status, _, error = typed(
        verb, *overrides, *([f"hydra.run.dir={tmp_path}/r"] if verb == "train" else [])
    )
    assert (
        status == 2
        and error.startswith("error: ")
        and message.replace("MADE", str(latent_runs)) in error
    ), error
    assert not (tmp_path / "r").exists()


AUTOENCODERS = [name for name in options("model") if name.startswith("autoencoder")]


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        *((model, ["data=synthetic"]) for model in AUTOENCODERS),
        ("autoencoder_vq", ["system.adversarial=0.5"]),
        pytest.param("autoencoder_kl", ["system.adversarial=0.5"], marks=pytest.mark.nightly),
    ],
)
def test_autoencoder_takes_a_step(model, overrides, typed, tmp_path):
    steps = [
        "trainer.max_steps=1",
        "callbacks.reconstructions.rows=1",
        "callbacks.reconstructions.columns=4",
    ]
    status, _, error = typed(
        "train",
        *SMALL,
        "system=autoencoder",
        f"model={model}",
        *overrides,
        *steps,
        f"hydra.run.dir={tmp_path}/r",
    )
    assert status == 0 and (tmp_path / "r" / "metrics.json").is_file(), error


@pytest.fixture(scope="module")
def chain(tmp_path_factory, typed):
    """Folder with runs of ten steps: `base` of 4x4 digits and `large`, which enlarges them."""
    folder = tmp_path_factory.mktemp("chain")
    for name, overrides in {
        "base": ["data.resolution=4"],
        "large": ["conditioner=low_res"],
    }.items():
        status, output, error = typed("train", *FAST, *overrides, f"hydra.run.dir={folder}/{name}")
        assert status == 0, error
        assert ("FID will not be measured" in output) == (name == "base")
    return folder


def samples(folder):
    return np.load(folder / "samples.npz")


def test_cascade_samples_are_saved_by_stage(chain, typed, tmp_path):
    overrides = [f"cascade=[{chain}/base,{chain}/large]", "count=5", "seed=3"]
    status, output, error = typed("sample", *overrides, f"hydra.run.dir={tmp_path}/c")
    assert status == 0 and str(tmp_path / "c" / "stage-1") in output, error
    small, large = samples(tmp_path / "c" / "stage-1"), samples(tmp_path / "c")
    assert small["images"].shape == (5, 4, 4, 1) and large["images"].shape == (5, 8, 8, 1)
    assert small["labels"].tolist() == large["labels"].tolist() == [0, 1, 2, 3, 4]
    for folder in (tmp_path / "c", tmp_path / "c" / "stage-1"):
        assert (folder / "grid.png").is_file() and len(list((folder / "images").iterdir())) == 5

    # So does Python, with the models of the cascade or with images of the first.
    model = ddpm_lab.load([chain / "base", chain / "large"])
    for images in (None, ddpm_lab.load(chain / "base").sample(5, seed=3)):
        arrays = model.sample(5, seed=3, images=images).arrays()
        assert all(np.array_equal(arrays[name], large[name]) for name in ("images", "labels"))
    with pytest.raises(ddpm_lab.UserError, match="stage 2 does not upsample"):
        ddpm_lab.load([chain / "large", chain / "base"])

    # One command per stage, from saved samples, gives the same images.
    assert (
        typed("sample", f"run={chain}/base", *overrides[1:], f"hydra.run.dir={tmp_path}/a")[0] == 0
    )
    assert np.array_equal(samples(tmp_path / "a")["images"], small["images"])
    for source, more in ((tmp_path / "a", []), (tmp_path / "a" / "images", ["label=[0,1,2,3,4]"])):
        status, _, error = typed(
            "sample",
            f"run={chain}/large",
            "seed=3",
            f"input={source}",
            *more,
            f"hydra.run.dir={tmp_path}/b",
        )
        assert status == 0, error
        assert np.array_equal(samples(tmp_path / "b")["images"], large["images"])
        shutil.rmtree(tmp_path / "b")


def test_cascade_stages_have_own_overrides(chain, typed, tmp_path):
    overrides = [
        f"cascade=['{chain}/base sampler=ddpm sampler.steps=2','{chain}/large "
        f"conditioner.noise_level=0.1']",
        "count=4",
    ]
    status, _, error = typed(
        "sample", *overrides, "conditioner.noise_level=0.4", f"hydra.run.dir={tmp_path}/c"
    )
    assert status == 0, error
    assert (
        typed(
            "sample",
            f"run={chain}/base",
            "count=4",
            "sampler=ddpm",
            "sampler.steps=2",
            f"hydra.run.dir={tmp_path}/a",
        )[0]
        == 0
    )
    assert np.array_equal(
        samples(tmp_path / "c" / "stage-1")["images"], samples(tmp_path / "a")["images"]
    )
    assert (
        typed(
            "sample",
            f"run={chain}/large",
            f"input={tmp_path}/a",
            "conditioner.noise_level=0.4",
            f"hydra.run.dir={tmp_path}/b",
        )[0]
        == 0
    )
    assert np.array_equal(samples(tmp_path / "c")["images"], samples(tmp_path / "b")["images"])
    status, _, error = typed(
        "evaluate", *overrides[:1], "count=20", "sampler.steps=1", f"hydra.run.dir={tmp_path}/e"
    )
    assert status == 0, error
    protocol = json.loads((tmp_path / "e" / "metrics.json").read_text())["protocol"]
    (first,) = protocol["after"]
    assert (first["sampler"]["name"], first["steps"], first["run"]) == (
        "DDPM",
        2,
        f"{chain}/base (ema)",
    )
    assert (protocol["sampler"]["name"], protocol["steps"], protocol["noise_level"]) == (
        "DDIM",
        1,
        0.1,
    )


def test_cascade_accepts_hydra_flags(chain, typed):
    overrides = [
        f"cascade=[{chain}/base,'{chain}/large conditioner.noise_level=0.1 sampler.steps=7']"
    ]
    for order in (
        ["--cfg", "job", *overrides, "conditioner.noise_level=0.2"],
        ["conditioner.noise_level=0.2", *overrides, "--cfg", "job"],
    ):
        status, output, error = typed("sample", *order)
        assert (
            status == 0
            and f"run: {chain}/large" in output
            and "level: 0.2" in output
            and "steps: 7" in output
        ), error


def test_cascade_sweep_runs_each_job(chain, typed, tmp_path):
    overrides = [
        f"cascade=[{chain}/base,{chain}/large]",
        "conditioner.noise_level=0,0.5",
        "count=2",
    ]
    status, _, error = typed("sample", "-m", *overrides, f"hydra.sweep.dir={tmp_path}")
    assert status == 0, error
    a, b = (
        samples(next(tmp_path.glob(f"conditioner.noise_level-{level}-*"))) for level in ("0", "0.5")
    )
    assert a["images"].shape == b["images"].shape and not np.array_equal(a["images"], b["images"])


@pytest.mark.parametrize(
    "truncated_conditioning", [pytest.param("false", marks=pytest.mark.nightly), "true"]
)
def test_evaluate_sweeps_noise_level_of_cascade(truncated_conditioning, chain, typed, tmp_path):
    overrides = [
        f"cascade=[{chain}/base,{chain}/large]",
        f"conditioner.truncated_conditioning={truncated_conditioning}",
        "count=40",
    ]
    status, output, error = typed(
        "evaluate",
        *overrides,
        "sweep=conditioner.noise_level",
        "values=[0,0.4]",
        f"hydra.run.dir={tmp_path}/r",
    )
    assert status == 0 and "conditioner.noise_level" in output, error
    zero, noisy = json.loads((tmp_path / "r" / "metrics.json").read_text())["values"]
    assert (
        zero["protocol"]["noise_level"] == 0
        and noisy["protocol"]["noise_level"] == 0.4
        and zero["fid"] != noisy["fid"]
    )
    status, _, _ = typed(
        "evaluate", *overrides, "conditioner.noise_level=0.4", f"hydra.run.dir={tmp_path}/e"
    )
    single = json.loads((tmp_path / "e" / "metrics.json").read_text())
    model = ddpm_lab.load([chain / "base", chain / "large"], *overrides[1:2])
    here = model.evaluate(overrides=["count=40", "conditioner.noise_level=0.4"])
    assert here["fid"] == single["fid"]
    assert status == 0 and single["fid"] == pytest.approx(noisy["fid"], rel=1e-4)
    assert single["protocol"] == noisy["protocol"]


@pytest.mark.parametrize(
    ("verb", "overrides", "message"),
    [
        (
            "sample",
            ["cascade=[C/large,C/base]"],
            "stage 2 does not upsample; it must be trained with cond",
        ),
        (
            "sample",
            ["cascade=[C/large,C/large]"],
            "stage 1 samples images of 1x8x8, but stage 2 upsamples",
        ),
        (
            "evaluate",
            ["cascade=[C/large,C/large]"],
            "samples images of 1x8x8, but stage 2 upsamples 1x4x4",
        ),
        ("sample", ["cascade=[nowhere,C/large]"], "run=nowhere is not a run directory"),
        (
            "sample",
            ["cascade=C/large"],
            "cascade=C/large must be a list of runs in order of resolution",
        ),
        ("sample", ["cascade=[]"], "cascade=[] must be a list of runs"),
        ("sample", ["-m", "cascade=[C/base],[C/large]"], "must be a list of runs"),
        (
            "sample",
            ["cascade=[C/base,C/large]", "run=C/base"],
            "both name a model; remove one",
        ),
        (
            "sample",
            ["cascade=['C/base sampler.stepz=2',C/large]"],
            "stage C/base sampler.stepz=2: ",
        ),
        (
            "sample",
            ["cascade=['C/base sampler.steps=2000',C/large]"],
            "sampler.steps must be in 1..1000",
        ),
        (
            "sample",
            ["cascade=[C/base,C/large"],
            "must be a list of runs in order of resolution",
        ),
        (
            "sample",
            ["cascade=[C/base,'']"],
            "must be a run, followed by its overrides;",
        ),
        (
            "sample",
            ["cascade=['',C/large]"],
            "must be a run, followed by its overrides;",
        ),
        (
            "sample",
            ['cascade=["C/base it\'s",C/large]'],
            "must be a run, followed by its overrides",
        ),
        (
            "sample",
            ["cascade=['C/base label=3',C/large]"],
            "cascade: label=3 cannot be set for one stage",
        ),
        ("sample", ["cascade=['C/base run=C/large',C/large]"], "cannot be set for one stage"),
        (
            "sample",
            ["cascade=[C/base,'C/large out=elsewhere']"],
            "cascade: out=elsewhere cannot be set for one stage",
        ),
        (
            "sample",
            ["cascade=['C/base weights=foo',C/large]"],
            "stage C/base weights=foo: weights=foo is not one",
        ),
        ("sample", ["run=C/large", "input=null", "label=1"], "input=None does not exist"),
        (
            "sample",
            ["run=C/large", "conditioner.noise_level=0.6"],
            "conditioner.noise_level must be at most max_noise_level=0.5, the limit of training "
            "(got 0.6)",
        ),
        (
            "sample",
            ["-m", "run=C/base,C/large", "conditioner.noise_level=0.2"],
            "conditioner differs between these runs",
        ),
        ("sample", ["cascade=[C/base,C/large]", "mode=encode"], "mode=encode is for one model"),
        (
            "evaluate",
            ["cascade=[C/base,C/large]", "metrics=[nll]"],
            "metrics=[nll] is for one model",
        ),
        (
            "sample",
            ["cascade=[C/base,C/large]", "conditioner.noise_level=1.5"],
            "conditioner.noise_level must be at least 0 and at most 1 (got 1.5)",
        ),
        (
            "sample",
            ["run=C/large", "conditioner.noise_level=-1"],
            "conditioner.noise_level must be at least 0 and at most 1",
        ),
        (
            "evaluate",
            ["run=C/large", "sweep=conditioner.noise_level", "values=[0,2]"],
            "conditioner.noise_level must be at least 0 and at most 1",
        ),
        (
            "evaluate",
            ["run=C/large", "sweep=conditioner.factor", "values=[2]"],
            "is not a sampling option of this run",
        ),
        (
            "sample",
            ["run=C/large", "conditioner.factor=4"],
            "conditioner.factor is fixed, because run=C/large was",
        ),
        (
            "sample",
            ["run=C/large", "conditioner=label"],
            "conditioner is fixed, because run=C/large was trained with",
        ),
        (
            "sample",
            ["run=C/base", "conditioner.noise_level=0.2"],
            "conditioner has no key noise_level",
        ),
        (
            "sample",
            ["run=C/base", "input=train"],
            "input=train is for a super-resolution model",
        ),
        ("sample", ["run=C/large", "input=EMPTY"], "input=EMPTY contains no images"),
        (
            "sample",
            ["run=C/large", "input=WRONG", "label=1"],
            "input=WRONG: WRONG/b.png is 8x8 L, expected 4x4 L",
        ),
        (
            "sample",
            ["run=C/large", "input=COLOUR", "label=1"],
            "input=COLOUR: COLOUR/a.png is 4x4 RGB, expected 4x4 L",
        ),
        ("sample", ["run=C/large", "input=SMALL"], "needs the class of each input image"),
        (
            "sample",
            ["run=C/large", "input=SMALL", "label=11"],
            "label=11 is not a label of this model",
        ),
        ("sample", ["run=C/large", "input=nowhere"], "input=nowhere does not exist"),
        (
            "train",
            ["conditioner=low_res", "conditioner.noise_level=2"],
            "conditioner.noise_level must be at least 0 and at most 1",
        ),
        (
            "train",
            ["conditioner=low_res", "conditioner.max_noise_level=2"],
            "conditioner.max_noise_level must be at least 0 and at most 1",
        ),
        (
            "train",
            ["conditioner=low_res", "conditioner.blur=[1]"],
            "conditioner.blur must be [low, high]",
        ),
        (
            "train",
            ["data.resolution=3"],
            "data.resolution must be 8, the size of the images, or a divisor (got 3)",
        ),
    ],
)
def test_invalid_cascade_override_is_explained(
    verb, overrides, message, chain, typed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for folder, sizes in {"EMPTY": (), "WRONG": (4, 8), "COLOUR": (4,), "SMALL": (4,)}.items():
        Path(folder).mkdir()
        for name, side in zip("ab", sizes, strict=False):
            Image.new("RGB" if folder == "COLOUR" else "L", (side, side)).save(
                f"{folder}/{name}.png"
            )
    overrides = [word.replace("C/", f"{chain}/") for word in overrides]
    status, _, error = typed(verb, *overrides, *(["hydra.run.dir=out"] if verb == "train" else []))
    assert (
        status == 2 and error.startswith("error: ") and message.replace("C/", f"{chain}/") in error
    ), error
    assert "Traceback" not in error and not Path("out").exists() and error.count("\n") <= 2
