"""How a user's mistake is told: `error: group.key ...`, in a line or two."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake of the user's; the message names the config key, the value and what would do."""


class CellsFailed(Exception):  # noqa: N818 (it reports what became of them)
    """Some cells of a sweep failed; what became of each was said."""


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
        raise UserError(f"{group}.{error}") from error


def choice(part: object) -> str:
    """What the user typed to get `part`: LearnedRange -> learned_range, the name of its yaml file."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(part).__name__).lower()
