"""FID against its formula, and the packaged classifier against held-out digits."""

import hashlib
from importlib.resources import files
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ddpm_lab.data.digits import digits as digits_data
from ddpm_lab.data.splits import Images
from ddpm_lab.evaluation.extractors import INCEPTION, digits, inception, none
from ddpm_lab.evaluation.quality import measure


def frechet(a, b):
    """Heusel et al. (2017), eq. 6, in numpy."""
    (ma, ca), (mb, cb) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    return ((ma - mb) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)


def test_fid_is_the_frechet_distance_of_the_features():
    extractor, data = digits(), digits_data()
    worn = (data.test.pixels.int() + torch.randint(-40, 41, data.test.pixels.shape)).clamp(0, 255).byte()
    found = measure(extractor, data.train, [Images(part, None) for part in worn.split(100)])
    with torch.no_grad():
        a, b = (extractor.features(pixels).double().numpy() for pixels in (data.train.pixels, worn))
    assert found == {"fid": pytest.approx(frechet(a, b), rel=1e-4)}


def test_fid_tells_the_same_from_the_worn_from_noise():
    extractor, data = digits(), digits_data()
    noise = torch.randint(256, data.test.pixels.shape).byte()
    worn = (data.test.pixels.int() + torch.randint(-60, 61, data.test.pixels.shape)).clamp(0, 255).byte()
    same, held_out, worse, worst = (
        measure(extractor, data.train, [Images(pixels, None)])["fid"]
        for pixels in (data.train.pixels, data.test.pixels, worn, noise)
    )
    assert abs(same) < 1e-3 and same < held_out < worse < worst


def test_the_packaged_classifier_knows_held_out_digits():
    found = measure(digits(), digits_data().train, [digits_data().test])
    assert found["recognised"] >= 0.99
    wrong = Images(digits_data().test.pixels, (digits_data().test.labels + 1) % 10)
    assert measure(digits(), digits_data().train, [wrong])["recognised"] <= 0.01


def test_the_hash_is_that_of_the_file_and_the_file_is_small():
    content = files("ddpm_lab.evaluation").joinpath("digits.safetensors").read_bytes()
    assert digits().sha256 == hashlib.sha256(content).hexdigest() and len(content) < 500_000


def test_digits_refuses_other_pictures():
    with pytest.raises(ValueError, match="3x32x32"):
        digits().features(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_inception_that_cannot_be_had_says_which_file_goes_where(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match=rf"put {INCEPTION} at {tmp_path}"):
        inception()
    with pytest.raises(ValueError, match="weights=nowhere"):
        inception("nowhere")
    (tmp_path / "other.pth").write_text("not it")
    with pytest.raises(ValueError, match="SHA-256"):
        inception(str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match="extractor=none"):
        none()
