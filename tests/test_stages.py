"""Models in two stages, typed as a user types them: latents, and cascades."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAST, options, there_and_back
from PIL import Image

from ddpm_lab.config.instantiate import build
from ddpm_lab.data.datasets import Images, to_uint8
from ddpm_lab.evaluation.extractors import digits
from ddpm_lab.evaluation.fid import FIDEvaluator, indexed_batches
from ddpm_lab.runs import run_config, weights
from ddpm_lab.sampling.codecs import Latents

SMALL = (
    "trainer=debug",
    "logger=csv",
    "model.channels=8",
    "callbacks.losses.every=5",
    "data.batch_size=16",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, typed):
    """Autoencoders of ten steps, by name, and a diffusion model in the latents of one."""
    where = tmp_path_factory.mktemp("made")
    for name in ("kl", "vq"):
        overrides = [
            "system=autoencoder",
            f"model=autoencoder_{name}",
            "callbacks.reconstructions.every=5",
        ]
        status, said, error = typed("train", *SMALL, *overrides, f"hydra.run.dir={where}/{name}")
        assert status == 0, error
        (where / name / "stdout").write_text(said)
    overrides = ["codec=autoencoder", f"codec.run={where}/kl"]
    status, _, error = typed("train", *FAST, *overrides, f"hydra.run.dir={where}/latent")
    assert status == 0, error
    return where


def test_an_autoencoder_shows_and_measures_what_it_restores(made):
    for name in ("kl", "vq"):
        found = json.loads((made / name / "metrics.json").read_text())
        assert (
            found["psnr"] > 5
            and -1 <= found["ssim"] <= 1
            and found["rfid"] > 0
            and found["training"]["steps"] == 10
        )
        assert ("codes_used" in found) == (name == "vq") and 0 < found.get("codes_used", 1) <= 1
        assert {file.name for file in (made / name / "images").iterdir()} == {
            "reconstructions-000005.png",
            "reconstructions-000010.png",
            "losses.png",
        }
        said = (made / name / "stdout").read_text()
        assert (
            "PSNR" in said
            and f"python train.py data.batch_size=16 codec=autoencoder codec.run={made / name}"
            in said
        )
        assert "eval/psnr" in (made / name / "metrics.csv").read_text()
        image = Image.open(made / name / "images" / "reconstructions-000010.png")
        pixels = np.asarray(image)[4:, 4:, 0]
        given = build(run_config.load_config(str(made / name)), "data").test.pixels[20]
        assert np.array_equal(pixels[2 * 68 :][:64:8, :64:8], given[0]), (
            "each row above its reconstruction"
        )
        assert image.width > 20 * 64 and len(np.unique(pixels)) > 16


def test_what_it_measures_is_what_it_says(made):
    saved = run_config.load_config(str(made / "kl"))
    data = build(saved, "data")
    system, _, _ = load._restored(str(made / "kl"), saved, "AutoencoderSystem")
    found, _ = system.reconstruct(data.test.x0)
    mse = (found - data.test.x0).square().mean((1, 2, 3))
    metrics = json.loads((made / "kl" / "metrics.json").read_text())
    assert metrics["psnr"] == pytest.approx((10 * torch.log10(4 / mse)).mean().item(), abs=1e-3)
    evaluator = FIDEvaluator(digits(), data.test)
    assert metrics["rfid"] == pytest.approx(
        evaluator(indexed_batches(Images(to_uint8(found), None)), len(found))["fid"], rel=1e-3
    )
    assert metrics["training"]["val_loss"] == pytest.approx(
        (found - data.test.x0).abs().mean().item(), rel=0.2
    )
    columns = (made / "kl" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/l1", "train/penalty"} <= {*columns}


def test_the_scale_of_latents_is_measured_over_the_training_split(
    made, typed, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(Latents, "measure", lambda self, data: seen.append(len(data[0])))
    overrides = [
        "codec=autoencoder",
        f"codec.run={made}/kl",
        "callbacks=classifier",
        "trainer.max_steps=1",
    ]
    assert typed("train", *SMALL, *overrides, f"hydra.run.dir={tmp_path}/r")[0] == 0 and seen == [
        1437
    ]


def test_accumulated_gradients_draw_no_image_twice(typed, tmp_path):
    overrides = [
        "system=autoencoder",
        "callbacks.reconstructions.every=2",
        "trainer.accumulate_grad_batches=3",
    ]
    status, said, _ = typed(
        "train",
        *SMALL,
        *overrides,
        "extractor=inception",
        "extractor.weights=nowhere",
        "trainer.max_steps=4",
        f"hydra.run.dir={tmp_path}/r",
    )
    assert status == 0 and "rFID will not be measured: " in said
    names = sorted(file.name for file in (tmp_path / "r" / "images").glob("rec*"))
    assert names == ["reconstructions-000002.png", "reconstructions-000004.png"]


def test_a_latent_model_draws_images_and_keeps_only_the_scale_of_its_latents(made, typed, tmp_path):
    trained = f"run={made}/latent"
    content = torch.load(weights.checkpoint_files(made / "latent")[0], weights_only=True)[
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
    there_and_back(typed, trained, tmp_path)
    assert np.load(tmp_path / "x" / "x_T.npz")["x_T"].shape == (2, 4, 4, 4)
    shown = np.asarray(Image.open(tmp_path / "x" / "grid.png"))[4:, 4:, 0][:64:8, :64:8]
    assert np.array_equal(
        shown, build(run_config.load_config(f"{made}/latent"), "data").test.pixels[0, 0]
    ), "as it was given"
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
    status, _, error = typed("evaluate", trained, "count=20", *chain, f"hydra.run.dir={tmp_path}/e")
    assert status == 0 and json.loads((tmp_path / "e" / "metrics.json").read_text())["fid"] > 0, (
        error
    )


def test_a_run_is_read_with_the_autoencoder_that_it_was_trained_with_and_no_other(
    made, typed, tmp_path
):
    there = tmp_path / "kl"
    overrides = ["codec=autoencoder", f"codec.run={there}", "callbacks=classifier"]
    shutil.copytree(made / "kl", there)
    status, _, error = typed("train", *SMALL, *overrides, f"hydra.run.dir={tmp_path}/r")
    assert status == 0, error
    shutil.rmtree(there)
    status, _, error = typed("sample", f"run={tmp_path}/r", "weights=raw", "count=1")
    assert status == 2 and f"codec.run={there} is no run" in error
    shutil.copytree(made / "kl", tmp_path / "moved")
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


def test_an_autoencoder_whose_weights_are_no_numbers_is_refused_before_a_run_is_made(
    made, typed, tmp_path
):
    shutil.copytree(made / "kl", tmp_path / "kl")
    file = weights.checkpoint_files(tmp_path / "kl")[0]
    content = torch.load(file, weights_only=True)
    overrides = ["codec=autoencoder", f"codec.run={tmp_path}/kl", f"hydra.run.dir={tmp_path}/r"]
    for value, told in (
        (float("nan"), "step-000010.ckpt has weights that are not finite numbers"),
        (3e38, "makes latents whose channels have standard deviations ["),
    ):
        content["state_dict"]["autoencoder.quant_conv.2.weight"][0] = value
        torch.save(content, file)
        status, _, error = typed("train", *SMALL, *overrides)
        assert status == 2 and f"codec.run={tmp_path}/kl" in error and told in error
        assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("verb", "overrides", "told"),
    [
        ("train", ["codec=autoencoder"], "codec.run must be given"),
        ("train", ["codec=autoencoder", "codec.run=nowhere"], "codec.run=nowhere is no run"),
        (
            "train",
            ["codec=autoencoder", "codec.run=MADE/latent"],
            "codec.run=MADE/latent is not an autoencoder but a diffusion model",
        ),
        (
            "train",
            ["codec=autoencoder", "codec.run=MADE/kl", "data=synthetic"],
            "codec.run=MADE/kl was trained on data of shape (1, 8, 8), and this data has (3, 16, 16)",
        ),
        (
            "train",
            ["codec=autoencoder", "codec.run=MADE/kl", "data=toy", "model=mlp"],
            "codec.run=MADE/kl was trained on data of shape (1, 8, 8), and this data has (2,)",
        ),
        (
            "train",
            ["codec=autoencoder", "codec.run=MADE/kl", "sampler.clip=1"],
            "sampler.clip=1 bounds pixels",
        ),
        (
            "train",
            ["codec=autoencoder", "codec.run=MADE/kl", "conditioner=low_res"],
            "conditioner=low_res lays a image beside what is drawn, which codec=latents makes 4x4x4",
        ),
        ("train", ["system=autoencoder", "callbacks=default"], "EMA is not for an autoencoder"),
        (
            "train",
            ["model=autoencoder_kl"],
            "autoencoder_kl and autoencoder_vq are for system=autoencoder",
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
            "model.multipliers=[1, 1, 1, 1, 1] makes",
        ),
        ("sample", ["run=MADE/kl"], "run=MADE/kl is not a diffusion model but an autoencoder"),
        ("sample", ["run=MADE/latent", "sampler=ddim"], "sampler.clip=1 bounds pixels"),
        ("sample", ["run=MADE/latent", "codec.run=MADE/vq"], "codec.run=MADE/vq has changed since"),
        (
            "sample",
            ["run=MADE/latent", "codec=pixels"],
            "codec is part of what run=MADE/latent was trained with; of codec, only run can be changed",
        ),
        (
            "sample",
            ["run=MADE/latent", "codec=autoencoder", "codec.run=MADE/kl"],
            "codec=autoencoder also chooses prediction, which only train.py can; try codec.KEY=... alone",
        ),
        (
            "sample",
            ["run=MADE/latent", "sampler.dynamic_threshold=0.9", "sampler.clip=1"],
            "latents have no such",
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
            "and latents have no bins; try metrics=[fid]",
        ),
    ],
)
def test_what_latents_cannot_do_is_refused(verb, overrides, told, made, typed, tmp_path):
    overrides = [word.replace("MADE", str(made)) for word in overrides]
    status, _, error = typed(
        verb, *overrides, *([f"hydra.run.dir={tmp_path}/r"] if verb == "train" else [])
    )
    assert (
        status == 2 and error.startswith("error: ") and told.replace("MADE", str(made)) in error
    ), error
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "model", [name for name in options("model") if name.startswith("autoencoder")]
)
@pytest.mark.parametrize(
    "overrides", [["data=synthetic"], ["system.adversarial=0.5"]], ids=" ".join
)
def test_every_autoencoder_takes_a_step(model, overrides, typed, tmp_path):
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
    """A model of digits of 4x4 and one that enlarges them, of ten steps each."""
    where = tmp_path_factory.mktemp("chain")
    for name, overrides in {
        "base": ["data.resolution=4"],
        "large": ["conditioner=low_res"],
    }.items():
        status, said, error = typed("train", *FAST, *overrides, f"hydra.run.dir={where}/{name}")
        assert status == 0, error
        assert ("FID will not be measured" in said) == (name == "base")
    return where


def drawn(folder):
    return np.load(folder / "samples.npz")


def test_a_cascade_is_drawn_and_kept_stage_by_stage(chain, typed, tmp_path):
    overrides = [f"cascade=[{chain}/base,{chain}/large]", "count=5", "seed=3"]
    status, said, error = typed("sample", *overrides, f"hydra.run.dir={tmp_path}/c")
    assert status == 0 and str(tmp_path / "c" / "stage-1") in said, error
    small, large = drawn(tmp_path / "c" / "stage-1"), drawn(tmp_path / "c")
    assert small["images"].shape == (5, 4, 4, 1) and large["images"].shape == (5, 8, 8, 1)
    assert small["labels"].tolist() == large["labels"].tolist() == [0, 1, 2, 3, 4]
    for folder in (tmp_path / "c", tmp_path / "c" / "stage-1"):
        assert (folder / "grid.png").is_file() and len(list((folder / "images").iterdir())) == 5

    # One stage after another, from what was saved.
    assert (
        typed("sample", f"run={chain}/base", *overrides[1:], f"hydra.run.dir={tmp_path}/a")[0] == 0
    )
    assert np.array_equal(drawn(tmp_path / "a")["images"], small["images"])
    for given, more in ((tmp_path / "a", []), (tmp_path / "a" / "images", ["label=[0,1,2,3,4]"])):
        status, _, error = typed(
            "sample",
            f"run={chain}/large",
            "seed=3",
            f"input={given}",
            *more,
            f"hydra.run.dir={tmp_path}/b",
        )
        assert status == 0, error
        assert np.array_equal(drawn(tmp_path / "b")["images"], large["images"])
        shutil.rmtree(tmp_path / "b")


def test_each_stage_of_a_cascade_has_words_of_its_own(chain, typed, tmp_path):
    overrides = [
        f"cascade=['{chain}/base sampler=ddpm sampler.steps=2','{chain}/large conditioner.noise_level=0.1']",
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
        drawn(tmp_path / "c" / "stage-1")["images"], drawn(tmp_path / "a")["images"]
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
    assert np.array_equal(drawn(tmp_path / "c")["images"], drawn(tmp_path / "b")["images"])
    status, _, error = typed(
        "evaluate", *overrides[:1], "count=20", "sampler.steps=1", f"hydra.run.dir={tmp_path}/e"
    )
    assert status == 0, error
    protocol = json.loads((tmp_path / "e" / "metrics.json").read_text())["protocol"]
    (before,) = protocol["after"]
    assert (before["sampler"]["name"], before["steps"], before["run"]) == (
        "DDPM",
        2,
        f"{chain}/base (ema)",
    )
    assert (protocol["sampler"]["name"], protocol["steps"], protocol["noise_level"]) == (
        "DDIM",
        1,
        0.1,
    )


def test_options_of_hydra_stand_beside_a_cascade(chain, typed):
    overrides = [
        f"cascade=[{chain}/base,'{chain}/large conditioner.noise_level=0.1 sampler.steps=7']"
    ]
    for order in (
        ["--cfg", "job", *overrides, "conditioner.noise_level=0.2"],
        ["conditioner.noise_level=0.2", *overrides, "--cfg", "job"],
    ):
        status, said, error = typed("sample", *order)
        assert (
            status == 0
            and f"run: {chain}/large" in said
            and "level: 0.2" in said
            and "steps: 7" in said
        ), error


def test_a_sweep_over_a_cascade_offers_each_cell_the_same(chain, typed, tmp_path):
    overrides = [
        f"cascade=[{chain}/base,{chain}/large]",
        "conditioner.noise_level=0,0.5",
        "count=2",
    ]
    status, _, error = typed("sample", "-m", *overrides, f"hydra.sweep.dir={tmp_path}")
    assert status == 0, error
    a, b = (
        drawn(next(tmp_path.glob(f"conditioner.noise_level-{level}-*"))) for level in ("0", "0.5")
    )
    assert a["images"].shape == b["images"].shape and not np.array_equal(a["images"], b["images"])


@pytest.mark.parametrize("truncated_conditioning", ["false", "true"])
def test_a_report_sweeps_the_level_after_training(truncated_conditioning, chain, typed, tmp_path):
    overrides = [
        f"cascade=[{chain}/base,{chain}/large]",
        f"conditioner.truncated_conditioning={truncated_conditioning}",
        "count=40",
    ]
    status, said, error = typed(
        "evaluate",
        *overrides,
        "sweep=conditioner.noise_level",
        "values=[0,0.4]",
        f"hydra.run.dir={tmp_path}/r",
    )
    assert status == 0 and "conditioner.noise_level" in said, error
    zero, noisy = json.loads((tmp_path / "r" / "metrics.json").read_text())["values"]
    assert (
        zero["protocol"]["noise_level"] == 0
        and noisy["protocol"]["noise_level"] == 0.4
        and zero["fid"] != noisy["fid"]
    )
    status, _, _ = typed(
        "evaluate", *overrides, "conditioner.noise_level=0.4", f"hydra.run.dir={tmp_path}/e"
    )
    alone = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert status == 0 and alone["fid"] == pytest.approx(noisy["fid"], rel=1e-4)
    assert alone["protocol"] == noisy["protocol"]


@pytest.mark.parametrize(
    ("verb", "overrides", "told"),
    [
        (
            "sample",
            ["cascade=[C/large,C/base]"],
            "stage 2 enlarges nothing; it must be trained with cond",
        ),
        (
            "sample",
            ["cascade=[C/large,C/large]"],
            "stage 1 draws images of 1x8x8, and stage 2 enlarges those of",
        ),
        (
            "evaluate",
            ["cascade=[C/large,C/large]"],
            "draws images of 1x8x8, and stage 2 enlarges those of 1x4x4",
        ),
        ("sample", ["cascade=[nowhere,C/large]"], "run=nowhere is no run"),
        (
            "sample",
            ["cascade=C/large"],
            "cascade=C/large must be a list of runs, from the smallest images on",
        ),
        ("sample", ["cascade=[]"], "cascade=[] must be a list of runs"),
        ("sample", ["-m", "cascade=[C/base],[C/large]"], "must be a list of runs"),
        (
            "sample",
            ["cascade=[C/base,C/large]", "run=C/base"],
            "both say what draws; give one of them",
        ),
        (
            "sample",
            ["cascade=['C/base sampler.stepz=2',C/large]"],
            "stage C/base sampler.stepz=2: ",
        ),
        (
            "sample",
            ["cascade=['C/base sampler.steps=2000',C/large]"],
            "sampler.steps must lie in 1..1000",
        ),
        (
            "sample",
            ["cascade=[C/base,C/large"],
            "must be a list of runs, from the smallest images on",
        ),
        (
            "sample",
            ["cascade=[C/base,'']"],
            "cascade: a stage must be a run, and behind it its words;",
        ),
        (
            "sample",
            ["cascade=['',C/large]"],
            "cascade: a stage must be a run, and behind it its words;",
        ),
        (
            "sample",
            ['cascade=["C/base it\'s",C/large]'],
            "cascade: a stage must be a run, and behind it its words",
        ),
        (
            "sample",
            ["cascade=['C/base label=3',C/large]"],
            "cascade: label=3 cannot be said of one stage",
        ),
        ("sample", ["cascade=['C/base run=C/large',C/large]"], "cannot be said of one stage"),
        (
            "sample",
            ["cascade=[C/base,'C/large out=elsewhere']"],
            "cascade: out=elsewhere cannot be said of one stage",
        ),
        (
            "sample",
            ["cascade=['C/base weights=foo',C/large]"],
            "stage C/base weights=foo: weights=foo is not one",
        ),
        ("sample", ["run=C/large", "input=null", "label=1"], "input=None is not there"),
        (
            "sample",
            ["run=C/large", "conditioner.noise_level=0.6"],
            "conditioner.noise_level must be at most max_noise_level=0.5, that of training (got 0.6)",
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
            "metrics=['nll'] looks at one model",
        ),
        (
            "sample",
            ["cascade=[C/base,C/large]", "conditioner.noise_level=1.5"],
            "conditioner.noise_level is a noise level and must lie in [0, 1] (got 1.5)",
        ),
        (
            "sample",
            ["run=C/large", "conditioner.noise_level=-1"],
            "conditioner.noise_level is a noise level and must lie in",
        ),
        (
            "evaluate",
            ["run=C/large", "sweep=conditioner.noise_level", "values=[0,2]"],
            "conditioner.noise_level is a noise level",
        ),
        (
            "evaluate",
            ["run=C/large", "sweep=conditioner.factor", "values=[2]"],
            "not among what can be chosen",
        ),
        (
            "sample",
            ["run=C/large", "conditioner.factor=4"],
            "conditioner.factor is part of what run=C/large was",
        ),
        (
            "sample",
            ["run=C/large", "conditioner=label"],
            "conditioner is part of what run=C/large was trained with",
        ),
        (
            "sample",
            ["run=C/base", "conditioner.noise_level=0.2"],
            "conditioner has no key noise_level",
        ),
        (
            "sample",
            ["run=C/base", "input=train"],
            "input=train is for a model that enlarges images",
        ),
        ("sample", ["run=C/large", "input=EMPTY"], "input=EMPTY holds no images"),
        (
            "sample",
            ["run=C/large", "input=WRONG", "label=1"],
            "input=WRONG: WRONG/b.png is 8x8 L, and 4x4 L is wanted",
        ),
        (
            "sample",
            ["run=C/large", "input=COLOUR", "label=1"],
            "input=COLOUR: COLOUR/a.png is 4x4 RGB, and 4x4 L",
        ),
        ("sample", ["run=C/large", "input=SMALL"], "must know of what class the images are"),
        (
            "sample",
            ["run=C/large", "input=SMALL", "label=11"],
            "label=11 is not among the labels of this model",
        ),
        ("sample", ["run=C/large", "input=nowhere"], "input=nowhere is not there"),
        (
            "train",
            ["conditioner=low_res", "conditioner.noise_level=2"],
            "conditioner.noise_level is a noise level",
        ),
        (
            "train",
            ["conditioner=low_res", "conditioner.max_noise_level=2"],
            "conditioner.max_noise_level is a noise level",
        ),
        (
            "train",
            ["conditioner=low_res", "conditioner.blur=[1]"],
            "conditioner.blur must be [low, high]",
        ),
        (
            "train",
            ["data.resolution=3"],
            "data.resolution must be 8, that of the images, or a divisor (got 3)",
        ),
    ],
)
def test_what_a_cascade_cannot_do_is_refused(
    verb, overrides, told, chain, typed, tmp_path, monkeypatch
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
        status == 2 and error.startswith("error: ") and told.replace("C/", f"{chain}/") in error
    ), error
    assert "Traceback" not in error and not Path("out").exists() and error.count("\n") <= 2
