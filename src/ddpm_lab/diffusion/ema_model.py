"""Exponential moving average of weights."""

import copy
from functools import cached_property
from typing import Annotated, Generic, TypeVar

import torch
from annotated_types import Ge, Lt
from torch import nn

from ddpm_lab.utils.ranges import check_ranges

M = TypeVar("M", bound=nn.Module)


@check_ranges
class EMAModel(Generic[M]):
    """average += (1 - d) (weights - average) at update n, with d = min(decay, (1 + n) / (10 + n)).

    `average` is a copy of the model in evaluation mode, and `updates` the number n.
    """

    def __init__(self, model: M, decay: Annotated[float, Ge(0), Lt(1)] = 0.9999) -> None:
        self.decay, self.updates = decay, 0
        self.average: M = copy.deepcopy(model).requires_grad_(False).eval()
        self._model = model

    @cached_property  # on the first update, because sharding replaces parameters
    def _parameters(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return [*self.average.parameters()], [*self._model.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Average the current weights of the model, after each optimizer step."""
        self.updates += 1
        averages, weights = self._parameters
        torch._foreach_lerp_(averages, weights, 1 - self.next_decay())

    def next_decay(self) -> float:
        """Return d of update n = `updates`."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))
