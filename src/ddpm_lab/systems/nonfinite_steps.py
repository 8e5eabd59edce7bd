"""Steps that are left out."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ddpm_lab.utils.errors import DivergenceError

LIMIT = 5


class NonFiniteGuard:
    """Leaves out optimizer steps whose gradients are not finite, and counts them. `LIMIT` in a row raise Diverged.

    No step waits for the device: a fused optimizer is told by a tensor, as by a gradient scaler, and counts are read
    a little later, when they have come.
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(2, device=device)
        """How many steps were left out, and how many of the last in a row"""
        self.known = torch.zeros(2, pin_memory=device.type == "cuda")

    def check(self, optimizer: torch.optim.Optimizer, norms: Sequence[Tensor], step: int) -> None:
        """Before optimizer step number `step`, of whose gradients `norms` are the norms of all parts."""
        bad = reduce(torch.add, norms).isfinite().logical_not().float()
        self.counts.add_(bad)
        self.counts[1].mul_(bad)
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = bad  # type: ignore[attr-defined]
        elif bad:
            optimizer.zero_grad()
        self.known.copy_(self.counts, non_blocking=True)
        if self.known[1] >= LIMIT:
            raise DivergenceError(
                f"step {step}: {LIMIT} steps in a row had gradients that are not finite; try a smaller "
                "optimizer.lr"
            )

    def state(self) -> list[float]:
        return self.counts.tolist()

    def restore(self, state: Sequence[Any]) -> None:
        self.counts.copy_(torch.tensor(state))
        self.known.copy_(self.counts)
