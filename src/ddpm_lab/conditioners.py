"""Conditioners: what a batch says to the denoiser. Built with what the data dictates, (classes)."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ddpm_lab.diffusion.condition import Condition


class Conditioner(nn.Module, ABC):
    """From a batch to a condition. It never drops anything itself: training does, with its `dropout`."""

    doors: dict[str, int]
    """What the network must be built with to hear it."""
    dropout: float
    """Share of conditions that training drops, for classifier-free guidance."""

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> Condition: ...


class Unconditional(Conditioner):
    """Nothing."""

    def __init__(self, classes: int | None = None) -> None:
        super().__init__()
        self.doors, self.dropout = {}, 0.0

    def forward(self, batch: dict[str, Tensor]) -> Condition:
        return Condition()


class Label(Conditioner):
    """The class index. Raises ValueError if the data has no labels."""

    def __init__(self, classes: int | None, dropout: float = 0.1) -> None:
        super().__init__()
        if classes is None:
            raise ValueError("classes is what this data has not; try conditioner=none, or data with labels")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a probability and must lie in [0, 1] (got {dropout:g})")
        self.doors, self.dropout = {"classes": classes}, dropout

    def forward(self, batch: dict[str, Tensor]) -> Condition:
        return Condition(label=batch["label"])
