"""How a program ends that could not do what it was asked for: a line on the terminal, and an exit status."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager


class Told(Exception):  # noqa: N818 (it is told, and no traceback shown)
    """What ends a program with its message, in a line or three, and `status`. Any other exception is a bug of ours,
    status 1.
    """

    status = 1


class CellsFailed(Told):
    """Some cells of a sweep failed; what became of each was said."""


class UserError(Told, ValueError):
    """A mistake of the user's: `group.key ...`. The message names the config key, the value and what would do."""

    status = 2


class Hindered(Told):
    """The machine does not let us: no space, no permission, no memory, a process that was killed."""

    status = 3


HINDRANCES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR,
              errno.EEXIST, errno.EISDIR, errno.EMFILE, errno.ENAMETOOLONG}  # fmt: skip
"""Of an OSError the numbers that mean `Hindered`, and no bug"""


class Diverged(Told):
    """Training came to numbers that are not finite."""

    status = 4


class Unsafe(UserError):  # noqa: N818
    """A file that comes from elsewhere is not what it says, or asks for what no file may ask for."""

    status = 5


class Hung(Told):
    """Nothing happened for too long."""

    status = 124


class Interrupted(Told):
    """A signal asked the program to end, and it did so in order: status 128 + its number."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.status = 128 + signal


@contextmanager
def naming(group: str) -> Iterator[None]:
    """Around code that a config group chose. By convention the message of its ValueError begins with the argument's
    name, so that the group before it makes the key that the user typed.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        said = str(error)  # which of other packages begins with a capital
        raise UserError(f"{group}{'.' if re.match('[a-z_]', said) else ': '}{said}") from error


def choice(part: object) -> str:
    """What the user typed to get `part`: LearnedRange -> learned_range, the name of its yaml file."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(part).__name__).lower()
