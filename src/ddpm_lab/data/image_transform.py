"""From an image to pixels of one size and mode: the right ones, or a refusal that names the image."""

import logging
import math
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from ddpm_lab.data.image_io import HIGH_BIT_MODES, MAX_PIXELS, ImageInfo, has_grey_palette

LOG = logging.getLogger(__name__)
MODES = {1: "L", 3: "RGB"}
KNOWN = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"} | HIGH_BIT_MODES
SAME = {
    ("L", "L"),
    ("1", "L"),
    ("RGB", "RGB"),
    ("P", "RGB"),
    ("L", "RGB"),
    ("1", "RGB"),
    ("RGBX", "RGB"),
}
"""Pairs of a Pillow mode and a mode that can hold the same pixels"""
OnError = Literal["error", "skip"]


class ConversionLog:
    """Counts by name that several threads add to. It is sent to another process empty."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def add(self, names: Iterable[str]) -> None:
        with self.lock:
            self.counts.update(names)

    def __reduce__(self) -> tuple[Any, ...]:
        return ConversionLog, ()

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))


@dataclass(frozen=True)
class ImageTransform:
    """Makes images (`channels`, `side`, `side`) uint8, grey (1) or RGB (3).

    An image that would lose information is refused unless `convert`, which lays transparency over `background`, makes
    the image grey or RGB as Pillow does (without color profiles), scales its shorter side (Lanczos) and crops its
    center. Accepted in any case is an image that keeps its pixels: a palette or grey as RGB, one bit as grey, an alpha
    channel that is opaque everywhere. Grey with more than 8 bits, of which `bits` are used, is scaled to 8 bits and
    rounded. Of color with 16 bits Pillow reads the high bytes, which are at most one less. Mode I is read as 16 bits.

    Raises ValueError for values that do not fit.
    """

    side: int
    channels: int
    convert: bool = False
    background: str = "white"
    """A color that Pillow knows: a name, or #rrggbb"""
    bits: int = 16
    changes: ConversionLog = field(default_factory=ConversionLog, compare=False, repr=False)
    """Numbers of images that were changed, by kind"""

    def __post_init__(self) -> None:
        if self.channels not in MODES:
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB) (got {self.channels})")
        if not 1 <= self.side <= MAX_PIXELS**0.5:
            raise ValueError(
                f"resolution must lie in 1..{MAX_PIXELS**0.5:.0f} (got {self.side}); try 64"
            )
        if not 8 <= self.bits <= 16:
            raise ValueError(
                f"bits, those that grey of over 8 bits uses, must lie in 8..16 (got {self.bits}); try 12"
            )
        with suppress(ValueError):
            if len(ImageColor.getrgb(self.background)) == 3:
                return
        raise ValueError(
            f"background={self.background} is no opaque colour; try a name such as white, or '#808080'"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.channels, self.side, self.side

    @property
    def settings(self) -> dict[str, Any]:
        """The values that decide the pixels."""
        return {
            "side": self.side,
            "channels": self.channels,
            "convert": self.convert,
            "background": self.background,
            "bits": self.bits,
        }

    def __call__(self, image: Image.Image, name: str) -> Tensor:
        """Return (C, H, W) uint8. Raises ValueError that begins with `name`."""
        size, mode, found = (self.side, self.side), MODES[self.channels], image.mode
        image, clear = _without_alpha(image)
        if image.mode not in KNOWN or (clear and image.mode in HIGH_BIT_MODES):
            reach = (
                " with values from {:g} to {:g}".format(*image.getextrema()) if found == "F" else ""
            )
            raise ValueError(
                f"{name} has pixels of mode {found}{reach}{', some transparent' * clear}, which can be "
                "read in more than one way; save it with 8 bits per channel"
            )
        same = (image.mode, mode) in SAME or (image.mode == "P" and has_grey_palette(image))
        if not self.convert and (image.size != size or not same or clear):
            raise ValueError(
                f"{name} is {image.width}x{image.height} {found}{' and transparent' * clear}, and "
                f"{self.side}x{self.side} {mode} is wanted; {self._advice(image, clear)}"
            )
        changes = [f"from {found} to {mode}"] if found != mode else []
        if image.mode in HIGH_BIT_MODES:
            image = self._shallow(image, name)
        elif clear:
            changes.append(f"laid over {self.background}")
            ground = Image.new("RGBA", image.size, self.background)
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        image = image.convert(mode)
        if image.size != size:
            changes.append(f"scaled and cropped to {self.side}x{self.side}")
            image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        self.changes.add(changes)
        return pil_to_tensor(image).to(torch.uint8)

    def _advice(self, image: Image.Image, clear: bool) -> str:
        words = []
        if image.size != (self.side, self.side):
            words += ["data.convert=true", f"data.resolution={self.side}"]
        if self.channels == 1 and image.mode in ("RGB", "RGBA", "P", "PA", "YCbCr", "CMYK"):
            words.append("data.channels=3")
        if clear or image.mode in HIGH_BIT_MODES | {"CMYK", "YCbCr"}:
            words.insert(0, "data.convert=true")
        advice = f"try {' '.join(dict.fromkeys(words))}"
        if clear:
            return f"{advice}, which lays it over data.background={self.background}"
        return (
            f"{advice}, or data.convert=true, which makes it grey"
            if words == ["data.channels=3"]
            else advice
        )

    def _shallow(self, image: Image.Image, name: str) -> Image.Image:
        """Scale to 8 bits; Pillow itself would cut at 255."""
        values, most = np.asarray(image).astype(np.int64), 2**self.bits - 1
        if values.min() < 0 or values.max() > most:
            wider = int(values.max()).bit_length()
            fits = values.min() >= 0 and wider <= 16
            advice = f"try data.bits={wider}" if fits else "save it with 8 bits per channel"
            raise ValueError(
                f"{name} has values from {values.min()} to {values.max()}, and 0 to {most} is {self.bits} "
                f"bits; {advice}"
            )
        return Image.fromarray(((values * 255 + most // 2) // most).astype(np.uint8))


def _without_alpha(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return the image, without its alpha channel if that is opaque everywhere, and whether it is transparent."""
    if not image.has_transparency_data:
        return image, False
    if image.mode in HIGH_BIT_MODES:
        clear = bool((np.asarray(image) == image.info["transparency"]).any())
    elif image.mode in KNOWN:
        clear = int(np.asarray(image.convert("RGBA"))[..., 3].min()) < 255
    else:
        clear = True
    if clear or image.mode in HIGH_BIT_MODES:
        return image, clear
    plain = image.copy()
    plain.info.pop("transparency", None)
    if image.mode in ("LA", "PA", "RGBA"):
        plain = plain.convert("L" if image.mode == "LA" else "RGB")
    return plain, False


def infer_transform(
    run_count: Iterable[ImageInfo],
    resolution: int | None,
    channels: int | None,
    convert: bool,
    bits: int | None,
    background: str = "white",
    on_error: OnError = "error",
) -> ImageTransform:
    """Return the `Fit` for a set with images such as `looks`: None stands for a value that they decide. Raises
    ValueError that says what to type.
    """
    run_count = list(run_count)
    sizes = Counter(one.size for one in run_count)
    indices = [
        name
        for name, value in (("resolution", resolution), ("channels", channels))
        if value is None
    ]
    if channels is None:
        channels = 1 if all(one.grey for one in run_count) else 3
    problem, words = "", []
    if resolution is None:
        (usual, _), *others = sizes.most_common()
        resolution = min(map(min, sizes)) if convert else min(usual)
        if not convert and (usual[0] != usual[1] or (others and on_error == "error")):
            listed = ", ".join(
                f"{width}x{height} ({count})" for (width, height), count in sizes.most_common(4)
            )
            more = f" and {len(sizes) - 4} other sizes" if len(sizes) > 4 else ""
            odd = next(
                (
                    f", the first of another size {one.name}"
                    for one in run_count
                    if one.size != usual
                ),
                "",
            )
            problem = f"images are {listed}{more}{odd}; a model needs squares of one size"
            words.append(f"data.resolution={_side(sizes)}")
    fit = ImageTransform(
        resolution, channels, convert, background, bits or 16
    )  # mistakes in the values come first
    reach = max((one.deep for one in run_count if one.deep is not None), default=None)
    if reach is not None and bits is None and reach < 2**14:
        if any(one.deep is not None and not one.grey for one in run_count):
            raise ValueError(
                f"color images of 16 bits have values up to {reach} of 65535 and would be nearly black; "
                "save them with 8 bits per channel"
            )
        used = next(bits for bits in (8, 10, 12, 14) if reach < 2**bits)
        problem = (
            f"grey images of 16 bits have values up to {reach} of 65535, which are {used} bits and would be "
            "nearly black"
        )
        words.append(f"data.bits={used}")
    if problem:
        dark = ", or data.bits=16 if they are meant to be dark" if "bits" in words[-1] else ""
        raise ValueError(
            f"{problem}; try {' '.join(words if convert else ['data.convert=true', *words])}{dark}"
        )
    if indices or reach is not None:
        LOG.info(
            "images are read as %dx%d %s%s%s",
            resolution,
            resolution,
            "grey" if channels == 1 else "RGB",
            f" ({' and '.join(indices)} of the {len(run_count)} that were looked at)"
            if indices
            else "",
            f"; values up to {reach} of {2**fit.bits - 1} (bits={fit.bits})"
            if reach is not None
            else "",
        )
    return fit


def _side(sizes: Iterable[tuple[int, int]]) -> int:
    """Return a resolution that needs no enlarging and that networks can halve: a power of 2, at most 64."""
    return 2 ** int(math.log2(min(64, *map(min, sizes))))
