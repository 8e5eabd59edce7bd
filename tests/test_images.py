"""Images of any size and number of channels: whole paths from training to samples."""

import numpy as np
import pytest
import sets
from conftest import FAST
from PIL import Image

from ddpm_lab.data.image_array import image_array

WIDE = ("data=synthetic", "data.resolution=[8,12]", "data.count=64", "extractor=none")


def test_wide_images_of_six_channels(typed, tiny, tmp_path):
    run = tiny(*WIDE, "data.channels=6", "callbacks.sample_grid.columns=3")
    grid = Image.open(run / "images" / "samples-000010.png")
    assert grid.width > 3 * 6 * 64
    for mode in ("sample", "interpolate", "encode"):
        words = (f"run={run}", f"mode={mode}", "count=2", f"hydra.run.dir={tmp_path}/{mode}")
        status, _, error = typed("sample", *words)
        assert status == 0, error
    assert np.load(tmp_path / "sample" / "samples.npz")["images"].shape == (2, 8, 12, 6)
    words = (f"run={run}", "metrics=[nll]", "nll.steps=2", "nll.count=4")
    assert typed("evaluate", *words, f"hydra.run.dir={tmp_path}/e")[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        ("model=dit_s", "model.channels=24", "model.blocks=1"),
        ("model=unet_cross", "conditioner=tokens"),
        ("system=classifier", "model=classifier", "callbacks=classifier"),
    ],
    ids=" ".join,
)
def test_networks_take_wide_images(words, typed, tmp_path):
    network = [word for word in FAST if not word.startswith(("model", "sampler", "callbacks"))]
    status, _, error = typed("train", *network, *WIDE, *words, f"hydra.run.dir={tmp_path}/r")
    assert status == 0, error


def test_class_names_of_an_array_reach_samples(typed, tmp_path):
    names, pixels = np.array(["cat", "my dog"]), sets.noise(24, 4, 6)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(24) % 2, class_names=names)
    words = ("data=array", f"data.path={tmp_path}/a.npz", "conditioner=label", "extractor=none")
    run = (*FAST[:5], *words, "callbacks=none", f"hydra.run.dir={tmp_path}/r")
    status, output, error = typed("train", *run)
    assert status == 0 and "classes: 0 cat, 1 my dog" in output, error
    words = ("label=my_dog", "count=4", "weights=raw", f"hydra.run.dir={tmp_path}/s")
    status, output, error = typed("sample", f"run={tmp_path}/r", *words)
    assert status == 0 and "  classes     1 my dog\n" in output, error
    data = image_array(f"{tmp_path}/s/samples.npz", held_out=0.5)
    assert data.captions == [["cat"], ["my dog"]] and data.shape == (3, 4, 6)
    assert data.train.labels.tolist() == [1, 1]
    status, _, error = typed("sample", f"run={tmp_path}/r", "label=emu", "weights=raw")
    assert status == 2 and "is not a label of this model: 0 cat, 1 my dog" in error


def test_validation_files_are_found_from_another_directory(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        np.save(f"{name}.npy", sets.noise(8, 4, 6))
    np.save("labels.npy", np.zeros(8, int))
    np.savez("b.npz", images=sets.noise(8, 4, 6), labels=np.zeros(8, int))
    words = ("data.path=a.npy", "data.val_path=b.npz", "data.labels=labels.npy", "extractor=none")
    small = (*FAST[:5], "callbacks=none", "hydra.run.dir=r")
    assert typed("train", "data=array", *words, *small)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    words = ("run=../r", "metrics=[nll]", "weights=raw", "nll.steps=1", "hydra.run.dir=e")
    status, output, error = typed("evaluate", *words)
    assert status == 0 and "warning" not in output, error
    (tmp_path / "b.npz").rename("moved.npz")
    status, output, error = typed("evaluate", *words, "data.val_path=moved.npz")
    assert status == 0 and "warning" not in output, error


def test_unused_files_are_listed_in_the_run(typed, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(120):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"{i:03}.png")
    (folder / "005.png").write_bytes(b"")
    for name in ("a.txt", "b.txt", "c.md"):
        (folder / name).write_text("words")
    words = ("data=folder", f"data.path={folder}", "data.on_error=skip", "extractor=none")
    run = (*words, "callbacks=none", f"hydra.run.dir={tmp_path}/r")
    status, output, error = typed("train", *FAST[:4], "sampler.steps=2", *run)
    assert status == 0, error
    assert "not used: 2 .txt, 1 .md (not images); names: a.txt, b.txt, c.md" in output
    assert f"the 4 files that are not used: {tmp_path}/r/left_out.txt" in output
    lines = (tmp_path / "r" / "left_out.txt").read_text().splitlines()
    reasons = ("not an image (.txt): ", "not an image (.txt): ", "not an image (.md): ")
    names = ("a.txt", "b.txt", "c.md")
    named = [f"{reason}{folder / name}" for reason, name in zip(reasons, names, strict=True)]
    assert lines == [*named, f"{folder}/005.png cannot be read as an image (it is empty)"]


def test_perceptual_loss_refuses_other_channels(typed, tmp_path):
    words = ("system=autoencoder", "model=autoencoder_kl", "callbacks=autoencoder")
    large = ("data=synthetic", "data.resolution=[16,24]", "data.channels=4", "extractor=none")
    run = ("system.perceptual=1", "logger=csv", f"hydra.run.dir={tmp_path}/r")
    status, _, error = typed("train", *words, *large, *run)
    assert status == 2 and "system.perceptual=1 needs gray or RGB images (got 4x16x24)" in error


def test_cascade_and_latents_of_wide_images(typed, tiny, tmp_path):
    small = tiny(*WIDE, "data.resolution=[4,6]")
    large = tiny(*WIDE, "conditioner=low_res")
    words = (f"cascade=[{small},{large}]", "count=2", f"hydra.run.dir={tmp_path}/s")
    status, _, error = typed("sample", *words)
    assert status == 0, error
    assert np.load(tmp_path / "s" / "samples.npz")["images"].shape == (2, 8, 12, 3)
    autoencoder = ("system=autoencoder", "model=autoencoder_kl", "callbacks=autoencoder")
    words = ("trainer=debug", "logger=csv", f"hydra.run.dir={tmp_path}/a")
    status, _, error = typed("train", *WIDE, *autoencoder, *words)
    assert status == 0, error
    words = ("codec=autoencoder", f"codec.run={tmp_path}/a", f"hydra.run.dir={tmp_path}/l")
    status, output, error = typed("train", *FAST, *WIDE, *words)
    assert status == 0 and "in latents of 4x4x6" in output, error
