"""Conditions of samples: a batch without x_0, with "label", "text" or "low_res"."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lab.data.datasets import Batch, Split, to_batch
from ddpm_lab.networks.text_encoder import encode_text
from ddpm_lab.sampling.class_names import Captions, parse_label
from ddpm_lab.utils.errors import UserError

Label = int | str | Sequence[int | str] | Tensor | np.ndarray | None
"""A class by number or name, a list of classes, indices (N,) int64, "all" or None (all in turn)

"none" samples without a class, from a model that is trained with dropped classes.
"""


def class_labels(
    count: int,
    label: Label,
    classes: int | None,
    captions: Captions | None = None,
    nullable: bool = False,
) -> Tensor | None:
    """Return labels (count,) in 0..classes-1, or None for a model without classes.

    A list of classes is repeated in turn; "all" gives each class the same share, class by class.
    "none" returns None too, for a `nullable` model, unless it is the name of a class.
    Raises UserError if the model does not have the class.
    """
    if classes is None:
        if label is not None and str(label) != "none":
            raise UserError(
                f"label={label}: this model was trained without labels; try label=null, or "
                "guidance=classifier"
            )
        return None
    labels = torch.arange(count)
    if not captions or len(captions) != classes:
        captions = [[str(number)] for number in range(classes)]
    match label:
        case None:
            return labels % classes
        case "none" if not any(name.lower() == "none" for names in captions for name in names):
            if not nullable:
                raise UserError(
                    "label=none needs a model that was trained with conditioner.dropout above 0; "
                    "try label=0, or another class"
                )
            return None
        case "all":
            return (labels % classes).sort().values
        case Tensor():
            numbers = label.cpu().view(-1)
            if numbers.is_floating_point() or not all(0 <= i < classes for i in numbers.tolist()):
                raise UserError(f"label must be indices in 0..{classes - 1} (got {label.tolist()})")
        case list() | tuple():
            numbers = torch.tensor([parse_label(name, captions) for name in label])
        case _:
            numbers = torch.tensor([parse_label(label, captions)])
    if not len(numbers):
        raise UserError(f"label={label} is an empty list; try label=null, for all classes in turn")
    return numbers[labels % len(numbers)]


def check_label_count(label: Label, count: int) -> None:
    """Raise UserError for several labels, unless there is one for each of `count` samples."""
    match label:
        case None | int() | str():
            return
        case Tensor():
            size = label.numel()
        case _:
            size = len(label)
    if size not in (1, count):
        raise UserError(f"label has {size} classes for {count} samples; try one, or one for each")


def text_tokens(count: int, text: str | list[str], length: int | None) -> Tensor:
    """Return the texts in turn as bytes, (count, length) uint8. Raises UserError."""
    if length is None:
        raise UserError(
            f"text={text}: this model was trained without texts; try text=null, or train with "
            "conditioner=text"
        )
    texts = text if isinstance(text, list) else [text]
    if not texts or not all(isinstance(one, str) for one in texts):
        raise UserError(f"text={text} must be a text or a list of texts; try \"text='a seven'\"")
    try:
        return encode_text(texts, length)[torch.arange(count) % len(texts)]
    except ValueError as error:
        raise UserError(str(error)) from error


def low_res_conditions(
    count: int,
    label: Label,
    images: Split | None,
    small: tuple[int, ...],
    shape: tuple[int, ...],
    classes: int | None,
    captions: Captions | None = None,
) -> Batch:
    """Return `count` of the `images` in turn, downsampled to `small`, as "low_res", with labels.

    Images without labels get `label`. Raises UserError.
    """
    if images is None:
        raise UserError("this model upsamples images; try input=test, or input=FOLDER")
    conditions = to_batch(images.select(torch.arange(count) % images.size))
    x0 = conditions.pop("x0")
    factor = x0.shape[2] // small[1] if x0.ndim == 4 else 0
    if not factor or tuple(x0.shape[1:]) != (small[0], factor * small[1], factor * small[2]):
        raise UserError(
            f"this model upsamples {format_size(small)} to {format_size(shape)}, but the input "
            f"images are {format_size(x0.shape[1:])}"
        )
    conditions["low_res"] = F.avg_pool2d(x0, factor)
    if label is not None:
        if images.labels is not None:
            raise UserError(
                f"label={label}: the input images have their own labels; try label=null"
            )
        if (labels := class_labels(count, label, classes, captions, nullable=True)) is not None:
            conditions["label"] = labels
    if classes is not None:
        if "label" not in conditions:
            raise UserError("this model needs the class of each input image; try label=...")
        if (largest := conditions["label"].max()) >= classes:
            raise UserError(
                f"the input images have labels up to {largest}, but this model takes "
                f"0..{classes - 1}"
            )
    return conditions


def format_size(shape: Sequence[int]) -> str:
    """Return a shape as text, such as 1x8x8."""
    return "x".join(map(str, shape))
