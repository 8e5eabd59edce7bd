"""Tensors in files of other codebases. Nothing in a file is executed."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lab.utils.errors import CorruptFileError, UnsafeFileError, UserError

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


class _Record:
    """Stands for an object of any class of a file; it keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...


def read_file(file: Path) -> dict[str, Any]:
    """Return the content of a file of tensors, which stay in the file until they are used.

    Objects of other classes are replaced by empty records. Raises CorruptFileError,
    UnsafeFileError, and UserError if the file does not exist.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist")
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, "pt") as stream:
                return {name: stream.get_tensor(name) for name in sorted(stream.keys())}
        content = _unpickle(file)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damaged archives and pickles raise almost any type
        raise CorruptFileError(
            f"{file} is not a file of tensors, or is truncated ({type(error).__name__})"
        ) from error
    if not isinstance(content, Mapping):
        raise CorruptFileError(f"{file} has no weights (its content is {type(content).__name__})")
    return dict(content)


def _unpickle(file: Path) -> Any:
    with file.open("rb") as stream:
        start = stream.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise CorruptFileError(f"{file} is a pointer of Git LFS; try: git lfs pull")
    if not start.startswith((b"PK", b"\x80")):  # zip, or pickle of older versions
        raise CorruptFileError(f"{file} is not a file of tensors")
    is_zip = zipfile.is_zipfile(file)
    records: list[Any] = []
    if is_zip:
        with zipfile.ZipFile(file) as archive:  # torch.load does not verify checksums
            if part := archive.testzip():
                raise CorruptFileError(f"{file} is damaged: {part} does not match its checksum")
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        records = [(type(_Record.__name__, (_Record,), {}), name) for name in unknown]
    try:
        with torch.serialization.safe_globals(records):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(
            f"{file} contains more than tensors and plain types; nothing in it was executed"
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file. Raises CorruptFileError and UserError."""
    if not file.is_file():
        raise UserError(f"{file.parent} has no {file.name}")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{file} is not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{file} is not a JSON object")
    return content


def find_weights(folder: Path, stem: str = "diffusion_pytorch_model") -> Path:
    """Return the file of weights in a folder of diffusers. Raises UserError."""
    files = [folder / f"{stem}{suffix}" for suffix in (".safetensors", ".bin")]
    if existing := [file for file in files if file.is_file()]:
        return existing[0]
    shards = sorted(folder.glob(f"{stem}*.index.json"))
    if shards:
        raise UserError(f"{folder} has weights in several files ({shards[0].name}); merge them")
    halves = sorted(folder.glob(f"{stem}.*.safetensors"))
    hint = f"; try renaming {halves[0].name}" if halves else ""
    raise UserError(f"{folder} has no {files[0].name}{hint}")


def select_tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of `content` that have names."""
    return {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
