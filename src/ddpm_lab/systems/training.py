"""What all systems share: losses at random times, the same held-out draw at every validation, one optimizer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.timesteps import Stratified, TimeSampler
from ddpm_lab.errors import naming

Batch = dict[str, Tensor]


class Learner(L.LightningModule, ABC):
    """One optimizer and its learning rate."""

    @abstractmethod
    def suggestions(self, run: str, measured: bool) -> list[tuple[str, str]]:
        """What to type next, (verb, arguments); `measured`: FID can be had."""

    def learn_by(
        self, optimizer: Callable[..., torch.optim.Optimizer], lr_schedule: Callable[[int, int], float]
    ) -> None:
        """Takes these once all parameters are there. Raises UserError."""
        with naming("optimizer"):
            optimizer(self.parameters())
        self.optimizer, self.lr_schedule = optimizer, lr_schedule

    def configure_optimizers(self) -> Any:
        optimizer, steps = self.optimizer(self.parameters()), self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.lr_schedule(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning's own refuses fused optimizers under mixed precision, even in bf16, where nothing is scaled.
        if gradient_clip_val:
            for part in self.clipped():
                nn.utils.clip_grad_norm_(part.parameters(), gradient_clip_val)

    def clipped(self) -> list[nn.Module]:
        """Parts of which each has a norm of its own where gradients are clipped."""
        return [self]


class System(Learner):
    """Trains on noisy pictures of a process."""

    process: ForwardProcess
    timesteps: TimeSampler

    @abstractmethod
    def losses(self, batch: Batch, t: Tensor) -> Tensor:
        """Of each sample, (B,), at one draw of x_t at times t (B,)."""

    def look_at(self, timesteps: Callable[[int], TimeSampler]) -> None:
        """Takes the times of its process that training looks at. Raises UserError."""
        with naming("timesteps"):
            self.timesteps = timesteps(self.process.steps)

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        t, weight = self.timesteps(len(batch["x0"]), self.device)
        losses = self.losses(batch, t)
        self.timesteps.learn(t, losses.detach())
        return {"loss": (weight * losses).mean(), "losses": losses.detach(), "weight": weight, "t": t}

    @contextmanager
    def held_out(self, batch: Batch, index: int) -> Iterator[Tensor]:
        """Times t (B,) of a held-out batch: inside, the draw is the same at every validation; outside, the training
        stream stays where it was.
        """
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(index)
            yield Stratified(self.process.steps)(len(batch["x0"]), self.device)[0]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout, and back as it was."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
