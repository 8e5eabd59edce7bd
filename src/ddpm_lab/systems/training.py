"""What all systems share of how they are optimised."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import nn


def optimizers(
    system: L.LightningModule,
    optimizer: Callable[..., torch.optim.Optimizer],
    lr_schedule: Callable[[int, int], float],
) -> dict[str, Any]:
    """What `configure_optimizers` answers: the rate follows `lr_schedule` by optimizer step."""
    made, steps = optimizer(system.parameters()), system.trainer.max_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: lr_schedule(step, steps))
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def clip_gradients(system: L.LightningModule, norm: float | None) -> None:
    """Lightning's own refuses fused optimizers under mixed precision, even in bf16, where nothing is scaled."""
    if norm:
        nn.utils.clip_grad_norm_(system.parameters(), norm)
