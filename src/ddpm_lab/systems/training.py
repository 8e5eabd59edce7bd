"""What all systems share: losses at random times, the same held-out draw at every validation, one optimizer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from ddpm_lab.data.splits import rows
from ddpm_lab.diffusion.noise import BatchNoise, Noise, generator
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.timesteps import Stratified, TimeSampler
from ddpm_lab.errors import naming
from ddpm_lab.ranks import place

Batch = dict[str, Tensor]


class Learner(L.LightningModule, ABC):
    """One optimizer and its learning rate."""

    stream: torch.Generator | None = None
    """What processes draw from that train together"""

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

    def on_train_start(self) -> None:
        """Where several processes train, they draw batches from one stream, that of a process alone, and drop features
        by streams of their own.
        """
        rank, world = place()
        if world > 1:
            cuda = self.device.type == "cuda"
            self.stream = torch.Generator(self.device)
            self.stream.set_state(torch.cuda.get_rng_state(self.device) if cuda else torch.get_rng_state())
            torch.manual_seed(generator(torch.initial_seed(), rank).initial_seed())

    def noise(self, size: int) -> BatchNoise:
        """For a batch of which this process has `size` rows, and so have the others."""
        rank, world = place()
        return BatchNoise(rank * size, (world - 1 - rank) * size, self.stream)

    def share(self, total: int) -> slice:
        """The rows of this process, of `total` that all have."""
        rank, world = place()
        return slice(rank * total // world, (rank + 1) * total // world)

    def watch(self, name: str, values: Tensor) -> None:
        """Logs the mean of `values` (B,) over all batches and processes; some may have none."""
        if len(values) or place()[1] > 1:  # all processes must name the same means
            self.log(name, values.sum() / max(len(values), 1), batch_size=len(values), sync_dist=True)

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
    def losses(self, batch: Batch, t: Tensor, noise: Noise = torch.randn_like) -> Tensor:
        """Of each sample, (B,), at one draw of x_t at times t (B,)."""

    def look_at(self, timesteps: Callable[[int], TimeSampler]) -> None:
        """Takes the times of its process that training looks at. Raises UserError."""
        with naming("timesteps"):
            self.timesteps = timesteps(self.process.steps)

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        size, (_, world) = len(batch["x0"]), place()
        noise = self.noise(size)
        everyones = self.timesteps(world * size, self.device, self.stream)
        t, weight = (part.narrow(0, noise.before, size) for part in everyones)
        losses = self.losses(batch, t, noise)
        self.timesteps.learn(t, losses.detach())
        return {"loss": (weight * losses).mean(), "losses": losses.detach(), "weight": weight, "t": t}

    @contextmanager
    def held_out(self, batch: Batch, index: int) -> Iterator[tuple[Batch, Tensor, Noise]]:
        """Of a held-out batch the rows of this process, (B, ...), their times t (B,), and noise: inside, the draw is
        the same at every validation; outside, the training stream stays where it was.
        """
        total = len(batch["x0"])
        mine = self.share(total)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(index)
            t, _ = Stratified(self.process.steps)(total, self.device)
            yield rows(batch, mine), t[mine], BatchNoise(mine.start, total - mine.stop)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout, and back as it was."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
