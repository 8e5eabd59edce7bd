"""Atomic file writes, and locks of directories."""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm_lab.utils.errors import ResourceError, UserError

LOG = logging.getLogger(__name__)
PARTIAL = ".partial"
LOCKED = {errno.EACCES, errno.EAGAIN}
"""Errors if another process owns the lock; others come from file systems without locks"""
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}
"""Errors of file systems, such as some network ones, that cannot flush a directory"""


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a temporary file, which replaces `file` after an fsync, or is removed on failure."""
    partial = file.with_name(f".{file.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        _fsync(partial)
        partial.replace(file)
        _fsync(file.parent)
    finally:
        partial.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def write_text(file: Path, text: str) -> None:
    """Write `text` to `file` atomically."""
    with atomic_write(file) as partial:
        partial.write_text(text)


def write_json(file: Path, content: Any) -> None:
    """Write `content` as indented JSON to `file` atomically."""
    write_text(file, json.dumps(content, indent=2) + "\n")


@contextmanager
def directory_lock(folder: Path, activity: str) -> Iterator[None]:
    """Lock `folder` for an `activity` such as "training". Raises UserError if it is locked."""
    # A record lock, unlike flock, is not inherited by data workers, which may outlive this process.
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in LOCKED:
                raise UserError(
                    f"{folder}: another process is {activity} in it ({_lock_holder(folder)}); "
                    "wait for it, or choose another folder"
                ) from error
            reason = error.strerror
            LOG.warning(
                "warning: %s cannot be locked (%s): do not start a second run in it", folder, reason
            )
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"process": os.getpid(), "on": socket.gethostname(), "since": since}
        file.write(json.dumps(holder))
        file.flush()
        try:
            yield
        finally:
            (folder / ".lock").unlink(missing_ok=True)


def is_locked(folder: Path) -> bool:
    """Return True if another process owns the lock of `folder`."""
    try:
        with (folder / ".lock").open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in LOCKED
    return False


def _lock_holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / ".lock").read_text()[:1000])
        return ", ".join(f"{key} {value}" for key, value in holder.items())
    except (OSError, ValueError, AttributeError):
        return "of unknown number"


def make_directory(folder: str) -> Path:
    """Create the output directory `folder` if it is missing. Raises ResourceError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"out={folder} cannot be created ({error.strerror}); choose another folder"
        ) from error
    return Path(folder)
