"""Grids of images, as PNGs."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:
    from torch import Tensor

BACKGROUND = 40
"""Gray level between the images of a grid"""
DESCRIPTION = "Description"
"""Keyword of the PNG text chunk with the caption"""
GAP = 24
"""Additional pixels between groups of columns"""
FONT_SIZE, LINE_HEIGHT, MARGIN = 13, 17, 6
"""Sizes of captions, in pixels"""


def grid_image(pixels: "Tensor", columns: int, group: int | None = None) -> Image.Image:
    """Return uint8 images (N, C, H, W) row by row, each channel at least 64 pixels wide.

    Groups of `group` columns have a wider gap between them.
    Four channels are RGB with alpha, over white. Of 2 or more than 4 channels, each is a gray
    image, side by side.
    """
    scale = -(-64 // pixels.shape[3])
    pixels = _visible(pixels)
    count, _, height, width = pixels.shape
    padding = max(2, scale // 2)
    columns = min(columns, count)
    rows = -(-count // columns)
    height, width = height * scale + padding, width * scale + padding
    gaps = [GAP * (column // (group or columns)) for column in range(columns)]
    size = (height * rows + padding, width * columns + padding + gaps[-1], 3)
    grid = np.full(size, BACKGROUND, np.uint8)
    images = pixels.cpu().repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        column = i % columns
        y, x = i // columns * height + padding, column * width + padding + gaps[column]
        grid[y : y + height - padding, x : x + width - padding] = image
    return Image.fromarray(grid)


def _visible(pixels: "Tensor") -> "Tensor":
    """Map images of any number of channels to gray or RGB: (N, C, H, W) to (N, 1 or 3, H, W')."""
    match pixels.shape[1]:
        case 1 | 3:
            return pixels
        case 4:
            alpha = pixels[:, 3:].float() / 255
            return (pixels[:, :3] * alpha + 255 * (1 - alpha)).round().byte()
        case _:
            count, channels, height, width = pixels.shape
            row = pixels.new_full((count, height, channels, width + 1), BACKGROUND)
            row[..., :width] = pixels.transpose(1, 2)
            return row.flatten(2)[:, None, :, :-1]


def save_image(pixels: "Tensor", file: Path) -> None:
    """Save an image (C, H, W) uint8 as a PNG: gray or RGB, with alpha for 2 or 4 channels.

    Of more than 4 channels, each is a gray image, side by side.
    """
    if len(pixels) > 4:
        pixels = _visible(pixels[None])[0]
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).cpu().numpy()).save(file)


def save_grid(
    pixels: "Tensor", file: Path, columns: int, caption: str, group: int | None = None
) -> Path:
    """Save the grid of `grid_image` as a PNG, with a caption below and as its description."""
    file.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    info.add_itxt(DESCRIPTION, caption)
    add_caption(grid_image(pixels, columns, group), caption).save(file, pnginfo=info)
    return file


def add_caption(image: Image.Image, caption: str) -> Image.Image:
    """Return an image with a caption below, in lines no wider than the image."""
    from matplotlib import get_data_path

    font = ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), FONT_SIZE)
    lines = textwrap.wrap(caption, max(8, int((image.width - 2 * MARGIN) / font.getlength("n"))))
    height = 2 * MARGIN + len(lines) * LINE_HEIGHT
    captioned = Image.new("RGB", (image.width, image.height + height), "white")
    captioned.paste(image, (0, 0))
    draw = ImageDraw.Draw(captioned)
    for i, line in enumerate(lines):
        draw.text((MARGIN, image.height + MARGIN + i * LINE_HEIGHT), line, "black", font)
    return captioned


def read_caption(file: Path) -> str:
    """Return the caption of a file of `save_grid`; empty if it has none or is damaged."""
    try:
        with Image.open(file) as image:
            return str(image.info.get(DESCRIPTION, ""))
    except (OSError, ValueError, SyntaxError):  # Pillow's errors for damaged files
        return ""
