"""Data: what the pictures are, in which order they come, and which folders are refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lab.data.digits import digits
from ddpm_lab.data.folder import folder
from ddpm_lab.data.module import Batches
from ddpm_lab.data.points import SHAPES, gaussian_mixture, toy
from ddpm_lab.data.splits import Images, batch
from ddpm_lab.data.synthetic import synthetic


def numbered(count=10, size=2):
    """Pictures that carry their number, with a bright left column."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, size, size).clone()
    pixels[..., 0] += 100
    return Images(pixels, torch.arange(count))


def test_digits_are_all_there_once_and_split():
    data = digits()
    assert data.shape == (1, 8, 8) and data.classes == 10
    assert (len(data.train.pixels), len(data.test.pixels)) == (1437, 360)
    counts = torch.bincount(data.train.labels) + torch.bincount(data.test.labels)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert torch.cat([data.train.pixels, data.test.pixels]).unique().tolist() == [
        round(g * 255 / 16) for g in range(17)
    ]


def test_a_batch_is_in_minus_1_to_1():
    made = batch(Images(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), None).at(torch.tensor([1, 0])))
    assert made["x0"].flatten().tolist() == [1, -1] and "label" not in made


def test_the_width_of_a_bin_is_the_distance_of_neighbouring_bytes():
    data = digits()
    x0 = Images(torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1), None).x0.flatten()
    torch.testing.assert_close(x0.diff(), torch.full((255,), data.bin_width))


def test_an_epoch_shows_each_picture_once_in_another_order_each_time():
    stream = iter(Batches(numbered(), batch_size=5, flip=False, seed=0))
    epochs = [torch.cat([next(stream)["label"], next(stream)["label"]]).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    again = iter(Batches(numbered(), batch_size=5, flip=False, seed=0))
    assert next(again)["label"].tolist() == epochs[0][:5]
    assert next(iter(Batches(numbered(), 5, flip=False, seed=1)))["label"].tolist() != epochs[0][:5]


def test_half_of_the_pictures_are_mirrored():
    stream = iter(Batches(numbered(), 10, flip=True, seed=0))
    left = torch.stack([next(stream)["x0"][:, 0, 0] for _ in range(100)])
    mirrored = (left[..., 1] > left[..., 0]).float().mean().item()
    assert mirrored == pytest.approx(0.5, abs=0.05)


def test_synthetic_is_what_was_asked_and_classes_differ():
    data = synthetic(resolution=12, channels=1, classes=3, count=60, batch_size=9)
    assert data.shape == (1, 12, 12) and len(data.train.pixels) == 60 and len(data.test.pixels) == 15
    means = torch.stack([data.train.pixels[data.train.labels == y].float().mean(0) for y in range(3)])
    assert torch.pdist(means.flatten(1)).min() > 100


def test_a_mixture_has_the_law_it_says():
    data = gaussian_mixture(modes=3, radius=0.5, std=0.1, count=30_000)
    assert data.shape == (2,) and data.classes == 3 and data.bin_width is None
    for y in range(3):
        points = data.train.x0[data.train.labels == y]
        angle = 2 * np.pi * y / 3
        assert points.mean(0).tolist() == pytest.approx([0.5 * np.cos(angle), 0.5 * np.sin(angle)], abs=0.005)
        assert points.std(0).tolist() == pytest.approx([0.1, 0.1], abs=0.004)


@pytest.mark.parametrize("shape", SHAPES)
def test_toys_are_two_classes_within_the_range_of_pixels(shape):
    data = toy(shape)
    assert data.train.labels.unique().tolist() == [0, 1] and data.train.x0.abs().max() < 1.05
    assert data.train.x0.std() > 0.25 and torch.equal(toy(shape).train.x0, data.train.x0)


@pytest.mark.parametrize(
    ("function", "kwargs", "told"),
    [(toy, {"shape": "moon"}, "shape=moon is not one of moons"), (gaussian_mixture, {"modes": 0}, "modes"),
     (gaussian_mixture, {"std": 0.0}, "std=0"), (toy, {"count": 3}, "count")],
)  # fmt: skip
def test_points_that_cannot_be_are_refused(function, kwargs, told):
    with pytest.raises(ValueError, match=told):
        function(**kwargs)


def write(path, size=(8, 8), mode="RGB", colour=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour or ((10, 20, 30) if mode == "RGB" else 0)).save(path)


def test_a_folder_is_read_to_the_pixel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    data = folder(str(tmp_path), batch_size=2, held_out=0.4)
    found = torch.cat([data.train.pixels, data.test.pixels]).permute(0, 2, 3, 1).numpy()
    assert data.classes is None and len(data.test.pixels) == 2
    assert sorted(p.tobytes() for p in found) == sorted(p.tobytes() for p in pixels)


def test_sub_folders_are_classes(tmp_path):
    for i, name in enumerate(["cat", "dog", "emu"]):
        for j in range(4):
            write(tmp_path / name / f"{j}.png", mode="L", colour=50 * i)
    data = folder(str(tmp_path), channels=1, batch_size=2)
    assert data.classes == 3
    assert torch.equal(data.train.pixels[:, 0, 0, 0].long(), 50 * data.train.labels)


def test_convert_fits_what_differs(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png", size=(30, 16), mode="L", colour=77)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "c.png")
    turned = Image.new("RGB", (16, 8), (0, 0, 0))
    turned.paste((200, 0, 0), (0, 0, 8, 8))  # red on the left; turned by its EXIF tag, red is on top
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "d.png", exif=exif)
    data = folder(str(tmp_path), convert=True, batch_size=1)
    pixels = torch.cat([data.train.pixels, data.test.pixels])
    assert {(10, 20, 30), (77, 77, 77), (255, 255, 255)} < {tuple(p[:, 4, 4].tolist()) for p in pixels}
    assert (200, 0, 0) in {tuple(p[:, 0, 4].tolist()) for p in pixels}, "turned as its EXIF tag says"


FOUR: dict = {f"{name}.png": {} for name in "abcd"}


@pytest.mark.parametrize(
    ("files", "kwargs", "told"),
    [
        ({}, {}, "holds 0 pictures"),
        (FOUR | {"b.png": {"size": (9, 8)}}, {}, r"b\.png is 9x8 RGB, and 8x8 RGB"),
        (FOUR | {"b.png": {"mode": "L"}}, {}, r"b\.png is 8x8 L, and 8x8 RGB"),
        (FOUR, {"batch_size": 9}, r"batch_size must lie in 1\.\.2"),
        (FOUR, {"channels": 2}, "channels"),
        (FOUR, {"resolution": 40000}, "GiB"),
        (FOUR, {"resolution": 0}, "resolution"),
        (FOUR, {"held_out": 1.0}, "held_out"),
        (FOUR | {"e.png": {"mode": "I;16"}}, {"convert": True}, r"e\.png has more than 8 bits"),
        (FOUR | {"cat/e.png": {}}, {}, "beside sub-folders"),
    ],
)
def test_a_folder_that_will_not_do_is_refused_by_name(tmp_path, files, kwargs, told):
    for name, picture in files.items():
        write(tmp_path / name, **picture)
    with pytest.raises(ValueError, match=told):
        folder(str(tmp_path), **kwargs)


def test_a_broken_picture_is_named(tmp_path):
    for name in FOUR:
        write(tmp_path / name)
    (tmp_path / "b.png").write_text("hello")
    with pytest.raises(ValueError, match=r"b\.png cannot be read"):
        folder(str(tmp_path))
    (tmp_path / "classes" / "none").mkdir(parents=True)
    for name in FOUR:
        write(tmp_path / "classes" / "some" / name)
    with pytest.raises(ValueError, match=r"without pictures.*: none"):
        folder(str(tmp_path / "classes"))
    with pytest.raises(ValueError, match="nowhere"):
        folder("nowhere")
