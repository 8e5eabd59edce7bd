"""What a denoiser is told beside x_t. A condition knows where it is absent, so there is no magic index."""

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lab.diffusion.rng import NoiseSampler, uniform


@dataclass(frozen=True)
class Condition:
    """`Condition()` says nothing. Every field has one row per sample."""

    label: Tensor | None = None
    """(B,) int64, a class index"""
    _: KW_ONLY
    context: Tensor | None = None
    """(B, M, D), tokens to attend to"""
    image: Tensor | None = None
    """(B, C', H, W), a image beside x_t"""
    noise_level: Tensor | None = None
    """(B,), how noisy that image was made, on a scale of 1000"""
    previous: Tensor | None = None
    """(B, C, H, W), the guess of x_0 before this one (self-conditioning); no condition, so it is never dropped"""
    dropped: Tensor | None = None
    """(B,) bool, where the network's learned null stands in for the condition; None: nowhere"""

    @property
    def said(self) -> Tensor | None:
        """One of the things that it says; None: it says nothing."""
        return next(
            (said for said in (self.label, self.context, self.image) if said is not None), None
        )

    def drop(self, p: float, noise: NoiseSampler = torch.randn_like) -> "Condition":
        """With each row dropped with probability `p` (Ho & Salimans, 2022, algorithm 1)."""
        if self.said is None or p == 0:
            return self
        return replace(
            self, dropped=uniform(noise, torch.empty(len(self.said), device=self.said.device)) < p
        )

    def null(self) -> "Condition":
        """With every row dropped."""
        return self if self.said is None else replace(self, dropped=torch.ones_like(self._dropped))

    def cat(self, other: "Condition") -> "Condition":
        """The rows of this one, then those of `other`, which says things of the same kinds."""
        if self.said is None:
            return self
        pairs = {
            field.name: (getattr(self, field.name), getattr(other, field.name))
            for field in fields(self)
        }
        pairs["dropped"] = (self._dropped, other._dropped)
        return Condition(
            **{name: torch.cat(pair) for name, pair in pairs.items() if pair[0] is not None}
        )

    @property
    def _dropped(self) -> Tensor:
        assert self.said is not None
        if self.dropped is not None:
            return self.dropped
        return torch.zeros(len(self.said), dtype=torch.bool, device=self.said.device)


class Conditioner(nn.Module, ABC):
    """From a batch to a condition. It never drops anything itself: training does, with its `dropout`."""

    cond_dims: dict[str, int]
    """What a network must be built with to hear it: `classes`, `context` (D), `image` (C')"""
    dropout: float
    """Share of conditions that training drops, for classifier-free guidance"""
    classes: int | None
    """How many labels it understands; None: none"""
    stream = 0
    """Of a sample's random numbers, the stream that its model draws from: stages of one cascade have different ones"""

    @property
    def sampling_options(self) -> dict[str, Any]:
        """What can be chosen at sampling."""
        return {}

    @abstractmethod
    def forward(
        self, batch: dict[str, Tensor], noise: NoiseSampler = torch.randn_like
    ) -> Condition:
        """`noise` decides what is left to chance."""

    def resolve(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """All that it reads of `batch`, nothing left to chance and without x0: what can be kept and said again."""
        return {name: value for name, value in batch.items() if name != "x0"}


class Unconditional(Conditioner):
    """Says nothing."""

    def __init__(self, spec: object = None) -> None:
        super().__init__()
        self.cond_dims, self.dropout, self.classes = {}, 0.0, None

    def forward(
        self, batch: dict[str, Tensor], noise: NoiseSampler = torch.randn_like
    ) -> Condition:
        return Condition()
