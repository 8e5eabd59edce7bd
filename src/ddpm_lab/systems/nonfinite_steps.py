"""Optimizer steps with non-finite gradients."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ddpm_lab.utils.errors import DivergenceError

LIMIT = 5
"""Number of consecutive skipped steps that ends training"""


class NonFiniteGuard:
    """Skip and count optimizer steps with non-finite gradients.

    No step waits for the device. A fused optimizer reads a flag on the device, as from a gradient
    scaler, and the counts arrive on the host a few steps later.
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(2, device=device)
        """Skipped steps in total, and consecutive ones so far"""
        self.host_counts = torch.zeros(2, pin_memory=device.type == "cuda")

    def check(self, optimizer: torch.optim.Optimizer, norms: Sequence[Tensor], step: int) -> None:
        """Skip `step` unless all norms are finite. Raises DivergenceError for `LIMIT` in a row."""
        bad = reduce(torch.add, norms).isfinite().logical_not().float()
        self.counts.add_(bad)
        self.counts[1].mul_(bad)
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = bad  # type: ignore[attr-defined]
        elif bad:
            optimizer.zero_grad()
        self.host_counts.copy_(self.counts, non_blocking=True)
        if self.host_counts[1] >= LIMIT:
            raise DivergenceError(
                f"step {step}: {LIMIT} consecutive steps had non-finite gradients; try a smaller "
                "optimizer.lr"
            )

    def state(self) -> list[float]:
        return self.counts.tolist()

    def restore(self, state: Sequence[Any]) -> None:
        self.counts.copy_(torch.tensor(state))
        self.host_counts.copy_(self.counts)
