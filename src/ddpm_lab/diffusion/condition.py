"""What a denoiser is told beside x_t. A condition knows where it is absent, so there is no magic index."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """`Condition()` says nothing. Every field has one row per sample."""

    label: Tensor | None = None
    """(B,) int64, a class index"""
    dropped: Tensor | None = None
    """(B,) bool, where the network's learned null stands in for the condition; None: nowhere"""

    def drop(self, p: float) -> "Condition":
        """With each row dropped with probability `p` (Ho & Salimans, 2022, algorithm 1)."""
        if self.label is None or p == 0:
            return self
        return replace(self, dropped=torch.rand(self.label.shape, device=self.label.device) < p)

    def null(self) -> "Condition":
        """With every row dropped."""
        return self if self.label is None else replace(self, dropped=torch.ones_like(self.label, dtype=torch.bool))

    def beside(self, other: "Condition") -> "Condition":
        """The rows of this one, then those of `other`; both have a label or neither."""
        if self.label is None or other.label is None:
            return self
        return Condition(torch.cat([self.label, other.label]), torch.cat([_dropped(self), _dropped(other)]))


def _dropped(cond: Condition) -> Tensor:
    assert cond.label is not None
    return torch.zeros_like(cond.label, dtype=torch.bool) if cond.dropped is None else cond.dropped
