"""Images in an lmdb, as LSUN has them. Read with lmdb itself: torchvision's class leaves a pickle of the keys in the
working directory, and cannot be sent to worker processes.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_lab.data.image_io import decode_image
from ddpm_lab.data.image_transform import ImageTransform
from ddpm_lab.utils.shell import install_command


@dataclass(frozen=True)
class Database:
    """Every value of an lmdb, in the order of the keys, as `fit` makes it."""

    path: Path
    keys: list[bytes]
    fit: ImageTransform

    @classmethod
    def select(cls, path: Path, fit: ImageTransform) -> "Database":
        """Raises ValueError without lmdb, or what lmdb raises."""
        with _environment(path).begin() as decoder:
            return cls(path, list(decoder.cursor().iternext(keys=True, values=False)), fit)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Tensor:
        key, name = self.keys[index], f"{self.path}: {self.keys[index].decode(errors='replace')}"
        with _environment(self.path).begin() as decoder:
            return self.fit(decode_image(BytesIO(decoder.get(key)), name), name)

    def digest(self) -> str:
        """SHA-256 of the keys, the size of the file, and `fit`: not of the images."""
        size = (self.path / "data.mdb").stat().st_size
        return hashlib.sha256(b"\n".join([repr((size, self.fit)).encode(), *self.keys])).hexdigest()


@lru_cache
def _environment(path: Path) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise ValueError(f"lmdb is not installed; try {install_command('lmdb')}") from error
    return lmdb.open(str(path), readonly=True, lock=False, readahead=False, create=False)


# An open lmdb cannot be taken through a fork: what is forked opens its own, once what it inherited is forgotten.
os.register_at_fork(after_in_child=_environment.cache_clear)
