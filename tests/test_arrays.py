"""Images in .npy and .npz files: exact pixels, classes, and errors that name the file."""

import logging
import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sets

from ddpm_lab.data import arrays
from ddpm_lab.data.arrays import load_array, read_headers
from ddpm_lab.data.datasets import Images, MapSplit
from ddpm_lab.data.image_array import image_array

raises = partial(pytest.raises, ValueError)
PIXELS = sets.noise(12, 6, 8)
LABELS = np.arange(12) % 3
NAMES = np.array(["cat", "dog", "emu"])
FLOATS = (PIXELS / 255).astype(np.float32)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)


def content(data):
    """Return (pixels, label) of each image of a set, sorted; label -1 without labels."""
    pairs = []
    for split in (data.train.select(slice(None)), data.test.select(slice(None))):
        labels = [-1] * split.size if split.labels is None else split.labels.tolist()
        pairs += zip((image.numpy().tobytes() for image in split.pixels), labels, strict=True)
    return sorted(pairs)


def expected(pixels=PIXELS, labels=None):
    """Return the same of an array (N, H, W, C)."""
    labels = [-1] * len(pixels) if labels is None else labels.tolist()
    images = [image.transpose(2, 0, 1).tobytes() for image in pixels]
    return sorted(zip(images, labels, strict=True))


FILES = {
    "NHWC": lambda: np.save("a.npy", PIXELS),
    "NCHW": lambda: np.save("a.npy", np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))),
    "Fortran order": lambda: np.save("a.npy", np.asfortranarray(PIXELS)),
    "images": lambda: np.savez("a.npz", images=PIXELS),
    "X": lambda: np.savez("a.npz", other=LABELS, X=PIXELS),
    "the only images": lambda: np.savez("a.npz", LABELS, PIXELS),
    "compressed": lambda: np.savez_compressed("a.npz", images=PIXELS),
}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("kind", FILES)
def test_arrays_are_exact_and_mapped(kind, in_memory, tmp_path):
    FILES[kind]()
    (file,) = tmp_path.iterdir()
    data = image_array(file.name, in_memory=in_memory)
    assert data.shape == (3, 6, 8) and data.classes is None and data.name == "a"
    assert (data.train.size, data.test.size) == (10, 2) and content(data) == expected()
    assert isinstance(data.train, Images if in_memory else MapSplit)
    if not in_memory:
        source = data.train.source
        assert isinstance(source.array, np.memmap) == (kind != "compressed")
        assert len(pickle.dumps(source)) < 1000 and source.digest() == source.digest()
        assert np.array_equal(pickle.loads(pickle.dumps(source))[3], source[3])


def test_gray_arrays_and_stated_layouts():
    np.save("gray.npy", PIXELS[..., 0])
    assert content(image_array("gray.npy")) == expected(PIXELS[..., :1])
    cubes = sets.noise(8, 3, 3)
    np.save("cube.npy", cubes)
    with raises(match=r"^path=cube\.npy: its shape is \(8, 3, 3, 3\); try data\.layout=NHWC, or"):
        image_array("cube.npy")
    assert content(image_array("cube.npy", layout="NHWC")) == expected(cubes)
    swapped = cubes.transpose(0, 2, 3, 1)
    assert content(image_array("cube.npy", layout="NCHW")) == expected(swapped)


@pytest.mark.parametrize(
    ("values", "value_range"),
    [
        (FLOATS, [0, 1]),
        (FLOATS.astype(np.float16), [0, 1]),
        (FLOATS * 2 - 1, [-1, 1]),
        (PIXELS.astype(np.int64), [0, 255]),
        (PIXELS.astype(np.uint16) * 257, [0, 65535]),
    ],
    ids=["float32", "float16", "-1 to 1", "int64", "uint16"],
)
def test_values_of_a_range_are_rounded_to_8_bits(values, value_range, caplog):
    np.save("a.npy", values)
    low, high = value_range
    with raises(match=rf"its values are {values.dtype}, .*try data\.range=\[{low},{high}\]$"):
        image_array("a.npy")
    assert content(image_array("a.npy", range=value_range)) == expected()
    assert f"values are rounded to 8 bits, {low} to 0 and {high} to 255" in caplog.text
    np.save("mask.npy", PIXELS > 127)
    assert content(image_array("mask.npy", range=[0, 1])) == expected(
        np.uint8(255) * (PIXELS > 127)
    )


@pytest.mark.parametrize("value", [1.5, -0.001, np.nan, np.inf])
@pytest.mark.parametrize("in_memory", [True, False])
def test_values_out_of_range_are_named(value, in_memory):
    values = FLOATS.copy()
    values[7, 3, 2, 1] = value
    np.save("a.npy", values)
    message = rf"a\.npy\[7, 3, 2, 1\] is {value:g}, outside data\.range=\[0,1\]"
    with raises(match=message):
        data = image_array("a.npy", range=[0, 1], in_memory=in_memory)
        content(data)


def test_labels_and_class_names():
    np.savez("a.npz", images=PIXELS, labels=LABELS, class_names=NAMES)
    data = image_array("a.npz")
    assert data.captions == [["cat"], ["dog"], ["emu"]]
    assert content(data) == expected(labels=LABELS)
    data = image_array("a.npz", class_names=["x", "y", "z", "w"])
    assert data.captions == [["x"], ["y"], ["z"], ["w"]]
    assert image_array("a.npz", class_names=[7, 8, 9]).captions == [["7"], ["8"], ["9"]]
    np.save("labels.npy", LABELS[::-1])
    assert content(image_array("a.npz", labels="labels.npy")) == expected(labels=LABELS[::-1])
    np.savez("b.npz", x=PIXELS, y=LABELS[:, None].astype(np.uint8))
    data = image_array("b.npz")
    assert data.captions == [["0"], ["1"], ["2"]] and content(data) == expected(labels=LABELS)


def test_held_out_arrays(caplog):
    parts = {"train": slice(8), "val": slice(8, 10), "test": slice(10, 12)}
    both = {f"{part}_images": PIXELS[rows] for part, rows in parts.items()}
    both |= {f"{part}_labels": LABELS[rows] for part, rows in parts.items()}
    np.savez("medmnist.npz", **both)
    short = {f"x_{part}": PIXELS[rows] for part, rows in parts.items()}
    short |= {f"y_{part}": LABELS[rows] for part, rows in parts.items()}
    np.savez("keras.npz", **short)
    np.savez("a.npz", images=PIXELS[:8], labels=LABELS[:8])
    np.savez("b.npz", images=PIXELS[10:], labels=LABELS[10:])
    files = ("medmnist.npz", "keras.npz", "a.npz")
    for file, val in zip(files, (None, None, "b.npz"), strict=True):
        data = image_array(file, val)
        assert (data.train.size, data.test.labels.tolist()) == (8, LABELS[10:].tolist())
        assert np.array_equal(data.test.pixels.permute(0, 2, 3, 1), PIXELS[10:])
    assert "held out: the 2 images of medmnist.npz test_images" in caplog.text


def test_max_images_are_evenly_spaced(caplog):
    np.savez("a.npz", images=PIXELS, labels=np.sort(LABELS))
    data = image_array("a.npz", max_images=6)
    assert content(data) == expected(PIXELS[::2], np.sort(LABELS)[::2])
    assert "max_images=6: 6 of 12 images, evenly spaced" in caplog.text
    assert image_array("a.npz", max_images=100).train.size == 10


def write(name, *arguments, **named):
    if name.endswith("npy"):
        return lambda: np.save(name, *arguments, allow_pickle=True)
    return lambda: np.savez(name, *arguments, **named)


def cut(name, size):
    def damage():
        (np.save if name.endswith("npy") else np.savez)(name, PIXELS)
        os.truncate(name, size)

    return damage


A = {"images": PIXELS, "labels": LABELS, "class_names": NAMES}
ERRORS = [
    (cut("a.npy", 500), {}, r"a\.npy: it is truncated: 500 bytes instead of 1856"),
    (cut("a.npy", 20), {}, r"a\.npy: it is not a complete \.npy or \.npz file"),
    (cut("a.npy", 0), {}, r"a\.npy: it is not a complete \.npy or \.npz file"),
    (cut("a.npz", 500), {}, r"a\.npz: it is not a complete \.npy or \.npz file"),
    (lambda: Path("a.npy").write_bytes(pickle.dumps(PIXELS)), {}, "it is not a complete"),
    (write("a.npy", np.array([{}] * 8)), {}, "it has Python objects, which are not loaded"),
    (write("a.npz", images=PIXELS, labels=LABELS.astype(object)), {}, "it has Python objects"),
    (write("a.npy", PIXELS[:0]), {}, r"it is empty, of shape \(0, 6, 8, 3\)"),
    (write("a.npy", PIXELS[:3]), {}, "has 3 images, but at least 4 are needed"),
    (write("a.npy", PIXELS[0, 0]), {}, r"its shape is \(8, 3\), expected \(N, H, W\)"),
    (write("a.npy", PIXELS * 1j), {}, "its values are complex128, expected numbers"),
    (write("a.npz", u=LABELS, v=NAMES), {}, r"none .* images or x; it has u \(12,\), v \(3,\)"),
    (write("a.npy", PIXELS), {"range": [1, 0]}, r"^range must be \[LOW,HIGH\] \(got \[1, 0\]\)"),
    (write("a.npy", PIXELS), {"range": [1]}, r"^range must be \[LOW,HIGH\]"),
    (
        write("a.npy", PIXELS),
        {"class_names": ["a"]},
        "class_names=.*the data has no labels; try data.labels=",
    ),
    (write("a.npy", PIXELS), {"labels": "no.npy"}, r"^labels must be a .*got no\.npy"),
    (
        write("a.npy", PIXELS),
        {"labels": "a.npy"},
        r"^labels=a\.npy: its labels are \(12, 6, 8, 3\)",
    ),
    (write("a.npy", PIXELS), {"val_path": "."}, r"^val_path must be .*data=folder data\.val_path="),
    (write("a.npz", images=PIXELS, labels=NAMES[LABELS]), {}, r"its labels are \(12,\) <U3"),
    (write("a.npz", images=PIXELS, labels=LABELS - 1), {}, "its labels begin at -1, but the first"),
    (write("a.npz", **A), {"class_names": ["a", "b"]}, r"has label 2, but the .* 0 to 1 \(a, b\)"),
]
TWO = PIXELS[:2]
VAL_ERRORS = [
    ({"images": TWO}, r"^val_path=b\.npz has no labels, but path=a\.npz has"),
    ({"images": TWO, "labels": [0, 7]}, r"^val_path=b\.npz has label 7, but the .* 0 to 2 \(cat, "),
    (
        A | {"class_names": ["cat", "dog", "yak"]},
        r"^val_path=b\.npz has other classes \(yak\) than",
    ),
    (A | {"class_names": NAMES[::-1]}, "other labels of the same classes than path=a.npz"),
    ({"images": PIXELS[:1], "labels": [0]}, "has 1 images, but at least 2"),
    ({"images": PIXELS[:, :4], "labels": LABELS}, r"has images of \(3, 4, 8\).*has \(3, 6, 8\)"),
]


@pytest.mark.parametrize(("prepare", "options", "message"), ERRORS, ids=range(len(ERRORS)))
def test_array_errors_name_file_and_key(prepare, options, message, tmp_path):
    prepare()
    (file,) = tmp_path.iterdir()
    with raises(match=message) as error:
        image_array(file.name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("held_out", "message"), VAL_ERRORS, ids=lambda value: str(value)[:40])
def test_held_out_arrays_must_agree(held_out, message):
    np.savez("a.npz", **A)
    np.savez("b.npz", **held_out)
    with raises(match=message):
        image_array("a.npz", "b.npz")


def test_large_compressed_arrays_are_refused(monkeypatch):
    np.savez_compressed("a.npz", images=PIXELS)
    monkeypatch.setattr(arrays, "IN_MEMORY_BYTES", 1000)
    with raises(match=r"it is compressed, and too large for memory .*save it with numpy\.savez"):
        image_array("a.npz")
    np.savez("b.npz", images=PIXELS)
    assert content(image_array("b.npz")) == expected()


def test_members_are_mapped_at_their_offsets():
    named = {f"name {i}": np.arange(i * 10, dtype=np.int32) for i in range(1, 4)}
    np.savez("a.npz", **named)
    assert [*read_headers(Path("a.npz"))] == [*named]
    for name, values in named.items():
        mapped = load_array(Path("a.npz"), name)
        assert isinstance(mapped, np.memmap) and np.array_equal(mapped, values)
