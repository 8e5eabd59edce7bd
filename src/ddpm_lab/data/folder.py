"""A folder of pictures, with a sub-folder per class or without."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from ddpm_lab.data.decoding import MODES, Fit, opened
from ddpm_lab.data.holding import hold
from ddpm_lab.data.module import Data
from ddpm_lab.data.splits import Images, Split, Streamed
from ddpm_lab.diffusion.noise import generator
from ddpm_lab.errors import Unsafe, shown

LOG = logging.getLogger(__name__)
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
BAD = 0.01
"""Share of the pictures that on_bad=skip may leave out"""
OnBad = Literal["error", "skip"]


class Listing(NamedTuple):
    """The pictures of a folder, by class and name."""

    files: list[Path]
    labels: Tensor | None
    """(N,) int64"""
    classes: list[str]


@dataclass(frozen=True)
class Files:
    """Pictures as `fit` makes them of `files`, when they are asked for. Raises ValueError that begins with the file."""

    root: Path
    files: list[Path]
    fit: Fit
    modes: Counter[str] = field(default_factory=Counter, compare=False)
    """How many were read so far, by their mode"""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        file = self.files[index]
        picture = opened(file)
        fitted = self.fit(picture, str(file))
        self.modes[picture.mode] += 1
        return fitted

    def digest(self) -> str:
        """SHA-256 of the files' names, sizes and times of change, and of `fit`: not of their bytes."""
        found = hashlib.sha256(repr(self.fit).encode())
        for file in self.files:
            about = file.stat()
            found.update(f"{file.relative_to(self.root)} {about.st_size} {about.st_mtime_ns}\n".encode())
        return found.hexdigest()


@dataclass(frozen=True)
class Lenient:
    """`files`, of which those that cannot be used are noted and read as black."""

    files: Files
    bad: dict[int, str] = field(default_factory=dict)
    """Which, and why"""

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


def folder(
    path: str | None,
    resolution: int | None = None,
    channels: int = 3,
    convert: bool = False,
    background: str = "white",
    held_out: float = 0.1,
    on_bad: OnBad = "error",
    resident: bool | None = None,
    flip: bool = False,
    batch_size: int = 64,
    workers: int = 2,
    seed: int = 0,
) -> Data:
    """Every picture in `path`; if it has sub-folders, each is a class, in the order of their names. Hidden ones are
    ignored.

    `resolution` is the side of the square pictures (None: that of the first). A picture of another size or mode is
    bad unless `convert`, see `Fit`; so is one that cannot be read. `on_bad` is "error", or "skip", which leaves out at
    most `BAD` of them. A share `held_out` is kept from training. See `hold` for `resident`. Raises ValueError that
    names the file and the key.
    """
    root = Path(path or "").expanduser()
    if path is None or not root.is_dir():
        raise ValueError(f"path must be a folder of pictures (got {path}); try data.path=DIR")
    files, labels, classes = listed(root)
    fit = Fit(side_of(files, on_bad) if resolution is None else resolution, channels, convert, background)
    source = Lenient(Files(root, files, fit))
    splits: list[Split] = []
    for part in parted(len(files), held_out):
        try:
            split = hold(source if on_bad == "skip" else source.files, fit.shape,
                         None if labels is None else labels[part], part, resident)  # fmt: skip
            if isinstance(split, Streamed):
                source.files[int(part[0])]  # or a wrong resolution would be told by a worker process
        except ValueError as error:
            raise ValueError(f"path: {error}") from error
        if isinstance(split, Streamed) and on_bad == "skip":
            raise ValueError("on_bad=skip is for pictures that are all read at the start, and these are streamed; "
                             "prepare them first: python scripts/prepare_data.py")  # fmt: skip
        good = torch.tensor([i not in source.bad for i in part.tolist()])
        splits.append(split if good.all() else split.at(good))
    leave_out([source.bad[i] for i in sorted(source.bad)], len(files))
    others = {mode: count for mode, count in sorted(source.files.modes.items()) if mode != MODES[channels]}
    if others:  # of what is streamed, no more than the first was read
        LOG.info("converted to %s: %s", MODES[channels], ", ".join(f"{n} of mode {mode}" for mode, n in others.items()))
    return Data(root.resolve().name, *splits, classes=len(classes) or None, batch_size=batch_size, flip=flip,
                workers=workers, seed=seed, captions=[[name] for name in classes])  # fmt: skip


def pictures(path: Path, shape: tuple[int, ...]) -> Images:
    """Every picture in `path`, in the order of their names, all of them of `shape` (C, H, W). Raises ValueError that
    begins with the path and names the file.
    """
    if not (files := _pictures(path)):
        raise ValueError(f"{path} holds no pictures; looked for {' '.join(sorted(SUFFIXES))}")
    channels, height, width = shape
    found = torch.empty(len(files), *shape, dtype=torch.uint8)
    for i, file in enumerate(tqdm(files, desc="reading pictures", leave=False, disable=None)):
        _stays(path, file)
        picture = opened(file)
        if (picture.width, picture.height, picture.mode) != (width, height, MODES[channels]):
            raise ValueError(f"{path}: {file.name} is {picture.width}x{picture.height} {picture.mode}, and {width}x"
                             f"{height} {MODES[channels]} is wanted")  # fmt: skip
        found[i] = pil_to_tensor(picture)
    return Images(found, None)


def listed(root: Path) -> Listing:
    """What is in `root`. Raises ValueError where that is no data set, or a picture is none of its files."""
    parts = sub_folders(root)
    if parts and _pictures(root):
        raise ValueError(
            f"path={root} holds pictures beside sub-folders; the sub-folders are classes, so move them there"
        )
    found = [_pictures(part) for part in parts or [root]]
    files = [file for part in found for file in part]
    if len(files) < 4:
        raise ValueError(f"path={root} holds {len(files)} pictures and at least 4 are needed; "
                         f"looked for {' '.join(sorted(SUFFIXES))}")  # fmt: skip
    if empty := [part.name for part, held in zip(parts, found, strict=False) if not held]:
        raise ValueError(f"path={root} has sub-folders without pictures, which would be classes: {', '.join(empty)}")
    for file in files:
        _stays(root, file)
    counts = torch.tensor([len(part) for part in found])
    labels = torch.arange(len(parts)).repeat_interleave(counts) if parts else None
    return Listing(files, labels, [part.name for part in parts])


def side_of(files: Sequence[Path], on_bad: OnBad = "error") -> int:
    """The shorter side of the first picture, or with "skip" of the first that can be read. Raises ValueError."""
    for file in files:
        try:
            return min(opened(file).size)
        except ValueError as error:
            if on_bad == "error":
                raise ValueError(f"path: {error}") from error
    raise ValueError(f"path holds no picture that can be read, the first of them {files[0]}")


def parted(count: int, held_out: float) -> tuple[Tensor, Tensor]:
    """The numbers of training samples and held-out ones, always the same. Raises ValueError."""
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share and must lie between 0 and 1 (got {held_out:g})")
    order = torch.randperm(count, generator=generator(0))
    kept = max(2, int(held_out * count))
    return order[kept:], order[:kept]


def leave_out(reasons: Sequence[str], count: int) -> None:
    """Says in one line why pictures are left out. Raises ValueError where they are more than `BAD` of `count`."""
    if len(reasons) > BAD * count:
        raise ValueError(f"on_bad=skip leaves out at most {BAD:.0%} of {count} pictures, and {len(reasons)} are bad; "
                         f"the first: {reasons[0]}")  # fmt: skip
    if reasons:
        LOG.info("left out %d of %d pictures; the first: %s", len(reasons), count, reasons[0])


def sub_folders(root: Path) -> list[Path]:
    """Those that are not hidden, in the order of their names."""
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _stays(root: Path, file: Path) -> None:
    """Raises Unsafe unless `file` is a regular one, and where it is a link one of `root`."""
    linked = file.is_symlink() or file.parent.is_symlink()
    if linked and not (target := file.resolve()).is_relative_to(root.resolve()):
        raise Unsafe(f"{root} has a link that leads out of it: {shown(file)} to {shown(target)}; copy what it is to")
    if not file.is_file():
        raise Unsafe(f"{root} holds {shown(file)}, which is no regular file; remove it")


def _pictures(part: Path) -> list[Path]:
    with os.scandir(part) as entries:  # which knows what is a folder without asking for each
        return sorted(Path(entry.path) for entry in entries if not entry.name.startswith(".")
                      and Path(entry.name).suffix.lower() in SUFFIXES and not entry.is_dir())  # fmt: skip
