"""What samples are asked to be, in turn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm_lab.errors import UserError
from ddpm_lab.networks.text import spelled


def labels(count: int, label: int | str | Sequence[int] | None, classes: int | None) -> Tensor | None:
    """Labels for `count` samples, (count,): those asked for, or all, in turn; "all": the same share of each, class by
    class. None for a model without `classes`. Raises UserError.
    """
    if classes is None:
        if label is not None:
            raise UserError(f"label={label} asks for what this model was not trained with; try label=null, or "
                            "guidance=classifier")  # fmt: skip
        return None
    if label == "all":
        return (torch.arange(count) % classes).sort().values
    wanted = range(classes) if label is None else list(label) if isinstance(label, Sequence) else [label]
    if not wanted or any(type(one) is not int or not 0 <= one < classes for one in wanted):
        raise UserError(f"label={label} is not among the labels of this model, 0..{classes - 1}")
    return torch.tensor(wanted)[torch.arange(count) % len(wanted)]


def texts(count: int, text: str | list[str], length: int) -> Tensor:
    """(count, length) uint8; see `spelled`. Raises UserError."""
    wanted = text if isinstance(text, list) else [text]
    if not wanted or not all(isinstance(one, str) for one in wanted):
        raise UserError(f"text={text} must be a text or a list of texts; try \"text='a seven'\"")
    try:
        return spelled(wanted, length)[torch.arange(count) % len(wanted)]
    except ValueError as error:
        raise UserError(str(error)) from error
