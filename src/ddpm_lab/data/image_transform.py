"""Conversion of images to pixels of one size and mode, with errors that name the image."""

import logging
import math
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from ddpm_lab.data.image_io import HIGH_BIT_MODES, ImageInfo, has_grey_palette
from ddpm_lab.utils.ranges import check_range, check_ranges

LOG = logging.getLogger(__name__)
LOCK = threading.Lock()
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
NAMES = {1: "gray", 2: "gray with alpha", 3: "RGB", 4: "RGB with alpha"}
SUPPORTED = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"} | HIGH_BIT_MODES
LOSSLESS = {
    "L": {"L", "1"},
    "LA": {"L", "1", "LA"},
    "RGB": {"RGB", "P", "L", "1", "RGBX"},
    "RGBA": {"RGB", "P", "L", "1", "RGBX", "LA", "RGBA"},
}
"""For each mode the modes that convert to it without loss"""
LARGE, SMALL = 256, 64
"""Side of images above which smaller ones are suggested, and the suggestion"""
OnError = Literal["error", "skip"]
Side = Annotated[int, Ge(1), Le(8192)]
"""Height or width of an image"""
Resolution = Side | list[int]
"""Side of square images, or [height, width]"""
Bits = Annotated[int, Ge(8), Le(16)]
"""Number of bits used by gray images"""


def image_size(resolution: Resolution) -> tuple[int, int]:
    """Return the height and width. Raises ValueError unless there are two, both in range."""
    sides = [resolution] * 2 if isinstance(resolution, int) else resolution
    if len(sides) != 2:
        raise ValueError(f"resolution must be N or [HEIGHT,WIDTH] (got {sides}); try [48,64]")
    for side in sides:
        check_range("resolution", side, Side)
    return sides[0], sides[1]


def to_resolution(height: int, width: int) -> Resolution:
    """Return the value of `resolution` for a size."""
    return height if height == width else [height, width]


@check_ranges
@dataclass(frozen=True)
class ImageTransform:
    """Converts images to (`channels`, height, width) uint8.

    There are 1 (gray) or 3 (RGB) channels, or 2 or 4 of them with alpha.

    An image that would lose information raises ValueError unless `convert`. With `convert`:
    - Transparency is composited over `background`, unless alpha is a channel.
    - The image is made gray or RGB as in Pillow, without color profiles.
    - The image is scaled (Lanczos) until it covers `resolution`, and the center is cropped.

    Lossless conversions are always made: of a palette or gray to RGB, of one bit to gray, and the
    addition or removal of an opaque alpha channel. Gray with more than 8 bits, `bits` of them used,
    is scaled to 8 bits and rounded. Of 16-bit color, Pillow reads the high bytes, an error of at
    most one. Mode I is read as 16 bits.

    Raises ValueError for invalid values.
    """

    resolution: Resolution
    channels: int
    convert: bool = False
    background: str = "white"
    """Pillow's name of a color, or #rrggbb"""
    bits: Bits = 16
    changes: Counter[str] = field(default_factory=Counter, compare=False, repr=False)
    """Numbers of converted images by kind"""

    def __post_init__(self) -> None:
        image_size(self.resolution)
        if self.channels not in MODES:
            raise ValueError(
                "channels of image files must be 1 (gray) or 3 (RGB), or with alpha 2 or 4 (got "
                f"{self.channels}); for others, try data=array"
            )
        with suppress(ValueError):
            if len(ImageColor.getrgb(self.background)) == 3:
                return
        raise ValueError(
            f"background={self.background} is not an opaque color; try white or '#808080'"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.channels, *image_size(self.resolution)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the pixels."""
        keys = ("resolution", "channels", "convert", "background", "bits")
        return {key: getattr(self, key) for key in keys}

    def __call__(self, image: Image.Image, name: str) -> Tensor:
        """Return (C, H, W) uint8. Raises ValueError that begins with `name`."""
        _, height, width = self.shape
        size, mode, source_mode = (width, height), MODES[self.channels], image.mode
        image, transparent = _without_alpha(image)
        _check_mode(image, transparent, source_mode, name)
        if transparent and mode.endswith("A"):
            gray = image.mode in ("1", "L", "LA")
            image, transparent = image.convert("LA" if gray else "RGBA"), False
        lossless = image.mode in LOSSLESS[mode] or (image.mode == "P" and has_grey_palette(image))
        if not self.convert and (image.size != size or not lossless or transparent):
            raise ValueError(
                f"{name} is {image.width}x{image.height} {source_mode}"
                f"{' and transparent' * transparent}, expected {_format_size(size)} {mode}; "
                f"{self._advice(image, transparent)}"
            )
        changes = [f"from {source_mode} to {mode}"] if source_mode != mode else []
        if image.mode in HIGH_BIT_MODES:
            image = self._to_8_bits(image, name)
        elif transparent:
            changes.append(f"composited over {self.background}")
            ground = Image.new("RGBA", image.size, self.background)
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        image = image.convert(mode)
        if image.size != size:
            changes.append(f"scaled and cropped to {_format_size(size)}")
            image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        with LOCK:
            self.changes.update(changes)
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
        return pixels.view(height, width, self.channels).permute(2, 0, 1)

    def _advice(self, image: Image.Image, transparent: bool) -> str:
        overrides, (_, height, width) = [], self.shape
        if transparent or image.mode in HIGH_BIT_MODES | {"CMYK", "YCbCr"}:
            overrides.append("data.convert=true")
        if image.size != (width, height):
            overrides += ["data.convert=true", _override(height, width)]
        color = f"data.channels={self.channels + 2}"
        if self.channels < 3 and image.mode in ("RGB", "RGBA", "P", "PA", "YCbCr", "CMYK"):
            overrides.append(color)
        advice = f"try {' '.join(dict.fromkeys(overrides))}"
        if transparent:
            keep = 2 if self.channels == 1 and image.mode in ("1", "L", "LA") else 4
            return (
                f"{advice}, which composites it over data.background={self.background}, or "
                f"data.channels={keep}, which keeps alpha"
            )
        if overrides == [color]:
            return f"{advice}, or data.convert=true, which makes it gray"
        return advice

    def _to_8_bits(self, image: Image.Image, name: str) -> Image.Image:
        values, most = np.asarray(image).astype(np.int64), 2**self.bits - 1  # Pillow clips at 255
        if values.min() < 0 or values.max() > most:
            bits = int(values.max()).bit_length()
            fits = values.min() >= 0 and bits <= 16
            advice = f"try data.bits={bits}" if fits else "save it with 8 bits per channel"
            raise ValueError(
                f"{name} has values from {values.min()} to {values.max()}, expected 0 to {most} "
                f"({self.bits} bits); {advice}"
            )
        return Image.fromarray(((values * 255 + most // 2) // most).astype(np.uint8))


def _check_mode(image: Image.Image, transparent: bool, source_mode: str, name: str) -> None:
    """Raises ValueError if the pixels are ambiguous."""
    if image.mode in SUPPORTED and not (transparent and image.mode in HIGH_BIT_MODES):
        return
    extrema = image.getextrema() if source_mode == "F" else None
    extent = " with values from {:g} to {:g}".format(*extrema) if extrema else ""
    raise ValueError(
        f"{name} has pixels of mode {source_mode}{extent}{', some transparent' * transparent}, "
        "which are ambiguous; save it with 8 bits per channel"
    )


def _without_alpha(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return the image without an opaque alpha channel, and whether it is transparent."""
    if not image.has_transparency_data:
        return image, False
    if image.mode in HIGH_BIT_MODES:
        transparent = bool((np.asarray(image) == image.info["transparency"]).any())
    elif image.mode in SUPPORTED:
        transparent = int(np.asarray(image.convert("RGBA"))[..., 3].min()) < 255
    else:
        transparent = True
    if transparent or image.mode in HIGH_BIT_MODES:
        return image, transparent
    opaque = image.copy()
    opaque.info.pop("transparency", None)
    if image.mode in ("LA", "PA", "RGBA"):
        opaque = opaque.convert("L" if image.mode == "LA" else "RGB")
    return opaque, False


@check_ranges
def infer_transform(
    infos: Sequence[ImageInfo],
    resolution: Resolution | None,
    channels: int | None,
    convert: bool,
    bits: Bits | None,
    background: str = "white",
    on_error: OnError = "error",
) -> ImageTransform:
    """Return the transform of a data set; `infos` of its images determine None values.

    Raises ValueError that names the keys to set.
    """
    sizes = Counter(info.size for info in infos)
    values = {"resolution": resolution, "channels": channels}
    inferred = " and ".join(name for name, value in values.items() if value is None)
    if channels is None:
        channels = 1 if all(info.grey for info in infos) else 3
    overrides, problem, dark = [], "", ""
    if resolution is None:
        usual = sizes.most_common(1)[0][0]
        mixed = len(sizes) > 1
        resolution = min(map(min, sizes)) if convert and mixed else to_resolution(*usual[::-1])
        if not convert and mixed and on_error == "error":
            problem = _describe_sizes(infos, sizes, usual)
            power = int(math.log2(min(SMALL, *map(min, sizes))))  # networks can halve the side
            overrides.append(f"data.resolution={2**power}")
    # Errors in the values come first.
    transform = ImageTransform(resolution, channels, convert, background, bits or 16)
    largest = max((info.deep for info in infos if info.deep is not None), default=None)
    if largest is not None and bits is None and largest < 2**14:
        used = _used_bits(infos, largest)
        problem = (
            f"16-bit gray images have values up to {largest} of 65535, which are {used} bits and "
            "would be nearly black"
        )
        overrides.append(f"data.bits={used}")
        dark = ", or data.bits=16 if they are meant to be dark"
    if problem:
        overrides = overrides if convert else ["data.convert=true", *overrides]
        raise ValueError(f"{problem}; try {' '.join(overrides)}{dark}")
    height, width = image_size(resolution)
    message = f"images are read as {_format_size((width, height))} {NAMES[channels]}"
    if inferred:
        message += f" ({inferred} of {len(infos)} inspected images)"
    if largest is not None:
        message += f"; values up to {largest} of {2**transform.bits - 1} (bits={transform.bits})"
    if "resolution" in inferred and height * width > LARGE**2:
        message += f"; smaller ones train faster: data.convert=true data.resolution={SMALL}"
    if inferred or largest is not None:
        LOG.info(message)
    return transform


def _describe_sizes(
    infos: Iterable[ImageInfo], sizes: Counter[tuple[int, int]], usual: tuple[int, int]
) -> str:
    counts = [f"{width}x{height} ({count})" for (width, height), count in sizes.most_common(4)]
    more = f" and {len(sizes) - 4} other sizes" if len(sizes) > 4 else ""
    odd = next((info.name for info in infos if info.size != usual), None)
    example = f", the first of another size {odd}" if odd else ""
    return f"images are {', '.join(counts)}{more}{example}; a model needs images of one size"


def _format_size(size: tuple[int, int]) -> str:
    """Return width and height as text, with a note on their order if they differ."""
    width, height = size
    return f"{width}x{height}{' (width x height)' * (width != height)}"


def _override(height: int, width: int) -> str:
    return f"data.resolution={to_resolution(height, width)}".replace(" ", "")


def _used_bits(infos: Iterable[ImageInfo], largest: int) -> int:
    """Return the bits that gray images use. Raises ValueError for dark color images."""
    if any(info.deep is not None and not info.grey for info in infos):
        raise ValueError(
            f"16-bit color images have values up to {largest} of 65535 and would be nearly black; "
            "save them with 8 bits per channel"
        )
    return next(bits for bits in (8, 10, 12, 14) if largest < 2**bits)
