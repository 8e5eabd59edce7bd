"""Decoding of image files, with errors that name the file."""

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ddpm_lab.utils.errors import UserError

UNDECODED = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
"""Formats that Pillow registers but does not decode itself: it starts a program or has a stub"""
UNREADABLE = "cannot be read as an image"
KEYS = ("resolution", "channels", "background", "bits", "on_error")
"""First words of errors about an argument, not an image"""
MAX_PIXELS = 2**26
"""Maximum number of pixels of an image, 8192 x 8192"""
HIGH_BIT_MODES = {"I", "I;16", "I;16B", "I;16L", "I;16N"}

# `MAX_PIXELS` is the lower bound.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@cache
def _formats() -> tuple[list[str], list[str]]:
    """Return the formats that Pillow decodes: with a signature, and without.

    The latter also accept files of other formats.
    """
    Image.init()
    decoded = [name for name in Image.OPEN if name not in UNDECODED]
    signed = [name for name in decoded if Image.OPEN[name][1] is not None]
    return signed, [name for name in decoded if name not in signed]


def is_image(file: Path) -> bool:
    """Return whether a regular file has the suffix or the signature of an image format.

    A TIFF with another suffix is excluded: camera raw files are TIFFs that begin with a thumbnail.
    """
    signed, unsigned = _formats()
    if Image.registered_extensions().get(file.suffix.lower()) in [*signed, *unsigned, "MPO"]:
        return True
    candidates = [name for name in signed if name != "TIFF" or not file.suffix]
    try:
        with file.open("rb") as stream, Image.open(stream, formats=candidates):
            return True
    except Exception:  # Pillow raises many types for other content
        return False


@contextmanager
def open_stream(file: Path) -> Iterator[BinaryIO]:
    """Open `file`. Raises ValueError that names it unless it is regular and not empty."""
    with _unreadable(file):
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
            raise ValueError("it is not a regular file")
        if not status.st_size:
            raise ValueError("it is empty")
        stream = file.open("rb")
    with stream:
        yield stream


def open_image(file: Path) -> Image.Image:
    """Decode `file` (see `decode_image`). Raises ValueError if it is not a regular file."""
    with open_stream(file) as stream:
        return decode_image(stream, str(file))


def decode_image(stream: BinaryIO, name: str) -> Image.Image:
    """Return the image in `stream`, rotated by its EXIF tag; of an animation the first frame.

    Raises ValueError that begins with `name` unless the image is complete and has at most
    `MAX_PIXELS`.
    """
    with _unreadable(name):
        image = _open(stream)
        if image.mode == "RGB" and _has_deep_color(image) and "transparency" in image.info:
            # Pillow compares only 8 bits.
            raise ValueError("it has a transparent color of 16 bits; save it with 8")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _open(stream: BinaryIO) -> Image.Image:
    try:
        signed, unsigned = _formats()
        image = Image.open(stream, formats=[*signed, *unsigned])
    except UnidentifiedImageError:
        stream.seek(0)
        if stream.read(40).startswith(b"version https://git-lfs"):
            fetch = "it is a Git LFS pointer; fetch the images with: git lfs pull"
            raise ValueError(fetch) from None
        raise ValueError("it is not in an image format that Pillow decodes") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} exceeds {MAX_PIXELS} pixels")
    return image


@contextmanager
def prefix_errors(prefix: str, advice: str = "") -> Iterator[None]:
    """Prefix errors that name an image; append `advice` if the image cannot be read."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        message = str(error) + advice * (UNREADABLE in str(error))
        raise ValueError(message if message.startswith(KEYS) else prefix + message) from error


@contextmanager
def _unreadable(name: Path | str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Pillow raises many types for broken images
        raise ValueError(f"{name} {UNREADABLE} ({' '.join(str(error).split())})") from error


def _has_deep_color(image: Image.Image) -> bool:
    """Return whether an unloaded color image has 16 bits per channel; Pillow keeps the high 8."""
    return ";16" in str(getattr(image, "tile", ""))


class ImageInfo(NamedTuple):
    """Properties of an image that determine the transform of its data set."""

    name: str
    size: tuple[int, int]
    """Width and height, after rotation by EXIF"""
    grey: bool
    deep: int | None
    """Largest value of an image with more than 8 bits per channel"""


def inspect_image(stream: BinaryIO, name: str) -> ImageInfo:
    """Read the header of an image, and its pixels if it has more than 8 bits per channel.

    Raises ValueError that begins with `name`.
    """
    with _unreadable(name):
        image = _open(stream)
        size, deep_color = image.size, _has_deep_color(image)
        # PNG: searching for an EXIF tag behind the pixels would decode them.
        search = image.format != "PNG" or "exif" in image.info
        if search and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
            size = size[::-1]
        grey = image.mode in HIGH_BIT_MODES | {"1", "L", "LA"} or has_grey_palette(image)
        deep = None
        if image.mode in HIGH_BIT_MODES:
            values = np.asarray(image)
            deep = int(values.max()) if values.min() >= 0 else None
        elif deep_color:
            image.load()
            deep = 257 * int(np.asarray(image.convert("RGB")).max())
    return ImageInfo(name, size, grey, deep)


def has_grey_palette(image: Image.Image) -> bool:
    palette = image.getpalette() if image.mode == "P" else None
    return palette is not None and palette[::3] == palette[1::3] == palette[2::3]
