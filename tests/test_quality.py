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
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.transforms.v2.functional import to_pil_image

from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.data.datasets import Images
from ddpm_lab.data.digits import digits as digits_data
from ddpm_lab.data.image_folder import read_images as folder_images
from ddpm_lab.evaluation.extractors import (
    INCEPTION,
    Extractor,
    InceptionFeatures,
    digits,
    inception,
    none,
)
from ddpm_lab.evaluation.fid import FIDEvaluator
from ddpm_lab.evaluation.sample_quality import evaluate_samples
from ddpm_lab.evaluation.statistics import inception_score
from ddpm_lab.reports.terminal import fid_rows


def frechet(a, b):
    """Heusel et al. (2017), eq. 6, in numpy."""
    (ma, ca), (mb, cb) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    return ((ma - mb) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)


def ask(evaluator, *splits):
    """What it says of images that come in these batches."""
    numbers = torch.arange(sum(split.size for split in splits)).split(
        [split.size for split in splits]
    )
    return evaluator(zip(numbers, splits, strict=True), sum(split.size for split in splits))


def test_fid_is_the_frechet_distance_of_the_features():
    extractor, data = digits(), digits_data()
    worn = (
        (data.test.pixels.int() + torch.randint(-40, 41, data.test.pixels.shape))
        .clamp(0, 255)
        .byte()
    )
    found = ask(
        FIDEvaluator(extractor, data.train), *(Images(part, None) for part in worn.split(100))
    )
    with torch.no_grad():
        a, b = (extractor.features(pixels).double().numpy() for pixels in (data.train.pixels, worn))
    assert found["fid"] == pytest.approx(frechet(a, b), rel=1e-4) and found.keys() == {
        "fid",
        "inception_score",
        "standard_error",
    }


def test_fid_tells_the_same_from_the_worn_from_noise():
    extractor, data = digits(), digits_data()
    noise = torch.randint(256, data.test.pixels.shape).byte()
    worn = (
        (data.test.pixels.int() + torch.randint(-60, 61, data.test.pixels.shape))
        .clamp(0, 255)
        .byte()
    )
    evaluator = FIDEvaluator(extractor, data.train)
    same, held_out, worse, worst = (
        ask(evaluator, Images(pixels, None))["fid"]
        for pixels in (data.train.pixels, data.test.pixels, worn, noise)
    )
    assert abs(same) < 1e-3 and same < held_out < worse < worst
    assert ask(evaluator, Images(data.test.pixels, None))["fid"] == held_out, (
        "it forgets the samples before"
    )


def test_every_way_to_draw_is_judged():
    config = composed("model.channels=8", "model.multipliers=[1]", "sampler.steps=3")
    data = build(config, "data")
    system = build_system(config, data)
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    configurations = {
        f"steps={steps}": partial(
            system.set_sampler, replace(system.sampler, steps=steps), system.guidance
        )
        for steps in (1, 3)
    }
    common = {"weights": "raw", "split": "train", "count": 20, "seed": 0, "batch_size": 20}
    one, three = evaluate_samples(
        system, system.denoiser, data, digits(), configurations=configurations, **common
    )
    (own,) = evaluate_samples(system, system.denoiser, data, digits(), **common)
    assert one["fid"] != three["fid"] == own["fid"] and one["real"] == own["real"]
    assert [found["protocol"]["steps"] for found in (one, three)] == [1, 3]


def test_the_packaged_classifier_knows_held_out_digits():
    evaluator = FIDEvaluator(digits(), digits_data().train)
    assert ask(evaluator, digits_data().test)["class_accuracy"] >= 0.99
    wrong = Images(digits_data().test.pixels, (digits_data().test.labels + 1) % 10)
    assert ask(evaluator, wrong)["class_accuracy"] <= 0.01


def test_fid_within_is_the_mean_over_classes_and_none_where_a_class_is_missing():
    extractor, data = digits(), digits_data()
    found = ask(FIDEvaluator(extractor, data.train), data.test)
    with torch.no_grad():
        real, test = (
            extractor.features(split.pixels).double().numpy() for split in (data.train, data.test)
        )
    each = [frechet(real[data.train.labels == k], test[data.test.labels == k]) for k in range(10)]
    assert found["intra_fid"] == pytest.approx(np.mean(each), rel=1e-3)
    some = data.test.select(data.test.labels < 9)
    assert "intra_fid" not in ask(FIDEvaluator(extractor, data.train), some)
    lonely = Images(
        torch.cat([some.pixels, data.test.pixels[:1]]), torch.cat([some.labels, torch.tensor([9])])
    )
    assert "intra_fid" not in ask(FIDEvaluator(extractor, lonely), data.test)
    assert "precision" not in ask(
        FIDEvaluator(extractor, data.train, {"prc"}), data.test.select(slice(3))
    )


def test_precision_and_recall_are_shares_within_third_neighbours_by_brute_force():
    extractor, data = digits(), digits_data()
    worn = (
        (data.test.pixels.int() + torch.randint(-60, 61, data.test.pixels.shape))
        .clamp(0, 255)
        .byte()
    )
    one_class = data.train.select(data.train.labels == 3)
    for made in (Images(worn, None), Images(one_class.pixels, None)):
        found = ask(FIDEvaluator(extractor, data.train, {"prc"}), made)
        with torch.no_grad():
            real, ours = (extractor.features(split.pixels) for split in (data.train, made))

        def within(points, manifold):
            radius = (
                torch.cdist(manifold, manifold).kthvalue(4, dim=1).values
            )  # the first is the point itself
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
    """Logits that are features: images of 1x1xK bytes."""

    num_features = 4

    def forward(self, pixels):
        return pixels.flatten(1).float() / 40 - 3


@pytest.mark.parametrize("count", [900, 5000])
def test_the_inception_score_is_the_mean_over_ten_consecutive_splits_where_there_are_enough(count):
    pixels = torch.randint(256, (count, 1, 1, 4)).byte()
    pixels[: count // 2, ..., 0] = 255  # so that the order matters
    logits = Said()(pixels).double().numpy()
    evaluator = FIDEvaluator(
        Extractor("said", "", Said(), None, torch.nn.Identity()), Images(pixels, None)
    )
    found = ask(evaluator, *(Images(part, None) for part in pixels.split(700)))["inception_score"]
    splits = np.split(logits, 10 if count == 5000 else 1)
    assert found == pytest.approx(np.mean([scored(part) for part in splits]), rel=1e-6)
    assert abs(found - scored(logits)) > 0.01 or count == 900
    assert "inception_score" not in ask(
        FIDEvaluator(Extractor("mute", "", Said(), None), Images(pixels, None)),
        Images(pixels, None),
    )


def test_the_inception_score_is_1_where_all_are_alike_and_the_number_of_classes_where_all_are_sure():
    one_hot = torch.eye(10).repeat(50, 1)
    assert inception_score(one_hot) == pytest.approx(10) and inception_score(
        one_hot, 10
    ) == pytest.approx(10)
    assert [
        inception_score(p) for p in (one_hot[:1].repeat(50, 1), torch.full((7, 10), 0.1))
    ] == pytest.approx([1, 1])
    evaluator = FIDEvaluator(digits(), digits_data().train)
    assert 9.5 < ask(evaluator, digits_data().test)["inception_score"] < 10


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    """A file of weights as torch-fidelity reads it."""
    file = tmp_path_factory.mktemp("inception") / "random.pth"
    with pytest.MonkeyPatch.context() as patch:  # its constructor wants a file of weights
        patch.setattr(torch, "load", lambda *args, **kwargs: None)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *args, **kwargs: None)
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], "none"
        )
    torch.nn.init.normal_(network.fc.bias)
    torch.save(network.state_dict(), file)
    return file, network.eval()


def test_the_logits_of_inception_are_torch_fidelitys_unbiased_ones(random_inception):
    file, network = random_inception
    ours = InceptionFeatures(file).eval()
    pixels = torch.randint(256, (2, 3, 32, 32)).byte()
    with torch.no_grad():
        features, expected = network(pixels)
        torch.testing.assert_close(ours.logits()(ours(pixels)), expected)
        torch.testing.assert_close(ours(pixels), features)
    assert expected.shape == (2, 1008)


@pytest.mark.slow
def test_fid_kid_and_the_inception_score_are_torch_fidelitys_own_of_the_same_folders(
    random_inception, tmp_path
):
    file, _ = random_inception
    grey = torch.linspace(0, 255, 32).byte().expand(60, 3, 32, 32)
    sets = [
        torch.randint(256, (60, 3, 32, 32)).byte(),
        (torch.randint(256, (60, 3, 32, 32)) // 2).byte() + grey // 2,
    ]
    for name, pixels in zip("ab", sets, strict=True):
        (tmp_path / name).mkdir()
        for i, image in enumerate(pixels):
            to_pil_image(image).save(tmp_path / name / f"{i:03}.png")
    a, b = (folder_images(tmp_path / name, (3, 32, 32)) for name in "ab")
    theirs = calculate_metrics(
        input1=str(tmp_path / "b"),
        input2=str(tmp_path / "a"),
        cuda=False,
        fid=True,
        kid=True,
        isc=True,
        isc_splits=1,
        samples_shuffle=False,
        kid_subset_size=60,
        kid_subsets=100,
        verbose=False,
        cache=False,
        feature_extractor_weights_path=str(file),
        batch_size=20,
    )
    features = InceptionFeatures(file).requires_grad_(False).eval()
    evaluator = FIDEvaluator(Extractor("random", "", features, None, features.logits()), a, {"kid"})
    ours = ask(evaluator, *(b.select(slice(i, i + 20)) for i in (0, 20, 40)))
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert "fid_infinity" not in ours, "of 60 samples nothing can be said of infinitely many"


class Gauss(torch.nn.Module):
    """Features that are pixels: images of 1x1x4 bytes."""

    num_features = 4

    def forward(self, pixels):
        return pixels.flatten(1).float()


def test_standard_errors_and_the_limit_of_ever_more_samples_are_those_of_repeated_draws():
    mean = torch.tensor([100.0, 110, 120, 130])
    reference = (mean + 10 * torch.randn(200_000, 4)).round().byte()
    evaluator = FIDEvaluator(
        Extractor("gauss", "", Gauss(), None), Images(reference.view(-1, 1, 1, 4), None)
    )

    def draw(count):
        pixels = (mean + 2 + 12 * torch.randn(count, 4)).round().byte()
        return ask(evaluator, Images(pixels.view(-1, 1, 1, 4), None))

    limit = 4 * (2**2 + (12 - 10) ** 2)  # |m1 - m2|^2 + sum (s1 - s2)^2
    found = [draw(300) for _ in range(300)]
    variance_output = np.std([one["fid"] for one in found])
    assert np.mean([one["standard_error"]["fid"] for one in found]) == pytest.approx(
        variance_output, rel=0.1
    )
    bias = np.mean([one["fid"] for one in found]) - limit
    left = np.mean([one["fid_infinity"] for one in found]) - limit
    assert bias > 0.5 and abs(left) < 0.2 * bias  # the mean of 300 is uncertain by a tenth of it
    assert draw(19)["standard_error"] == {}, "no blocks"


def test_statistics_of_a_reference_are_computed_once_and_known_by_what_they_are_of(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("DDPM_LAB_CACHE", str(tmp_path))
    extractor, data = digits(), digits_data()
    once = ask(FIDEvaluator(extractor, data.train), data.test)
    (file,) = tmp_path.iterdir()
    assert extractor.sha256 and file.suffix == ".safetensors"

    def never(*args):
        raise AssertionError("computed again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FIDEvaluator, "_compute_reference", never)
        assert ask(FIDEvaluator(extractor, data.train), data.test) == once
        changed = Images(data.train.pixels.clone(), data.train.labels)
        changed.pixels[0, 0, 0, 0] += 1
        for other in (changed, Images(data.train.pixels, data.train.labels.flip(0)), data.test):
            with pytest.raises(AssertionError, match="again"):
                FIDEvaluator(extractor, other)
        with pytest.raises(AssertionError, match="again"):
            FIDEvaluator(extractor._replace(sha256="another"), data.train)
    file.write_bytes(file.read_bytes()[:1000])
    assert ask(FIDEvaluator(extractor, data.train), data.test) == once, (
        "cut short, and computed again"
    )
    monkeypatch.setenv("DDPM_LAB_CACHE", "/proc/nowhere")
    assert ask(FIDEvaluator(extractor, data.train), data.test) == once, "it cannot be kept"


def test_a_figure_says_all_that_it_depends_on_and_whether_there_were_enough():
    config = composed("model.channels=8", "model.multipliers=[1]", "sampler.steps=2")
    data = build(config, "data")
    system = build_system(config, data)
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    common = {"weights": "raw", "split": "train", "seed": 0, "batch_size": 20}
    (few,) = evaluate_samples(system, system.denoiser, data, digits(), count=40, **common)
    told = few["protocol"]
    assert (
        told["data_sha256"] == data.train.digest()
        and told["data_count"] == 1437
        and told["features"] == 64
    )
    assert "only 40 images, for 64 features" in fid_rows(few)[0][2]
    next(iter(system.denoiser.parameters())).data += 0.01
    (many,) = evaluate_samples(system, system.denoiser, data, digits(), count=100, **common)
    assert "only" not in fid_rows(many)[0][2]
    assert {name for name in told if told[name] != many["protocol"][name]} == {
        "count",
        "weights_sha256",
    }


def test_the_hash_is_that_of_the_file_and_the_file_is_small():
    content = files("ddpm_lab.evaluation").joinpath("digits.safetensors").read_bytes()
    assert digits().sha256 == hashlib.sha256(content).hexdigest() and len(content) < 500_000


def test_digits_refuses_other_images():
    with pytest.raises(ValueError, match="3x32x32"):
        digits().features(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_inception_that_cannot_be_had_says_which_file_goes_where(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        ValueError, match=rf"put {INCEPTION}, whose SHA-256 begins with 6726825d, at {tmp_path}"
    ):
        inception()
    with pytest.raises(ValueError, match="weights=nowhere"):
        inception("nowhere")
    (tmp_path / "other.pth").write_text("not it")
    with pytest.raises(ValueError, match="SHA-256"):
        inception(str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match="extractor=none"):
        none()
