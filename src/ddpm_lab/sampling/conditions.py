"""What samples are asked to be, in turn."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lab.data.datasets import Split, to_batch
from ddpm_lab.networks.text_encoder import encode_text
from ddpm_lab.sampling.class_names import Captions, captions_differ, parse_label
from ddpm_lab.utils.errors import UserError

Label = int | str | Sequence[int | str] | None
"""A class by number or name, several of them, "all", or None, which is all in turn"""


def class_labels(
    count: int, label: Label, classes: int | None, captions: Captions | None = None
) -> Tensor | None:
    """Return labels for `count` samples, (count,): the classes `label`, or all, in turn; "all": the same share of each,
    class by class. None for a model without `classes`, which are called `captions`. Raises UserError.
    """
    if classes is None:
        if label is not None:
            raise UserError(
                f"label={label} asks for what this model was not trained with; try label=null, or "
                "guidance=classifier"
            )
        return None
    if label == "all":
        return (torch.arange(count) % classes).sort().values
    if label is None:
        return torch.arange(count) % classes
    names = (
        captions
        if captions and len(captions) == classes
        else [[str(number)] for number in range(classes)]
    )
    typed = [label] if isinstance(label, str) or not isinstance(label, Sequence) else label
    if not typed:
        raise UserError(
            f"label={label} is an empty list; try label=null, which draws all classes in turn"
        )
    wanted = torch.tensor([parse_label(one, names) for one in typed])
    return wanted[torch.arange(count) % len(wanted)]


def common_captions(captions: Captions | None, classifier: object) -> Captions | None:
    """Return the names of the classes of a model, or without names those of the classifier that guides it. Raises
    ValueError if both have the same names for other labels.
    """
    others = getattr(classifier, "captions", None)
    if captions_differ(captions, others):
        raise ValueError(
            "classifier has the same classes as this model under other labels; train both on the same "
            "data"
        )
    return captions or others


def text_tokens(count: int, text: str | list[str], length: int) -> Tensor:
    """(count, length) uint8; see `spelled`. Raises UserError."""
    wanted = text if isinstance(text, list) else [text]
    if not wanted or not all(isinstance(one, str) for one in wanted):
        raise UserError(f"text={text} must be a text or a list of texts; try \"text='a seven'\"")
    try:
        return encode_text(wanted, length)[torch.arange(count) % len(wanted)]
    except ValueError as error:
        raise UserError(str(error)) from error


def low_res_conditions(
    count: int,
    label: Label,
    given: Split | None,
    small: tuple[int, ...],
    shape: tuple[int, ...],
    classes: int | None,
    captions: Captions | None = None,
) -> dict[str, Tensor]:
    """`count` of the images `given`, in turn and made `small`, to be enlarged to `shape`, as "low_res", and their
    labels, or `label` where they have none. Raises UserError.
    """
    if given is None:
        raise UserError("this model enlarges images, and none were given")
    conditions = to_batch(given.select(torch.arange(count) % given.size))
    x0 = conditions.pop("x0")
    times = x0.shape[2] // small[1] if x0.ndim == 4 else 0
    if tuple(x0.shape[1:]) != (small[0], times * small[1], times * small[2]) or not times:
        raise UserError(
            f"this model enlarges images of {format_size(small)} to {format_size(shape)}, and those given are "
            f"{format_size(x0.shape[1:])}"
        )
    conditions["low_res"] = F.avg_pool2d(x0, times)
    if label is not None:
        if given.labels is not None:
            raise UserError(
                f"label={label} cannot be chosen for images that bring their own; try label=null"
            )
        chosen = class_labels(count, label, classes, captions)
        conditions |= {} if chosen is None else {"label": chosen}
    if classes is not None:
        if "label" not in conditions:
            raise UserError(
                "this model must know of what class the images are that it enlarges; try label=..."
            )
        if not (conditions["label"] < classes).all():
            raise UserError(
                f"the images that this model is to enlarge have labels up to {conditions['label'].max()}, and "
                f"it knows 0..{classes - 1}"
            )
    return conditions


def format_size(shape: Sequence[int]) -> str:
    """1x8x8"""
    return "x".join(map(str, shape))
