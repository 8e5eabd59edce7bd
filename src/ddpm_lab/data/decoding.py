"""From a file to pixels: the right ones, or a refusal that names the file."""

import stat
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What is read, whatever a file's name says. PIL knows more, and starts programs for some."""
PIXELS = 2**26
"""A picture may have so many, 8192 x 8192"""
MODES = {1: "L", 3: "RGB"}
DEEP = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
KNOWN = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"} | DEEP
SAME = {("L", "L"), ("1", "L"), ("RGB", "RGB"), ("P", "RGB")}
"""Of which mode a picture may be to have the same pixels in another"""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # ours is the lower bound


def opened(file: Path) -> Image.Image:
    """The picture in `file`, as `decoded`. Raises ValueError also where it is no regular file."""
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):  # a FIFO would be waited for
            raise ValueError("it is no regular file")
        if not about.st_size:
            raise ValueError("it is empty")
        stream = file.open("rb")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a picture ({error})") from error
    with stream:
        return decoded(stream, str(file))


def decoded(stream: BinaryIO, name: str) -> Image.Image:
    """The picture in `stream`, turned as its EXIF tag says; of an animation the first frame. Raises ValueError that
    begins with `name` unless it is whole and has at most `PIXELS`.
    """
    try:
        try:
            picture = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
        if picture.width * picture.height > PIXELS:
            raise ValueError(f"{picture.width}x{picture.height} are over {PIXELS} pixels")
        if picture.mode == "RGB" and ";16" in str(picture.tile) and "transparency" in picture.info:
            raise ValueError("it has a transparent colour of 16 bits; save it with 8")  # PIL compares 8 of them
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
    except Exception as error:  # a broken picture makes PIL raise nearly anything
        raise ValueError(f"{name} cannot be read as a picture ({' '.join(str(error).split())})") from error
    return picture


@dataclass(frozen=True)
class Fit:
    """Makes pictures (`channels`, `side`, `side`) uint8, grey (1) or RGB (3).

    A picture of another size or mode is refused unless `convert`, which lays transparency over `background`, makes it
    grey or RGB as PIL does (without colour profiles), scales its shorter side (Lanczos) and cuts its centre. Taken
    anyway is what keeps its pixels: a palette for RGB, one bit for grey. Grey of 16 bits is divided by 257 and rounded;
    of colour of 16 bits PIL reads the high bytes, which are at most one less. Mode I is read as 16 bits.

    Raises ValueError where a value does not fit.
    """

    side: int
    channels: int
    convert: bool = False
    background: str = "white"
    """What PIL takes for a colour: a name, or #rrggbb"""

    def __post_init__(self) -> None:
        if self.channels not in MODES:
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB) (got {self.channels})")
        if not 1 <= self.side <= PIXELS**0.5:
            raise ValueError(f"resolution must lie in 1..{PIXELS**0.5:.0f} (got {self.side}); try 64")
        with suppress(ValueError):
            if len(ImageColor.getrgb(self.background)) == 3:
                return
        raise ValueError(f"background={self.background} is no opaque colour; try a name such as white, or '#808080'")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.channels, self.side, self.side

    def __call__(self, picture: Image.Image, name: str) -> Tensor:
        """(C, H, W) uint8. Raises ValueError that begins with `name`."""
        size, mode, clear = (self.side, self.side), MODES[self.channels], picture.has_transparency_data
        if picture.mode not in KNOWN or (clear and picture.mode in DEEP):
            raise ValueError(f"{name} has pixels of mode {picture.mode}{', some transparent' * clear}, which can be "
                             f"read in more than one way; save it with 8 bits per channel")  # fmt: skip
        if not self.convert and (picture.size != size or (picture.mode, mode) not in SAME or clear):
            raise ValueError(f"{name} is {picture.width}x{picture.height} {picture.mode}{' and transparent' * clear}, "
                             f"and {self.side}x{self.side} {mode} is wanted; try data.convert=true, or another "
                             "data.resolution or data.channels")  # fmt: skip
        if picture.mode in DEEP:
            picture = _shallow(picture, name)
        elif clear:
            ground = Image.new("RGBA", picture.size, self.background)
            picture = Image.alpha_composite(ground, picture.convert("RGBA"))
        picture = picture.convert(mode)
        if picture.size != size:
            picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
        return pil_to_tensor(picture).to(torch.uint8)


def _shallow(picture: Image.Image, name: str) -> Image.Image:
    """16 bits as 8: PIL itself would cut at 255."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{name} has values from {values.min()} to {values.max()}, and 0 to 65535 is 16 bits; save it "
                         "with 8 bits per channel")  # fmt: skip
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
