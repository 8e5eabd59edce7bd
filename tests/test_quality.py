"""FID against its formula, and the packaged classifier against held-out digits."""

import hashlib
from dataclasses import replace
from functools import partial
from importlib.resources import files
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import composed
from scipy.linalg import sqrtm
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ddpm_lab.commands.build import build
from ddpm_lab.data.digits import digits as digits_data
from ddpm_lab.data.splits import Images
from ddpm_lab.evaluation.extractors import INCEPTION, Extractor, InceptionFeatures, digits, inception, none
from ddpm_lab.evaluation.inception_score import inception_score
from ddpm_lab.evaluation.quality import Judge, assess


def frechet(a, b):
    """Heusel et al. (2017), eq. 6, in numpy."""
    (ma, ca), (mb, cb) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    return ((ma - mb) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)


def test_fid_is_the_frechet_distance_of_the_features():
    extractor, data = digits(), digits_data()
    worn = (data.test.pixels.int() + torch.randint(-40, 41, data.test.pixels.shape)).clamp(0, 255).byte()
    found = Judge(extractor, data.train)(Images(part, None) for part in worn.split(100))
    with torch.no_grad():
        a, b = (extractor.features(pixels).double().numpy() for pixels in (data.train.pixels, worn))
    assert found["fid"] == pytest.approx(frechet(a, b), rel=1e-4) and found.keys() == {"fid", "inception_score"}


def test_fid_tells_the_same_from_the_worn_from_noise():
    extractor, data = digits(), digits_data()
    noise = torch.randint(256, data.test.pixels.shape).byte()
    worn = (data.test.pixels.int() + torch.randint(-60, 61, data.test.pixels.shape)).clamp(0, 255).byte()
    judge = Judge(extractor, data.train)
    same, held_out, worse, worst = (
        judge([Images(pixels, None)])["fid"] for pixels in (data.train.pixels, data.test.pixels, worn, noise)
    )
    assert abs(same) < 1e-3 and same < held_out < worse < worst
    assert judge([Images(data.test.pixels, None)])["fid"] == held_out, "it forgets the samples before"


def test_every_way_to_draw_is_judged():
    config = composed("model.channels=8", "model.multipliers=[1]", "sampler.steps=3")
    data = build(config, "data")
    system = build(config, "system", **data.spec)
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ways = [partial(system.draw_with, replace(system.sampler, steps=steps), system.guidance) for steps in (1, 3)]
    common = {"weights": "raw", "split": "train", "count": 20, "seed": 0, "batch_size": 20}
    one, three = assess(system, system.denoiser, data, digits(), ways=ways, **common)
    (own,) = assess(system, system.denoiser, data, digits(), **common)
    assert one["fid"] != three["fid"] == own["fid"] and one["real"] == own["real"]
    assert [found["protocol"]["steps"] for found in (one, three)] == [1, 3]


def test_the_packaged_classifier_knows_held_out_digits():
    judge = Judge(digits(), digits_data().train)
    assert judge([digits_data().test])["recognised"] >= 0.99
    wrong = Images(digits_data().test.pixels, (digits_data().test.labels + 1) % 10)
    assert judge([wrong])["recognised"] <= 0.01


def test_fid_within_is_the_mean_over_classes_and_none_where_a_class_is_missing():
    extractor, data = digits(), digits_data()
    found = Judge(extractor, data.train)([data.test])
    with torch.no_grad():
        real, test = (extractor.features(split.pixels).double().numpy() for split in (data.train, data.test))
    each = [frechet(real[data.train.labels == k], test[data.test.labels == k]) for k in range(10)]
    assert found["fid_within"] == pytest.approx(np.mean(each), rel=1e-3)
    some = data.test.at(data.test.labels < 9)
    assert "fid_within" not in Judge(extractor, data.train)([some])
    lonely = Images(torch.cat([some.pixels, data.test.pixels[:1]]), torch.cat([some.labels, torch.tensor([9])]))
    assert "fid_within" not in Judge(extractor, lonely)([data.test])
    assert "precision" not in Judge(extractor, data.train, thorough=True)([data.test.at(slice(3))])


def test_precision_and_recall_are_shares_within_third_neighbours_by_brute_force():
    extractor, data = digits(), digits_data()
    worn = (data.test.pixels.int() + torch.randint(-60, 61, data.test.pixels.shape)).clamp(0, 255).byte()
    one_class = data.train.at(data.train.labels == 3)
    for made in (Images(worn, None), Images(one_class.pixels, None)):
        found = Judge(extractor, data.train, thorough=True)([made])
        with torch.no_grad():
            real, ours = (extractor.features(split.pixels) for split in (data.train, made))

        def within(points, manifold):
            radius = torch.cdist(manifold, manifold).kthvalue(4, dim=1).values  # the first is the point itself
            return (torch.cdist(points, manifold) <= radius).any(dim=1).double().mean().item()

        assert found["precision"] == pytest.approx(within(ours, real), abs=0.005)
        assert found["recall"] == pytest.approx(within(real, ours), abs=0.005)
    assert found["precision"] == 1 and found["recall"] < 0.3


def scored(logits):
    """Salimans et al. (2016), section 4, in numpy."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())


class Said(torch.nn.Module):
    """Logits that are features: pictures of 1x1xK bytes."""

    num_features = 4

    def forward(self, pixels):
        return pixels.flatten(1).float() / 40 - 3


@pytest.mark.parametrize("count", [900, 5000])
def test_the_inception_score_is_the_mean_over_ten_consecutive_splits_where_there_are_enough(count):
    pixels = torch.randint(256, (count, 1, 1, 4)).byte()
    pixels[: count // 2, ..., 0] = 255  # so that the order matters
    logits = Said()(pixels).double().numpy()
    judge = Judge(Extractor("said", "", Said(), None, torch.nn.Identity()), Images(pixels, None))
    found = judge(Images(part, None) for part in pixels.split(700))["inception_score"]
    splits = np.split(logits, 10 if count == 5000 else 1)
    assert found == pytest.approx(np.mean([scored(part) for part in splits]), rel=1e-6)
    assert abs(found - scored(logits)) > 0.01 or count == 900
    assert "inception_score" not in Judge(Extractor("mute", "", Said(), None), Images(pixels, None))(
        [Images(pixels, None)]
    )


def test_the_inception_score_is_1_where_all_are_alike_and_the_number_of_classes_where_all_are_sure():
    one_hot = torch.eye(10).repeat(50, 1)
    assert inception_score(one_hot) == pytest.approx(10) and inception_score(one_hot, 10) == pytest.approx(10)
    assert inception_score(one_hot[:1].repeat(50, 1)) == inception_score(torch.full((7, 10), 0.1)) == pytest.approx(1)
    judge = Judge(digits(), digits_data().train)
    assert 9.5 < judge([digits_data().test])["inception_score"] < 10


def test_the_logits_of_inception_are_torch_fidelitys_unbiased_ones(tmp_path):
    file = tmp_path / "random.pth"
    with pytest.MonkeyPatch.context() as patch:  # its constructor wants a file of weights
        patch.setattr(torch, "load", lambda *args, **kwargs: None)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *args, **kwargs: None)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], "none")
    torch.nn.init.normal_(network.fc.bias)
    torch.save(network.state_dict(), file)
    ours = InceptionFeatures(file).eval()
    pixels = torch.randint(256, (2, 3, 32, 32)).byte()
    with torch.no_grad():
        features, expected = network.eval()(pixels)
        torch.testing.assert_close(ours.logits()(ours(pixels)), expected)
        torch.testing.assert_close(ours(pixels), features)
    assert expected.shape == (2, 1008)


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
