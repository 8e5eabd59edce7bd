"""SHA-256 of texts, files and tensors, in hexadecimal."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def sha256_of_text(text: str) -> str:
    """Return the digest of `text` in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of_file(file: Path) -> str:
    """Return the digest of the content of `file`, which is read in blocks."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_tensors(tensors: Mapping[str, "Tensor"], header: str = "") -> str:
    """Return the digest of `header` and of the names, dtypes, shapes and values of `tensors`.

    The order of the names and the device of the tensors do not matter.
    """
    import torch

    digest = hashlib.sha256(header.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
