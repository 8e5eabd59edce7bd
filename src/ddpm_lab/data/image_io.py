"""From a file to the image in it, or a refusal that names the file."""

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

UNDECODED = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
"""Formats that Pillow registers but does not decode itself: it starts another program, or has only a stub."""
UNREADABLE = "cannot be read as an image"
MAX_PIXELS = 2**26
"""Largest number of pixels of an image, 8192 x 8192"""
HIGH_BIT_MODES = {"I", "I;16", "I;16B", "I;16L", "I;16N"}

warnings.filterwarnings(
    "ignore", category=Image.DecompressionBombWarning
)  # `PIXELS` is the lower bound


@cache
def formats() -> tuple[str, ...]:
    """Formats that Pillow decodes. Those with a signature come first: the others accept more than their own files."""
    Image.init()
    return tuple(
        sorted(
            (name for name in Image.OPEN if name not in UNDECODED),
            key=lambda name: not _signed(name),
        )
    )


@cache
def suffixes() -> frozenset[str]:
    """File suffixes of `formats`, in lower case."""
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in (*formats(), "MPO")
    )


def _signed(name: str) -> bool:
    return Image.OPEN[name][1] is not None


def is_image(file: Path) -> bool:
    """Return whether a regular file is meant as an image: by its suffix or, if the suffix is not one of an image
    format, by the signature of its content.

    A TIFF needs its suffix: camera raw files are TIFFs whose first image is a thumbnail.
    """
    if file.suffix.lower() in suffixes():
        return True
    signed = tuple(
        name for name in formats() if _signed(name) and (name != "TIFF" or not file.suffix)
    )
    try:
        with file.open("rb") as stream, Image.open(stream, formats=signed):
            return True
    except Exception:  # Pillow raises nearly anything for content that is not an image
        return False


@contextmanager
def open_stream(file: Path) -> Iterator[BinaryIO]:
    """Open `file`. Raises ValueError that names it unless it is a regular file with content."""
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):  # opening a FIFO would wait for a writer
            raise ValueError("it is not a regular file")
        if not about.st_size:
            raise ValueError("it is empty")
        stream = file.open("rb")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} {UNREADABLE} ({error})") from error
    with stream:
        yield stream


def open_image(file: Path) -> Image.Image:
    """Return the image in `file`, as `decoded`. Raises ValueError also if it is not a regular file."""
    with open_stream(file) as stream:
        return decode_image(stream, str(file))


def decode_image(stream: BinaryIO, name: str) -> Image.Image:
    """Return the image in `stream`, rotated as its EXIF tag says; of an animation the first frame. Raises ValueError
    that begins with `name` unless the image is whole and has at most `PIXELS`.
    """
    with _naming(name):
        image = _identified(stream)
        if image.mode == "RGB" and _deep_colour(image) and "transparency" in image.info:
            raise ValueError(
                "it has a transparent color of 16 bits; save it with 8"
            )  # Pillow compares 8 of them
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _identified(stream: BinaryIO) -> Image.Image:
    try:
        image = Image.open(stream, formats=formats())
    except UnidentifiedImageError:
        stream.seek(0)
        if stream.read(40).startswith(b"version https://git-lfs"):
            raise ValueError(
                "it is a Git LFS pointer; fetch the images with: git lfs pull"
            ) from None
        raise ValueError("it is not in an image format that Pillow decodes") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} are over {MAX_PIXELS} pixels")
    return image


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a broken image makes Pillow raise nearly anything
        raise ValueError(f"{name} {UNREADABLE} ({' '.join(str(error).split())})") from error


def _deep_colour(image: Image.Image) -> bool:
    """Return whether a color image that is not loaded yet is stored with 16 bits; Pillow keeps the high 8."""
    return ";16" in str(getattr(image, "tile", ""))


class ImageInfo(NamedTuple):
    """Properties of an image that decide how a set is read."""

    name: str
    size: tuple[int, int]
    """Width and height, after rotation by EXIF"""
    grey: bool
    deep: int | None
    """Largest value of an image with more than 8 bits per channel"""


def inspect_image(stream: BinaryIO, name: str) -> ImageInfo:
    """Read the header of the image in `stream`, and its pixels only if it has more than 8 bits per channel. Raises
    ValueError that begins with `name`.
    """
    with _naming(name):
        image = _identified(stream)
        size, of_16 = image.size, _deep_colour(image)
        loads = (
            image.format == "PNG" and "exif" not in image.info
        )  # to find the tag behind the pixels
        if not loads and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
            size = size[::-1]
        grey = image.mode in HIGH_BIT_MODES | {"1", "L", "LA"} or has_grey_palette(image)
        deep = None
        if image.mode in HIGH_BIT_MODES:
            values = np.asarray(image)
            deep = int(values.max()) if values.min() >= 0 else None
        elif of_16:
            image.load()
            deep = 257 * int(np.asarray(image.convert("RGB")).max())
    return ImageInfo(name, size, grey, deep)


def has_grey_palette(image: Image.Image) -> bool:
    colours = image.getpalette() if image.mode == "P" else None
    return colours is not None and colours[::3] == colours[1::3] == colours[2::3]
