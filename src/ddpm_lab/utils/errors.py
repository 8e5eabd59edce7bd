"""Errors that end a program with a message and an exit status, and the escaping of messages."""

import errno
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

CONTROL = r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


class CLIError(Exception):
    """Error of the user or the machine; all others are bugs. It ends a program with its message."""

    status = 1
    """Exit status of the program"""
    prefix = "error: "
    """Text before the message"""


class JobsFailedError(CLIError):
    """Some jobs of a sweep failed; the log has their results."""


class UserError(CLIError, ValueError):
    """Mistake of the user: the message has the key or argument, its value and what is allowed."""

    status = 2


class ResourceError(CLIError):
    """Limit of the machine: no space, permission or memory, or a process that was killed."""

    status = 3


RESOURCE_ERRNOS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.EMFILE,
    errno.ENAMETOOLONG,
}
"""Values of errno that are reported as ResourceError, not as a bug"""


class DivergenceError(CLIError):
    """Training diverged: non-finite numbers."""

    status = 4


class FileError(UserError):
    """Problem of a file that may come from someone else; control characters are escaped."""

    def __init__(self, message: str) -> None:
        super().__init__(escape_control(message))


class UnsafeFileError(FileError):
    """An untrusted file requests something that is not allowed."""

    status = 5


class CorruptFileError(FileError):
    """A file is truncated, changed since it was written, or not a file of ddpm-lab."""

    suffix = "damaged"
    """Suffix of the name under which a checkpoint is set aside"""


class HangError(CLIError):
    """No progress for too long."""

    status = 124


class InterruptedRunError(CLIError):
    """Graceful end after a signal, with status 128 + its number."""

    prefix = ""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.status = 128 + signal


@contextmanager
def prefix_errors(group: str) -> Iterator[None]:
    """Turn a ValueError, which begins with the name of an argument, into a UserError of `group`."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        message = str(error)  # starts with a capital letter if another package raised it
        message = prefix_message(message, group, re.findall("^[a-z_]+", message))
        separator = "." if re.match("[a-z_]", message) else ": "
        raise UserError(f"{group}{separator}{message}") from error


def prefix_message(message: str, group: str, names: Iterable[str]) -> str:
    """Return `message`; argument `names` in its last "try ..." hint become keys of `group`."""
    head, keyword, hint = message.rpartition("try ")
    if keyword and (keys := "|".join(names)):
        hint = re.sub(rf"(?<![\w.])({keys})=", rf"{group}.\1=", hint)
    return head + keyword + hint


def choice_name(part: object) -> str:
    """Return the config choice that builds `part`: LearnedRange -> learned_range."""
    return snake_case(type(part).__name__)


def snake_case(name: str) -> str:
    """Return the config choice of a class: LearnedRange -> learned_range."""
    return re.sub(r"(?<=[a-z])(?=[A-Z\d])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def pluralize(count: int, noun: str) -> str:
    """Return "1 step" or "2 steps" for the noun "step"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def escape_control(text: object, lines: bool = False) -> str:
    """Escape control and bidirectional characters of `text` for a terminal, but not `lines`."""

    def escape(match: re.Match[str]) -> str:
        return match[0] if lines and match[0] == "\n" else ascii(match[0])[1:-1]

    return re.sub(CONTROL, escape, str(text))


def join_first(items: Iterable[object], count: int) -> str:
    """Return the first `count` items and the number of others: "a, b and 3 more"."""
    texts = [*map(str, items)]
    more = f" and {len(texts) - count} more" if len(texts) > count else ""
    return ", ".join(texts[:count]) + more


def plot_label(text: object) -> str:
    """Return the first 120 characters of `text` for matplotlib, without its math mode."""
    return escape_control(text)[:120].replace("$", r"\$")


class EscapingFormatter(logging.Formatter):
    """Formatter that escapes control characters; the logging configuration of Hydra names it."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_control(super().format(record), lines=True)


def as_resource_error(error: BaseException) -> CLIError | None:
    """Return the ResourceError for a failure caused by the machine, or None for any other."""
    text = " ".join(str(error).split())[:200]
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory or any(map(text.count, OUT_OF_MEMORY)):
        return ResourceError(f"not enough memory ({text}); try a smaller data.batch_size")
    if isinstance(error, OSError) and error.errno in RESOURCE_ERRNOS:
        file = error.filename or "the file that was being written"
        return ResourceError(
            f"{file}: {error.strerror}; free space there, or choose another folder"
        )
    return None
