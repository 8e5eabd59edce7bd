"""Checkpoints as torch writes them, a zip of a pickle and tensors: read only where they ask for nothing but tensors."""

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

from ddpm_lab.errors import Damaged, Unsafe, shown

ITEMS = {"Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
         "Bool": 1}  # fmt: skip
"""Bytes of a number, by what its storage is called in a checkpoint"""
NAMES = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", *(f"torch.{kind}Storage" for kind in ITEMS)}
"""All that a checkpoint of ours asks for"""
ENTRIES = r"[^/\\]+/(data\.pkl|data/\d+|byteorder|version|\.\w+(/\w+)?)"


class _Nothing:
    """In place of whatever a pickle asks for."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Reader(pickle._Unpickler):  # type: ignore[name-defined, misc]  # the one in C takes what memory a pickle names
    """Finds what a pickle asks for, and does none of it."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.storages: list[Any] = []

    def find_class(self, module: str, name: str) -> Any:
        if (full := f"{module}.{name}") not in NAMES:
            raise Unsafe(f"it asks for {shown(full)}, which no checkpoint needs")
        return type(full, (_Nothing,), {})

    def persistent_load(self, pid: Any) -> Any:
        self.storages.append(pid)
        return _Nothing()


def _directory(file: Path) -> int:
    """Where the zip says that its directory is, if that is where it ends; else -1. torch believes what is said, Python
    where it ends: they must be one.
    """
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 98))
        tail = stream.read().rjust(98, b"\0")
    at, length, start = size - 22, *struct.unpack("<2L", tail[-10:-2])
    if tail[-42:-38] == b"PK\6\7":  # of the form for large files, which torch always writes
        at, length, start = size - 98, *struct.unpack("<2Q", tail[40:56])
        if struct.unpack("<Q", tail[64:72]) != (at,) or tail[:4] != b"PK\6\6":
            return -1
    return start if start + length == at else -1


def unpickled(file: Path) -> Any:
    """What a checkpoint holds, a regular file. Raises Damaged and Unsafe."""
    import torch

    with file.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise Damaged(f"{shown(file)} is a pointer of Git LFS, not the file that it stands for; try: git lfs pull")
    if head[:1] == b"\x80" or re.match(rb"\(?[ci][a-z_]+", head):
        raise Unsafe(f"{shown(file)} is a bare pickle, which may run anything; no checkpoint of ours is one")
    if not head.startswith(b"PK\x03\x04"):
        raise Damaged(f"{shown(file)} is {'no checkpoint, or is damaged from its first byte on' if head else 'empty'}")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            odd = len({name.partition("/")[0] for name in entries}) > 1 or len(entries) < len(archive.infolist())
            odd |= any(entry.compress_type or not re.fullmatch(ENTRIES, name) for name, entry in entries.items())
            odd |= archive.start_dir != _directory(file)
            odd |= sum(entry.file_size for entry in entries.values()) > file.stat().st_size or bool(archive.comment)
            if odd:
                raise Unsafe("it is packed as no checkpoint is")
            if bad := archive.testzip():
                raise Damaged(f"{shown(file)} is damaged: {bad} is not what was written")
            root = next(iter(entries)).partition("/")[0]
            with archive.open(f"{root}/data.pkl") as stream:
                reader = _Reader(stream)
                reader.load()
            for _, kind, key, _, count in reader.storages:
                size = ITEMS[kind.__name__.removeprefix("torch.").removesuffix("Storage")]
                if entries[f"{root}/data/{key}"].file_size != size * count:
                    raise Unsafe("its tensors are not as large as it says")
        return torch.load(file, map_location="cpu", weights_only=True)
    except Damaged:
        raise
    except Unsafe as error:
        raise Unsafe(f"{shown(file)} is no checkpoint: {error}") from error
    except Exception as error:  # broken archives and pickles make their readers raise nearly anything
        raise Damaged(f"{shown(file)} cannot be read: it is cut short or damaged ({type(error).__name__})") from error
