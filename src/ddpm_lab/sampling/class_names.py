"""Classes by name: from the words of a user to the labels of a model."""

import difflib
import re
import unicodedata
from collections.abc import Sequence

from ddpm_lab.utils.errors import UserError

Captions = Sequence[Sequence[str]]
"""Names of each class, the usual one first"""


def parse_label(typed: object, captions: Captions) -> int:
    """Return the label of the class that is called `typed`, or has this number.

    A name comes first, so that a number means the class of that name if there is one, and only that if all classes are
    called by numbers. Case, spaces and underscores may differ. Raises UserError for a name of no class, or of several.
    """
    text = str(typed).lower() if isinstance(typed, bool) else str(typed)
    spellings = (_exact, _loose) if isinstance(typed, str) else (_exact,)
    for spelling in spellings:
        found = [i for i, names in enumerate(captions) if spelling(text) in map(spelling, names)]
        if len(found) > 1:
            raise UserError(
                f"label={typed} is the name of {len(found)} classes; try label={found[0]}, or one of "
                f"{', '.join(map(str, found[1:5]))}"
            )
        if found:
            return found[0]
    number = (
        _number(text)
        if isinstance(typed, int | float | str) and not isinstance(typed, bool)
        else None
    )
    numbers = [_number(names[0]) for names in captions]
    if number is not None and None not in numbers:
        if numbers.count(number) == 1:
            return numbers.index(number)
    elif re.fullmatch(r"\d+", text) and int(text) < len(captions):
        return int(text)
    raise UserError(
        f"label={typed} is not among the labels of this model, {legend(captions)}{_near(text, captions)}"
    )


def legend(captions: Captions, most: int = 40) -> str:
    """Return which label stands for which class, in a line; of classes that are called by their labels the range."""
    if is_numbered(captions):
        return f"0..{len(captions) - 1}"
    listed = ", ".join(f"{label} {names[0]}" for label, names in enumerate(captions[:most]))
    return f"{listed} and {len(captions) - most} more" if len(captions) > most else listed


def is_numbered(captions: Captions) -> bool:
    """Return whether the name of each class is its label."""
    return all(names[0] == str(label) for label, names in enumerate(captions))


def captions_differ(one: Captions | None, other: Captions | None) -> bool:
    """Return whether two models have the same classes under other labels."""
    names, others = ([each[0] for each in captions or []] for captions in (one, other))
    return sorted(names) == sorted(others) and names != others


def _exact(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # a Mac's folders are called by NFD


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", text, re.I) else None


def _near(text: str, captions: Captions) -> str:
    by_name = {_loose(name): name for names in captions for name in names}
    near = difflib.get_close_matches(_loose(text), by_name, 1)
    return f" (did you mean {by_name[near[0]]}?)" if near else ""
