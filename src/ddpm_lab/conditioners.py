"""Conditioners: what a batch says to the denoiser. Built with what the data dictates, (classes)."""

from torch import Tensor, nn

from ddpm_lab.diffusion.condition import Condition


class Unconditional(nn.Module):
    """Nothing."""

    dropout = 0.0

    def __init__(self, classes: int | None = None) -> None:
        super().__init__()
        self.doors: dict[str, int] = {}

    def forward(self, batch: dict[str, Tensor]) -> Condition:
        return Condition()


class Label(nn.Module):
    """The class index. `dropout` is the share of labels that training drops, which classifier-free guidance needs.

    Raises ValueError if the data has no labels.
    """

    def __init__(self, classes: int | None, dropout: float = 0.1) -> None:
        super().__init__()
        if classes is None:
            raise ValueError("classes: the data has no labels; try conditioner=none, or data with labels")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a probability and must lie in [0, 1] (got {dropout:g})")
        self.dropout = dropout
        self.doors = {"classes": classes}

    def forward(self, batch: dict[str, Tensor]) -> Condition:
        return Condition(label=batch["label"])
