"""Models in two stages, typed as a user types them: latents."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import FAST, options, there_and_back
from PIL import Image

from ddpm_lab.commands import runs
from ddpm_lab.commands.build import build

SMALL = ("trainer=debug", "logger=csv", "model.channels=8", "callbacks.losses.every=5", "data.batch_size=16")


@pytest.fixture(scope="module")
def made(tmp_path_factory, typed):
    """Autoencoders of ten steps, by name, and a diffusion model in the latents of one."""
    where = tmp_path_factory.mktemp("made")
    for name in ("kl", "vq"):
        words = ["system=autoencoder", f"model=autoencoder_{name}", "callbacks.reconstructions.every=5"]
        status, said, error = typed("train", *SMALL, *words, f"hydra.run.dir={where}/{name}")
        assert status == 0, error
        (where / name / "stdout").write_text(said)
    words = ["codec=autoencoder", f"codec.run={where}/kl"]
    status, _, error = typed("train", *FAST, *words, f"hydra.run.dir={where}/latent")
    assert status == 0, error
    return where


def test_an_autoencoder_shows_and_measures_what_it_restores(made):
    for name in ("kl", "vq"):
        found = json.loads((made / name / "metrics.json").read_text())
        assert found["psnr"] > 5 and -1 <= found["ssim"] <= 1 and found["rfid"] > 0 and found["training"]["steps"] == 10
        assert ("codes_used" in found) == (name == "vq") and 0 < found.get("codes_used", 1) <= 1
        assert {file.name for file in (made / name / "pictures").iterdir()} == {
            "reconstructions-000005.png", "reconstructions-000010.png", "losses.png"}  # fmt: skip
        said = (made / name / "stdout").read_text()
        assert "PSNR" in said and f"python train.py codec=autoencoder codec.run={made / name}" in said
        assert "quality/psnr" in (made / name / "metrics.csv").read_text()
        picture = Image.open(made / name / "pictures" / "reconstructions-000010.png")
        pixels = np.asarray(picture)[4:, 4:, 0]
        given = build(runs.config(str(made / name)), "data").test.pixels[20]
        assert np.array_equal(pixels[2 * 68 :][:64:8, :64:8], given[0]), "each row above its reconstruction"
        assert picture.width > 20 * 64 and len(np.unique(pixels)) > 16


def test_a_latent_model_draws_pictures_and_keeps_only_the_scale_of_its_latents(made, typed, tmp_path):
    trained = f"run={made}/latent"
    content = torch.load(made / "latent" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name for name in content if name.startswith("codec")} == {"codec.mean", "codec.std", "codec._extra_state"}
    status, _, error = typed("sample", trained, "count=3", f"hydra.run.dir={tmp_path}/s")
    assert status == 0, error
    assert np.load(tmp_path / "s" / "samples.npz")["images"].shape == (3, 8, 8, 1)
    there_and_back(typed, trained, tmp_path)
    assert np.load(tmp_path / "x" / "x_T.npz")["x_T"].shape == (2, 4, 4, 4)
    assert typed("sample", trained, "mode=interpolate", "count=1", f"hydra.run.dir={tmp_path}/i")[0] == 0
    chain = ["variance=analytic", "variance.samples=50", "sampler=ddpm", "sampler.clip=null", "sampler.steps=3"]
    status, _, error = typed("evaluate", trained, "count=20", *chain, f"hydra.run.dir={tmp_path}/e")
    assert status == 0 and json.loads((tmp_path / "e" / "metrics.json").read_text())["fid"] > 0, error


def test_a_run_is_read_with_the_autoencoder_that_it_was_trained_with_and_no_other(made, typed, tmp_path):
    there = tmp_path / "kl"
    words = ["codec=autoencoder", f"codec.run={there}", "callbacks=classifier"]
    shutil.copytree(made / "kl", there)
    status, _, error = typed("train", *SMALL, *words, f"hydra.run.dir={tmp_path}/r")
    assert status == 0, error
    shutil.rmtree(there)
    status, _, error = typed("sample", f"run={tmp_path}/r", "weights=raw", "count=1")
    assert status == 2 and f"codec.run={there} is no run" in error
    shutil.copytree(made / "kl", tmp_path / "moved")
    moved = f"codec.run={tmp_path}/moved"
    status, _, error = typed("sample", f"run={tmp_path}/r", "weights=raw", "count=1", moved)
    assert status == 0, error
    content = torch.load(tmp_path / "moved" / "checkpoints" / "last.ckpt", weights_only=True)
    content["state_dict"]["autoencoder.last.bias"] += 0.01
    torch.save(content, tmp_path / "moved" / "checkpoints" / "last.ckpt")
    status, _, error = typed("sample", f"run={tmp_path}/r", "weights=raw", "count=1", moved)
    assert status == 2 and f"codec.run={tmp_path}/moved has changed since this model was trained" in error


def test_an_autoencoder_whose_weights_are_no_numbers_is_refused_before_a_run_is_made(made, typed, tmp_path):
    shutil.copytree(made / "kl", tmp_path / "kl")
    file = tmp_path / "kl" / "checkpoints" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    content["state_dict"]["autoencoder.narrow.2.weight"][0] = float("nan")
    torch.save(content, file)
    words = ["codec=autoencoder", f"codec.run={tmp_path}/kl", f"hydra.run.dir={tmp_path}/r"]
    status, _, error = typed("train", *SMALL, *words)
    assert status == 2 and "makes latents whose channels have standard deviations [nan" in error
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("verb", "words", "told"),
    [
        ("train", ["codec=autoencoder"], "codec.run must be given"),
        ("train", ["codec=autoencoder", "codec.run=nowhere"], "codec.run=nowhere is no run"),
        ("train", ["codec=autoencoder", "codec.run=MADE/latent"],
         "codec.run=MADE/latent is not an autoencoder but a diffusion model"),
        ("train", ["codec=autoencoder", "codec.run=MADE/kl", "data=synthetic"],
         "codec.run=MADE/kl was trained on data of shape (1, 8, 8), and this data has (3, 16, 16)"),
        ("train", ["codec=autoencoder", "codec.run=MADE/kl", "data=toy", "model=mlp"],
         "codec.run=MADE/kl was trained on data of shape (1, 8, 8), and this data has (2,)"),
        ("train", ["codec=autoencoder", "codec.run=MADE/kl", "sampler.clip=1"], "sampler.clip=1 bounds pixels"),
        ("train", ["codec=autoencoder", "codec.run=MADE/kl", "conditioner=low_res"],
         "conditioner=low_res lays a picture beside what is drawn, which codec=latents makes 4x4x4"),
        ("train", ["system=autoencoder", "callbacks=default"], "EMA is not for an autoencoder"),
        ("train", ["model=autoencoder_kl"], "autoencoder_kl and autoencoder_vq are for system=autoencoder"),
        ("train", ["callbacks=autoencoder"], "Reconstructions is not for pictures; try callbacks=default"),
        ("train", ["system=autoencoder", "model.bottleneck.weight=-1"], "model.bottleneck.weight must be at least 0"),
        ("train", ["system=autoencoder", "model.multipliers=[1,1,1,1,1]"], "model.multipliers=[1, 1, 1, 1, 1] makes"),
        ("sample", ["run=MADE/kl"], "run=MADE/kl is not a diffusion model but an autoencoder"),
        ("sample", ["run=MADE/latent", "sampler=ddim"], "sampler.clip=1 bounds pixels"),
        ("sample", ["run=MADE/latent", "codec.run=MADE/vq"], "codec.run=MADE/vq has changed since"),
        ("sample", ["run=MADE/latent", "codec=pixels"], "codec"),
        ("evaluate", ["run=MADE/latent", "metrics=[nll]"], "and latents have no bins; try metrics=[fid]"),
    ],
)  # fmt: skip
def test_what_latents_cannot_do_is_refused(verb, words, told, made, typed, tmp_path):
    words = [word.replace("MADE", str(made)) for word in words]
    status, _, error = typed(verb, *words, *([f"hydra.run.dir={tmp_path}/r"] if verb == "train" else []))
    assert status == 2 and error.startswith("error: ") and told.replace("MADE", str(made)) in error, error
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("model", [name for name in options("model") if name.startswith("autoencoder")])
@pytest.mark.parametrize("words", [["data=synthetic"], ["system.adversarial=0.5"]], ids=" ".join)
def test_every_autoencoder_takes_a_step(model, words, typed, tmp_path):
    steps = ["trainer.max_steps=1", "callbacks.reconstructions.rows=1", "callbacks.reconstructions.columns=4"]
    status, _, error = typed("train", *SMALL, "system=autoencoder", f"model={model}", *words, *steps,
                             f"hydra.run.dir={tmp_path}/r")  # fmt: skip
    assert status == 0 and (tmp_path / "r" / "metrics.json").is_file(), error
