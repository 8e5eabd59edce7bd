"""A folder of images, with or without class folders and with or without a test split."""

import hashlib
import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddpm_lab.data.datasets import (
    Images,
    MapSplit,
    MaxImages,
    Source,
    Splits,
    evenly_spaced,
    make_splits,
)
from ddpm_lab.data.image_io import ImageInfo, inspect_image, open_image, open_stream, prefix_errors
from ddpm_lab.data.image_transform import Bits, ImageTransform, OnError, Resolution, infer_transform
from ddpm_lab.data.image_tree import SkippedFiles, list_splits, scan_tree
from ddpm_lab.data.module import dataset
from ddpm_lab.utils.ranges import OpenFraction
from ddpm_lab.utils.shell import script_command

LOG = logging.getLogger(__name__)
MAX_SKIPPED = 0.01
"""Maximum share of images that on_error=skip leaves out"""
INSPECTED = 256
"""Maximum number of images whose headers determine resolution and channels"""


@dataclass(frozen=True)
class ImageFiles(Source):
    """The images in `files`, transformed. Raises ValueError that begins with the file."""

    root: Path
    files: list[Path]
    transform: ImageTransform
    errors: dict[int, str] | None = None
    """Messages of unusable images by index, which are read as black; None: they raise"""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        file = self.files[index]
        try:
            return self.transform(open_image(file), str(file))
        except ValueError as error:
            if self.errors is None:
                raise
            self.errors[index] = str(error)
            return torch.zeros(self.transform.shape, dtype=torch.uint8)

    def digest(self) -> str:
        """Return the SHA-256 of the files' names, sizes and modification times."""
        digest = hashlib.sha256(repr(self.transform).encode())
        for file in self.files:
            status = file.stat()
            digest.update(os.fsencode(os.path.relpath(file, self.root)))
            digest.update(f" {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


@dataset
def image_folder(
    path: str | None,
    resolution: Resolution | None = None,
    channels: int | None = None,
    convert: bool = False,
    background: str = "white",
    bits: Bits | None = None,
    splits: bool = True,
    val_path: str | None = None,
    held_out: OpenFraction = 0.1,
    on_error: OnError = "error",
    max_images: MaxImages | None = None,
    in_memory: bool | None = None,
) -> Splits:
    """Load the images in `path` and its subfolders (see `list_splits`).

    Held out are the images of the folder `val_path`, those of a test folder in `path` if `splits`,
    or else a share `held_out`. For `max_images` see `make_splits`. `resolution`
    (the side of square images, or [height, width]) and `channels` (1 or 3, with alpha 2 or 4) None
    are those of the images, which must agree. For `convert`, `background` and `bits` see
    `ImageTransform`, for `in_memory` see `MapSplit.load`. `on_error` "skip" leaves out at most
    `MAX_SKIPPED` of the images.

    Raises ValueError that names the file and the key.
    """
    root = _require_folder(path)
    val = None if val_path is None else _require_folder(val_path, "val_path")
    skipped = SkippedFiles()
    listings = [*list_splits(root, splits, val, skipped).values()]
    files = [file for listing in listings for file in listing.files]
    advice = f"; remove it, or try data.on_error=skip for up to {MAX_SKIPPED:.0%} of the images"
    with prefix_errors(f"path={path}: ", advice):
        infos = inspect_files(files, on_error)
        transform = infer_transform(
            infos, resolution, channels, convert, bits, background, on_error
        )
        sources = [
            ImageFiles(root, listing.files, transform, {} if on_error == "skip" else None)
            for listing in listings
        ]
        labels = [listing.labels for listing in listings]
        parts = make_splits(sources, transform.shape, labels, held_out, max_images)
        if on_error == "skip" and not all(part.fits(in_memory) for part in parts):
            raise ValueError(
                "on_error=skip is for images in memory, but these are read on request; prepare "
                f"them first: {_prepare_command(root)}"
            )
        train, test = load_images(parts, transform, in_memory)
    left_out = skipped.lines
    if on_error == "skip":
        train, test = _leave_out_unusable(sources, parts, (train, test))
        left_out += [text for source in sources for text in (source.errors or {}).values()]
    captions = [[name] for name in listings[0].classes]
    return Splits(root.resolve().name, train, test, captions, left_out=left_out)


def _require_folder(path: str | None, key: str = "path") -> Path:
    root = Path(path or "").expanduser()
    if path is None or not root.is_dir():
        hint = f"try data.{key}=DIR" if path is None else f"it does not exist; try data.{key}=DIR"
        if root.suffix in (".npz", ".npy") and root.is_file():
            hint = f"for an array, try data=array data.{key}={path}"
        elif root.is_file():
            hint = f"an archive must be unpacked: {_prepare_command(root)}"
        raise ValueError(f"{key} must be a folder of images (got {path}); {hint}")
    return root


def _prepare_command(source: Path) -> str:
    """Return the command that writes the store of `source` next to it."""
    target = source.with_name(f"{source.name.partition('.')[0]}-store")
    command = script_command("prepare")
    return f"{command} {shlex.quote(str(source))} {shlex.quote(str(target))}"


def load_images(
    splits: Sequence[MapSplit], transform: ImageTransform, in_memory: bool | None
) -> list[Images | MapSplit]:
    """Load splits (see `MapSplit.load`) and log the conversions of `transform`."""
    results = [split.load(in_memory) for split in splits]
    if transform.changes and all(isinstance(split, Images) for split in results):
        kinds = (f"{count} {kind}" for kind, count in sorted(transform.changes.items()))
        LOG.info("converted: %s", ", ".join(kinds))
    return results


def read_images(path: Path, shape: tuple[int, ...]) -> Images:
    """Read all images of `shape` (C, H, W) in `path` and its subfolders, sorted by name.

    `path` may also be an image. Raises ValueError that begins with the path and names the file.
    """
    every = [path]
    if path.is_dir():
        skipped = SkippedFiles()
        if (tree := scan_tree(path, skipped)) is None:
            raise ValueError(f"{path} contains no images{skipped}")
        skipped.log()
        every = tree.every
    files = ImageFiles(path, every, ImageTransform([*shape[1:]], shape[0]))
    try:
        return Images(files.read(torch.arange(len(files)), shape), None)
    except ValueError as error:
        prefix = f"{path}: " if path.is_dir() else ""
        raise ValueError(prefix + str(error).partition("; try")[0]) from error


def inspect_files(files: Sequence[Path], on_error: OnError = "error") -> list[ImageInfo]:
    """Inspect `INSPECTED` evenly spaced `files`; "skip" passes over unreadable files.

    Raises ValueError that names the file.
    """
    infos = []
    for file in (files[i] for i in evenly_spaced(len(files), INSPECTED).tolist()):
        try:
            with open_stream(file) as stream:
                infos.append(inspect_image(stream, str(file)))
        except ValueError:
            if on_error == "error":
                raise
    if not infos:
        raise ValueError(f"no image can be read; the first is {files[0]}")
    return infos


def report_skipped(errors: Sequence[str], count: int) -> None:
    """Log the number of skipped images and the first error.

    Raises ValueError if more than `MAX_SKIPPED` of `count` are skipped.
    """
    if len(errors) > MAX_SKIPPED * count:
        raise ValueError(
            f"on_error=skip leaves out at most {MAX_SKIPPED:.0%} of {count} images, "
            f"and {len(errors)} are bad; the first: {errors[0]}"
        )
    if errors:
        LOG.info("left out %d of %d images; the first: %s", len(errors), count, errors[0])


def _leave_out_unusable(
    sources: Sequence[ImageFiles], parts: Sequence[MapSplit], splits: Sequence[Images | MapSplit]
) -> list[Images | MapSplit]:
    errors = [source.errors or {} for source in sources]
    messages = [by_index[i] for by_index in errors for i in sorted(by_index)]
    report_skipped(messages, sum(part.size for part in parts))
    if not messages:
        return [*splits]
    usable = [
        torch.tensor([i not in by_index for i in part.indices.tolist()])
        for part, by_index in zip(parts, (errors[0], errors[-1]), strict=True)
    ]
    return [split.select(mask) for split, mask in zip(splits, usable, strict=True)]
