"""Image folders and stores: exact pixels, and errors that name the file."""

import io
import json
import logging
import os
import pickle
import shutil
import signal
import struct
import sys
import tarfile
import zipfile
import zlib
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor

from ddpm_lab.cli import prepare
from ddpm_lab.data import shards as stores
from ddpm_lab.data.datasets import Images, MapSplit
from ddpm_lab.data.image_folder import ImageFiles, image_folder
from ddpm_lab.data.image_folder import read_images as folder_images
from ddpm_lab.data.image_io import open_image
from ddpm_lab.data.image_transform import ImageTransform
from ddpm_lab.data.module import TrainBatches
from ddpm_lab.data.shards import Shards, image_store

raises = partial(pytest.raises, ValueError)


@pytest.fixture(autouse=True)
def log_level(caplog):
    caplog.set_level(logging.INFO)


def blank(mode, size=(8, 8), color=0):
    return Image.new(mode, size, color)


def file_names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def png(width, height, depth, color, pixels=b"", *chunks):
    """Return a standard PNG of a kind that Pillow cannot write."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def write_image(path, size=(8, 8), mode="RGB", color=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color or ((10, 20, 30) if mode == "RGB" else 0)).save(path)


def write_noise(root, count=12, classes=("",), size=8):
    """Write images of noise to class folders. Return their pixels by name."""
    content = {}
    shape = (count, size, size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for i, pixels in enumerate(images):
        file = root / classes[i % len(classes)] / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        content[str(file.relative_to(root))] = pixels.transpose(2, 0, 1)
    return content


def same_batches(one, other, count=8):
    """Return whether two data sets have the same training batches and held-out images."""
    streams = [TrainBatches(data.train, 2, True, 0) for data in (one, other)]
    for first, second in islice(zip(*streams, strict=True), count):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    first, second = (data.test.select(torch.arange(data.test.size)) for data in (one, other))
    return torch.equal(first.pixels, second.pixels)


def palette(*colors, **info):
    image = Image.new("P", (len(colors), 1))
    image.putpalette([value for color in colors for value in color])
    image.putdata(range(len(colors)))
    image.info.update(info)
    return image


def image_16_bit(values, kind=np.uint16):
    return Image.fromarray(np.array([values], kind))


RED, BLUE = (255, 0, 0), (0, 0, 255)
RGBA_PNG = png(2, 1, 8, 2, b"\1\2\3\1\2\4", (b"tRNS", b"\0\1\0\2\0\3"))
MODES = {  # an image of one row, the channels to convert to, the expected pixels
    "grey": (Image.new("L", (1, 1), 77), 1, [77]),
    "grey as RGB": (Image.new("L", (1, 1), 77), 3, [(77, 77, 77)]),
    "RGB as grey": (Image.new("RGB", (1, 1), RED), 1, [76]),
    "one bit": (Image.new("1", (1, 1), 1), 1, [255]),
    "palette": (palette(RED, BLUE), 3, [RED, BLUE]),
    "palette, one color clear": (palette(RED, BLUE, transparency=0), 3, [(255, 255, 255), BLUE]),
    "palette, half clear": (
        palette(RED, BLUE, transparency=b"\x80\xff"),
        3,
        [(255, 127, 127), BLUE],
    ),
    "RGBA": (Image.new("RGBA", (1, 1), (255, 0, 0, 128)), 3, [(255, 127, 127)]),
    "RGBA as grey": (Image.new("RGBA", (1, 1), (0, 0, 0, 0)), 1, [255]),
    "grey with alpha": (Image.new("LA", (1, 1), (0, 128)), 1, [127]),
    "grey with a clear level": (png(2, 1, 8, 0, b"\7\x08", (b"tRNS", b"\0\7")), 1, [255, 8]),
    "RGB with a clear color": (
        RGBA_PNG,
        3,
        [(255, 255, 255), (1, 2, 4)],
    ),
    "RGBA, kept": (Image.new("RGBA", (1, 1), (255, 0, 0, 128)), 4, [(255, 0, 0, 128)]),
    "RGB as RGBA": (Image.new("RGB", (1, 1), RED), 4, [(*RED, 255)]),
    "palette, half clear, kept": (palette(RED, BLUE, transparency=b"\x80\xff"), 4, [(*RED, 128)]),
    "RGB with a clear color, kept": (RGBA_PNG, 4, [(1, 2, 3, 0), (1, 2, 4, 255)]),
    "gray with alpha, kept": (Image.new("LA", (1, 1), (7, 128)), 2, [(7, 128)]),
    "gray with alpha as RGBA": (Image.new("LA", (1, 1), (7, 128)), 4, [(7, 7, 7, 128)]),
    "gray with a clear level, kept": (png(1, 1, 8, 0, b"\7", (b"tRNS", b"\0\7")), 2, [(7, 0)]),
    "RGBA as gray with alpha": (Image.new("RGBA", (1, 1), (*RED, 128)), 2, [(76, 128)]),
    "16 bits with alpha": (image_16_bit([257 * 9]), 2, [(9, 255)]),
    "CMYK": (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), 3, [RED]),
    "16 bits, PNG": (image_16_bit([0, 257, 128, 129, 257 * 77, 65535]), 1, [0, 1, 0, 1, 77, 255]),
    "16 bits of a standard PNG": (
        png(3, 1, 16, 0, struct.pack(">3H", 300, 40000, 65535)),
        1,
        [1, 156, 255],
    ),
    "16 bits as RGB": (image_16_bit([257 * 9]), 3, [(9, 9, 9)]),
    "16 bits of an int": (image_16_bit([0, 65535], np.int32), 1, [0, 255]),
    "16 bits of color": (png(1, 1, 16, 2, struct.pack(">3H", 65535, 257 * 7, 0)), 3, [(255, 7, 0)]),
    "RGBA of 16 bits": (png(1, 1, 16, 6, struct.pack(">4H", 65535, 0, 0, 0)), 3, [(255, 255, 255)]),
}


@pytest.mark.parametrize("kind", MODES)
def test_image_modes_convert_to_expected_pixels(kind, tmp_path):
    image, channels, pixels = MODES[kind]
    file = tmp_path / f"a.{'tif' if 'CMYK' in kind or 'int' in kind else 'png'}"
    if isinstance(image, bytes):
        file.write_bytes(image)
    else:
        image.save(file)
    for x, pixel in enumerate(pixels):
        crop = open_image(file).crop((x, 0, x + 1, 1))
        result = ImageTransform(1, channels, convert=True)(crop, "a")
        assert (result.shape, result.dtype) == ((channels, 1, 1), torch.uint8)
        assert result.flatten().tolist() == list(np.atleast_1d(pixel)), f"pixel {x}"


@pytest.mark.parametrize(
    ("background", "expected"),
    [("white", (255, 127, 127)), ("black", (128, 0, 0)), ("#0000ff", (128, 0, 127))],
)
def test_transparency_is_composited_over_background(background, expected):
    result = ImageTransform(4, 3, True, background)(
        Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "a"
    )
    assert result.flatten(1).unique(dim=1).T.tolist() == [list(expected)]


@pytest.mark.parametrize(
    ("tag", "corner"),
    [
        (1, (0, 0)),
        (2, (0, 3)),
        (3, (1, 3)),
        (4, (1, 0)),
        (5, (0, 0)),
        (6, (0, 1)),
        (7, (3, 1)),
        (8, (3, 0)),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_exif_orientation_is_applied(tag, corner, suffix, tmp_path):
    stored = Image.new("RGB", (32, 16))
    stored.paste((255, 255, 255), (0, 0, 8, 8))
    exif = stored.getexif()
    exif[0x0112] = tag
    stored.save(tmp_path / f"a.{suffix}", exif=exif)
    pixels = np.asarray(open_image(tmp_path / f"a.{suffix}").convert("L"))
    row, column = corner
    assert pixels.shape == ((16, 32) if tag < 5 else (32, 16))
    assert pixels[row * 8 + 4, column * 8 + 4] > 200
    assert (pixels > 128).mean() == pytest.approx(1 / 8, abs=0.02)


def test_resize_and_center_crop_match_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    fitted = ImageOps.fit(Image.fromarray(pixels), (8, 8), Image.Resampling.LANCZOS)
    expected = pil_to_tensor(fitted)
    assert torch.equal(ImageTransform(8, 3, convert=True)(Image.fromarray(pixels), "a"), expected)
    fitted = ImageOps.fit(Image.fromarray(pixels), (12, 8), Image.Resampling.LANCZOS)
    wide = ImageTransform([8, 12], 3, convert=True)(Image.fromarray(pixels), "a")
    assert torch.equal(wide, pil_to_tensor(fitted)) and wide.shape == (3, 8, 12)
    bars = Image.new("RGB", (24, 8), BLUE)
    bars.paste(RED, (8, 0, 16, 8))
    expected = pil_to_tensor(blank("RGB", color=RED))
    assert torch.equal(ImageTransform(8, 3, convert=True)(bars, "a"), expected)


@pytest.mark.parametrize(
    ("image", "channels", "convert", "message"),
    [
        (blank("RGB", (9, 8)), 3, False, "^a is 9x8 RGB, expected 8x8 RGB; try data.convert=true"),
        (
            blank("RGB"),
            1,
            False,
            "^a is 8x8 RGB, expected 8x8 L; try data.channels=3, or data.conv",
        ),
        (blank("CMYK"), 3, False, "^a is 8x8 CMYK, .*; try data.convert=true$"),
        (
            blank("RGB", (9, 8)),
            1,
            False,
            "; try data.convert=true data.resolution=8 data.channels=3$",
        ),
        (
            blank("RGBA"),
            3,
            False,
            "^a is 8x8 RGBA and transparent.*try data.convert=true, which composites",
        ),
        (blank("LA"), 1, False, "^a is 8x8 LA and transparent"),
        (image_16_bit([0] * 8).resize((8, 8)), 1, False, "^a is 8x8 I;16, expected 8x8 L"),
        (image_16_bit([-1, 0], np.int32), 1, True, "^a has values from -1 to 0"),
        (image_16_bit([0, 65536], np.int32), 1, True, "^a has values from 0 to 65536"),
        (image_16_bit([0.5], np.float32), 1, True, "^a has .*mode F with values from 0.5 to 0.5, "),
        (blank("La"), 1, True, "^a has pixels of mode La"),
    ],
)
def test_lossy_and_ambiguous_conversions_raise(image, channels, convert, message):
    with raises(match=message):
        ImageTransform(8, channels, convert)(image, "a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((8, 5), "^channels of image files must be 1 "),
        (([8], 3), r"^resolution must be N or \[HEIGHT,WIDTH\]"),
        (([8, 0], 3), "^resolution must be at least 1 and at most 8192"),
        ((0, 3), "^resolution must be at least 1 and at most 8192"),
        ((8193, 3), "^resolution"),
        ((8, 3, True, "whitish"), "^background=whitish"),
        ((8, 3, True, "#ffffff80"), "^background=#ffffff80"),
    ],
)
def test_invalid_transform_settings_raise(settings, message):
    with raises(match=message):
        ImageTransform(*settings)


PAGE = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"


def broken_files():
    image, png_file, jpeg_file = Image.effect_noise((64, 64), 50), io.BytesIO(), io.BytesIO()
    image.save(png_file, "PNG")
    image.save(jpeg_file, "JPEG")
    whole, jpeg = png_file.getvalue(), jpeg_file.getvalue()
    return {
        "zero.png": b"",
        "text.png": b"hello",
        "program.png": PAGE,
        "cut.png": whole[:2000],
        "cut.jpg": jpeg[:1000],
        "header.png": whole[:20],
        "wrong.png": whole[:1000] + bytes(500) + whole[1500:],
        "bomb.png": png(50000, 50000, 8, 2),
        "warned.png": png(10000, 9000, 8, 2),
        "over.png": png(8193, 8192, 8, 2),
        "clear16.png": png(1, 1, 16, 2, bytes(6), (b"tRNS", bytes(6))),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", broken_files())
def test_broken_image_errors_name_the_file(name, tmp_path):
    (tmp_path / name).write_bytes(broken_files()[name])
    with raises(match=rf"^{tmp_path / name} cannot be read as an image \(.+\)$") as error:
        open_image(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.fixture
def time_limit():
    """Fail after 20 s."""

    def late(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("time_limit")
def test_special_files_are_not_opened(tmp_path):
    write_noise(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with raises(match=r"pipe\.png cannot be read .*not a regular file"):
        open_image(tmp_path / "pipe.png")
    for on_error in ("error", "skip"):
        with raises(match=r"pipe\.png, which is not a regular file"):
            image_folder(tmp_path, on_error=on_error)


def test_folder_pixels_are_exact(tmp_path):
    pixels = write_noise(tmp_path, 6)
    (tmp_path / "notes.txt").write_text("not a image")
    (tmp_path / "._000.png").write_text("a Mac's")
    data = image_folder(tmp_path, held_out=0.4)
    assert data.classes is None and len(data.test.pixels) == 2
    assert image_bytes(data) == sorted(p.tobytes() for p in pixels.values())


def test_class_folders(tmp_path):
    for i, name in enumerate(["cat", "dog", "emu"]):
        for j in range(4):
            write_image(tmp_path / name / f"{j}.png", mode="L", color=50 * i)
    (tmp_path / ".hidden").mkdir()
    data = image_folder(tmp_path, channels=1)
    assert data.classes == 3 and data.captions == [["cat"], ["dog"], ["emu"]]
    assert torch.equal(data.train.pixels[:, 0, 0, 0].long(), 50 * data.train.labels)


def test_convert_mixed_folder(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png", size=(30, 16), mode="L", color=77)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "c.png")
    image_16_bit([257 * 9] * 8).resize((8, 8)).save(tmp_path / "d.png")
    data = image_folder(tmp_path, convert=True, background="blue", bits=16)
    pixels = torch.cat([data.train.pixels, data.test.pixels])
    colors = {tuple(p[:, 4, 4].tolist()) for p in pixels}
    assert colors == {(10, 20, 30), (77, 77, 77), BLUE, (9, 9, 9)}


FOUR: dict = {f"{name}.png": {} for name in "abcd"}
WIDE = {name: {"size": (640, 480)} for name in FOUR}
MIXED = {name: {"size": (500, 20 + i)} for i, name in enumerate(FOUR)}
ODD = FOUR | {"b.png": {"size": (9, 8)}}
DEEP = FOUR | {"e.png": {"mode": "I;16", "color": 65535}}


@pytest.mark.parametrize(
    ("files", "kwargs", "message"),
    [
        ({}, {}, "holds 0 images, but at least 4 are needed$"),
        (
            ODD,
            {},
            r"are 8x8 \(3\), 9x8 \(1\), the first of another size .*b\.png; a model "
            r"needs images of one size; try data\.convert=true data\.resolution=8$",
        ),
        (ODD, {"resolution": 8}, r"b\.png is 9x8 RGB, expected 8x8 RGB"),
        (
            WIDE,
            {"resolution": [320, 480]},
            r"expected 480x320 \(width x height\) RGB; .*data\.resolution=\[320,480\]$",
        ),
        (MIXED, {}, r"resolution=16$"),
        (FOUR, {"channels": 1}, r"expected 8x8 L; try data\.channels=3, or data\.convert"),
        (FOUR, {"batch_size": 9}, r"batch_size must be in 1\.\.2"),
        (FOUR, {"channels": 5}, "channels"),
        (FOUR, {"channels": 2}, r"expected 8x8 LA; try data\.channels=4, or data\.convert"),
        (FOUR, {"resolution": 40000}, "resolution must be at least 1 and at most 8192"),
        (FOUR, {"resolution": 16, "in_memory": False}, r"\.png is 8x8 RGB, expected 16x16 RGB"),
        (FOUR, {"resolution": 0}, "resolution"),
        (FOUR, {"background": "whitish"}, "background=whitish"),
        (FOUR, {"held_out": 1.0}, "held_out"),
        (FOUR, {"on_error": "skip", "in_memory": False}, "on_error=skip is for .*prepare"),
        (DEEP, {"channels": 3}, r"e\.png is 8x8 I;16"),
    ],
)
def test_folder_errors_name_file_and_key(tmp_path, files, kwargs, message):
    for name, image in files.items():
        write_image(tmp_path / name, **image)
    with raises(match=message):
        image_folder(tmp_path, **kwargs)


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_of_one_size_need_not_be_square(in_memory, tmp_path, caplog):
    (root := tmp_path / "set").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 10, 4), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(root / f"{i}.png")
    data = image_folder(root, channels=4, in_memory=in_memory)
    assert data.shape == (4, 6, 10) and "as 10x6 (width x height) RGB with alpha" in caplog.text
    assert image_bytes(data) == sorted(i.transpose(2, 0, 1).tobytes() for i in pixels)
    data = image_folder(root, [4, 8], convert=True, in_memory=in_memory)
    assert data.shape == (3, 4, 8)
    assert image_folder(root, 4, convert=True).shape == (3, 4, 4)
    assert image_folder(root, convert=True).shape == (3, 6, 10)
    prepare.prepare(root, tmp_path / "store", prepare.parse_resolution("[4,8]"), 4, True)
    assert image_store(tmp_path / "store").shape == (4, 4, 8)


def test_large_images_suggest_smaller_ones(tmp_path, caplog):
    for name in FOUR:
        write_image(tmp_path / name, (300, 240))
    assert image_folder(tmp_path).shape == (3, 240, 300)
    assert "smaller ones train faster: data.convert=true data.resolution=64" in caplog.text


def test_broken_image_in_folder(tmp_path):
    for name in FOUR:
        write_image(tmp_path / name)
    (tmp_path / "b.png").write_text("hello")
    with raises(match=r"^path=.*b\.png cannot be read"):
        image_folder(tmp_path)
    with raises(match="nowhere"):
        image_folder("nowhere")


def test_on_error_skip_limit_and_messages(tmp_path, caplog):
    pixels = write_noise(tmp_path, 200, classes=["cat", "dog"])
    for name in ("000", "100"):
        (tmp_path / "cat" / f"{name}.png").write_text("hello")
    data = image_folder(tmp_path, on_error="skip")
    whole = [data.train.select(slice(None)), data.test.select(slice(None))]
    for images in whole:
        for name, image in with_names(pixels, images):
            assert np.array_equal(pixels[name], image)
    assert sum(len(images.pixels) for images in whole) == 198
    (line,) = (message for message in caplog.messages if message.startswith("left"))
    first = tmp_path / "cat" / "000.png"
    assert line.startswith(f"left out 2 of 200 images; the first: {first} cannot be read")
    (tmp_path / "dog" / "001.png").write_text("hello")
    with raises(match=r"at most 1% of 200 images, and 3 are bad; the first: .*000\.png") as error:
        image_folder(tmp_path, on_error="skip")
    assert "\n" not in str(error.value)


def with_names(pixels, images):
    """Yield each image with its name, and check its label."""
    names = {value.tobytes(): name for name, value in pixels.items()}
    for image, label in zip(images.pixels.numpy(), images.labels.tolist(), strict=True):
        name = names[image.tobytes()]
        assert name.split("/")[0] == ["cat", "dog"][label]
        yield name, image


def test_streamed_folder_matches_in_memory(tmp_path):
    write_noise(tmp_path, classes=["cat", "dog"])
    in_memory, streamed = (image_folder(tmp_path, in_memory=value) for value in (True, False))
    assert isinstance(in_memory.train, Images) and isinstance(streamed.train, MapSplit)
    assert same_batches(in_memory, streamed)
    before = streamed.train.digest()
    assert before == image_folder(tmp_path, in_memory=False).train.digest()
    os.utime(tmp_path / "cat" / "000.png", ns=(1, 1))
    assert before != streamed.train.digest()


def image_bytes(data):
    """Return all images of a data set as bytes, sorted."""
    parts = [split.select(slice(None)).pixels for split in (data.train, data.test)]
    return sorted(image.tobytes() for image in torch.cat(parts).numpy())


ENCODED = {  # lossless for these images: (file name, format that Pillow writes)
    "a.png": "PNG",
    "b.apng": "PNG",
    "c.PPM": "PPM",
    "d.tga": "TGA",
    "e.jp2": "JPEG2000",
    "f": "PNG",
    "g.txt": "PNG",
    "h.PnG": "BMP",
    "i.bmp": "PNG",
    "j.tiff": "TIFF",
    "k.ico": "ICO",
    "l.qoi": "QOI",
    "m.dib": "DIB",
    "n.pcx": "PCX",
    "o.sgi": "SGI",
    "p.img": "TGA",
    "q.pnm": "PPM",
}


def test_pillow_formats_are_read_and_other_files_counted(tmp_path, caplog):
    pixels = write_noise(tmp_path / "made", len(ENCODED), size=16)
    expected = {}
    for name, (file, value) in zip(ENCODED, pixels.items(), strict=True):
        options = {"irreversible": False} if ENCODED[name] == "JPEG2000" else {}
        Image.open(tmp_path / "made" / file).save(tmp_path / name, ENCODED[name], **options)
        expected[name] = value
    shutil.rmtree(tmp_path / "made")
    for name in ("0.jfif", "0.jpe", "0.avif"):
        image = blank("RGB", (16, 16), (1, 2, 3))
        image.save(tmp_path / name, "AVIF" if "avif" in name else "JPEG")
    blank("RGB", (16, 16)).save(tmp_path / "thumbnail.nef", "TIFF")
    others = {
        "notes.txt": b"hello",
        "b.json": b"{}",
        "c.TXT": b"no",
        "README": b"words",
        "drawing.eps": PAGE,
        "page": PAGE,
        "x.h5": b"\x89HDF\r\n\x1a\n",
    }
    litter = dict.fromkeys(("Thumbs.db", ".DS_Store", "._a.png", ".hidden.png"), b"x")
    for name, content in (others | litter).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._a.png").write_bytes(b"x")
    data = image_folder(tmp_path)
    assert data.classes is None and data.train.size + data.test.size == len(ENCODED) + 3 - 1
    images = image_bytes(data)
    assert all(value.tobytes() in images for name, value in expected.items() if name != "p.img")
    (line,) = (message for message in caplog.messages if message.startswith("not used"))
    counts = ("2 .txt", "1 .json", "2 without suffix", "1 .eps", "1 .h5", "1 .nef", "1 .img")
    for part in (*counts, "(not images)", "1 hidden"):
        assert part in line, line


@pytest.mark.parametrize("name", ["page.ps", "page.eps", "page.png", "page"])
def test_postscript_starts_no_program(name, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail("it was started"))
    write_noise(tmp_path)
    (tmp_path / name).write_bytes(PAGE)
    if name.endswith("png"):
        with raises(match="not in an image format that Pillow decodes"):
            image_folder(tmp_path)
    else:
        assert image_folder(tmp_path).train.size == 10


def test_git_lfs_pointer_message(tmp_path):
    write_noise(tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "000.png").write_text(pointer)
    with raises(match="Git LFS pointer; fetch the images with: git lfs pull"):
        image_folder(tmp_path)


def test_nested_folders(tmp_path, caplog):
    pixels = write_noise(tmp_path / "classes", 12, ["cat", "cat/sub", "dog/a/b", "dog"])
    (tmp_path / "classes" / "labels").mkdir()
    (tmp_path / "classes" / "labels" / "cat.txt").write_text("0")
    data = image_folder(tmp_path / "classes")
    assert data.captions == [["cat"], ["dog"]] and data.train.size + data.test.size == 12
    names = [name for split in (data.train, data.test) for name, _ in with_names(pixels, split)]
    assert sorted(names) == sorted(pixels)
    assert "1 .txt (not images); 1 folders without images; names: cat.txt, labels" in caplog.text
    pixels = write_noise(tmp_path / "flat", 12, ["", "a", "a/b", "c"])
    data = image_folder(tmp_path / "flat")
    assert data.classes is None and data.captions is None
    assert image_bytes(data) == sorted(value.tobytes() for value in pixels.values())
    assert "all 12 are read as one set without classes" in caplog.text
    for inner in ("outer/images", "outer/all"):
        write_noise(tmp_path / inner / "train", 6, ["cat", "dog"])
    write_noise(tmp_path / "single" / "data" / "images", 6)
    assert image_folder(tmp_path / "single").classes is None
    write_noise(tmp_path / "single2" / "data", 6, ["cat", "dog"])
    assert image_folder(tmp_path / "single2").captions == [["cat"], ["dog"]]


def test_numeric_class_folders_are_sorted_numerically(tmp_path):
    write_noise(tmp_path, 24, [str(i) for i in range(12)])
    data = image_folder(tmp_path)
    assert data.captions == [[str(i)] for i in range(12)]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "testing", "Test", "VAL"])
def test_train_and_test_folders_are_splits(name, tmp_path, caplog):
    write_noise(tmp_path / "a" / "train", 8, ["cat", "dog"])
    pixels = write_noise(tmp_path / "a" / name, 6, ["cat", "dog"])
    data = image_folder(tmp_path / "a")
    assert (data.train.size, data.test.size, data.captions) == (8, 6, [["cat"], ["dog"]])
    assert [file for file, _ in with_names(pixels, data.test)] == sorted(pixels)
    assert f"held out: the 6 images in {name}/" in caplog.text
    write_noise(tmp_path / "b" / "Training" / "images", 8)
    write_noise(tmp_path / "b" / name / "images", 4)
    data = image_folder(tmp_path / "b")
    assert (data.train.size, data.test.size, data.classes) == (8, 4, None)
    data = image_folder(tmp_path / "a", splits=False)
    assert data.classes == 2 and data.train.size + data.test.size == 14


def test_other_folders_beside_splits_are_counted(tmp_path, caplog):
    for part, count in {"train": 8, "valid": 6, "test": 4, "extra": 5}.items():
        write_noise(tmp_path / "s" / part, count, ["cat", "dog"])
    write_image(tmp_path / "s" / "preview.png")
    data = image_folder(tmp_path / "s")
    assert (data.train.size, data.test.size) == (8, 4)
    line = next(message for message in caplog.messages if message.startswith("not used"))
    for part in ("5 images in extra/", "6 images in valid/", "1 images next to train/"):
        assert part in line, line
    prepare.prepare(tmp_path / "s", tmp_path / "store")
    assert same_batches(data, image_store(tmp_path / "store"))
    prepare.prepare(tmp_path / "s", tmp_path / "flat", splits=False)
    assert image_store(tmp_path / "flat").train.size + data.test.size > 8


def test_classes_of_splits_must_agree(tmp_path, caplog):
    write_noise(tmp_path / "a" / "train", 9, ["cat", "dog", "emu"])
    pixels = write_noise(tmp_path / "a" / "val", 4, ["dog"])
    write_noise(tmp_path / "a" / "test", 4)  # without class folders, as some competitions have it
    data = image_folder(tmp_path / "a")
    assert data.test.labels.tolist() == [1] * 4 and len(pixels) == 4
    assert "val/ has no images of 2 classes (cat, emu)" in caplog.text
    assert "4 images in test/" in caplog.text
    shutil.rmtree(tmp_path / "a" / "val")
    with raises(match=r"test/ has no class folders, but train/ has 3; try data\.path=.*/a/train"):
        image_folder(tmp_path / "a")
    assert image_folder(tmp_path / "a" / "train").classes == 3


def test_single_train_folder_is_the_whole_set(tmp_path):
    write_noise(tmp_path / "train", 8, ["cat", "dog"])
    data = image_folder(tmp_path)
    assert data.captions == [["cat"], ["dog"]] and (data.train.size, data.test.size) == (6, 2)
    write_noise(tmp_path / "bus", 8)
    assert image_folder(tmp_path).captions == [["bus"], ["train"]]


THREE = palette(RED, BLUE, (0, 0, 0), transparency=2)
OPAQUE = {
    "RGBA": Image.new("RGBA", (8, 8), (1, 2, 3, 255)),
    "palette with opaque alpha": palette(RED, BLUE, transparency=b"\xff\xff").resize((8, 8)),
    "palette with an unused clear color": THREE.crop((0, 0, 2, 1)).resize((8, 8)),
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_opaque_alpha_keeps_pixels(kind, tmp_path):
    OPAQUE[kind].save(tmp_path / "a.png")
    expected = pil_to_tensor(OPAQUE[kind].convert("RGBA").convert("RGB"))
    assert torch.equal(ImageTransform(8, 3)(open_image(tmp_path / "a.png"), "a"), expected)
    grey = Image.new("LA", (8, 8), (77, 255))
    assert ImageTransform(8, 1)(grey, "a").unique().tolist() == [77]
    assert ImageTransform(8, 3)(grey, "a").unique().tolist() == [77]
    grey = palette((9, 9, 9), (7, 7, 7)).resize((8, 8))
    assert ImageTransform(8, 1)(grey, "a").unique().tolist() == [7, 9]
    (tmp_path / "b.png").write_bytes(png(1, 1, 8, 2, b"\1\2\3", (b"tRNS", b"\0\1\0\2\0\4")))
    unused = ImageTransform(1, 3)(open_image(tmp_path / "b.png"), "b")
    assert unused.flatten().tolist() == [1, 2, 3], "its clear color does not occur"
    (tmp_path / "c.png").write_bytes(png(1, 1, 16, 0, b"\xff\xff", (b"tRNS", b"\0\7")))
    unused = ImageTransform(1, 1, convert=True)(open_image(tmp_path / "c.png"), "c")
    assert unused.flatten().tolist() == [255]


def test_channels_follow_the_images(tmp_path, caplog):
    for i, mode in enumerate(("L", "L", "1", "LA", "P")):
        image = Image.effect_noise((8, 8), 50).convert("L").convert("P" if mode == "P" else mode)
        image.save(tmp_path / f"{i}.png")
    data = image_folder(tmp_path)
    assert data.shape == (1, 8, 8)
    assert "as 8x8 gray (resolution and channels of 5 inspected images)" in caplog.text
    assert "converted: 1 from 1 to L, 1 from LA to L, 1 from P to L" in caplog.text
    write_image(tmp_path / "5.png")
    data = image_folder(tmp_path)
    assert data.shape == (3, 8, 8) and "2 from L to RGB" in caplog.text
    with raises(match=r"5\.png is 8x8 RGB, expected 8x8 L; try data\.channels=3, or data\.convert"):
        image_folder(tmp_path, channels=1)


@pytest.mark.parametrize(("most", "bits"), [(1000, 10), (4095, 12), (12000, 14), (200, 8)])
@pytest.mark.parametrize(
    ("kind", "suffix"), [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif"), (">u2", "tif")]
)
def test_dark_16_bit_grey_suggests_bits(most, bits, kind, suffix, tmp_path):
    values = np.linspace(0, most, 64).astype(kind).reshape(8, 8)
    for i in range(4):
        Image.fromarray(values).save(tmp_path / f"{i}.{suffix}")
    advice = rf"; try data\.convert=true data\.bits={bits}, "
    with raises(match=rf"values up to {most} of 65535, .*{bits} bits.*{advice}"):
        image_folder(tmp_path)
    with raises(match=rf"; try data\.bits={bits}, or data\.bits=16 "):
        image_folder(tmp_path, convert=True)
    data = image_folder(tmp_path, convert=True, bits=bits)
    expected = np.floor(values.astype(float) * 255 / (2**bits - 1) + 0.5)
    assert np.array_equal(data.test.pixels[0, 0], expected)
    too_few = rf"0 to {2 ** (bits - 1) - 1} \(.*; try data\.bits={most.bit_length()}"
    with raises(match=too_few if bits > 8 else "bits"):
        image_folder(tmp_path, convert=True, bits=bits - 1)
    assert image_folder(tmp_path, convert=True, bits=16).test.pixels.max() == round(most / 257)


def test_dark_16_bit_color_raises(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(1, 1, 16, 2, struct.pack(">3H", 4095, 300, i)))
    with raises(match=r"16-bit color images .* would be nearly black; save them with 8 bits"):
        image_folder(tmp_path)


def test_symlinks_are_followed_and_dangling_links_counted(tmp_path, caplog):
    pixels = write_noise(tmp_path / "blobs", 12)
    root = tmp_path / "set"
    for i, name in enumerate(pixels):
        (root / ["cat", "dog"][i % 2]).mkdir(parents=True, exist_ok=True)
        (root / ["cat", "dog"][i % 2] / name).symlink_to(tmp_path / "blobs" / name)
    write_noise(tmp_path / "elsewhere", 6)
    (root / "emu").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "loop").symlink_to(root)
    (root / "cat" / "self.png").symlink_to("self.png")
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "link").symlink_to(root)
    for in_memory in (True, False):
        data = image_folder(tmp_path / "link", in_memory=in_memory)
        assert data.captions == [["cat"], ["dog"], ["emu"]]
        assert data.train.size + data.test.size == 18
    assert "2 dangling links" in caplog.text
    assert "1 links to a folder that contains them" in caplog.text
    assert folder_images(tmp_path / "link" / "cat", (3, 8, 8)).size == 6 + 12


def test_store_of_symlinks(store, tmp_path):
    (tmp_path / "blobs").mkdir()
    for file in [*store.iterdir()]:
        file.rename(tmp_path / "blobs" / f"{file.name}.blob")
        file.symlink_to(tmp_path / "blobs" / f"{file.name}.blob")
    assert image_store(store).classes == 2


def test_undecodable_file_names(tmp_path):
    name = os.fsdecode(b"\xe9t\xe9")
    write_noise(tmp_path, 8, [name, "dog"])
    shutil.copy(tmp_path / "dog" / "001.png", tmp_path / "dog" / os.fsdecode(b"\xff.png"))
    data = image_folder(tmp_path, in_memory=False)
    assert data.captions == [["dog"], ["\ufffdt\ufffd"]] and len(data.train.digest()) == 64


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Return a function that runs the script: (exit status, standard output, standard error)."""

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, options), "--workers=0"])
        status = 0
        try:
            prepare.main()
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Write a store of twelve images of two classes in several shards, and its source."""
    monkeypatch.setattr(stores, "SHARD", 4 * 192)
    monkeypatch.setattr(prepare, "CHUNK", 2 * 192)
    write_noise(tmp_path / "source", classes=["cat", "dog"])
    prepare.prepare(tmp_path / "source", tmp_path / "store")
    return tmp_path / "store"


def test_store_matches_its_folder(store, tmp_path):
    shards = [f"pixels-{i:05}.npy" for i in range(3)]
    assert file_names(store) == ["index.json", "labels.npy", *shards]
    assert file_names(tmp_path) == ["source", "store"]
    source = image_folder(tmp_path / "source")
    data, streamed = (image_store(store, in_memory=value) for value in (True, False))
    assert isinstance(data.train, Images) and isinstance(streamed.train, MapSplit)
    assert data.captions == source.captions and data.classes == 2 and data.name == "store"
    assert same_batches(source, data) and same_batches(source, streamed)
    pickled = pickle.dumps(streamed.train.source)
    assert len(pickled) < 1000 and torch.equal(pickle.loads(pickled)[5], streamed.train.source[5])


def test_store_digest_depends_on_content(tmp_path):
    write_noise(tmp_path / "a")
    write_noise(tmp_path / "b")
    write_image(tmp_path / "b" / "000.png", color=(1, 2, 3))
    (tmp_path / "c").symlink_to(tmp_path / "a")
    for name in "abc":
        prepare.prepare(tmp_path / name, tmp_path / "stores" / name, workers=2)
    a, b, c = (Shards(tmp_path / "stores" / name).digest() for name in "abc")
    assert a == c != b
    assert image_store(tmp_path / "stores" / "a").classes is None


def flip_bit(file):
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)


def edit_index(**changes):
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def truncate(size):
    return lambda file: os.truncate(file, size)


def save_array(array):
    return lambda file: np.save(file, array)


def write_text(text):
    return lambda file: file.write_text(text)


PIXELS = "pixels-00001.npy"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (PIXELS, flip_bit, r"pixels-00001\.npy is damaged, its SHA-256"),
        ("labels.npy", flip_bit, r"labels\.npy is damaged, its SHA-256"),
        (PIXELS, truncate(500), r"pixels-00001\.npy is damaged or missing"),
        (PIXELS, truncate(5000), r"pixels-00001\.npy is damaged or missing"),
        (PIXELS, truncate(0), r"pixels-00001\.npy is damaged or missing"),
        (PIXELS, Path.unlink, r"pixels-00001\.npy is damaged or missing"),
        (PIXELS, save_array(np.zeros((4, 3, 8, 9), np.uint8)), r"\(4, 3, 8, 9\) uint8"),
        (PIXELS, save_array(np.array([{}])), r"pixels-00001\.npy is"),
        ("labels.npy", save_array(np.zeros(11, np.int64)), r"labels\.npy is damaged"),
        ("index.json", Path.unlink, r"index\.json is not the index of a complete store"),
        ("index.json", write_text("[1]"), r"index\.json is not the index"),
        ("index.json", write_text('{"name": "another"}'), r"index\.json is not the index"),
        ("index.json", edit_index(classes=["dog", "cat"]), r"is not the index .*was changed"),
        ("index.json", edit_index(format="ddpm-lab images 9"), r"index\.json is not the index"),
    ],
)
def test_damaged_store_errors_name_the_file(store, name, damage, message, run_script):
    assert run_script(store, "--check")[:2] == (0, f"{store} is intact\n")
    damage(store / name)
    with raises(match=f"^path: .*{message}"):
        image_store(store)
    status, _, error = run_script(store, "--check")
    assert status == 2 and error.startswith("error: path") and name in error


def test_store_with_test_split(tmp_path):
    write_noise(tmp_path / "source" / "train", 8, ["cat", "dog"])
    pixels = write_noise(tmp_path / "source" / "val", 6, ["cat", "dog"])
    prepare.prepare(tmp_path / "source", tmp_path / "store")
    data = image_store(tmp_path / "store")
    assert (data.train.size, data.test.size, data.classes) == (8, 6, 2)
    assert [name for name, _ in with_names(pixels, data.test)] == sorted(pixels)
    (tmp_path / "source" / "val" / "dog").rename(tmp_path / "source" / "val" / "emu")
    with raises(match=r"val/ has other classes than train/ \(emu\); try data\.path=.*/train"):
        prepare.prepare(tmp_path / "source", tmp_path / "other")


def write_archive(kind, source, archive, extra=()):
    """Write an archive of `source` and of `extra` (name, content); content None is a symlink."""
    images = sorted(source.rglob("*.png"))
    files = [(f"top/{image.relative_to(source)}", image.read_bytes()) for image in images]
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in [*files, *extra]:
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = (0o120777 if content is None else 0o644) << 16
                file.writestr(info, content or b"/etc/passwd")
        return
    with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as file:
        for name, content in [*files, *extra]:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            info.size = len(content or b"")
            file.addfile(info, io.BytesIO(content or b""))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archive_matches_its_folder(kind, tmp_path, monkeypatch):
    write_noise(tmp_path / "source", classes=["cat", "dog"])
    archive = tmp_path / f"source.{kind}"
    extra = [("__MACOSX/top/cat/._000.png", b"a Mac's"), ("top/readme.txt", b"hi")]
    write_archive(kind, tmp_path / "source", archive, extra)
    prepare.prepare(archive, tmp_path / "a")
    prepare.prepare(tmp_path / "source", tmp_path / "b")
    assert Shards(tmp_path / "a").digest() == Shards(tmp_path / "b").digest()
    monkeypatch.setattr(prepare, "UNPACKED", (0.1, 1000))
    with raises(match=rf"source\.{kind} cannot be unpacked .*times its size"):
        prepare.prepare(archive, tmp_path / "c")
    assert file_names(tmp_path) == ["a", "b", "source", f"source.{kind}"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("../evil.png", b"x"), ("top/cat/../../../evil.png", b"x"), ("top/cat/evil.png", None)],
)
def test_archive_members_stay_in_the_folder(kind, name, content, tmp_path):
    write_noise(tmp_path / "in" / "source")
    archive = tmp_path / "in" / "a.archive"
    write_archive(kind, tmp_path / "in" / "source", archive, [(name, content)])
    with raises(match=r"a\.archive cannot be unpacked .*evil\.png"):
        prepare.prepare(archive, tmp_path / "in" / "target")
    assert not [*tmp_path.rglob("evil.png")] and not (tmp_path / "in" / "target").exists()


def test_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    write_noise(tmp_path / "source")
    monkeypatch.setattr(prepare, "CHUNK", 192)
    monkeypatch.setattr(stores, "SHARD", 192)
    read = ImageFiles.__getitem__

    def interrupt(self, index):
        if index == 7:
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(ImageFiles, "__getitem__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(tmp_path / "source", tmp_path / "store")
    assert file_names(tmp_path) == ["source"]


def test_preparation_messages(run_script, tmp_path, caplog):
    write_noise(tmp_path / "source", 100, ["cat", "dog"])
    source, target = tmp_path / "source", tmp_path / "store"
    (source / "cat" / "000.png").write_text("hello")
    status, _, error = run_script(source, target, "--resolution=8")
    assert status == 2 and "000.png cannot be read as an image" in error and not target.exists()
    status, out, _ = run_script(source, target, "--on-error=skip")
    assert status == 0 and out.startswith("99 images of 3x8x8, 2 classes, 0.00 GiB, in ")
    assert f"next     python train.py data=store data.path={target} conditioner=label" in out
    (line,) = (message for message in caplog.messages if message.startswith("left"))
    assert line.startswith("left out 1 of 100 images; the first: ")
    assert image_store(target).train.size == 90
    status, _, error = run_script(source, target)
    assert status == 2 and "a store is never overwritten" in error


def test_preparation_errors_name_command_line_options(run_script, tmp_path):
    write_noise(tmp_path / "source", 100)
    (tmp_path / "text.zip").write_text("hello")
    for name in ("007", "008"):
        write_image(tmp_path / "source" / f"{name}.png", size=(9, 8))
    for options, message in [
        (["source"], "images are 8x8 (98), 9x8 (2), the first of another size "),
        (["source"], "; a model needs images of one size; try --convert --resolution=8\n"),
        (
            ["source", "--resolution=8"],
            "is 9x8 RGB, expected 8x8 RGB; try --convert --resolution=8",
        ),
        (["source", "--on-error=skip"], "at most 1% of 100 images, and 2 are bad; the first: "),
        (["source", "--background=whitish"], "error: background=whitish"),
        (["nowhere"], "nowhere does not exist"),
        (["text.zip"], "text.zip cannot be unpacked as a .zip, .tar or .tar.gz"),
    ]:
        status, _, error = run_script(tmp_path / options[0], tmp_path / "store", *options[1:])
        assert status == 2 and message in error and "Traceback" not in error
    assert file_names(tmp_path) == ["source", "text.zip"]


def test_validation_folder(tmp_path, caplog):
    pixels = write_noise(tmp_path / "a", 12, ["cat", "dog"])
    held_out = write_noise(tmp_path / "b", 6, ["cat", "dog"])
    data = image_folder(tmp_path / "a", val_path=tmp_path / "b", in_memory=False)
    assert (data.train.size, data.test.size) == (12, 6)
    assert [name for name, _ in with_names(held_out, data.test.select(slice(6)))] == sorted(
        held_out
    )
    assert len([*with_names(pixels, data.train.select(slice(12)))]) == 12
    assert f"held out: the 6 images in {tmp_path}/b" in caplog.text
    digest = data.test.digest()
    (tmp_path / "both").mkdir()
    for name in "ab":  # the digest does not depend on the location of both
        shutil.copytree(tmp_path / name, tmp_path / "both" / name)
    for name in "ab":
        (tmp_path / name).rename(tmp_path / f"moved {name}")
    with raises(
        match=r"^val_path must be a folder of images \(got .*it does not exist; try data\.v"
    ):
        image_folder(tmp_path / "both" / "a", val_path=str(tmp_path / "b"))
    moved = image_folder(tmp_path / "both" / "a", val_path=tmp_path / "both" / "b", in_memory=False)
    assert moved.test.digest() == digest


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            ["cat", "emu"],
            r"^val_path=.*b: b/ has other classes than a/ \(emu\); try another val_path",
        ),
        ([""], "b/ has no class folders, but a/ has 2"),
        ([], "b/ holds 0 images, but at least 2 are needed; try another val_path, or none, which"),
    ],
)
def test_classes_of_a_validation_folder_must_agree(classes, message, tmp_path):
    write_noise(tmp_path / "a", 8, ["cat", "dog"])
    (tmp_path / "b").mkdir()
    if classes:
        write_noise(tmp_path / "b", 4, classes)
    with raises(match=message):
        image_folder(tmp_path / "a", val_path=tmp_path / "b")


def test_validation_folder_beside_other_splits_raises(tmp_path):
    for part in ("train", "test"):
        write_noise(tmp_path / "a" / part, 8, ["cat", "dog"])
    write_noise(tmp_path / "b", 8, ["cat", "dog"])
    with raises(match=r"has its own test folder; try data\.path=.*/a/train$"):
        image_folder(tmp_path / "a", val_path=tmp_path / "b")
    with raises(match=r"^val_path=.* is inside path="):
        image_folder(tmp_path / "a", splits=False, val_path=tmp_path / "a" / "test")
    data = image_folder(tmp_path / "a" / "train", val_path=tmp_path / "a" / "test")
    assert (data.train.size, data.test.size) == (8, 8)
    arguments = ([4, 6], None, True, "white", None, True)
    prepare.prepare(tmp_path / "a/train", tmp_path / "store", *arguments, tmp_path / "a/test")
    assert image_store(tmp_path / "store").test.size == 8


def test_max_images_are_evenly_spaced(tmp_path, caplog):
    pixels = write_noise(tmp_path / "a", 12)
    data = image_folder(tmp_path / "a", max_images=4)
    assert image_bytes(data) == sorted([*map(np.ndarray.tobytes, pixels.values())][::3])
    assert "max_images=4: 4 of 12 images, evenly spaced" in caplog.text
    prepare.prepare(tmp_path / "a", tmp_path / "store")
    assert same_batches(data, image_store(tmp_path / "store", max_images=4), 1)
    with raises(match="max_images must be at least 4"):
        image_folder(tmp_path / "a", max_images=3)


def test_skipped_share_is_of_the_used_images(tmp_path):
    write_noise(tmp_path, 200)
    for i in range(0, 200, 50):
        (tmp_path / f"{i:03}.png").write_text("hello")
    with raises(match=r"at most 1% of 8 images, and 4 are bad"):
        image_folder(tmp_path, 8, 3, on_error="skip", max_images=8)


def test_arrays_beside_folders_are_named(tmp_path, run_script):
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8), np.uint8))
    with raises(match=r"for an array, try data=array data\.path=.*a\.npy$"):
        image_folder(str(tmp_path / "a.npy"))
    status, _, error = run_script(tmp_path / "a.npy", tmp_path / "store")
    assert (
        status == 2 and "needs no preparation; try it as it is: python train.py data=array" in error
    )
