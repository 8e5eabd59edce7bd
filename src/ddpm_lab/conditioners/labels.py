"""Conditioners on the class label."""

import torch
from torch import nn

from ddpm_lab.diffusion.conditioning import Batch, Condition, Conditioner, DataSpec, NoiseSampler
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.ranges import Count, Fraction, check_ranges


@check_ranges
class Label(Conditioner):
    """The class index. Raises UserError for data without labels.

    Args:
        spec: The data, with the number of classes.
        dropout: Probability with which training drops a label, in 0..1. Classifier-free guidance
            needs some.
    """

    def __init__(self, spec: DataSpec, dropout: Fraction = 0.1) -> None:
        super().__init__()
        self.classes, self.dropout = require_classes(spec), dropout
        self.cond_dims = {"classes": self.classes}

    def forward(self, batch: Batch, noise: NoiseSampler = torch.randn_like) -> Condition:
        return Condition(label=batch["label"])


@check_ranges
class Tokens(Conditioner):
    """A learned sequence of `count` tokens of size `width` for each class.

    Raises UserError for data without labels.
    """

    def __init__(
        self, spec: DataSpec, count: Count = 4, width: Count = 64, dropout: Fraction = 0.1
    ) -> None:
        super().__init__()
        self.classes, self.dropout = require_classes(spec), dropout
        self.cond_dims, self.shape = {"context": width}, (count, width)
        self.table = nn.Embedding(self.classes, count * width)

    def forward(self, batch: Batch, noise: NoiseSampler = torch.randn_like) -> Condition:
        return Condition(context=self.table(batch["label"]).unflatten(1, self.shape))


def require_classes(spec: DataSpec) -> int:
    if spec.classes is None:
        raise UserError(
            "conditioner needs labels, which this data does not have; try conditioner=none, or "
            "data with labels"
        )
    return spec.classes
