"""Turns images into a compact store, once: python scripts/prepare_data.py SOURCE TARGET [options]

SOURCE is a folder of images, or a .zip, .tar or .tar.gz of one: with a sub-folder per class or without, or with such
folders in train/ and test/ (or val/). TARGET is a new folder; it appears when all is done. Then:

    python train.py data=store data.path=TARGET

Or looks at every byte of a store: python scripts/prepare_data.py TARGET --check
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import argparse
import logging
import lzma
import os
import re
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ddpm_lab.config.overrides import shell_value
from ddpm_lab.data.image_folder import BAD, ImageFiles, SkipUnreadable, report_skipped, run_count
from ddpm_lab.data.image_transform import infer_transform
from ddpm_lab.data.image_tree import LITTER, list_splits
from ddpm_lab.data.shards import Shards, write_store
from ddpm_lab.utils.errors import UnsafeFileError, escape_control
from ddpm_lab.utils.shell import script_command

CHUNK = 2**20
"""Bytes of pixels that a process decodes at a time"""
UNPACKED = 100, 2**30
"""What is in an archive may take so many times its size, or so many bytes; more is a bomb"""
TOO_LARGE = f"it holds over {UNPACKED[0]} times its size, or more than the disk has room for; unpack it yourself"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("target", type=Path, metavar="TARGET", nargs="?")
    parser.add_argument(
        "--resolution", type=int, help="side of the square images (default: that of the images)"
    )
    parser.add_argument(
        "--channels", type=int, help="1 (grey) or 3 (RGB; default: those of the images)"
    )
    parser.add_argument(
        "--convert", action="store_true", help="scale, crop and recolor images that differ"
    )
    parser.add_argument(
        "--bits", type=int, help="of grey with more than 8 bits, the bits that it uses, such as 12"
    )
    parser.add_argument(
        "--no-splits",
        action="store_false",
        dest="splits",
        help="folders named train and test (or val) are classes",
    )
    parser.add_argument(
        "--background", default="white", help="colour that shows through transparency (white)"
    )
    parser.add_argument(
        "--on-error",
        choices=["error", "skip"],
        default="error",
        help=f"skip leaves out what cannot be used, at most {BAD:.0%}".replace("%", "%%"),
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes that decode (%(default)s)",
    )
    parser.add_argument(
        "--check", action="store_true", help="verify the checksums of the store SOURCE"
    )
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.pop("check"):
            check(options["source"])
        elif options["target"] is None:
            parser.error("TARGET is missing")
        else:
            prepare(**options)
    except (ValueError, OSError) as error:
        told = re.sub(
            r"\bdata\.(convert|resolution|channels|bits|background)\b(=true)?", r"--\1", str(error)
        )
        told = re.sub(r"\bdata\.path=", "SOURCE=", told)
        status = getattr(error, "status", 3 if isinstance(error, OSError) else 2)
        parser.exit(status, f"error: {escape_control(told, lines=True)}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; nothing was written\n")


def check(root: Path) -> None:
    """Raises ValueError that names the first file that is not what was written."""
    parts = [root / "train", root / "test"] if (root / "train").is_dir() else [root]
    for part in parts:
        Shards(part).verify()
    print(f"{root} is as it was written")


def prepare(
    source: Path,
    target: Path,
    resolution: int | None = None,
    channels: int | None = None,
    convert: bool = False,
    background: str = "white",
    bits: int | None = None,
    splits: bool = True,
    on_error: Any = "error",
    workers: int = 0,
) -> None:
    """Writes the store `target`. Raises ValueError that names the file or the option."""
    started = time.perf_counter()
    if target.exists():
        raise ValueError(
            f"TARGET={target} exists, and a store is never overwritten; remove it or name another"
        )
    if workers < 0:
        raise ValueError(f"--workers must be at least 0 (got {workers})")
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"TARGET={target} lies in SOURCE={source}, whose images would be others then; name another"
        )
    if not source.exists():
        raise ValueError(
            f"SOURCE={source} is not there; it is a folder, a .zip, a .tar or a .tar.gz"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        unpacked = Path(scratch, "unpacked")
        try:
            root = source if source.is_dir() else unpack(source, unpacked)
            parts = list_splits(root, splits)
            files = [file for part in parts.values() for file in part.files]
            fit = infer_transform(
                run_count(files, on_error),
                resolution,
                channels,
                convert,
                bits,
                background,
                on_error,
            )
            indices, changes = [], Counter[str]()
            for name, part in parts.items():
                chunks = read(
                    ImageFiles(root, part.files, fit), part.labels, on_error, workers, name, changes
                )
                indices.append(
                    write_store(
                        Path(scratch, "store", name), chunks, part.classes, fit, source.name
                    )
                )
        except ValueError as error:
            kind = UnsafeFileError if isinstance(error, UnsafeFileError) else ValueError
            raise kind(
                str(error)
                .replace(f"path={unpacked}", f"SOURCE={source}")
                .replace(str(unpacked), str(source))
            ) from error
        Path(scratch, "store").rename(target)
    count, seconds = sum(index["count"] for index in indices), time.perf_counter() - started
    size = sum(file.stat().st_size for file in target.rglob("*.npy"))
    if changes:
        print(
            "converted: "
            + ", ".join(f"{number} {kind}" for kind, number in sorted(changes.items()))
        )
    classes = next(iter(parts.values())).classes
    print(
        f"{count} images of {fit.channels}x{fit.side}x{fit.side}"
        + f", {' + '.join(str(index['count']) for index in indices)} in train/ and test/"
        * (len(indices) > 1)
        + f", {len(classes) or 'no'} classes, {size / 2**30:.2f} GiB, in {seconds:.0f} s: "
        f"{count / seconds:.0f} images/s\n  next     {script_command('train')} data=store data.path={shell_value(target)}"
        + " conditioner=label"
        * bool(classes)
    )


def read(
    files: ImageFiles,
    labels: Tensor | None,
    on_error: str,
    workers: int,
    name: str,
    changes: Counter[str],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (n, C, H, W) uint8 and their labels (n,), in order, and count in `changes` what `Fit` did to them.
    Raises ValueError.
    """
    reasons: list[str] = []
    labels = torch.zeros(len(files), dtype=torch.int64) if labels is None else labels
    loader: Any = DataLoader(
        Chunks(files), batch_size=None, num_workers=workers, generator=torch.Generator()
    )
    with tqdm(
        total=len(files), desc=f"preparing {name}".strip(), unit=" images", disable=None
    ) as bar:
        for pixels, index, bad, changed in loader:
            changes.update(changed)
            reasons += bad
            if bad and on_error == "error":
                raise ValueError(bad[0])
            if len(reasons) > BAD * len(files):
                break
            yield pixels, labels[index]
            bar.update(len(index) + len(bad))
    report_skipped(reasons, len(files))


class Chunks(Dataset):
    """Images of `files`, a few at a time: pixels (n, C, H, W) uint8, their numbers (n,), the reasons for those that are
    left out, and the changes to the others.
    """

    def __init__(self, files: ImageFiles) -> None:
        self.files = files
        self.index = torch.arange(len(files)).split(
            max(1, CHUNK // torch.Size(files.fit.shape).numel())
        )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor, list[str], dict[str, int]]:
        source, index, counts = (
            SkipUnreadable(self.files),
            self.index[place],
            self.files.fit.changes.counts,
        )
        counts.clear()
        pixels = torch.stack([source[i] for i in index.tolist()])
        good = torch.tensor([i not in source.bad for i in index.tolist()])
        return pixels[good], index[good], [*source.bad.values()], dict(counts)


def unpack(archive: Path, into: Path) -> Path:
    """Unpack the files of `archive` into the folder `into`, and return it. Raises ValueError that names the member."""
    try:
        (unzip if zipfile.is_zipfile(archive) else untar)(archive, into)
    except (
        UnsafeFileError,
        RuntimeError,
        EOFError,
        KeyError,
        OverflowError,
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        kind = (
            UnsafeFileError
            if isinstance(error, UnsafeFileError | tarfile.FilterError)
            else ValueError
        )
        raise kind(
            f"SOURCE={archive} cannot be unpacked as a .zip, .tar or .tar.gz ({error})"
        ) from error
    if not into.is_dir():
        raise ValueError(f"SOURCE={archive} holds no images")
    return into


class Member(tarfile.TarInfo):
    """One whose name and attributes do not fill the memory."""

    def _proc_member(self, tar: Any) -> Any:
        if self.size > CHUNK and self.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE):
            raise UnsafeFileError(f"it has a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def untar(archive: Path, into: Path) -> None:
    size, limit = 0, most(archive, into)
    bar = tqdm.wrapattr(
        archive.open("rb"), "read", total=archive.stat().st_size, desc="unpacking", disable=None
    )
    with bar as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=Member) as tar:
        for member in tar:
            if (size := size + member.size) > limit:
                raise UnsafeFileError(TOO_LARGE)
            if wanted(member.name) and not member.isdir():
                if member.name.startswith(
                    "/"
                ):  # which the filter would take for a name in the folder
                    raise UnsafeFileError(f"{member.name} leads out of it")
                tar.extract(
                    member, into, filter="data"
                )  # which refuses what would leave the folder


def unzip(archive: Path, into: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = [
            member for member in file.infolist() if wanted(member.filename) and not member.is_dir()
        ]
        if sum(member.file_size for member in members) > most(
            archive, into
        ):  # no more than this is read of each
            raise UnsafeFileError(TOO_LARGE)
        for member in members:
            path = PurePosixPath(member.filename)
            odd = stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG)
            if path.is_absolute() or ".." in path.parts or odd:
                raise UnsafeFileError(f"{path} is a link or a device, or leads out of it")
        for member in tqdm(members, "unpacking", disable=None):
            file.extract(member, into)


def wanted(name: str) -> bool:
    """Return whether a member is unpacked: not if it is hidden, or left behind by an operating system."""
    parts = [part for part in PurePosixPath(name).parts if part not in (".", "..", "/")]
    return not any(part.startswith(".") or LITTER.fullmatch(part) for part in parts)


def most(archive: Path, into: Path) -> int:
    """Bytes that it may unpack to."""
    times, floor = UNPACKED
    return min(max(times * archive.stat().st_size, floor), shutil.disk_usage(into.parent).free)


if __name__ == "__main__":
    main()
