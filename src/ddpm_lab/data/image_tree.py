"""Image files of a folder by class and split, in subfolders of any depth and through links."""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lab.data.image_io import is_image
from ddpm_lab.utils.errors import UnsafeFileError, escape_control, join_first

LOG = logging.getLogger(__name__)
LITTER = re.compile(r"\._.*|\.DS_Store|__MACOSX|Thumbs\.db|ehthumbs\.db|desktop\.ini", re.I)
"""Files and folders that operating systems leave behind"""
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
"""Names of test folders by priority"""


class Listing(NamedTuple):
    """The images of a folder, sorted by class and name."""

    files: list[Path]
    labels: Tensor | None
    """(N,) int64"""
    classes: list[str]


class Folder(NamedTuple):
    """A folder with images in it or in its subfolders."""

    path: Path
    files: list[Path]
    folders: list["Folder"]

    @property
    def name(self) -> str:
        return os.fsencode(self.path.name).decode(errors="replace")

    @property
    def every(self) -> list[Path]:
        """Images of the folder, then those of its subfolders."""
        return [*self.files, *(file for folder in self.folders for file in folder.every)]


class SkippedFiles:
    """Unused files and folders by reason."""

    def __init__(self) -> None:
        self.suffixes: defaultdict[str, list[Path]] = defaultdict(list)
        """Files that are not images, by suffix"""
        self.others: defaultdict[str, list[Path]] = defaultdict(list)

    def log(self) -> None:
        if text := str(self):
            LOG.info(text.removeprefix("; "))

    @property
    def lines(self) -> list[str]:
        """A line with the reason and the path of each."""
        suffixes = [(f"not an image ({kind})", files) for kind, files in self.suffixes.items()]
        return [
            escape_control(f"{reason}: {file}")
            for reason, files in [*suffixes, *self.others.items()]
            for file in files
        ]

    def __str__(self) -> str:
        """End of a message; empty if all files are used."""
        by_count = sorted(self.suffixes.items(), key=lambda item: -len(item[1]))
        counts = [f"{len(files)} {suffix}" for suffix, files in by_count[:8]]
        if rest := sum(len(files) for _, files in by_count[8:]):
            counts.append(f"{rest} others")
        parts = [f"{', '.join(counts)} (not images)"] if counts else []
        parts += [f"{len(files)} {reason}" for reason, files in self.others.items()]
        files = [file for _, group in [*by_count, *self.others.items()] for file in group]
        names = join_first((file.name for file in files), 3)
        return escape_control(f"; not used: {'; '.join(parts)}; names: {names}") if parts else ""


def list_splits(
    root: Path,
    splits: bool = True,
    val: Path | None = None,
    skipped: SkippedFiles | None = None,
) -> dict[str, Listing]:
    """Return the data set in `root`: {"": all of it}, or {"train": ..., "test": ...}.

    The latter requires such folders and `splits`, or the folder `val` with the test images. Each
    first-level subfolder is a class, unless there are images next to the subfolders. Folders that
    only contain one folder are passed through. Logs the unused files, and adds them to `skipped`.
    Raises ValueError if `root` or `val` is not a data set.
    """
    skipped = skipped or SkippedFiles()
    tree = scan_tree(root, skipped) or Folder(root, [], [])
    if (count := len(tree.every)) < 4:
        raise ValueError(f"path={root} holds {count} images, but at least 4 are needed{skipped}")
    tree = _unwrap(tree)
    by_name = {folder.name.casefold(): folder for folder in tree.folders}
    train = next((by_name[name] for name in TRAIN if name in by_name), None)
    tests = [by_name[name] for name in TEST if name in by_name]
    if val is not None:
        listings = _list_val(root, tree, val, skipped, train if splits and tests else None)
    elif splits and train is not None and tests:
        training = _listing(_unwrap(train))
        advice = f"try data.path={train.path}, of which a share is held out"
        test, held_out = _matching_test(f"path={root}", advice, train, training, tests)
        listings = {"train": training, "test": held_out}
        for other in (part for part in tree.folders if part not in (train, test)):
            skipped.others[f"images in {other.name}/"] += other.every
        if tree.files:
            skipped.others[f"images next to {train.name}/"] += tree.files
        name, count = escape_control(test.path.relative_to(root)), len(held_out.files)
        LOG.info("held out: the %d images in %s/ (splits=false makes them classes)", count, name)
    else:
        listings = {"": _listing(tree)}
    skipped.log()
    return listings


def _list_val(
    root: Path, tree: Folder, val: Path, skipped: SkippedFiles, train: Folder | None
) -> dict[str, Listing]:
    """Return the images of `tree`, and as test split those of `val`. Raises ValueError."""
    if train is not None:
        raise ValueError(
            f"val_path={val}, but path={root} has its own test folder; try data.path={train.path}"
        )
    if val.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"val_path={val} is inside path={root}; try data.path={root}/SUBFOLDER")
    training = _listing(tree)
    folder = scan_tree(val, skipped) or Folder(val, [], [])
    advice = "try another val_path, or none, which holds out a share"
    _, held_out = _matching_test(f"val_path={val}", advice, tree, training, [folder])
    LOG.info("held out: the %d images in %s", len(held_out.files), escape_control(val))
    return {"train": training, "test": held_out}


def scan_tree(
    path: Path, skipped: SkippedFiles, above: frozenset[tuple[int, int]] = frozenset()
) -> Folder | None:
    """Return the images in `path` and its subfolders, or None if there are none.

    Raises UnsafeFileError for files that are not regular.
    """
    status = path.stat()
    if (here := (status.st_dev, status.st_ino)) in above:
        skipped.others["links to a folder that contains them"].append(path)
        return None
    files, folders = [], []
    with os.scandir(path) as entries:
        by_name = sorted(entries, key=lambda entry: entry.name)
    for entry in by_name:
        file = Path(entry.path)
        if LITTER.fullmatch(entry.name):
            continue
        if entry.name.startswith("."):
            skipped.others["hidden"].append(file)
        elif entry.is_symlink() and not file.exists():  # a broken or circular link
            skipped.others["dangling links"].append(file)
        elif entry.is_dir():
            folders.append(scan_tree(file, skipped, above | {here}))
        elif not entry.is_file():
            raise UnsafeFileError(
                f"{escape_control(path)} holds {escape_control(file)}, "
                "which is not a regular file; remove it"
            )
        elif is_image(file):
            files.append(file)
        else:
            skipped.suffixes[file.suffix.lower() or "without suffix"].append(file)
    with_images = [folder for folder in folders if folder is not None]
    if not files and not with_images:
        if above:
            skipped.others["folders without images"].append(path)
        return None
    numeric = all(re.fullmatch(r"\d+", folder.name) for folder in with_images)
    with_images.sort(key=lambda folder: (int(folder.name) if numeric else 0, folder.name))
    return Folder(path, files, with_images)


def _unwrap(folder: Folder, classes: Sequence[str] = ()) -> Folder:
    """Pass through folders that only contain one folder, unless it is one of `classes`."""
    while not folder.files and len(folder.folders) == 1 and folder.folders[0].name not in classes:
        folder = folder.folders[0]
    return folder


def _listing(folder: Folder) -> Listing:
    """Return the images of `folder` with its subfolders as classes."""
    if not folder.folders:
        return Listing(folder.files, None, [])
    if folder.files:
        LOG.info(
            "%s/ has images next to subfolders: all %d are read as one set without classes",
            escape_control(folder.name),
            len(folder.every),
        )
        return Listing(folder.every, None, [])
    counts = torch.tensor([len(part.every) for part in folder.folders])
    labels = torch.arange(len(folder.folders)).repeat_interleave(counts)
    return Listing(folder.every, labels, [part.name for part in folder.folders])


def _matching_test(
    key: str, advice: str, train: Folder, training: Listing, tests: Sequence[Folder]
) -> tuple[Folder, Listing]:
    """Return the first of `tests` whose classes are those of `training`.

    Raises ValueError that begins with `key` and ends with `advice`.
    """
    problems = []
    for test in tests:
        listing = _listing(_unwrap(test, training.classes))
        unknown = [name for name in listing.classes if name not in training.classes]
        if (count := len(listing.files)) < 2:
            problems.append(f"{test.name}/ holds {count} images, but at least 2 are needed")
        elif training.classes and not listing.classes:
            count = len(training.classes)
            problems.append(f"{test.name}/ has no class folders, but {train.name}/ has {count}")
        elif unknown:
            names = ", ".join(unknown[:4])
            problems.append(f"{test.name}/ has other classes than {train.name}/ ({names})")
        else:
            return test, _relabel(test, listing, training.classes)
    raise ValueError(f"{key}: {'; '.join(problems)}; {advice}")


def _relabel(test: Folder, listing: Listing, classes: list[str]) -> Listing:
    """Return `listing` with labels of the training classes."""
    if missing := [name for name in classes if name not in listing.classes]:
        names = escape_control(", ".join(missing[:4]))
        LOG.info("%s/ has no images of %d classes (%s)", test.name, len(missing), names)
    if listing.labels is None:
        return listing
    labels = torch.tensor([classes.index(name) for name in listing.classes])
    return listing._replace(labels=labels[listing.labels], classes=classes)
