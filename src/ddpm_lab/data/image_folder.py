"""A folder of images, with a sub-folder per class or without, and with folders for training and testing or without."""

import hashlib
import logging
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import Images, MapSplit, Split, load_or_stream
from ddpm_lab.data.image_io import UNREADABLE, ImageInfo, inspect_image, open_image, open_stream
from ddpm_lab.data.image_transform import ImageTransform, OnError, infer_transform
from ddpm_lab.data.image_tree import SkippedFiles, describe_skipped, list_splits, scan_tree
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.utils.shell import script_command

LOG = logging.getLogger(__name__)
BAD = 0.01
"""Largest share of the images that on_error=skip leaves out"""
LOOKS = 256
"""Number of images whose headers decide about a set"""


@dataclass(frozen=True)
class ImageFiles:
    """Images as `fit` makes them of `files`, read on request. Raises ValueError that begins with the file."""

    root: Path
    files: list[Path]
    fit: ImageTransform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        file = self.files[index]
        return self.fit(open_image(file), str(file))

    def digest(self) -> str:
        """SHA-256 of the files' names, sizes and modification times, and of `fit`: not of their bytes."""
        found = hashlib.sha256(repr(self.fit).encode())
        for file in self.files:
            about = file.stat()
            found.update(os.fsencode(file.relative_to(self.root)))
            found.update(f" {about.st_size} {about.st_mtime_ns}\n".encode())
        return found.hexdigest()


@dataclass(frozen=True)
class SkipUnreadable:
    """`files`, where an image that cannot be used is noted and read as black."""

    files: ImageFiles
    bad: dict[int, str] = field(default_factory=dict)
    """Reasons by index"""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        try:
            return self.files[index]
        except ValueError as error:
            self.bad[index] = str(error)
            return torch.zeros(self.files.fit.shape, dtype=torch.uint8)

    def digest(self) -> str:
        return self.files.digest()


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
    flip: bool = False,
    batch_size: int | None = None,
    workers: int = 2,
    seed: int = 0,
) -> DataModule:
    """Every image in `path` and below, see `listings`. Without a folder of held-out images, or with `splits` false, a
    share `held_out` is kept from training.

    `resolution` is the side of the square images, `channels` is 1 (grey) or 3 (RGB); None: those of the images, which
    must agree. An image that does not fit is bad unless `convert`, see `Fit` (also for `bits`); so is one that cannot
    be read. `on_error` is "error", or "skip", which leaves out at most `BAD` of the images. See `hold` for `resident`.
    Raises ValueError that names the file and the key.
    """
    root = Path(path or "").expanduser()
    if path is None or not root.is_dir():
        hint = (
            f"an archive must be unpacked: {_preparing(root)}"
            if root.is_file()
            else "try data.path=DIR"
        )
        raise ValueError(f"path must be a folder of images (got {path}); {hint}")
    parts = list_splits(root, splits)
    try:
        fit = infer_transform(
            run_count([file for part in parts.values() for file in part.files], on_error),
            resolution,
            channels,
            convert,
            bits,
            background,
            on_error,
        )
    except ValueError as error:
        raise ValueError(_keyed(error, path)) from error
    sources = [SkipUnreadable(ImageFiles(root, part.files, fit)) for part in parts.values()]
    numbers = [torch.arange(len(source)) for source in sources]
    if len(sources) == 1:
        sources, numbers = 2 * sources, [*train_test_split(len(sources[0]), held_out)]
    labels = [part.labels for part in parts.values()] * (2 // len(parts))
    held: list[Split] = []
    for source, part, label in zip(sources, numbers, labels, strict=True):
        try:
            split = load_or_stream(
                source if on_error == "skip" else source.files,
                fit.shape,
                None if label is None else label[part],
                part,
                in_memory,
            )
            if isinstance(split, MapSplit):
                source.files[int(part[0])]  # or a worker process would report a wrong resolution
        except ValueError as error:
            raise ValueError(_keyed(error, path)) from error
        if isinstance(split, MapSplit) and on_error == "skip":
            raise ValueError(
                "on_error=skip is for images that are all read at the start, and these are streamed; "
                f"prepare them first: {_preparing(root)}"
            )
        good = torch.tensor([i not in source.bad for i in part.tolist()])
        held.append(split if good.all() else split.select(good))
    bad = {id(source): [source.bad[i] for i in sorted(source.bad)] for source in sources}
    report_skipped(
        [reason for reasons in bad.values() for reason in reasons], sum(map(len, numbers))
    )
    if fit.changes.counts and all(isinstance(split, Images) for split in held):
        LOG.info("converted: %s", fit.changes)
    classes = next(iter(parts.values())).classes
    return DataModule(
        root.resolve().name,
        *held,
        classes=len(classes) or None,
        batch_size=batch_size,
        flip=flip,
        workers=workers,
        seed=seed,
        captions=[[name] for name in classes] or None,
    )


def _preparing(source: Path) -> str:
    """Return the command that makes a store of `source`, beside it."""
    target = source.with_name(f"{source.name.partition('.')[0]}-store")
    return f"{script_command('scripts/prepare_data')} {shlex.quote(str(source))} {shlex.quote(str(target))}"


def _keyed(error: ValueError, path: str) -> str:
    """Return the message with the key that it is about: its own, or path; and what to do about an unreadable image."""
    keys = ("resolution", "channels", "background", "bits")
    said = str(error)
    if UNREADABLE in said:
        said += f"; remove it, or try data.on_error=skip, which leaves out up to {BAD:.0%} of the images"
    return said if re.match(rf"({'|'.join(keys)})\b", said) else f"path={path}: {said}"


def read_images(path: Path, shape: tuple[int, ...]) -> Images:
    """Return every image in `path` and below, in the order of their names, all of `shape` (C, H, W). Raises ValueError
    that begins with the path and names the file.
    """
    aside = SkippedFiles()
    if (tree := scan_tree(path, aside)) is None:
        raise ValueError(f"{path} holds no images{describe_skipped(aside)}")
    if str(aside):
        LOG.info("left aside: %s", aside)
    fit = ImageTransform(shape[1], shape[0])
    found = torch.empty(len(tree.every), *shape, dtype=torch.uint8)
    for i, file in enumerate(tqdm(tree.every, desc="reading images", leave=False, disable=None)):
        try:
            found[i] = fit(open_image(file), str(file))
        except ValueError as error:
            raise ValueError(f"{path}: {str(error).partition('; try')[0]}") from error
    return Images(found, None)


def run_count(files: Sequence[Path], on_error: OnError = "error") -> list[ImageInfo]:
    """Look at `LOOKS` of `files`, evenly spaced; with "skip" those that cannot be read are passed over. Raises
    ValueError that names the file.
    """
    found, count = [], min(len(files), LOOKS)
    for i in range(count):
        file = files[i * len(files) // count]
        try:
            with open_stream(file) as stream:
                found.append(inspect_image(stream, str(file)))
        except ValueError:
            if on_error == "error":
                raise
    if not found:
        raise ValueError(f"no image can be read, the first of them {files[0]}")
    return found


def train_test_split(count: int, held_out: float) -> tuple[Tensor, Tensor]:
    """Return the numbers of training samples and held-out ones, always the same. Raises ValueError."""
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share and must lie between 0 and 1 (got {held_out:g})")
    order = torch.randperm(count, generator=make_generator(0))
    kept = max(2, int(held_out * count))
    return order[kept:], order[:kept]


def report_skipped(reasons: Sequence[str], count: int) -> None:
    """Log in one line why images are left out. Raises ValueError if they are more than `BAD` of `count`."""
    if len(reasons) > BAD * count:
        raise ValueError(
            f"on_error=skip leaves out at most {BAD:.0%} of {count} images, and {len(reasons)} are bad; "
            f"the first: {reasons[0]}"
        )
    if reasons:
        LOG.info("left out %d of %d images; the first: %s", len(reasons), count, reasons[0])
