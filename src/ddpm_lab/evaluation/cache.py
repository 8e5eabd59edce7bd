"""A cache on disk of what evaluations compute from the data alone."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ddpm_lab.utils.distributed import all_gather, is_rank_zero

T = TypeVar("T")


def cache_dir() -> Path:
    """Return the cache: $DDPM_LAB_CACHE, or ~/.cache/ddpm-lab."""
    return Path(os.environ.get("DDPM_LAB_CACHE") or "~/.cache/ddpm-lab").expanduser()


def cached(
    file: Path,
    compute: Callable[[], T],
    read: Callable[[Path], T],
    write: Callable[[T, Path], Any],
) -> T:
    """Return the content of `file`, or compute it if it is missing or damaged for any process."""
    content: T | None = None
    with suppress(OSError, ValueError):
        content = read(file)
    if not all(all_gather([content is not None])):
        content = compute()
        if is_rank_zero():
            with suppress(OSError):  # a cache that cannot be written is not an error
                file.parent.mkdir(parents=True, exist_ok=True)
                write(content, file)
    assert content is not None
    return content
