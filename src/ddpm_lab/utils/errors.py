"""How a program ends that could not do what it was asked for: a line on the terminal, and an exit status."""

import errno
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


class CLIError(Exception):
    """What ends a program with its message, in a line or three, and `status`. Any other exception is a bug of ours,
    status 1.
    """

    status = 1


class JobsFailedError(CLIError):
    """Some cells of a sweep failed; what became of each was said."""


class UserError(CLIError, ValueError):
    """A mistake of the user's: `group.key ...`. The message names the config key, the value and what would do."""

    status = 2


class ResourceError(CLIError):
    """The machine does not let us: no space, no permission, no memory, a process that was killed."""

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
"""Of an OSError the numbers that mean `Hindered`, and no bug"""


class DivergenceError(CLIError):
    """Training came to numbers that are not finite."""

    status = 4


class UnsafeFileError(UserError):
    """A file that comes from elsewhere is not what it says, or asks for what no file may ask for."""

    status = 5


class CorruptFileError(UserError):
    """A file is cut short, has changed since it was written, or is none of ours."""

    suffix = "damaged"
    """Suffix of the name under which a checkpoint is set aside"""


class HangError(CLIError):
    """Nothing happened for too long."""

    status = 124


class InterruptedRunError(CLIError):
    """A signal asked the program to end, and it did so in order: status 128 + its number."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.status = 128 + signal


@contextmanager
def prefix_errors(group: str) -> Iterator[None]:
    """Around code that a config group chose. By convention the message of its ValueError begins with the argument's
    name, so that the group before it makes the key that the user typed.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        said = str(error)  # which of other packages begins with a capital
        said = prefix_message(said, group, re.findall("^[a-z_]+", said))
        raise UserError(f"{group}{'.' if re.match('[a-z_]', said) else ': '}{said}") from error


def prefix_message(message: str, group: str, names: Iterable[str]) -> str:
    """`message` with the `names` of arguments in its last hint, behind "try", as keys of `group`."""
    head, found, hint = message.rpartition("try ")
    keys = "|".join(names)
    return (
        head
        + found
        + (re.sub(rf"(?<![\w.])({keys})=", rf"{group}.\1=", hint) if found and keys else hint)
    )


def choice_name(part: object) -> str:
    """What the user typed to get `part`: LearnedRange -> learned_range, the name of its yaml file."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(part).__name__).lower()


def escape_control(text: object, lines: bool = False) -> str:
    """`text` for a terminal, which obeys control characters and turns text round at others: these are spelled out, and
    so are the ends of lines unless `lines`.
    """

    def spelled(found: re.Match[str]) -> str:
        return found[0] if lines and found[0] == "\n" else ascii(found[0])[1:-1]

    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]",
        spelled,
        str(text),
    )


def plot_label(text: object) -> str:
    """`text` for matplotlib, which takes what stands between dollars for mathematics; at most 120 characters."""
    return escape_control(text)[:120].replace("$", r"\$")


class EscapingFormatter(logging.Formatter):
    """What the configuration of logging names."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_control(super().format(record), lines=True)


def as_resource_error(error: BaseException) -> CLIError | None:
    """What `error` is if the machine is to blame, in our words; None if it is not."""
    text = " ".join(str(error).split())[:200]
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(map(text.count, MEMORY))
    ):
        return ResourceError(f"not enough memory ({text}); try a smaller data.batch_size")
    if isinstance(error, OSError) and error.errno in RESOURCE_ERRNOS:
        what = "the file that was being written" if error.filename is None else error.filename
        return ResourceError(f"{what}: {error.strerror}; make room there, or choose another folder")
    return None
