"""A folder of pictures, with a sub-folder per class or without."""

from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from ddpm_lab.data.module import Data
from ddpm_lab.data.splits import Images
from ddpm_lab.diffusion.noise import generator

MODES = {1: "L", 3: "RGB"}
MEMORY = 8 * 2**30
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


def folder(
    path: str | None,
    resolution: int | None = None,
    channels: int = 3,
    convert: bool = False,
    held_out: float = 0.1,
    flip: bool = False,
    batch_size: int = 64,
    seed: int = 0,
) -> Data:
    """Every picture under `path`; if it has sub-folders, each is a class, in the order of their names.

    `resolution` is the side of the square pictures (None: that of the first). A picture of another size or mode is an
    error unless `convert`, which scales its shorter side, cuts its centre, lays transparency over white and makes it
    grey or RGB. A share `held_out` is kept from training. Raises ValueError that names the file and the key.
    """
    root, mode = Path(path or "").expanduser(), MODES.get(channels)
    if path is None or not root.is_dir():
        raise ValueError(f"path must be a folder of pictures (got {path}); try data.path=DIR")
    if mode is None:
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB) (got {channels})")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share and must lie between 0 and 1 (got {held_out:g})")
    classes = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if classes and _pictures(root):
        raise ValueError(
            f"path={path} holds pictures beside sub-folders; the sub-folders are classes, so move them there"
        )
    files = [(file, label) for label, part in enumerate(classes or [root]) for file in _pictures(part)]
    if len(files) < 4:
        raise ValueError(f"path={path} holds {len(files)} pictures and at least 4 are needed; "
                         f"looked for {' '.join(sorted(SUFFIXES))}")  # fmt: skip
    if empty := [entry.name for i, entry in enumerate(classes) if i not in {label for _, label in files}]:
        raise ValueError(f"path={path} has sub-folders without pictures, which would be classes: {', '.join(empty)}")
    if resolution is not None and resolution < 1:
        raise ValueError(f"resolution must be at least 1 (got {resolution}); try null, that of the first picture")
    side = resolution or min(_open(files[0][0]).size)
    if (size := len(files) * channels * side**2) > MEMORY:
        raise ValueError(f"resolution={side} makes {len(files)} pictures take {size / 2**30:.0f} GiB of memory, over "
                         f"the {MEMORY // 2**30} GiB allowed; try a smaller one with data.convert=true")  # fmt: skip
    pixels = torch.empty(len(files), channels, side, side, dtype=torch.uint8)
    for i, (file, _) in enumerate(tqdm(files, desc="reading pictures", leave=False, disable=None)):
        pixels[i] = pil_to_tensor(_fit(file, side, mode, convert))
    labels = torch.tensor([label for _, label in files]) if classes else None
    order = torch.randperm(len(files), generator=generator(0))
    kept = max(2, int(held_out * len(files)))
    splits = [Images(pixels[part], None if labels is None else labels[part]) for part in (order[kept:], order[:kept])]
    return Data(root.resolve().name, *splits, classes=len(classes) or None, batch_size=batch_size, flip=flip,
                seed=seed, captions=[[entry.name] for entry in classes])  # fmt: skip


def pictures(path: Path, shape: tuple[int, ...]) -> Images:
    """Every picture in `path`, in the order of their names, all of them of `shape` (C, H, W). Raises ValueError that
    begins with the path and names the file.
    """
    if not (files := _pictures(path)):
        raise ValueError(f"{path} holds no pictures; looked for {' '.join(sorted(SUFFIXES))}")
    channels, height, width = shape
    found = torch.empty(len(files), *shape, dtype=torch.uint8)
    for i, file in enumerate(tqdm(files, desc="reading pictures", leave=False, disable=None)):
        picture = _open(file)
        if (picture.width, picture.height, picture.mode) != (width, height, MODES[channels]):
            raise ValueError(f"{path}: {file.name} is {picture.width}x{picture.height} {picture.mode}, and {width}x"
                             f"{height} {MODES[channels]} is wanted")  # fmt: skip
        found[i] = pil_to_tensor(picture)
    return Images(found, None)


def _pictures(part: Path) -> list[Path]:
    return sorted(file for file in part.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def _open(file: Path) -> Image.Image:
    try:
        picture = Image.open(file)
        picture.load()
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as a picture ({error})") from error
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        raise ValueError(f"{file} has more than 8 bits per channel (mode {picture.mode}); save it as 8-bit")
    return ImageOps.exif_transpose(picture)


def _fit(file: Path, side: int, mode: str, convert: bool) -> Image.Image:
    """The picture in `file` as (side, side) of `mode`."""
    picture = _open(file)
    if picture.size == (side, side) and picture.mode == mode:
        return picture
    if not convert:
        raise ValueError(f"{file} is {picture.width}x{picture.height} {picture.mode}, and {side}x{side} {mode} is "
                         f"wanted; try data.convert=true, or another data.resolution or data.channels")  # fmt: skip
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return ImageOps.fit(picture.convert(mode), (side, side), Image.Resampling.LANCZOS)
