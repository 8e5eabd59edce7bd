"""Batches, properties of the data, and conditions of a denoiser.

A condition carries its own absence, without a null index.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm_lab.diffusion.rng import NoiseSampler, uniform

Batch = dict[str, Tensor]
"""Tensors with one row per sample: "x0", "label", "text", "low_res" or "noise_level"."""


class DataSpec(NamedTuple):
    """Properties of the data that determine parts of a model."""

    shape: tuple[int, ...]
    """(C, H, W), or (d,) for points"""
    classes: int | None = None
    """Number of classes; None without labels"""
    bin_width: float | None = None
    """Bin width of a quantized x_0; None: not quantized"""
    captions: Sequence[Sequence[str]] | None = None
    """Captions of each class; None without labels"""


@dataclass(frozen=True)
class Condition:
    """Inputs with one row per sample. `Condition()` is unconditional."""

    label: Tensor | None = None
    """(B,) int64, class indices"""
    _: KW_ONLY
    context: Tensor | None = None
    """(B, M, D), tokens for cross-attention"""
    image: Tensor | None = None
    """(B, C', H, W), an image to concatenate with x_t"""
    noise_level: Tensor | None = None
    """(B,), the noise level of `image`, in 0..1000"""
    previous_x0: Tensor | None = None
    """(B, C, H, W), the previous x_0 estimate (self-conditioning); it is never dropped"""
    index: Tensor | None = None
    """(B,) int64, numbers of the samples, for guidance by one measurement each"""
    dropped: Tensor | None = None
    """(B,) bool, rows whose condition is replaced by the network's learned null; None: no row"""

    @property
    def value(self) -> Tensor | None:
        """The label, context or image; None for an unconditional denoiser."""
        values = (self.label, self.context, self.image)
        return next((value for value in values if value is not None), None)

    def drop(self, p: float, noise: NoiseSampler = torch.randn_like) -> "Condition":
        """Drop each row with probability `p` (Ho & Salimans, 2022, algorithm 1)."""
        if self.value is None or p == 0:
            return self
        chance = uniform(noise, torch.empty(len(self.value), device=self.value.device))
        return replace(self, dropped=chance < p)

    def null(self) -> "Condition":
        """Drop every row."""
        return self if self.value is None else replace(self, dropped=torch.ones_like(self._dropped))

    def cat(self, other: "Condition") -> "Condition":
        """Append the rows of `other`, which must have the same fields."""
        if self.value is None:
            return self
        first, second = (vars(replace(part, dropped=part._dropped)) for part in (self, other))
        rows = {name: (first[name], second[name]) for name in first if first[name] is not None}
        return Condition(**{name: torch.cat(pair) for name, pair in rows.items()})

    def clone(self) -> "Condition":
        """Copy every tensor."""
        rows = {name: value.clone() for name, value in vars(self).items() if value is not None}
        return Condition(**rows)

    def replace_dropped(self, value: Tensor, null: Tensor | float) -> Tensor:
        """Replace the dropped rows of `value` (B, ...) by `null`."""
        if self.dropped is None:
            return value
        return torch.where(self.dropped.view(-1, *[1] * (value.ndim - 1)), null, value)

    @property
    def _dropped(self) -> Tensor:
        assert self.value is not None
        if self.dropped is not None:
            return self.dropped
        return torch.zeros(len(self.value), dtype=torch.bool, device=self.value.device)


class Conditioner(nn.Module, ABC):
    """A map from a batch to a `Condition`. Dropping conditions is left to training."""

    cond_dims: dict[str, int]
    """Sizes that the network needs: `classes`, channels of `context` and of `image`"""
    dropout: float
    """Probability with which training drops a condition, for classifier-free guidance"""
    classes: int | None
    """Number of labels; None: unlabeled"""
    noise_stream = 0
    """Random stream of the noise of a sample; differs between the stages of a cascade"""
    text_length: int | None = None
    """Number of bytes of a text at sampling; None: texts are not supported"""
    low_res_shape: tuple[int, ...] | None = None
    """Shape (C, h, w) of the images to upsample; None: the model does not upsample"""

    @property
    def sampling_options(self) -> dict[str, Any]:
        """Options that can be changed at sampling, by name."""
        return {}

    def set_sampling_options(self, **options: Any) -> None:
        """Change `sampling_options`. Raises TypeError for options that it does not have."""
        if options:
            raise TypeError(f"{type(self).__name__} has no options at sampling")

    @abstractmethod
    def forward(self, batch: Batch, noise: NoiseSampler = torch.randn_like) -> Condition:
        """Return the condition of `batch`. `noise` is the source of all random choices."""

    def resolve(self, batch: Batch) -> Batch:
        """Return the inputs of the condition, without x0 and with random choices made.

        They can be saved and passed to `forward` again.
        """
        return {name: value for name, value in batch.items() if name != "x0"}


class Unconditional(Conditioner):
    """No condition."""

    def __init__(self, spec: DataSpec | None = None) -> None:
        super().__init__()
        self.cond_dims, self.dropout, self.classes = {}, 0.0, None

    def forward(self, batch: Batch, noise: NoiseSampler = torch.randn_like) -> Condition:
        return Condition()
