"""A folder of images, with or without class folders and with or without a test split."""

import hashlib
import logging
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import Images, Split, Splits, fits_in_memory, load_or_stream
from ddpm_lab.data.image_io import UNREADABLE, ImageInfo, inspect_image, open_image, open_stream
from ddpm_lab.data.image_transform import ImageTransform, OnError, infer_transform
from ddpm_lab.data.image_tree import SkippedFiles, describe_skipped, list_splits, scan_tree
from ddpm_lab.data.module import dataset
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.utils.shell import script_command

LOG = logging.getLogger(__name__)
MAX_SKIPPED = 0.01
"""Largest share of the images that on_error=skip leaves out"""
INSPECTED = 256
"""Number of images whose headers determine resolution and channels"""


@dataclass(frozen=True)
class ImageFiles:
    """The images in `files`, transformed. Raises ValueError that begins with the file."""

    root: Path
    files: list[Path]
    transform: ImageTransform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        file = self.files[index]
        return self.transform(open_image(file), str(file))

    def digest(self) -> str:
        """Return the SHA-256 of the files' names, sizes and modification times."""
        digest = hashlib.sha256(repr(self.transform).encode())
        for file in self.files:
            status = file.stat()
            digest.update(os.fsencode(file.relative_to(self.root)))
            digest.update(f" {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class SkipUnreadable:
    """The images in `files`; an unusable image is recorded and read as black."""

    files: ImageFiles
    errors: dict[int, str] = field(default_factory=dict)
    """Messages by index"""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        try:
            return self.files[index]
        except ValueError as error:
            self.errors[index] = str(error)
            return torch.zeros(self.files.transform.shape, dtype=torch.uint8)

    def digest(self) -> str:
        return self.files.digest()


@dataset
def image_folder(
    path: str | None,
    resolution: int | None = None,
    channels: int | None = None,
    convert: bool = False,
    background: str = "white",
    bits: int | None = None,
    splits: bool = True,
    held_out: float = 0.1,
    on_error: OnError = "error",
    in_memory: bool | None = None,
) -> Splits:
    """Load the images in `path` and its sub-folders, see `list_splits`.

    Without a test folder, or with `splits` false, a share `held_out` is held out. `resolution`
    (side of the square images) and `channels` (1 or 3) None are those of the images, which must
    agree. For `convert`, `background` and `bits` see `ImageTransform`, for `in_memory` see
    `load_or_stream`. `on_error` "skip" leaves out at most `MAX_SKIPPED` of the images.

    Raises ValueError that names the file and the key.
    """
    root = _require_folder(path)
    listings = [*list_splits(root, splits).values()]
    files = [file for listing in listings for file in listing.files]
    with _prefix_path(path):
        infos = inspect_files(files, on_error)
        transform = infer_transform(
            infos, resolution, channels, convert, bits, background, on_error
        )
    sources = [SkipUnreadable(ImageFiles(root, listing.files, transform)) for listing in listings]
    labels = [listing.labels for listing in listings]
    indices = [torch.arange(len(source)) for source in sources]
    if len(listings) == 1:
        indices = [*train_test_split(len(files), held_out)]
    skip = on_error == "skip"
    with _prefix_path(path):
        train = _load(sources[0], labels[0], indices[0], skip, in_memory)
        test = _load(sources[-1], labels[-1], indices[-1], skip, in_memory)
    errors = [source.errors[i] for source in sources for i in sorted(source.errors)]
    report_skipped(errors, len(files))
    log_changes(transform, train, test)
    captions = [[name] for name in listings[0].classes]
    return Splits(root.resolve().name, train, test, captions)


def _require_folder(path: str | None) -> Path:
    root = Path(path or "").expanduser()
    if path is None or not root.is_dir():
        hint = "try data.path=DIR"
        if root.is_file():
            hint = f"an archive must be unpacked: {_prepare_command(root)}"
        raise ValueError(f"path must be a folder of images (got {path}); {hint}")
    return root


def _load(
    source: SkipUnreadable,
    labels: Tensor | None,
    indices: Tensor,
    skip: bool,
    in_memory: bool | None,
) -> Split:
    """Load the images at `indices`; `skip` leaves out unusable images."""
    files, shape = source.files, source.files.transform.shape
    labels = None if labels is None else labels[indices]
    if not skip:
        return load_or_stream(files, shape, labels, indices, in_memory)
    if not fits_in_memory(len(indices), shape, in_memory):
        raise ValueError(
            "on_error=skip is for images that are read into memory, and these are read on request; "
            f"prepare them first: {_prepare_command(files.root)}"
        )
    split = load_or_stream(source, shape, labels, indices, in_memory=True)
    usable = torch.tensor([i not in source.errors for i in indices.tolist()])
    return split if usable.all() else split.select(usable)


def _prepare_command(source: Path) -> str:
    """Return the command that writes the store of `source` beside it."""
    target = source.with_name(f"{source.name.partition('.')[0]}-store")
    command = script_command("scripts/prepare_data")
    return f"{command} {shlex.quote(str(source))} {shlex.quote(str(target))}"


@contextmanager
def _prefix_path(path: str | None) -> Iterator[None]:
    """Prefix errors that do not begin with a key of their own."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        if UNREADABLE in message:
            message += (
                "; remove it, or try data.on_error=skip, which leaves out up to "
                f"{MAX_SKIPPED:.0%} of the images"
            )
        own = re.match(r"(resolution|channels|background|bits|on_error)\b", message)
        raise ValueError(message if own else f"path={path}: {message}") from error


def read_images(path: Path, shape: tuple[int, ...]) -> Images:
    """Read all images in `path` and its sub-folders, sorted by name, of `shape` (C, H, W).

    Raises ValueError that begins with the path and names the file.
    """
    skipped = SkippedFiles()
    if (tree := scan_tree(path, skipped)) is None:
        raise ValueError(f"{path} contains no images{describe_skipped(skipped)}")
    if str(skipped):
        LOG.info("left aside: %s", skipped)
    transform = ImageTransform(shape[1], shape[0])
    pixels = torch.empty(len(tree.every), *shape, dtype=torch.uint8)
    for i, file in enumerate(tqdm(tree.every, desc="reading images", leave=False, disable=None)):
        try:
            pixels[i] = transform(open_image(file), str(file))
        except ValueError as error:
            raise ValueError(f"{path}: {str(error).partition('; try')[0]}") from error
    return Images(pixels, None)


def inspect_files(files: Sequence[Path], on_error: OnError = "error") -> list[ImageInfo]:
    """Inspect `INSPECTED` evenly spaced `files`; "skip" passes over unreadable files.

    Raises ValueError that names the file.
    """
    infos, count = [], min(len(files), INSPECTED)
    for i in range(count):
        file = files[i * len(files) // count]
        try:
            with open_stream(file) as stream:
                infos.append(inspect_image(stream, str(file)))
        except ValueError:
            if on_error == "error":
                raise
    if not infos:
        raise ValueError(f"no image can be read, the first of them {files[0]}")
    return infos


def train_test_split(count: int, held_out: float) -> tuple[Tensor, Tensor]:
    """Return the indices of training samples and of held-out samples: a fixed random split.

    Raises ValueError unless `held_out` lies between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share and must lie between 0 and 1 (got {held_out:g})")
    order = torch.randperm(count, generator=make_generator(0))
    test_size = max(2, int(held_out * count))
    return order[test_size:], order[:test_size]


def report_skipped(errors: Sequence[str], count: int) -> None:
    """Log in one line why images are left out.

    Raises ValueError if they are more than `MAX_SKIPPED` of `count`.
    """
    if len(errors) > MAX_SKIPPED * count:
        raise ValueError(
            f"on_error=skip leaves out at most {MAX_SKIPPED:.0%} of {count} images, "
            f"and {len(errors)} are bad; the first: {errors[0]}"
        )
    if errors:
        LOG.info("left out %d of %d images; the first: %s", len(errors), count, errors[0])


def log_changes(transform: ImageTransform, *splits: Split) -> None:
    """Log what `transform` changed, once all images are read."""
    if transform.changes.counts and all(isinstance(split, Images) for split in splits):
        LOG.info("converted: %s", transform.changes)
