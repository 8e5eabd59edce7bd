"""The images of a folder as files: at any depth, behind links, by class and split."""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lab.data.image_io import is_image
from ddpm_lab.utils.errors import UnsafeFileError, escape_control

LOG = logging.getLogger(__name__)
LITTER = re.compile(r"\._.*|\.DS_Store|__MACOSX|Thumbs\.db|ehthumbs\.db|desktop\.ini", re.I)
"""Files and folders that operating systems leave behind"""
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
"""Names of folders with held-out images; the first that fits is used"""


class Listing(NamedTuple):
    """The images of a folder, by class and name."""

    files: list[Path]
    labels: Tensor | None
    """(N,) int64"""
    classes: list[str]


class Folder(NamedTuple):
    """A folder with images in it or below."""

    path: Path
    files: list[Path]
    folders: list["Folder"]

    @property
    def name(self) -> str:
        return os.fsencode(self.path.name).decode(errors="replace")

    @property
    def every(self) -> list[Path]:
        """All images, the folder's own first."""
        return [*self.files, *(file for folder in self.folders for file in folder.every)]


class SkippedFiles:
    """What is left aside of a folder, counted by kind."""

    def __init__(self) -> None:
        self.suffixes: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self.empty: list[str] = []

    def __str__(self) -> str:
        """One line, empty if nothing is left aside."""
        listed = [f"{count} {suffix}" for suffix, count in self.suffixes.most_common(8)]
        if rest := self.suffixes.total() - sum(count for _, count in self.suffixes.most_common(8)):
            listed.append(f"{rest} others")
        parts = [f"{', '.join(listed)} (not images)"] if listed else []
        parts += [f"{count} {kind}" for kind, count in self.others.items()]
        if self.empty:
            more = f" and {len(self.empty) - 4} more" if len(self.empty) > 4 else ""
            parts.append(f"{len(self.empty)} without images ({', '.join(self.empty[:4])}{more})")
        return escape_control("; ".join(parts))


def list_splits(root: Path, splits: bool = True) -> dict[str, Listing]:
    """Return the data set in `root`: {"": all of it}, or {"train": ..., "test": ...} if it has such folders and
    `splits`. One line tells the names and counts of what is left aside.

    Images in sub-folders of any depth belong to it, also behind links. Each first-level sub-folder is a class, unless
    there are images beside the sub-folders; folders that only hold one folder are passed through. Raises ValueError if
    it is not a data set.
    """
    aside = SkippedFiles()
    tree = scan_tree(root, aside)
    if tree is None or len(tree.every) < 4:
        count = 0 if tree is None else len(tree.every)
        raise ValueError(
            f"path={root} holds {count} images and at least 4 are needed{describe_skipped(aside)}"
        )
    tree = _inside(tree)
    by_name = {folder.name.casefold(): folder for folder in tree.folders}
    train = next((by_name[name] for name in TRAIN if name in by_name), None)
    tests = [by_name[name] for name in TEST if name in by_name]
    found: dict[str, Listing]
    if splits and train is not None and tests:
        training = _listing(_inside(train))
        test, held_out = _fitting(root, train, training, tests)
        found = {"train": training, "test": held_out}
        for other in (part for part in tree.folders if part not in (train, test)):
            aside.others[f"images in {other.name}/"] = len(other.every)
        if tree.files:
            aside.others[f"images beside {train.name}/"] = len(tree.files)
        LOG.info(
            "held out: the %d images in %s/ (splits=false makes such folders classes)",
            len(held_out.files),
            escape_control(test.path.relative_to(root)),
        )
    else:
        found = {"": _listing(tree)}
    if str(aside):
        LOG.info("left aside: %s", aside)
    return found


def scan_tree(
    path: Path, aside: SkippedFiles, above: frozenset[tuple[int, int]] = frozenset()
) -> Folder | None:
    """Return what is in `path` and below, or None without images. Raises Unsafe for files that are not regular."""
    about = path.stat()
    if (here := (about.st_dev, about.st_ino)) in above:
        aside.others["links to a folder that holds them"] += 1
        return None
    files, folders = [], []
    with os.scandir(path) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        file = Path(entry.path)
        if LITTER.fullmatch(entry.name):
            continue
        if entry.name.startswith("."):
            aside.others["hidden"] += 1
        elif entry.is_symlink() and not file.exists():  # a link to nothing, or to itself
            aside.others["dangling links"] += 1
        elif entry.is_dir():
            folders.append(scan_tree(file, aside, above | {here}))
        elif not entry.is_file():
            raise UnsafeFileError(
                f"{escape_control(path)} holds {escape_control(file)}, which is not a regular file; remove it"
            )
        elif is_image(file):
            files.append(file)
        else:
            aside.suffixes[file.suffix.lower() or "without suffix"] += 1
    found = [folder for folder in folders if folder is not None]
    if not files and not found:
        if above:
            aside.empty.append(path.name)
        return None
    numbers = all(re.fullmatch(r"\d+", folder.name) for folder in found)
    found.sort(key=lambda folder: (int(folder.name) if numbers else 0, folder.name))
    return Folder(path, files, found)


def _inside(folder: Folder, classes: Sequence[str] = ()) -> Folder:
    """Pass through folders that only hold one folder, unless that is one of `classes`."""
    while not folder.files and len(folder.folders) == 1 and folder.folders[0].name not in classes:
        folder = folder.folders[0]
    return folder


def _listing(folder: Folder) -> Listing:
    """Return the images of `folder`, with its sub-folders as classes."""
    if not folder.folders:
        return Listing(folder.files, None, [])
    if folder.files:
        LOG.info(
            "%s/ has images beside sub-folders: all %d are read as one set without classes",
            escape_control(folder.name),
            len(folder.every),
        )
        return Listing(folder.every, None, [])
    counts = torch.tensor([len(part.every) for part in folder.folders])
    labels = torch.arange(len(folder.folders)).repeat_interleave(counts)
    return Listing(folder.every, labels, [part.name for part in folder.folders])


def _fitting(
    root: Path, train: Folder, training: Listing, tests: Sequence[Folder]
) -> tuple[Folder, Listing]:
    """Return the first of `tests` whose classes are those of `training`, with its images. Raises ValueError."""
    problems = []
    for test in tests:
        listing = _listing(_inside(test, training.classes))
        unknown = [name for name in listing.classes if name not in training.classes]
        if training.classes and not listing.classes:
            problems.append(
                f"{test.name}/ has no class folders, and {train.name}/ has {len(training.classes)}"
            )
        elif unknown:
            problems.append(
                f"{test.name}/ has other classes than {train.name}/ ({', '.join(unknown[:4])})"
            )
        elif len(listing.files) < 2:
            problems.append(
                f"{test.name}/ holds {len(listing.files)} image, and at least 2 are needed"
            )
        else:
            if missing := [name for name in training.classes if name not in listing.classes]:
                LOG.info(
                    "%s/ has no images of %d classes (%s)",
                    test.name,
                    len(missing),
                    escape_control(", ".join(missing[:4])),
                )
            if listing.labels is not None:
                places = torch.tensor([training.classes.index(name) for name in listing.classes])
                listing = listing._replace(labels=places[listing.labels], classes=training.classes)
            return test, listing
    raise ValueError(
        f"path={root}: {'; '.join(problems)}; try data.path={train.path}, of which a share is held out"
    )


def describe_skipped(aside: SkippedFiles) -> str:
    return f"; left aside: {aside}" if str(aside) else ""
