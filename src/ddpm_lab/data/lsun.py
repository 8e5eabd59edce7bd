"""Images in an LMDB file, the format of LSUN.

torchvision's class cannot be pickled, and writes a pickle of the keys to the working directory.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_lab.data.datasets import Source
from ddpm_lab.data.image_io import decode_image
from ddpm_lab.data.image_transform import ImageTransform
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.shell import optional_package


@dataclass(frozen=True)
class Database(Source):
    """The images of an LMDB file in the order of their keys."""

    path: Path
    keys: list[bytes]
    transform: ImageTransform

    @classmethod
    def open(cls, path: Path, transform: ImageTransform) -> "Database":
        """Raises ValueError if lmdb is not installed, and the errors of lmdb."""
        with _environment(path).begin() as transaction:
            keys = list(transaction.cursor().iternext(keys=True, values=False))
        return cls(path, keys, transform)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Tensor:
        key = self.keys[index]
        name = f"{self.path}: {key.decode(errors='replace')}"
        with _environment(self.path).begin() as transaction:
            return self.transform(decode_image(BytesIO(transaction.get(key)), name), name)

    def digest(self) -> str:
        """Return the SHA-256 of the keys, the file size and the transform, not of the images."""
        size = (self.path / "data.mdb").stat().st_size
        header = repr((size, self.transform)).encode()
        return hashlib.sha256(b"\n".join([header, *self.keys])).hexdigest()


@lru_cache
def _environment(path: Path) -> Any:
    with optional_package("lmdb", "data=lsun", UserError):
        import lmdb
    return lmdb.open(str(path), readonly=True, lock=False, readahead=False, create=False)


# LMDB environments do not survive a fork: a child process opens its own.
os.register_at_fork(after_in_child=_environment.cache_clear)
