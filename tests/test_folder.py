"""Pictures on disk: every kind of file gives the right pixels or is refused by name, and so is every store."""

import importlib.util
import io
import json
import logging
import os
import pickle
import signal
import struct
import sys
import tarfile
import zipfile
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor

from ddpm_lab.data import store as stores
from ddpm_lab.data.decoding import Fit, opened
from ddpm_lab.data.folder import Files, folder
from ddpm_lab.data.module import Batches
from ddpm_lab.data.splits import Images, Streamed
from ddpm_lab.data.store import Shards, store


def png(width, height, depth, colour, pixels=b"", *chunks):
    """A PNG as the standard has it, for what PIL cannot write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def write(path, size=(8, 8), mode="RGB", colour=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour or ((10, 20, 30) if mode == "RGB" else 0)).save(path)


def noise(root, count=12, classes=("",), size=8):
    """Pictures of noise in class folders, and their pixels by name."""
    made = {}
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)):
        file = root / classes[i % len(classes)] / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        made[str(file.relative_to(root))] = pixels.transpose(2, 0, 1)
    return made


def same(one, other, count=8):
    """Whether two data sets give the same batches, and hold out the same."""
    for first, second in islice(zip(*(Batches(data.train, 2, True, 0) for data in (one, other)), strict=True), count):
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    held = [data.test.at(torch.arange(data.test.size)) for data in (one, other)]
    return torch.equal(held[0].pixels, held[1].pixels)


def palette(*colours, **info):
    picture = Image.new("P", (len(colours), 1))
    picture.putpalette([value for colour in colours for value in colour])
    picture.putdata(range(len(colours)))
    picture.info.update(info)
    return picture


def deep(values, kind=np.uint16):
    return Image.fromarray(np.array([values], kind))


RED, BLUE = (255, 0, 0), (0, 0, 255)
KINDS = {  # pictures of one row, with the channels that are wanted, and what they become
    "grey": (Image.new("L", (1, 1), 77), 1, [77]),
    "grey as RGB": (Image.new("L", (1, 1), 77), 3, [(77, 77, 77)]),
    "RGB as grey": (Image.new("RGB", (1, 1), RED), 1, [76]),
    "one bit": (Image.new("1", (1, 1), 1), 1, [255]),
    "palette": (palette(RED, BLUE), 3, [RED, BLUE]),
    "palette, one colour clear": (palette(RED, BLUE, transparency=0), 3, [(255, 255, 255), BLUE]),
    "palette, half clear": (palette(RED, BLUE, transparency=b"\x80\xff"), 3, [(255, 127, 127), BLUE]),
    "RGBA": (Image.new("RGBA", (1, 1), (255, 0, 0, 128)), 3, [(255, 127, 127)]),
    "RGBA as grey": (Image.new("RGBA", (1, 1), (0, 0, 0, 0)), 1, [255]),
    "grey with alpha": (Image.new("LA", (1, 1), (0, 128)), 1, [127]),
    "grey with a clear level": (png(2, 1, 8, 0, b"\7\x08", (b"tRNS", b"\0\7")), 1, [255, 8]),
    "RGB with a clear colour": (png(2, 1, 8, 2, b"\1\2\3\1\2\4", (b"tRNS", b"\0\1\0\2\0\3")), 3,
                                [(255, 255, 255), (1, 2, 4)]),
    "CMYK": (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), 3, [RED]),
    "16 bits, PNG": (deep([0, 257, 128, 129, 257 * 77, 65535]), 1, [0, 1, 0, 1, 77, 255]),
    "16 bits of a standard PNG": (png(3, 1, 16, 0, struct.pack(">3H", 300, 40000, 65535)), 1, [1, 156, 255]),
    "16 bits as RGB": (deep([257 * 9]), 3, [(9, 9, 9)]),
    "16 bits of an int": (deep([0, 65535], np.int32), 1, [0, 255]),
    "16 bits of colour": (png(1, 1, 16, 2, struct.pack(">3H", 65535, 257 * 7, 0)), 3, [(255, 7, 0)]),
    "RGBA of 16 bits": (png(1, 1, 16, 6, struct.pack(">4H", 65535, 0, 0, 0)), 3, [(255, 255, 255)]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_gives_its_pixels(kind, tmp_path):
    picture, channels, pixels = KINDS[kind]
    file = tmp_path / f"a.{'tif' if 'CMYK' in kind or 'int' in kind else 'png'}"
    if isinstance(picture, bytes):
        file.write_bytes(picture)
    else:
        picture.save(file)
    for x, pixel in enumerate(pixels):
        made = Fit(1, channels, convert=True)(opened(file).crop((x, 0, x + 1, 1)), "a")
        assert (made.shape, made.dtype) == ((channels, 1, 1), torch.uint8)
        assert made.flatten().tolist() == list(np.atleast_1d(pixel)), f"pixel {x}"


@pytest.mark.parametrize(("background", "seen"), [("white", (255, 127, 127)), ("black", (128, 0, 0)),
                                                  ("#0000ff", (128, 0, 127))])  # fmt: skip
def test_half_of_the_background_shows_through_half_transparency(background, seen):
    made = Fit(4, 3, True, background)(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "a")
    assert made.flatten(1).unique(dim=1).T.tolist() == [list(seen)]


@pytest.mark.parametrize(("tag", "corner"), [(1, (0, 0)), (2, (0, 3)), (3, (1, 3)), (4, (1, 0)), (5, (0, 0)),
                                             (6, (0, 1)), (7, (3, 1)), (8, (3, 0))])  # fmt: skip
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_a_picture_is_turned_as_its_exif_tag_says(tag, corner, suffix, tmp_path):
    stored = Image.new("RGB", (32, 16))
    stored.paste((255, 255, 255), (0, 0, 8, 8))
    exif = stored.getexif()
    exif[0x0112] = tag
    stored.save(tmp_path / f"a.{suffix}", exif=exif)
    found = np.asarray(opened(tmp_path / f"a.{suffix}").convert("L"))
    row, column = corner
    assert found.shape == ((16, 32) if tag < 5 else (32, 16))
    assert found[row * 8 + 4, column * 8 + 4] > 200 and (found > 128).mean() == pytest.approx(1 / 8, abs=0.02)


def test_what_differs_in_size_is_scaled_and_its_centre_is_cut():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    wanted = pil_to_tensor(ImageOps.fit(Image.fromarray(pixels), (8, 8), Image.Resampling.LANCZOS))
    assert torch.equal(Fit(8, 3, convert=True)(Image.fromarray(pixels), "a"), wanted)
    bars = Image.new("RGB", (24, 8), BLUE)
    bars.paste(RED, (8, 0, 16, 8))
    assert torch.equal(Fit(8, 3, convert=True)(bars, "a"), pil_to_tensor(Image.new("RGB", (8, 8), RED)))


@pytest.mark.parametrize(
    ("picture", "channels", "convert", "told"),
    [
        (Image.new("RGB", (9, 8)), 3, False, "^a is 9x8 RGB, and 8x8 RGB is wanted; try data.convert=true"),
        (Image.new("L", (8, 8)), 3, False, "^a is 8x8 L, and 8x8 RGB"),
        (Image.new("RGBA", (8, 8)), 3, False, "^a is 8x8 RGBA and transparent"),
        (deep([0] * 8).resize((8, 8)), 1, False, "^a is 8x8 I;16, and 8x8 L"),
        (deep([-1, 0], np.int32), 1, True, "^a has values from -1 to 0"),
        (deep([0, 65536], np.int32), 1, True, "^a has values from 0 to 65536"),
        (deep([0.5], np.float32), 1, True, "^a has pixels of mode F"),
        (Image.new("La", (8, 8)), 1, True, "^a has pixels of mode La"),
    ],
)
def test_what_is_not_as_wanted_or_not_clear_is_refused(picture, channels, convert, told):
    with pytest.raises(ValueError, match=told):
        Fit(8, channels, convert)(picture, "a")


@pytest.mark.parametrize(
    ("settings", "told"),
    [((8, 2), "^channels must be 1"), ((0, 3), "^resolution must lie in 1..8192"), ((8193, 3), "^resolution"),
     ((8, 3, True, "whitish"), "^background=whitish"), ((8, 3, True, "#ffffff80"), "^background=#ffffff80")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        Fit(*settings)


def broken():
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    jpeg = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(jpeg, "JPEG")
    return {
        "zero.png": b"",
        "text.png": b"hello",
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
        "cut.png": whole.getvalue()[:2000],
        "cut.jpg": jpeg.getvalue()[:1000],
        "header.png": whole.getvalue()[:20],
        "wrong.png": whole.getvalue()[:1000] + bytes(500) + whole.getvalue()[1500:],
        "bomb.png": png(50000, 50000, 8, 2),
        "warned.png": png(10000, 9000, 8, 2),
        "over.png": png(8193, 8192, 8, 2),
        "clear16.png": png(1, 1, 16, 2, bytes(6), (b"tRNS", bytes(6))),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", broken())
def test_a_file_that_holds_no_whole_picture_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(broken()[name])
    with pytest.raises(ValueError, match=rf"^{tmp_path / name} cannot be read as a picture \(.+\)$") as refusal:
        opened(tmp_path / name)
    assert "\n" not in str(refusal.value)


@pytest.fixture
def hurry():
    """A hang is a failure."""

    def late(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("hurry")
def test_what_is_no_regular_file_is_never_opened(tmp_path):
    noise(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png cannot be read .*no regular file"):
        opened(tmp_path / "pipe.png")
    for on_bad in ("error", "skip"):
        with pytest.raises(ValueError, match=r"pipe\.png, which is no regular file"):
            folder(str(tmp_path), on_bad=on_bad)


@pytest.mark.parametrize("linked", ["cat/out.png", "dog"])
def test_a_link_stays_in_the_folder(linked, tmp_path):
    noise(tmp_path / "here", classes=["cat", "emu"])
    noise(tmp_path / "there")
    (tmp_path / "here" / "cat" / "in.png").symlink_to("../emu/001.png")
    assert folder(str(tmp_path / "here"), batch_size=1).train.size == 11
    (tmp_path / "here" / linked).symlink_to(tmp_path / "there" / ("000.png" if "." in linked else ""))
    with pytest.raises(ValueError, match=rf"a link that leads out of it: .*{linked}"):
        folder(str(tmp_path / "here"))


def test_a_folder_is_read_to_the_pixel(tmp_path):
    pixels = noise(tmp_path, 6)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._000.png").write_text("a Mac's")
    data = folder(str(tmp_path), batch_size=2, held_out=0.4)
    found = torch.cat([data.train.pixels, data.test.pixels]).numpy()
    assert data.classes is None and len(data.test.pixels) == 2
    assert sorted(p.tobytes() for p in found) == sorted(p.tobytes() for p in pixels.values())


def test_sub_folders_are_classes(tmp_path):
    for i, name in enumerate(["cat", "dog", "emu"]):
        for j in range(4):
            write(tmp_path / name / f"{j}.png", mode="L", colour=50 * i)
    (tmp_path / ".hidden").mkdir()
    data = folder(str(tmp_path), channels=1, batch_size=2)
    assert data.classes == 3 and data.captions == [["cat"], ["dog"], ["emu"]]
    assert torch.equal(data.train.pixels[:, 0, 0, 0].long(), 50 * data.train.labels)


def test_convert_fits_what_differs(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png", size=(30, 16), mode="L", colour=77)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "c.png")
    deep([257 * 9] * 8).resize((8, 8)).save(tmp_path / "d.png")
    data = folder(str(tmp_path), convert=True, background="blue", batch_size=1)
    pixels = torch.cat([data.train.pixels, data.test.pixels])
    assert {tuple(p[:, 4, 4].tolist()) for p in pixels} == {(10, 20, 30), (77, 77, 77), BLUE, (9, 9, 9)}


FOUR: dict = {f"{name}.png": {} for name in "abcd"}


@pytest.mark.parametrize(
    ("files", "kwargs", "told"),
    [
        ({}, {}, "holds 0 pictures"),
        (FOUR | {"b.png": {"size": (9, 8)}}, {}, r"b\.png is 9x8 RGB, and 8x8 RGB"),
        (FOUR | {"b.png": {"mode": "L"}}, {}, r"b\.png is 8x8 L, and 8x8 RGB"),
        (FOUR, {"batch_size": 9}, r"batch_size must lie in 1\.\.2"),
        (FOUR, {"channels": 2}, "channels"),
        (FOUR, {"resolution": 40000}, "resolution must lie in"),
        (FOUR, {"resolution": 16, "resident": False}, r"\.png is 8x8 RGB, and 16x16 RGB"),
        (FOUR, {"resolution": 0}, "resolution"),
        (FOUR, {"background": "whitish"}, "background=whitish"),
        (FOUR, {"held_out": 1.0}, "held_out"),
        (FOUR, {"on_bad": "skip", "resident": False}, "on_bad=skip is for .*prepare_data"),
        (FOUR | {"e.png": {"mode": "I;16"}}, {"channels": 3}, r"e\.png is 8x8 I;16"),
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
    with pytest.raises(ValueError, match=r"^path: .*b\.png cannot be read"):
        folder(str(tmp_path))
    (tmp_path / "classes" / "none").mkdir(parents=True)
    for name in FOUR:
        write(tmp_path / "classes" / "some" / name)
    with pytest.raises(ValueError, match=r"without pictures.*: none"):
        folder(str(tmp_path / "classes"))
    with pytest.raises(ValueError, match="nowhere"):
        folder("nowhere")


def test_bad_files_are_left_out_up_to_a_bound_and_told_in_one_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    pixels = noise(tmp_path, 200, classes=["cat", "dog"])
    for name in ("000", "100"):
        (tmp_path / "cat" / f"{name}.png").write_text("hello")
    data = folder(str(tmp_path), on_bad="skip", batch_size=2)
    whole = [data.train.at(slice(None)), data.test.at(slice(None))]
    for images in whole:
        assert all(np.array_equal(pixels[name], picture) for name, picture in named(pixels, images))
    assert sum(len(images.pixels) for images in whole) == 198
    (line,) = caplog.messages
    assert line.startswith(f"left out 2 of 200 pictures; the first: {tmp_path}/cat/000.png cannot be read")
    (tmp_path / "dog" / "001.png").write_text("hello")
    with pytest.raises(ValueError, match=r"at most 1% of 200 pictures, and 3 are bad; the first: .*000\.png") as told:
        folder(str(tmp_path), on_bad="skip")
    assert "\n" not in str(told.value)


def named(pixels, images):
    """Each picture with the name of the one that it is, of the class that its label says."""
    names = {value.tobytes(): name for name, value in pixels.items()}
    for picture, label in zip(images.pixels.numpy(), images.labels.tolist(), strict=True):
        name = names[picture.tobytes()]
        assert name.split("/")[0] == ["cat", "dog"][label]
        yield name, picture


def test_a_streamed_folder_is_the_same_as_one_in_memory(tmp_path):
    noise(tmp_path, classes=["cat", "dog"])
    held, streamed = (folder(str(tmp_path), batch_size=2, resident=resident) for resident in (True, False))
    assert isinstance(held.train, Images) and isinstance(streamed.train, Streamed) and same(held, streamed)
    before = streamed.train.digest()
    assert before == folder(str(tmp_path), batch_size=2, resident=False).train.digest()
    os.utime(tmp_path / "cat" / "000.png", ns=(1, 1))
    assert before != streamed.train.digest()


# The store


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("prepare_data", Path(__file__).parents[1] / "scripts/prepare_data.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["prepare_data"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def typed_words(script, monkeypatch, capsys):
    """Calls the script: (exit status, standard output, standard error)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, words), "--workers=0"])
        status = 0
        try:
            script.main()
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def prepared(tmp_path, script, monkeypatch):
    """A store of twelve pictures of two classes in several shards, and its source."""
    monkeypatch.setattr(stores, "SHARD", 4 * 192)
    monkeypatch.setattr(script, "CHUNK", 2 * 192)
    noise(tmp_path / "source", classes=["cat", "dog"])
    script.prepare(tmp_path / "source", tmp_path / "store")
    return tmp_path / "store"


def test_a_store_is_the_folder_that_it_was_made_of(prepared, tmp_path):
    assert sorted(file.name for file in prepared.iterdir()) == [
        "index.json", "labels.npy", "pixels-00000.npy", "pixels-00001.npy", "pixels-00002.npy"]  # fmt: skip
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source", "store"]
    source = folder(str(tmp_path / "source"), batch_size=2)
    held, streamed = (store(str(prepared), batch_size=2, resident=resident) for resident in (True, False))
    assert isinstance(held.train, Images) and isinstance(streamed.train, Streamed)
    assert held.captions == source.captions and held.classes == 2 and held.name == "store"
    assert same(source, held) and same(source, streamed)
    sent = pickle.dumps(streamed.train.source)
    assert len(sent) < 1000 and torch.equal(pickle.loads(sent)[5], streamed.train.source[5])


def test_the_digest_of_a_store_is_that_of_its_content(script, tmp_path):
    noise(tmp_path / "a")
    noise(tmp_path / "b")
    write(tmp_path / "b" / "000.png", colour=(1, 2, 3))
    (tmp_path / "c").symlink_to(tmp_path / "a")
    for name in "abc":
        script.prepare(tmp_path / name, tmp_path / "stores" / name, workers=2)
    a, b, c = (Shards(tmp_path / "stores" / name).digest() for name in "abc")
    assert a == c != b
    assert store(str(tmp_path / "stores" / "a"), batch_size=2).classes is None


def flipped(file):
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)


def edited(**changes):
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("pixels-00001.npy", flipped, r"pixels-00001\.npy is damaged, its SHA-256"),
        ("labels.npy", flipped, r"labels\.npy is damaged, its SHA-256"),
        ("pixels-00001.npy", lambda file: os.truncate(file, 500), r"pixels-00001\.npy is damaged or missing"),
        ("pixels-00001.npy", lambda file: os.truncate(file, 5000), r"pixels-00001\.npy is damaged or missing"),
        ("pixels-00001.npy", lambda file: os.truncate(file, 0), r"pixels-00001\.npy is damaged or missing"),
        ("pixels-00001.npy", Path.unlink, r"pixels-00001\.npy is damaged or missing"),
        ("pixels-00001.npy", lambda file: np.save(file, np.zeros((4, 3, 8, 9), np.uint8)), r"\(4, 3, 8, 9\) uint8"),
        ("pixels-00001.npy", lambda file: np.save(file, np.array([{}]), allow_pickle=True), r"pixels-00001\.npy is"),
        ("labels.npy", lambda file: np.save(file, np.zeros(11, np.int64)), r"labels\.npy is damaged"),
        ("index.json", Path.unlink, r"index\.json is no index of a store"),
        ("index.json", lambda file: file.write_text("[1]"), r"index\.json is no index"),
        ("index.json", lambda file: file.write_text('{"name": "of something else"}'), r"index\.json is no index"),
        ("index.json", edited(classes=["dog", "cat"]), r"index\.json is no index .*was changed"),
        ("index.json", edited(format="ddpm-lab pictures 9"), r"index\.json is no index"),
    ],
)
def test_a_store_that_is_not_as_it_was_written_is_refused_by_name(prepared, name, damage, told, typed_words):
    assert typed_words(prepared, "--check")[:2] == (0, f"{prepared} is as it was written\n")
    damage(prepared / name)
    with pytest.raises(ValueError, match=f"^path: .*{told}"):
        store(str(prepared), batch_size=2)
    status, _, error = typed_words(prepared, "--check")
    assert status == 2 and error.startswith("error: path") and name in error


def test_a_store_may_have_a_test_set_of_its_own(script, tmp_path):
    noise(tmp_path / "source" / "train", 8, ["cat", "dog"])
    pixels = noise(tmp_path / "source" / "val", 6, ["cat", "dog"])
    script.prepare(tmp_path / "source", tmp_path / "store")
    data = store(str(tmp_path / "store"), batch_size=2)
    assert (data.train.size, data.test.size, data.classes) == (8, 6, 2)
    assert [name for name, _ in named(pixels, data.test)] == sorted(pixels)
    noise(tmp_path / "source" / "test", 6, ["cat", "dog"])
    with pytest.raises(ValueError, match="leave there train and one of test and val"):
        script.prepare(tmp_path / "source", tmp_path / "other")
    (tmp_path / "source" / "test").rename(tmp_path / "away")
    (tmp_path / "source" / "val" / "dog").rename(tmp_path / "source" / "val" / "emu")
    with pytest.raises(ValueError, match="has other classes in train/"):
        script.prepare(tmp_path / "source", tmp_path / "other")


def packed(kind, source, archive, extra=()):
    """An archive of `source` and of `extra` (name, content), or (name, None) for a link to /etc/passwd."""
    files = [(f"top/{file.relative_to(source)}", file.read_bytes()) for file in sorted(source.rglob("*.png"))]
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
            for name, content in [*files, *extra]:
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = (0o120777 if content is None else 0o644) << 16
                made.writestr(info, content or b"/etc/passwd")
        return
    with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as made:
        for name, content in [*files, *extra]:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            info.size = len(content or b"")
            made.addfile(info, io.BytesIO(content or b""))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_is_as_good_as_its_folder(kind, script, tmp_path, monkeypatch):
    noise(tmp_path / "source", classes=["cat", "dog"])
    archive = tmp_path / f"source.{kind}"
    packed(kind, tmp_path / "source", archive, [("__MACOSX/top/cat/._000.png", b"a Mac's"), ("top/readme.txt", b"hi")])
    script.prepare(archive, tmp_path / "a")
    script.prepare(tmp_path / "source", tmp_path / "b")
    assert Shards(tmp_path / "a").digest() == Shards(tmp_path / "b").digest()
    monkeypatch.setattr(script, "UNPACKED", (0.1, 1000))
    with pytest.raises(ValueError, match=rf"source\.{kind} cannot be unpacked .*times its size"):
        script.prepare(archive, tmp_path / "c")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b", "source", f"source.{kind}"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize(("name", "content"), [("../evil.png", b"x"), ("top/cat/../../../evil.png", b"x"),
                                               ("top/cat/evil.png", None)])  # fmt: skip
def test_an_archive_cannot_leave_its_folder(kind, name, content, script, tmp_path):
    noise(tmp_path / "in" / "source")
    archive = tmp_path / "in" / "a.archive"
    packed(kind, tmp_path / "in" / "source", archive, [(name, content)])
    with pytest.raises(ValueError, match=r"a\.archive cannot be unpacked .*evil\.png"):
        script.prepare(archive, tmp_path / "in" / "target")
    assert not [*tmp_path.rglob("evil.png")] and not (tmp_path / "in" / "target").exists()


def test_an_interrupted_preparation_leaves_nothing(script, tmp_path, monkeypatch):
    noise(tmp_path / "source")
    monkeypatch.setattr(script, "CHUNK", 192)
    monkeypatch.setattr(stores, "SHARD", 192)
    whole = Files.__getitem__

    def late(self, index):
        if index == 7:
            raise KeyboardInterrupt
        return whole(self, index)

    monkeypatch.setattr(Files, "__getitem__", late)
    with pytest.raises(KeyboardInterrupt):
        script.prepare(tmp_path / "source", tmp_path / "store")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_what_the_preparation_says(typed_words, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    noise(tmp_path / "source", 100, ["cat", "dog"])
    source, target = tmp_path / "source", tmp_path / "store"
    (source / "cat" / "000.png").write_text("hello")
    status, _, error = typed_words(source, target, "--resolution=8")
    assert status == 2 and "000.png cannot be read as a picture" in error and not target.exists()
    status, out, _ = typed_words(source, target, "--on-bad=skip")
    assert status == 0 and out.startswith("99 pictures of 3x8x8, 2 classes, 0.00 GiB, in ")
    assert f"next     python train.py data=store data.path={target} conditioner=label" in out
    (line,) = caplog.messages
    assert line.startswith("left out 1 of 100 pictures; the first: ")
    assert store(str(target), batch_size=2).train.size == 90
    status, _, error = typed_words(source, target)
    assert status == 2 and "a store is never overwritten" in error


def test_what_cannot_be_prepared_is_told_in_the_words_of_the_command(typed_words, tmp_path):
    noise(tmp_path / "source", 100)
    (tmp_path / "text.zip").write_text("hello")
    for name in ("007", "008"):
        write(tmp_path / "source" / f"{name}.png", size=(9, 8))
    for words, told in [
        (["source"], "007.png is 9x8 RGB, and 8x8 RGB is wanted; try --convert, or another --resolution or --channels"),
        (["source", "--on-bad=skip"], "at most 1% of 100 pictures, and 2 are bad; the first: "),
        (["source", "--background=whitish"], "error: background=whitish"),
        (["nowhere"], "nowhere is not there"),
        (["text.zip"], "text.zip cannot be unpacked as a .zip, .tar or .tar.gz"),
    ]:
        status, _, error = typed_words(tmp_path / words[0], tmp_path / "store", *words[1:])
        assert status == 2 and told in error and "Traceback" not in error
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source", "text.zip"]
