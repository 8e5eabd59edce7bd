"""Class names: from the user's text to the labels of a model."""

import difflib
import re
import unicodedata
from collections.abc import Sequence

from ddpm_lab.utils.errors import UserError

Captions = Sequence[Sequence[str]]
"""Names of each class, the usual one first"""


def parse_label(text: object, captions: Captions) -> int:
    """Return the label of the class with the name or number `text`.

    Names come first: if a class is called "3", then 3 means that class. Case, spaces and
    underscores of names do not matter. Raises UserError if no class or several classes match.
    """
    is_bool = isinstance(text, bool)  # true and false can be names
    name = str(text).lower() if is_bool else str(text)
    normalizations = (_nfc, _loose) if isinstance(text, str) else (_nfc,)
    for normalize in normalizations:
        labels = [i for i, names in enumerate(captions) if normalize(name) in map(normalize, names)]
        if len(labels) > 1:
            others = ", ".join(map(str, labels[1:5]))
            raise UserError(
                f"label={text} names {len(labels)} classes; try label={labels[0]}, or one of "
                f"{others}"
            )
        if labels:
            return labels[0]
    number = None if is_bool else _number(name)
    numbers = [_number(names[0]) for names in captions]
    if number is not None and None not in numbers:  # the name of every class is a number
        if numbers.count(number) == 1:
            return numbers.index(number)
    elif re.fullmatch(r"\d+", name) and int(name) < len(captions):
        return int(name)
    raise UserError(
        f"label={text} is not a label of this model: {legend(captions)}{_hint(name, captions)}"
    )


def legend(captions: Captions, limit: int = 40) -> str:
    """Return a line of labels and names, or the range of labels if classes have no other names."""
    if is_numbered(captions):
        return f"0..{len(captions) - 1}"
    names = ", ".join(f"{label} {names[0]}" for label, names in enumerate(captions[:limit]))
    return f"{names} and {len(captions) - limit} more" if len(captions) > limit else names


def is_numbered(captions: Captions) -> bool:
    """Return whether the name of each class is its label."""
    return all(names[0] == str(label) for label, names in enumerate(captions))


def captions_differ(one: Captions | None, other: Captions | None) -> bool:
    """Return whether two models have the same classes under different labels."""
    names, others = ([each[0] for each in captions or []] for captions in (one, other))
    return sorted(names) == sorted(others) and names != others


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS names folders in NFD


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", text, re.I) else None


def _hint(text: str, captions: Captions) -> str:
    by_name = {_loose(name): name for names in captions for name in names}
    matches = difflib.get_close_matches(_loose(text), by_name, 1)
    return f" (did you mean {by_name[matches[0]]}?)" if matches else ""
