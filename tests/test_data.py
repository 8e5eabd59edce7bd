"""Data sets without files, and the batches of the data module."""

from dataclasses import replace
from inspect import signature

import numpy as np
import pytest
import torch
from conftest import composed, options
from PIL import Image

from ddpm_lab.data.datasets import Images, MapSplit, Points, Splits, to_batch
from ddpm_lab.data.digits import digits
from ddpm_lab.data.module import Data, TrainBatches, ValidationBatches, dataset
from ddpm_lab.data.synthetic import synthetic
from ddpm_lab.data.toy import SHAPES, gaussian_mixture, toy
from ddpm_lab.evaluation.extractors import InceptionFeatures
from ddpm_lab.runs.data_check import data_fingerprint
from ddpm_lab.sampling.samples import Samples
from ddpm_lab.utils.errors import UserError


def numbered(count=10, size=2):
    """Return images whose pixels are their index, with a bright left column."""
    index = torch.arange(count, dtype=torch.uint8)
    pixels = index[:, None, None, None].expand(-1, 1, size, size).clone()
    pixels[..., 0] += 100
    return Images(pixels, torch.arange(count))


def test_digits_splits_and_levels():
    data = digits()
    assert data.shape == (1, 8, 8) and data.classes == 10
    assert (len(data.train.pixels), len(data.test.pixels)) == (1437, 360)
    counts = torch.bincount(data.train.labels) + torch.bincount(data.test.labels)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    levels = torch.cat([data.train.pixels, data.test.pixels]).unique().tolist()
    assert levels == [round(g * 255 / 16) for g in range(17)]


def test_batch_range():
    images = Images(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), None)
    batch = to_batch(images.select(torch.tensor([1, 0])))
    assert batch["x0"].flatten().tolist() == [1, -1] and "label" not in batch


def test_bin_width_is_the_distance_of_neighboring_bytes():
    data = digits()
    x0 = Images(torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1), None).x0.flatten()
    torch.testing.assert_close(x0.diff(), torch.full((255,), data.bin_width))


def test_epochs_are_permutations_that_differ():
    stream = iter(TrainBatches(numbered(), batch_size=5, flip=False, seed=0))
    epochs = [torch.cat([next(stream)["label"], next(stream)["label"]]).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again, other = (
        next(iter(TrainBatches(numbered(), 5, flip=False, seed=seed)))["label"] for seed in (0, 1)
    )
    assert again.tolist() == epochs[0][:5] != other.tolist()


def test_half_of_the_images_are_mirrored():
    stream = iter(TrainBatches(numbered(), 10, flip=True, seed=0))
    left = torch.stack([next(stream)["x0"][:, 0, 0] for _ in range(100)])
    mirrored = (left[..., 1] > left[..., 0]).float().mean().item()
    assert mirrored == pytest.approx(0.5, abs=0.05)


class Broken:
    """A source whose fourth image cannot be read."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3:
            raise ValueError("3.png cannot be read")
        return torch.full((1, 2, 2), index, dtype=torch.uint8)

    def digest(self):
        return "broken"


def test_validation_reads_each_image_in_one_process():
    class Counter(Broken):
        def __getitem__(self, index):
            read.append(index)
            return torch.full((1, 2, 2), index, dtype=torch.uint8)

    read = []
    split = MapSplit(Counter(), torch.arange(9), (1, 2, 2), torch.arange(9))
    shares = [list(ValidationBatches(split, 4, 0, rank, 3)) for rank in range(3)]
    assert sorted(read) == list(range(9))
    batches = [torch.cat([batch["label"] for batch in row]) for row in zip(*shares, strict=True)]
    assert torch.cat(batches).tolist() == list(range(9))
    assert [len(share[-1]["x0"]) for share in shares] == [0, 0, 1], "some have no rows"


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_raises_user_error(workers):
    split = MapSplit(Broken(), torch.arange(8), (1, 2, 2), None)
    for batches in (
        TrainBatches(split, 4, flip=False, seed=0, workers=workers),
        ValidationBatches(split, 4, workers),
    ):
        with pytest.raises(UserError, match=r"^data: 3\.png cannot be read$"):
            for _ in zip(batches, range(2), strict=False):
                pass
    readable = ValidationBatches(replace(split, indices=torch.arange(3)), 3, workers)
    x0 = next(iter(readable))["x0"]
    assert ((x0[:, 0, 0, 0] + 1) * 127.5).tolist() == pytest.approx([0, 1, 2], abs=1e-5)


def test_dataset_merges_signatures():
    @dataset
    def points(count: int, scale: float = 1.0) -> Splits:
        split = Points(scale * torch.ones(count, 2), None)
        return Splits("points", split, split)

    keys = [*signature(points).parameters]
    assert keys == ["count", "scale", "train_count", "flip", "batch_size", "workers", "seed"]
    data = points(8, batch_size=4, scale=2.0, seed=3)
    assert (data.batch_size, data.seed, data.classes) == (4, 3, None)
    assert data.train.x0.unique().tolist() == [2]
    with pytest.raises(ValueError, match=r"^flip mirrors images, but this data set has points"):
        points(8, flip=True)


def test_train_count_selects_evenly_spaced_training_images():
    images = numbered(12)
    source = Broken()
    for split in (images, MapSplit(source, torch.arange(8), (1, 2, 2), torch.arange(8))):
        data = Data(Splits("set", split, images), train_count=4, batch_size=4)
        step = split.size // 4
        assert data.train.labels.tolist() == [*range(0, split.size, step)]
        assert data.train.size == 4 and data.test.size == 12
    assert data.train.indices.tolist() == [0, 2, 4, 6]  # and nothing is read
    whole = Data(Splits("set", images, images), batch_size=4)
    assert whole.train is images and data_fingerprint(whole) == data_fingerprint(
        Data(Splits("set", images, images), train_count=12, batch_size=4)
    )


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (1, "train_count must be at least 2"),
        (1438, r"train_count must be in 2..1437, .* \(got 1438\); try train_count=null"),
        (32, r"batch_size must be in 1..32"),
    ],
)
def test_invalid_train_count_raises(count, message):
    with pytest.raises(ValueError, match=message):
        digits(train_count=count, batch_size=64)


@pytest.mark.parametrize("name", sorted({*options("data")} - {"gaussian_mixture", "toy"}))
def test_image_sets_have_the_key_train_count(name):
    assert composed(f"data={name}", "data.train_count=100").data.train_count == 100


def test_synthetic_shape_and_classes():
    data = synthetic(resolution=12, channels=1, classes=3, count=60, batch_size=9)
    assert data.shape == (1, 12, 12) and (data.train.size, data.test.size) == (60, 15)
    pixels, labels = data.train.pixels.float(), data.train.labels
    means = torch.stack([pixels[labels == y].mean(0) for y in range(3)])
    assert torch.pdist(means.flatten(1)).min() > 100


def test_mixture_moments():
    data = gaussian_mixture(modes=3, radius=0.5, std=0.1, count=30_000)
    assert data.shape == (2,) and data.classes == 3 and data.bin_width is None
    for y in range(3):
        points = data.train.x0[data.train.labels == y]
        angle = 2 * np.pi * y / 3
        center = [0.5 * np.cos(angle), 0.5 * np.sin(angle)]
        assert points.mean(0).tolist() == pytest.approx(center, abs=0.005)
        assert points.std(0).tolist() == pytest.approx([0.1, 0.1], abs=0.004)


@pytest.mark.parametrize("shape", SHAPES)
def test_toy_points_have_two_classes_and_are_in_range(shape):
    data = toy(shape)
    assert data.train.labels.unique().tolist() == [0, 1] and data.train.x0.abs().max() < 1.05
    assert data.train.x0.std() > 0.25 and torch.equal(toy(shape).train.x0, data.train.x0)


@pytest.mark.parametrize(
    ("function", "kwargs", "message"),
    [
        (toy, {"shape": "moon"}, "shape=moon is not one of moons"),
        (gaussian_mixture, {"modes": 0}, "modes"),
        (gaussian_mixture, {"std": 0.0}, "std must be above 0"),
        (toy, {"count": 3}, "count"),
    ],
)
def test_invalid_point_settings_raise(function, kwargs, message):
    with pytest.raises(ValueError, match=message):
        function(**kwargs)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_grids_and_files_show_any_number_of_channels(channels, tmp_path):
    pixels = synthetic([4, 6], channels=channels, count=2).train.pixels
    files = Samples(pixels).save(tmp_path)
    assert torch.equal(torch.tensor(np.load(files["arrays"])["images"]).permute(0, 3, 1, 2), pixels)
    image = np.asarray(Image.open(tmp_path / "images" / "000000.png"))
    grid = np.asarray(Image.open(files["grid"]))
    scale, margin = 11, 5
    first = grid[margin:, margin:][: 4 * scale : scale]
    if channels in (1, 3):
        assert np.array_equal(image.reshape(4, 6, channels), pixels[0].permute(1, 2, 0))
        assert (first[:, : 6 * scale : scale] == pixels[0].permute(1, 2, 0).numpy()).all()
    elif channels == 4:  # in color over white
        assert np.array_equal(image, pixels[0].permute(1, 2, 0))
        alpha = pixels[0, 3:].numpy() / 255
        over = (pixels[0, :3].numpy() * alpha + 255 * (1 - alpha)).transpose(1, 2, 0)
        assert np.abs(first[:, : 6 * scale : scale] - over).max() <= 0.51
    else:  # a gray image per channel
        for i, channel in enumerate(pixels[0].numpy()):
            assert (first[:, 7 * scale * i :, 0][:, : 6 * scale : scale] == channel).all()
            strip = image[..., i] if channels == 2 else image[:, 7 * i : 7 * i + 6]
            assert np.array_equal(strip, channel)


def test_inception_refuses_other_channels():
    with pytest.raises(UserError, match=r"1 or 3 channels \(got 4\); try extractor=none"):
        InceptionFeatures.forward(None, torch.zeros(2, 4, 8, 8, dtype=torch.uint8))
