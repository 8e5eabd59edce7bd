"""Conditioners on the class label."""

import torch
from torch import nn

from ddpm_lab.conditioners.data_spec import Batch, DataSpec, check_dropout, require_classes
from ddpm_lab.diffusion.conditioning import Condition, Conditioner, NoiseSampler
from ddpm_lab.networks.layers import check_positive


class Label(Conditioner):
    """The class index. Raises UserError for data without labels."""

    def __init__(self, spec: DataSpec, dropout: float = 0.1) -> None:
        super().__init__()
        self.classes, self.dropout = require_classes(spec), check_dropout(dropout)
        self.cond_dims = {"classes": self.classes}

    def forward(self, batch: Batch, noise: NoiseSampler = torch.randn_like) -> Condition:
        return Condition(label=batch["label"])


class Tokens(Conditioner):
    """A learned sequence of `count` tokens of size `width` for each class.

    Raises UserError for data without labels.
    """

    def __init__(
        self, spec: DataSpec, count: int = 4, width: int = 64, dropout: float = 0.1
    ) -> None:
        super().__init__()
        check_positive(count=count, width=width)
        self.classes, self.dropout = require_classes(spec), check_dropout(dropout)
        self.cond_dims, self.shape = {"context": width}, (count, width)
        self.table = nn.Embedding(self.classes, count * width)

    def forward(self, batch: Batch, noise: NoiseSampler = torch.randn_like) -> Condition:
        return Condition(context=self.table(batch["label"]).unflatten(1, self.shape))
