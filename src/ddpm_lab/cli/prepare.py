"""python prepare.py SOURCE TARGET"""

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ddpm_lab.config.overrides import shell_value
from ddpm_lab.data.image_folder import MAX_SKIPPED, ImageFiles, inspect_files, report_skipped
from ddpm_lab.data.image_transform import Resolution, infer_transform
from ddpm_lab.data.image_tree import LITTER, list_splits
from ddpm_lab.data.shards import Shards, write_store
from ddpm_lab.utils.errors import UnsafeFileError, escape_control
from ddpm_lab.utils.shell import script_command

HELP = """Convert images to a compact store.

SOURCE is a folder of images, or a .zip, .tar or .tar.gz of one: with or without a subfolder per
class, or with such folders in train/ and test/ (or val/). TARGET is a new folder, which appears
once it is complete. Then:

    {train} data=store data.path=TARGET

To verify the checksums of a store:

    {prepare} TARGET --check
"""
CHUNK = 2**20
"""Bytes of pixels per batch of a decoding process"""
UNPACKED = 100, 2**30
"""Limit of an unpacked archive: the larger of a multiple of its size and a number of bytes"""
TOO_LARGE = (
    f"it unpacks to over {UNPACKED[0]} times its size, or does not fit on the disk; unpack it "
    "yourself"
)


def create_parser() -> argparse.ArgumentParser:
    help = HELP.format(train=script_command("train"), prepare=script_command("prepare"))
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=help, formatter_class=layout)
    add, share = parser.add_argument, f"{MAX_SKIPPED:.0%}".replace("%", "%%")
    add("source", type=Path, metavar="SOURCE")
    add("target", type=Path, metavar="TARGET", nargs="?")
    help = "side of square images, or HEIGHT,WIDTH (default: those of the images)"
    add("--resolution", type=parse_resolution, help=help)
    help = "1 (gray) or 3 (RGB), with alpha 2 or 4 (default: those of the images)"
    add("--channels", type=int, help=help)
    add("--convert", action="store_true", help="scale, crop and recolor images that differ")
    add("--bits", type=int, help="used bits of gray with more than 8 bits, such as 12")
    help = "folders named train and test (or val) are classes"
    add("--val-path", type=Path, metavar="DIR", help="folder of the held-out images")
    add("--no-splits", action="store_false", dest="splits", help=help)
    add("--background", default="white", help="color behind transparent pixels (white)")
    help = f"skip leaves out unusable images, at most {share}"
    add("--on-error", choices=["error", "skip"], default="error", help=help)
    workers = os.cpu_count() or 1
    add("--workers", type=int, default=workers, help="decoding processes (%(default)s)")
    add("--check", action="store_true", help="verify the checksums of the store SOURCE")
    return parser


def parse_resolution(text: str) -> Resolution:
    """Return the resolution in `text`, such as 64 or 48,64."""
    try:
        height, *width = map(int, text.strip("[]").split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not N or HEIGHT,WIDTH") from error
    return [height, *width] if width else height


def main() -> None:
    """Write or check the store that the arguments name; end with a line for mistakes."""
    parser = create_parser()
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
        keys = r"\bdata\.(convert|resolution|channels|bits|background)\b(=true)?"
        message = re.sub(r"\bdata\.path=", "SOURCE=", re.sub(keys, r"--\1", str(error)))
        status = getattr(error, "status", 3 if isinstance(error, OSError) else 2)
        parser.exit(status, f"error: {escape_control(message, lines=True)}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; nothing was written\n")


def check(root: Path) -> None:
    """Verify a store. Raises ValueError that names the first file with another checksum."""
    parts = [root / "train", root / "test"] if (root / "train").is_dir() else [root]
    for part in parts:
        Shards(part).verify()
    print(f"{root} is intact")


def prepare(
    source: Path,
    target: Path,
    resolution: Resolution | None = None,
    channels: int | None = None,
    convert: bool = False,
    background: str = "white",
    bits: int | None = None,
    splits: bool = True,
    val_path: Path | None = None,
    on_error: Any = "error",
    workers: int = 0,
) -> None:
    """Write the store `target`. Raises ValueError that names the file or the option."""
    started = time.perf_counter()
    check_arguments(source, target, workers)
    target.parent.mkdir(parents=True, exist_ok=True)
    indices, changes = [], Counter[str]()
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        store, unpacked = Path(scratch, "store"), Path(scratch, "unpacked")
        with replace_path(unpacked, source):
            root = source if source.is_dir() else unpack(source, unpacked)
            parts = list_splits(root, splits, val_path)
            infos = inspect_files(
                [file for part in parts.values() for file in part.files], on_error
            )
            transform = infer_transform(
                infos, resolution, channels, convert, bits, background, on_error
            )
            for name, part in parts.items():
                files = ImageFiles(root, part.files, transform)
                batches = read(files, part.labels, on_error, workers, name, changes)
                index = write_store(store / name, batches, part.classes, transform, source.name)
                indices.append(index)
        store.rename(target)
    if changes:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(changes.items()))
        print(f"converted: {kinds}")
    summarize(target, indices, time.perf_counter() - started)


def check_arguments(source: Path, target: Path, workers: int) -> None:
    if target.exists():
        raise ValueError(
            f"TARGET={target} exists, and a store is never overwritten; remove it or choose another"
        )
    if workers < 0:
        raise ValueError(f"--workers must be at least 0 (got {workers})")
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"TARGET={target} is inside SOURCE={source}; choose another")
    if source.suffix in (".npy", ".npz"):
        raise ValueError(
            f"SOURCE={source} is an array, which needs no preparation; try it as it is: "
            f"{script_command('train')} data=array"
        )
    if not source.exists():
        raise ValueError(
            f"SOURCE={source} does not exist; it must be a folder, a .zip, a .tar or a .tar.gz"
        )


@contextmanager
def replace_path(unpacked: Path, source: Path) -> Iterator[None]:
    """Name `source` in errors about the unpacked files."""
    try:
        yield
    except ValueError as error:
        kind = UnsafeFileError if isinstance(error, UnsafeFileError) else ValueError
        message = str(error).replace(f"path={unpacked}", f"SOURCE={source}")
        raise kind(message.replace(str(unpacked), str(source))) from error


def summarize(target: Path, indices: Sequence[dict[str, Any]], seconds: float) -> None:
    """Print the counts, the speed and the next command."""
    counts, classes = [index["count"] for index in indices], indices[0]["classes"]
    shape = "x".join(map(str, indices[0]["shape"]))
    splits = f", {' + '.join(map(str, counts))} in train/ and test/" if len(counts) > 1 else ""
    size = sum(file.stat().st_size for file in target.rglob("*.npy")) / 2**30
    print(
        f"{sum(counts)} images of {shape}{splits}, {len(classes) or 'no'} classes, {size:.2f} GiB, "
        f"in {seconds:.0f} s: {sum(counts) / seconds:.0f} images/s"
    )
    command = f"{script_command('train')} data=store data.path={shell_value(target)}"
    print(f"  next     {command}{' conditioner=label' * bool(classes)}")


def read(
    files: ImageFiles,
    labels: Tensor | None,
    on_error: str,
    workers: int,
    name: str,
    changes: Counter[str],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (n, C, H, W) uint8 and their labels (n,) in order, and count `changes`.

    Raises ValueError for unusable images, see `report_skipped`.
    """
    errors: list[str] = []
    labels = torch.zeros(len(files), dtype=torch.int64) if labels is None else labels
    chunks = Chunks(files)
    loader: Any = DataLoader(
        chunks, batch_size=None, num_workers=workers, generator=torch.Generator()
    )
    description = f"preparing {name}".strip()
    with tqdm(total=len(files), desc=description, unit=" images", disable=None) as bar:
        for pixels, index, chunk_errors, chunk_changes in loader:
            changes.update(chunk_changes)
            errors += chunk_errors
            if chunk_errors and on_error == "error":
                raise ValueError(chunk_errors[0])
            if len(errors) > MAX_SKIPPED * len(files):
                break
            yield pixels, labels[index]
            bar.update(len(index) + len(chunk_errors))
    report_skipped(errors, len(files))


class Chunks(Dataset):
    """A few images of `files` at a time.

    Items are pixels (n, C, H, W) uint8, indices (n,), the errors of unusable images, and the
    changes to the others.
    """

    def __init__(self, files: ImageFiles) -> None:
        self.files = files
        size = max(1, CHUNK // torch.Size(files.transform.shape).numel())
        self.indices = torch.arange(len(files)).split(size)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, list[str], dict[str, int]]:
        index, errors = self.indices[number], dict[int, str]()
        source = replace(self.files, errors=errors)
        counts = source.transform.changes
        counts.clear()
        pixels = torch.stack([source[i] for i in index.tolist()])
        usable = torch.tensor([i not in errors for i in index.tolist()])
        return pixels[usable], index[usable], [*errors.values()], dict(counts)


def unpack(archive: Path, into: Path) -> Path:
    """Unpack `archive` into the new folder `into`. Raises ValueError that names the member."""
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
        unsafe = isinstance(error, UnsafeFileError | tarfile.FilterError)
        message = f"SOURCE={archive} cannot be unpacked as a .zip, .tar or .tar.gz ({error})"
        raise (UnsafeFileError if unsafe else ValueError)(message) from error
    if not into.is_dir():
        raise ValueError(f"SOURCE={archive} contains no images")
    return into


class Member(tarfile.TarInfo):
    """A member of a tar whose name and attributes have a limited size."""

    def _proc_member(self, tar: Any) -> Any:
        if self.size > CHUNK and self.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE):
            raise UnsafeFileError(f"it has a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def untar(archive: Path, into: Path) -> None:
    size, limit = 0, max_size(archive, into)
    total = archive.stat().st_size
    bar = tqdm.wrapattr(archive.open("rb"), "read", total=total, desc="unpacking", disable=None)
    with bar as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=Member) as tar:
        for member in tar:
            if (size := size + member.size) > limit:
                raise UnsafeFileError(TOO_LARGE)
            if is_unpacked(member.name) and not member.isdir():
                if member.name.startswith("/"):  # the filter would strip it
                    raise UnsafeFileError(f"{member.name} points outside it")
                tar.extract(member, into, filter="data")  # refuses paths out of the folder


def unzip(archive: Path, into: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = [
            member
            for member in file.infolist()
            if is_unpacked(member.filename) and not member.is_dir()
        ]
        # The declared sizes limit what is read of each member.
        if sum(member.file_size for member in members) > max_size(archive, into):
            raise UnsafeFileError(TOO_LARGE)
        for member in members:
            path = PurePosixPath(member.filename)
            special = stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG)
            if path.is_absolute() or ".." in path.parts or special:
                raise UnsafeFileError(f"{path} is a link, a device or outside it")
        for member in tqdm(members, "unpacking", disable=None):
            file.extract(member, into)


def is_unpacked(name: str) -> bool:
    """Return whether a member is neither hidden nor left behind by an operating system."""
    parts = [part for part in PurePosixPath(name).parts if part not in (".", "..", "/")]
    return not any(part.startswith(".") or LITTER.fullmatch(part) for part in parts)


def max_size(archive: Path, into: Path) -> int:
    """Return the largest number of bytes that `archive` may unpack to."""
    multiple, floor = UNPACKED
    free = shutil.disk_usage(into.parent).free
    return min(max(multiple * archive.stat().st_size, floor), free)
