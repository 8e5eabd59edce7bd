"""FID and related metrics against formulas, brute force and torch-fidelity; the extractors."""

import hashlib
from dataclasses import replace
from functools import partial
from importlib.resources import files
from inspect import signature
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import composed
from hydra.utils import get_class
from omegaconf import OmegaConf
from scipy.linalg import sqrtm
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.transforms.v2.functional import to_pil_image

from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.config.overrides import CONFIGS, METRICS
from ddpm_lab.data.datasets import Images
from ddpm_lab.data.digits import digits as digits_data
from ddpm_lab.data.image_folder import read_images as folder_images
from ddpm_lab.diffusion.analytic_denoisers import Mixture, MixtureDenoiser
from ddpm_lab.diffusion.variances import BetaTilde
from ddpm_lab.evaluation import extractors
from ddpm_lab.evaluation.extractors import (
    INCEPTION,
    Extractor,
    InceptionFeatures,
    digits,
    inception,
    none,
    trained,
)
from ddpm_lab.evaluation.feature_metrics import KID, PrecisionRecall
from ddpm_lab.evaluation.fid import FIDEvaluator
from ddpm_lab.evaluation.memorization import Memorization
from ddpm_lab.evaluation.metrics import FeatureMetric, Metric, Number, SampleMetric
from ddpm_lab.evaluation.sample_quality import SampleQuality
from ddpm_lab.evaluation.small_cnn import shift
from ddpm_lab.evaluation.statistics import inception_score
from ddpm_lab.sampling.cascade import Cascade


def frechet(a, b):
    """Heusel et al. (2017), eq. 6, in numpy."""
    (ma, ca), (mb, cb) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    return ((ma - mb) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)


def evaluate(evaluator, *batches):
    """Return the metrics of images in batches."""
    sizes = [batch.size for batch in batches]
    indices = torch.arange(sum(sizes)).split(sizes)
    return evaluator(zip(indices, batches, strict=True), sum(sizes))


def corrupt(pixels, level):
    """Add uniform integer noise in [-level, level]."""
    noise = torch.randint(-level, level + 1, pixels.shape)
    return (pixels.int() + noise).clamp(0, 255).byte()


@pytest.fixture(scope="module")
def small_system():
    """A digits system with random weights, and its data."""
    config = composed("model.channels=8", "model.multipliers=[1]", "sampler.steps=3")
    data = build(config, "data")
    system = build_system(config, data)
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return system, data


def test_fid_is_the_frechet_distance_of_the_features():
    extractor, data = digits(), digits_data()
    pixels = corrupt(data.test.pixels, 40)
    batches = (Images(part, None) for part in pixels.split(100))
    metrics = evaluate(FIDEvaluator(extractor, data.train), *batches)
    with torch.no_grad():
        a, b = (
            extractor.features(pixels).double().numpy() for pixels in (data.train.pixels, pixels)
        )
    assert metrics["fid"] == pytest.approx(frechet(a, b), rel=1e-4)
    assert metrics.keys() == {"fid", "inception_score", "standard_error"}


def test_fid_increases_with_corruption():
    extractor, data = digits(), digits_data()
    noise = torch.randint(256, data.test.pixels.shape).byte()
    corrupted = corrupt(data.test.pixels, 60)
    evaluator = FIDEvaluator(extractor, data.train)
    same, held_out, worse, worst = (
        evaluate(evaluator, Images(pixels, None))["fid"]
        for pixels in (data.train.pixels, data.test.pixels, corrupted, noise)
    )
    assert abs(same) < 1e-3 and same < held_out < worse < worst
    assert evaluate(evaluator, Images(data.test.pixels, None))["fid"] == held_out, (
        "earlier samples have no influence"
    )


def test_sample_quality_is_computed_in_each_configuration(small_system):
    system, data = small_system
    pipeline, sampler = system.pipeline, system.pipeline.sampler
    cascade = Cascade([pipeline])
    configurations = {
        f"steps={steps}": partial(
            pipeline.set_sampler, replace(sampler, steps=steps), pipeline.guidance
        )
        for steps in (1, 3)
    }
    quality = SampleQuality(digits, count=20, batch_size=20)
    one, three = quality.compute_each(cascade, data, "raw", configurations)
    default = quality.compute(cascade, data, "raw")
    assert one["fid"] != three["fid"] == default["fid"] and one["real"] == default["real"]
    assert [metrics["protocol"]["steps"] for metrics in (one, three)] == [1, 3]


def test_class_accuracy_of_held_out_digits():
    evaluator = FIDEvaluator(digits(), digits_data().train)
    assert evaluate(evaluator, digits_data().test)["class_accuracy"] >= 0.99
    wrong = Images(digits_data().test.pixels, (digits_data().test.labels + 1) % 10)
    assert evaluate(evaluator, wrong)["class_accuracy"] <= 0.01


def test_intra_fid_is_the_mean_over_classes_and_needs_every_class():
    extractor, data = digits(), digits_data()
    metrics = evaluate(FIDEvaluator(extractor, data.train), data.test)
    with torch.no_grad():
        real, test = (
            extractor.features(split.pixels).double().numpy() for split in (data.train, data.test)
        )
    per_class = [
        frechet(real[data.train.labels == k], test[data.test.labels == k]) for k in range(10)
    ]
    assert metrics["intra_fid"] == pytest.approx(np.mean(per_class), rel=1e-3)
    assert [*metrics["class_fid"]] == [str(k) for k in range(10)]
    assert [*metrics["class_fid"].values()] == pytest.approx(per_class, rel=1e-3)
    some = data.test.select(data.test.labels < 9)
    assert "intra_fid" not in evaluate(FIDEvaluator(extractor, data.train), some)
    lonely = Images(
        torch.cat([some.pixels, data.test.pixels[:1]]), torch.cat([some.labels, torch.tensor([9])])
    )
    assert "intra_fid" not in evaluate(FIDEvaluator(extractor, lonely), data.test)
    assert "precision" not in evaluate(
        FIDEvaluator(extractor, data.train, [PrecisionRecall()]), data.test.select(slice(3))
    )


def test_precision_and_recall_match_brute_force():
    extractor, data = digits(), digits_data()
    corrupted = corrupt(data.test.pixels, 60)
    one_class = data.train.select(data.train.labels == 3)
    for images in (Images(corrupted, None), Images(one_class.pixels, None)):
        metrics = evaluate(FIDEvaluator(extractor, data.train, [PrecisionRecall()]), images)
        with torch.no_grad():
            real, samples = (extractor.features(split.pixels) for split in (data.train, images))

        def share_within(points, manifold):
            # The fourth: the first neighbor is the point itself.
            radius = torch.cdist(manifold, manifold).kthvalue(4, dim=1).values
            return (torch.cdist(points, manifold) <= radius).any(dim=1).double().mean().item()

        assert metrics["precision"] == pytest.approx(share_within(samples, real), abs=0.005)
        assert metrics["recall"] == pytest.approx(share_within(real, samples), abs=0.005)
    assert metrics["precision"] == 1 and metrics["recall"] < 0.3


def numpy_inception_score(logits):
    """Salimans et al. (2016), section 4."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())


class PixelLogits(torch.nn.Module):
    """Logits that are the features of images (N, 1, 1, 4)."""

    num_features = 4

    def forward(self, pixels):
        return pixels.flatten(1).float() / 40 - 3


@pytest.mark.parametrize("count", [900, 5000])
def test_inception_score_is_the_mean_over_ten_consecutive_splits(count):
    pixels = torch.randint(256, (count, 1, 1, 4)).byte()
    pixels[: count // 2, ..., 0] = 255  # so that the order matters
    logits = PixelLogits()(pixels).double().numpy()
    extractor = Extractor("logits", "", PixelLogits(), None, torch.nn.Identity())
    evaluator = FIDEvaluator(extractor, Images(pixels, None))
    batches = (Images(part, None) for part in pixels.split(700))
    value = evaluate(evaluator, *batches)["inception_score"]
    splits = np.split(logits, 10 if count == 5000 else 1)
    assert value == pytest.approx(
        np.mean([numpy_inception_score(part) for part in splits]), rel=1e-6
    )
    assert abs(value - numpy_inception_score(logits)) > 0.01 or count == 900
    without_logits = FIDEvaluator(extractor._replace(logits=None), Images(pixels, None))
    assert "inception_score" not in evaluate(without_logits, Images(pixels, None))


def test_inception_score_ranges_from_1_to_the_number_of_classes():
    one_hot = torch.eye(10).repeat(50, 1)
    assert inception_score(one_hot) == pytest.approx(10) and inception_score(
        one_hot, 10
    ) == pytest.approx(10)
    assert [
        inception_score(p) for p in (one_hot[:1].repeat(50, 1), torch.full((7, 10), 0.1))
    ] == pytest.approx([1, 1])
    evaluator = FIDEvaluator(digits(), digits_data().train)
    assert 9.5 < evaluate(evaluator, digits_data().test)["inception_score"] < 10


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    """Random weights in torch-fidelity's format, and the network."""
    file = tmp_path_factory.mktemp("inception") / "random.pth"
    with pytest.MonkeyPatch.context() as patch:  # its constructor reads a file of weights
        patch.setattr(torch, "load", lambda *args, **kwargs: None)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *args, **kwargs: None)
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], "none"
        )
    torch.nn.init.normal_(network.fc.bias)
    torch.save(network.state_dict(), file)
    return file, network.eval()


def test_inception_logits_match_torch_fidelity(random_inception):
    file, network = random_inception
    extractor = InceptionFeatures(file).eval()
    pixels = torch.randint(256, (2, 3, 32, 32)).byte()
    with torch.no_grad():
        features, expected = network(pixels)
        torch.testing.assert_close(extractor.logits()(extractor(pixels)), expected)
        torch.testing.assert_close(extractor(pixels), features)
    assert expected.shape == (2, 1008)


@pytest.mark.slow
def test_fid_kid_and_inception_score_match_torch_fidelity(random_inception, tmp_path):
    file, _ = random_inception
    grey = torch.linspace(0, 255, 32).byte().expand(20, 3, 32, 32)
    sets = [
        torch.randint(256, (20, 3, 32, 32)).byte(),
        (torch.randint(256, (20, 3, 32, 32)) // 2).byte() + grey // 2,
    ]
    for name, pixels in zip("ab", sets, strict=True):
        (tmp_path / name).mkdir()
        for i, image in enumerate(pixels):
            to_pil_image(image).save(tmp_path / name / f"{i:03}.png")
    a, b = (folder_images(tmp_path / name, (3, 32, 32)) for name in "ab")
    expected = calculate_metrics(
        input1=str(tmp_path / "b"),
        input2=str(tmp_path / "a"),
        cuda=False,
        fid=True,
        kid=True,
        isc=True,
        isc_splits=1,
        samples_shuffle=False,
        kid_subset_size=20,
        kid_subsets=10,
        verbose=False,
        cache=False,
        feature_extractor_weights_path=str(file),
        batch_size=8,
    )
    features = InceptionFeatures(file).requires_grad_(False).eval()
    evaluator = FIDEvaluator(Extractor("random", "", features, None, features.logits()), a, [KID()])
    metrics = evaluate(evaluator, *(b.select(slice(i, i + 8)) for i in (0, 8, 16)))
    assert metrics["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert metrics["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert metrics["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-5)
    assert "fid_infinity" not in metrics, "20 samples are too few to extrapolate"


class PixelFeatures(torch.nn.Module):
    """Features that are the pixels of images (N, 1, 1, 4)."""

    num_features = 4

    def forward(self, pixels):
        return pixels.flatten(1).float()


def test_standard_error_and_fid_infinity_match_repeated_sampling():
    mean = torch.tensor([100.0, 110, 120, 130])
    reference = (mean + 10 * torch.randn(200_000, 4)).round().byte()
    extractor = Extractor("pixels", "", PixelFeatures(), None)
    evaluator = FIDEvaluator(extractor, Images(reference.view(-1, 1, 1, 4), None))

    def sample_metrics(count):
        pixels = (mean + 2 + 12 * torch.randn(count, 4)).round().byte()
        return evaluate(evaluator, Images(pixels.view(-1, 1, 1, 4), None))

    limit = 4 * (2**2 + (12 - 10) ** 2)  # |m1 - m2|^2 + sum (s1 - s2)^2
    repeats = [sample_metrics(300) for _ in range(300)]
    deviation = np.std([one["fid"] for one in repeats])
    standard_error = np.mean([one["standard_error"]["fid"] for one in repeats])
    assert standard_error == pytest.approx(deviation, rel=0.1)
    bias = np.mean([one["fid"] for one in repeats]) - limit
    residual = np.mean([one["fid_infinity"] for one in repeats]) - limit
    assert bias > 0.5 and abs(residual) < 0.2 * bias  # the error of the mean is 0.1 * bias
    assert sample_metrics(19)["standard_error"] == {}, "no blocks"


def test_reference_statistics_are_cached_by_content(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_LAB_CACHE", str(tmp_path))
    extractor, data = digits(), digits_data()
    first = evaluate(FIDEvaluator(extractor, data.train), data.test)
    (file,) = tmp_path.iterdir()
    assert extractor.sha256 and file.suffix == ".safetensors"

    def fail(*args):
        raise AssertionError("computed again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FIDEvaluator, "_statistics", fail)
        assert evaluate(FIDEvaluator(extractor, data.train), data.test) == first
        changed = Images(data.train.pixels.clone(), data.train.labels)
        changed.pixels[0, 0, 0, 0] += 1
        for other in (changed, Images(data.train.pixels, data.train.labels.flip(0)), data.test):
            with pytest.raises(AssertionError, match="again"):
                FIDEvaluator(extractor, other)
        with pytest.raises(AssertionError, match="again"):
            FIDEvaluator(extractor._replace(sha256="another"), data.train)
    file.write_bytes(file.read_bytes()[:1000])
    assert evaluate(FIDEvaluator(extractor, data.train), data.test) == first, (
        "a truncated file is computed again"
    )
    monkeypatch.setenv("DDPM_LAB_CACHE", "/proc/nowhere")
    assert evaluate(FIDEvaluator(extractor, data.train), data.test) == first, (
        "without a writable cache"
    )


def test_protocol_is_complete_and_small_samples_are_marked(small_system):
    system, data = small_system
    cascade = Cascade([system.pipeline])
    quality = SampleQuality(digits, count=40, batch_size=20)
    few = quality.compute(cascade, data, "raw")
    protocol = few["protocol"]
    assert protocol["data_sha256"] == data.train.digest()
    assert (protocol["data_count"], protocol["features"]) == (1437, 64)
    assert "only 40 images, for 64 features" in quality.rows(few)[0][2]
    next(iter(system.denoiser.parameters())).data += 0.01
    many = replace(quality, count=100).compute(cascade, data, "raw")
    assert "only" not in quality.rows(many)[0][2]
    changes = {name for name in protocol if protocol[name] != many["protocol"][name]}
    assert changes == {"count", "weights_sha256"}


def test_fid_is_measured_to_both_splits(small_system):
    system, data = small_system
    cascade = Cascade([system.pipeline])
    train, test = (
        SampleQuality(digits, split, count=80, batch_size=40).compute(cascade, data, "raw")
        for split in ("train", "test")
    )
    for results in (train, test):
        assert results["fid_train"] == pytest.approx(train["fid"], rel=1e-6)
        assert results["fid_held_out"] == pytest.approx(test["fid"], rel=1e-6)
        errors, own = results["standard_error"], train["standard_error"]["fid"]
        assert errors["fid_train"] == pytest.approx(own, rel=1e-6)
    assert train["fid_train"] != train["fid_held_out"]
    # The floor in either row is the same number, because FID is symmetric.
    assert train["real"]["fid"] == pytest.approx(test["real"]["fid"], rel=1e-3)
    rows = {row[0]: row for row in SampleQuality(digits).rows(train)}
    assert f"training images {train['real']['fid']:.3g}" in rows["FID to held-out images"][2]
    rows = {row[0]: row for row in SampleQuality(digits).rows(test)}
    assert f"held-out images {test['real']['fid']:.3g}" in rows["FID to training images"][2]


def test_fid_to_few_held_out_images_is_left_out(small_system):
    system, _ = small_system
    data = digits_data()
    data.test = data.test.select(slice(64))
    quality = SampleQuality(digits, count=70, batch_size=70)
    results = quality.compute(Cascade([system.pipeline]), data, "raw")
    assert "fid_held_out" not in results and results["fid_train"] == results["fid"]
    (row,) = (row for row in quality.rows(results) if row[0] == "FID to held-out images")
    assert row[1] == "-" and "compared with only 64 images, for 64 features" in row[2]


def test_digits_extractor_hash_and_size():
    content = files("ddpm_lab.evaluation").joinpath("digits.safetensors").read_bytes()
    assert digits().sha256 == hashlib.sha256(content).hexdigest() and len(content) < 500_000


def test_digits_extractor_rejects_other_shapes():
    with pytest.raises(ValueError, match="3x32x32"):
        digits().features(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.slow
def test_extractor_is_trained_once_for_each_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_LAB_CACHE", str(tmp_path))
    data = digits_data()
    first = trained().ready(data.train)
    predictions = first.classifier(first.features(data.test.pixels)).argmax(1)
    assert (predictions == data.test.labels).float().mean() > 0.97
    (file,) = tmp_path.iterdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractors, "train_classifier", lambda *args: pytest.fail("trained again"))
        assert trained().ready(data.train).sha256 == first.sha256
    file.unlink()
    assert trained().ready(data.train).sha256 == first.sha256, "the same images, the same network"
    labels = Images(data.train.pixels[:200], data.train.labels[:200] % 3)
    other = trained().ready(labels)
    assert other.sha256 != first.sha256 and other.classifier.out_features == 3
    evaluator = FIDEvaluator(first, data.train)
    good, bad = (
        evaluate(evaluator, Images(corrupt(data.test.pixels, level), data.test.labels))
        for level in (0, 100)
    )
    assert good["fid"] < bad["fid"] / 10 and good["class_accuracy"] > bad["class_accuracy"]


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 7, 9), (1, 28, 28), (3, 32, 32), (1, 50, 36)])
def test_trained_extractor_takes_images_of_any_size(shape):
    trained().check(shape)


def test_trained_extractor_needs_labels_and_4x4(small_system):
    _, data = small_system
    with pytest.raises(ValueError, match="learns from labels, and these images have none"):
        trained().ready(Images(data.train.pixels, None))
    with pytest.raises(ValueError, match=r"images of 4x4 or more \(got 3x8\)"):
        trained().check((1, 3, 8))


def test_shifts_move_whole_images():
    torch.manual_seed(0)
    pixels = torch.zeros(400, 1, 28, 28, dtype=torch.uint8)
    pixels[:, 0, 10, 20] = 255
    moved = shift(pixels)
    rows, columns = moved.flatten(2).argmax(2)[:, 0] // 28, moved.flatten(2).argmax(2)[:, 0] % 28
    assert (moved.sum((1, 2, 3)) == 255).all()
    assert {*(rows - 10).tolist()} == {*(columns - 20).tolist()} == {*range(-3, 4)}
    assert 0.6 < ((rows == 10) & (columns == 20)).float().mean() < 0.8


def test_inception_errors_name_the_file_and_folder(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        ValueError, match=rf"save {INCEPTION}, whose SHA-256 begins with 6726825d, as {tmp_path}"
    ):
        inception()
    with pytest.raises(ValueError, match="weights=nowhere"):
        inception("nowhere")
    (tmp_path / "other.pth").write_text("not it")
    with pytest.raises(ValueError, match="SHA-256"):
        inception(str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match="extractor=none"):
        none()


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_one_class_and_one_file(name):
    config = OmegaConf.load(CONFIGS / "metric" / f"{name}.yaml")
    metric = get_class(config._target_)
    assert issubclass(metric, Metric | SampleMetric) and metric.numbers
    assert {*config} - {"_target_"} <= {*signature(metric).parameters}


class MeanDistance(FeatureMetric):
    """Distance of the means, without a line of code elsewhere."""

    numbers = (Number("mean_distance", "distance of means", "lower"),)

    def compute(self, features, reference, device):
        return {"mean_distance": ((features.mean(0) - reference.mean(0)).norm().item(), None)}

    def rows(self, results):
        return [("distance of means", f"{results['mean_distance']:.3g}", "")]


def test_a_new_feature_metric_shares_the_samples_of_fid(small_system):
    system, data = small_system
    quality = SampleQuality(digits, count=20, batch_size=20, feature_metrics=[MeanDistance()])
    results = quality.compute(Cascade([system.pipeline]), data, "raw")
    alone = SampleQuality(digits, count=20, batch_size=20)
    assert results["fid"] == alone.compute(Cascade([system.pipeline]), data, "raw")["fid"]
    assert results["mean_distance"] > results["real"]["mean_distance"] > 0
    assert [row[0] for row in quality.rows(results)].count("distance of means") == 1


def memorization(pixels, data):
    return Memorization().compute(pixels, data, digits(), torch.device("cpu"))["memorization"]


def test_memorization_is_half_for_held_out_images_and_whole_for_copies():
    data = digits_data()
    held_out, copies = (memorization(split.pixels, data) for split in (data.test, data.train))
    for space in ("features", "pixels"):
        assert held_out[space] == pytest.approx(0.5, abs=1.01 / 360) and copies[space] == 1
        assert held_out["standard_error"][space] == pytest.approx((0.25 / 360) ** 0.5, rel=1e-4)
    assert all(pair["sample"] == pair["train"] for pair in copies["closest"])
    assert all(pair["pixels"] == 0 for pair in copies["closest"])


def test_memorization_matches_brute_force():
    data = digits_data()
    pixels = corrupt(data.test.pixels[:100], 40)
    results = memorization(pixels, data)
    with torch.no_grad():
        for space, embed in (
            ("features", digits().features),
            ("pixels", lambda images: images.flatten(1).double() / 255),
        ):
            samples, train, test = map(embed, (pixels, data.train.pixels, data.test.pixels))
            near, real = (
                (values[:, None] - train).norm(dim=2).min(1) for values in (samples, test)
            )
            median = np.median(real.values)
            assert results["median_of_held_out"][space] == pytest.approx(median, rel=1e-4)
            share = (near.values < median).double().mean().item()
            assert results[space] == pytest.approx(share, abs=0.011)
    closest = near.values.argsort()[:10]
    assert [pair["sample"] for pair in results["closest"]] == closest.tolist()
    assert [pair["train"] for pair in results["closest"]] == near.indices[closest].tolist()


def test_memorization_decreases_with_noise_on_copies():
    data = digits_data()
    levels = [memorization(corrupt(data.train.pixels, level), data) for level in (0, 40, 70, 100)]
    for space in ("features", "pixels"):
        shares = [results[space] for results in levels]
        assert shares == sorted(shares, reverse=True) and shares[0] == 1 > 0.3 > shares[-1]


def test_exact_denoiser_of_the_training_images_memorizes_them():
    config = composed("conditioner=none", "sampler=ddim", "sampler.steps=100")
    data = build(config, "data")
    pipeline = build_system(config, data).pipeline
    images = data.train.x0.double().flatten(1)
    mixture = Mixture(images, torch.full((len(images),), 1 / len(images)).double(), 0.0, None)
    pipeline = pipeline.with_denoiser(MixtureDenoiser(pipeline.process, BetaTilde(), mixture))
    quality = SampleQuality(digits, count=100, image_metrics=[Memorization()])
    results = quality.compute(Cascade([pipeline]), data, "raw")
    assert min(results["memorization"][space] for space in ("features", "pixels")) > 0.95
    assert results["fid_held_out"] > results["real"]["fid"]
