"""Turns pictures into a compact store, once: python scripts/prepare_data.py SOURCE TARGET [options]

SOURCE is a folder of pictures, or a .zip, .tar or .tar.gz of one: with a sub-folder per class or without, or with such
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
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ddpm_lab.commands.cells import in_shell
from ddpm_lab.data.decoding import Fit
from ddpm_lab.data.folder import BAD, SUFFIXES, Files, Lenient, leave_out, listed, side_of, sub_folders
from ddpm_lab.data.store import Shards, write
from ddpm_lab.errors import Unsafe, shown
from ddpm_lab.shell import program

CHUNK = 2**20
"""Bytes of pixels that a process decodes at a time"""
UNPACKED = 100, 2**30
"""What is in an archive may take so many times its size, or so many bytes; more is a bomb"""
TOO_LARGE = f"it holds over {UNPACKED[0]} times its size, or more than the disk has room for; unpack it yourself"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("target", type=Path, metavar="TARGET", nargs="?")
    parser.add_argument("--resolution", type=int, help="side of the square pictures (default: that of the first)")
    parser.add_argument("--channels", type=int, default=3, help="1 (grey) or 3 (RGB, the default)")
    parser.add_argument("--convert", action="store_true", help="scale, crop and recolour pictures that differ")
    parser.add_argument("--background", default="white", help="colour that shows through transparency (white)")
    parser.add_argument("--on-bad", choices=["error", "skip"], default="error",
                        help=f"skip leaves out what cannot be used, at most {BAD:.0%}".replace("%", "%%"))  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode (%(default)s)")
    parser.add_argument("--check", action="store_true", help="verify the checksums of the store SOURCE")
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
        told = re.sub(r"\bdata\.(convert|resolution|channels)\b(=true)?", r"--\1", str(error))
        status = getattr(error, "status", 3 if isinstance(error, OSError) else 2)
        parser.exit(status, f"error: {shown(told, lines=True)}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; nothing was written\n")


def check(root: Path) -> None:
    """Raises ValueError that names the first file that is not what was written."""
    parts = [root / "train", root / "test"] if (root / "train").is_dir() else [root]
    for part in parts:
        Shards(part).verify()
    print(f"{root} is as it was written")


def prepare(source: Path, target: Path, resolution: int | None = None, channels: int = 3, convert: bool = False,
            background: str = "white", on_bad: Any = "error", workers: int = 0) -> None:  # fmt: skip
    """Writes the store `target`. Raises ValueError that names the file or the option."""
    started = time.perf_counter()
    if target.exists():
        raise ValueError(f"TARGET={target} exists, and a store is never overwritten; remove it or name another")
    if workers < 0:
        raise ValueError(f"--workers must be at least 0 (got {workers})")
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"TARGET={target} lies in SOURCE={source}, whose pictures would be others then; name another")
    if not source.exists():
        raise ValueError(f"SOURCE={source} is not there; it is a folder, a .zip, a .tar or a .tar.gz")
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        unpacked = Path(scratch, "unpacked")
        try:
            parts = parts_of(source if source.is_dir() else unpack(source, unpacked))
            listings = {name: listed(part) for name, part in parts.items()}
            train, *others = listings.values()
            if any(other.classes != train.classes for other in others):
                raise ValueError(f"SOURCE={source} has other classes in train/ than beside it")
            side = side_of(train.files, on_bad) if resolution is None else resolution
            fit = Fit(side, channels, convert, background)
            indices = []
            for name, listing in listings.items():
                chunks = read(Files(parts[name], listing.files, fit), listing.labels, on_bad, workers, name)
                indices.append(write(Path(scratch, "store", name), chunks, listing.classes, fit, source.name))
        except ValueError as error:
            kind = Unsafe if isinstance(error, Unsafe) else ValueError
            raise kind(str(error).replace(str(unpacked), str(source))) from error
        Path(scratch, "store").rename(target)
    count, seconds = sum(index["count"] for index in indices), time.perf_counter() - started
    size = sum(file.stat().st_size for file in target.rglob("*.npy"))
    print(f"{count} pictures of {channels}x{side}x{side}"
          + f", {' + '.join(str(index['count']) for index in indices)} in train/ and test/" * (len(indices) > 1)
          + f", {len(train.classes) or 'no'} classes, {size / 2**30:.2f} GiB, in {seconds:.0f} s: "
          f"{count / seconds:.0f} pictures/s\n  next     {program('train')} data=store data.path={in_shell(target)}"
          + " conditioner=label" * bool(train.classes))  # fmt: skip


def parts_of(root: Path) -> dict[str, Path]:
    """By their place in the store: "train" and "test", or "", which is all."""
    found = {part.name: part for part in sub_folders(root)}
    tests = [found[name] for name in ("test", "val") if name in found]
    if "train" not in found or not tests:
        return {"": root}
    if len(found) > 2:
        raise ValueError(f"SOURCE={root} has {', '.join(found)}; leave there train and one of test and val")
    return {"train": found["train"], "test": tests[0]}


def read(files: Files, labels: Tensor | None, on_bad: str, workers: int, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures (n, C, H, W) uint8 and their labels (n,), in order. Raises ValueError."""
    reasons: list[str] = []
    labels = torch.zeros(len(files), dtype=torch.int64) if labels is None else labels
    loader: Any = DataLoader(Chunks(files), batch_size=None, num_workers=workers, generator=torch.Generator())
    with tqdm(total=len(files), desc=f"preparing {name}".strip(), unit=" pictures", disable=None) as bar:
        for pixels, index, bad in loader:
            reasons += bad
            if bad and on_bad == "error":
                raise ValueError(bad[0])
            if len(reasons) > BAD * len(files):
                break
            yield pixels, labels[index]
            bar.update(len(index) + len(bad))
    leave_out(reasons, len(files))


class Chunks(Dataset):
    """Pictures of `files`, a few at a time: (n, C, H, W) uint8, which (n,), and why others are left out."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.index = torch.arange(len(files)).split(max(1, CHUNK // torch.Size(files.fit.shape).numel()))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor, list[str]]:
        source, index = Lenient(self.files), self.index[place]
        pixels = torch.stack([source[i] for i in index.tolist()])
        good = torch.tensor([i not in source.bad for i in index.tolist()])
        return pixels[good], index[good], [*source.bad.values()]


def unpack(archive: Path, into: Path) -> Path:
    """The pictures of `archive`: the folder in `into` that holds them. Raises ValueError that names the member."""
    try:
        (unzip if zipfile.is_zipfile(archive) else untar)(archive, into)
    except (Unsafe, RuntimeError, EOFError, KeyError, OverflowError, zipfile.BadZipFile, tarfile.TarError, zlib.error,
            lzma.LZMAError) as error:  # fmt: skip
        kind = Unsafe if isinstance(error, Unsafe | tarfile.FilterError) else ValueError
        raise kind(f"SOURCE={archive} cannot be unpacked as a .zip, .tar or .tar.gz ({error})") from error
    root = into
    while root.is_dir() and len(inside := [*root.iterdir()]) == 1 and inside[0].is_dir():
        root = inside[0]
    if root == into and not into.is_dir():
        raise ValueError(f"SOURCE={archive} holds no pictures; looked for {' '.join(sorted(SUFFIXES))}")
    return root


class Member(tarfile.TarInfo):
    """One whose name and attributes do not fill the memory."""

    def _proc_member(self, tar: Any) -> Any:
        if self.size > CHUNK and self.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE):
            raise Unsafe(f"it has a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def untar(archive: Path, into: Path) -> None:
    size, limit = 0, most(archive, into)
    bar = tqdm.wrapattr(archive.open("rb"), "read", total=archive.stat().st_size, desc="unpacking", disable=None)
    with bar as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=Member) as tar:
        for member in tar:
            if (size := size + member.size) > limit:
                raise Unsafe(TOO_LARGE)
            if wanted(member.name) and not member.isdir():
                if member.name.startswith("/"):  # which the filter would take for a name in the folder
                    raise Unsafe(f"{member.name} leads out of it")
                tar.extract(member, into, filter="data")  # which refuses what would leave the folder


def unzip(archive: Path, into: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = [member for member in file.infolist() if wanted(member.filename) and not member.is_dir()]
        if sum(member.file_size for member in members) > most(archive, into):  # no more than this is read of each
            raise Unsafe(TOO_LARGE)
        for member in members:
            path = PurePosixPath(member.filename)
            odd = stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG)
            if path.is_absolute() or ".." in path.parts or odd:
                raise Unsafe(f"{path} is a link or a device, or leads out of it")
        for member in tqdm(members, "unpacking", disable=None):
            file.extract(member, into)


def wanted(name: str) -> bool:
    """Whether a member is a picture. Hidden ones are not, such as a Mac's."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def most(archive: Path, into: Path) -> int:
    """Bytes that it may unpack to."""
    times, floor = UNPACKED
    return min(max(times * archive.stat().st_size, floor), shutil.disk_usage(into.parent).free)


if __name__ == "__main__":
    main()
