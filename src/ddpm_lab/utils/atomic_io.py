"""Files that are whole or not there, and folders that one process fills at a time."""

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

from ddpm_lab.utils.errors import ResourceError, UserError

LOG = logging.getLogger(__name__)
PARTIAL = ".partial"
HELD = {errno.EACCES, errno.EAGAIN}
"""Errors of a lock that another process holds; others come from file systems without locks"""
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}
"""Errors of file systems, such as some network ones, that cannot flush a folder"""


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to. What is there in the end is on the disk, and then takes the place of `file`;
    where writing fails nothing is left of it, and `file` is as it was.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        _fsync(partial)
        partial.replace(file)
        _fsync(file.parent)
    finally:
        partial.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    """On the disk, not only on the way there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def write_text(file: Path, text: str) -> None:
    """`text` to `file`, as `replaced` does."""
    with atomic_write(file) as partial:
        partial.write_text(text)


@contextmanager
def directory_lock(folder: Path, what: str) -> Iterator[None]:
    """Raises UserError if another process is doing `what` in `folder`, which it names."""
    # A record lock, unlike flock, is not inherited by processes that read data and may live a little longer.
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                raise UserError(
                    f"{folder}: another process is {what} in it ({lock_holder(folder)}); wait for it, or "
                    "choose another folder"
                ) from error
            LOG.warning(
                "warning: %s cannot be locked (%s); start no second run in it",
                folder,
                error.strerror,
            )
        file.truncate(0)
        about = {
            "process": os.getpid(),
            "on": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        file.write(json.dumps(about))
        file.flush()
        try:
            yield
        finally:
            (folder / ".lock").unlink(missing_ok=True)


def is_locked(folder: Path) -> bool:
    """Whether another process has `folder` to itself."""
    try:
        with (folder / ".lock").open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in HELD
    return False


def lock_holder(folder: Path) -> str:
    """What the lock of `folder` says of who has it."""
    try:
        about = json.loads((folder / ".lock").read_text()[:1000])
        return ", ".join(f"{key} {value}" for key, value in about.items())
    except (OSError, ValueError, AttributeError):
        return "it does not say which"


def make_directory(folder: str) -> Path:
    """`folder`, made if it was not there; before any work, so that nothing is computed in vain."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"out={folder} cannot be made a folder ({error.strerror}); choose another"
        ) from error
    return Path(folder)
