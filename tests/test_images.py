"""Images of any size and number of channels: whole paths from training to samples."""

import numpy as np
import pytest
from conftest import FAST
from PIL import Image

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
