"""What all systems share: losses at random times, the same held-out draw at every validation, one optimizer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from ddpm_lab.data.datasets import Batch, select_rows
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import BatchGenerator, NoiseSampler, derive_seed
from ddpm_lab.diffusion.timestep_samplers import Stratified, TimestepSampler
from ddpm_lab.systems.nonfinite_steps import NonFiniteGuard
from ddpm_lab.utils import watchdog
from ddpm_lab.utils.distributed import rank_and_world
from ddpm_lab.utils.errors import CorruptFileError, prefix_errors

MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}
"""What torch's optimizers call the means that are like a weight"""


class BaseSystem(L.LightningModule, ABC):
    """One optimizer and its learning rate.

    Each random number of training is a function of `seed`, the number of the batch and the process, so that a run that
    was killed goes on bit for bit, and what looks at it in between does not matter.
    """

    seed = 0
    generator: torch.Generator | None = None
    """What processes draw from that train together, for each batch anew (None: torch's own)"""
    begun = False
    """Whether all that a checkpoint held was taken"""
    skips = NonFiniteGuard(torch.device("cpu"))
    """Anew in each training"""
    zero_loss: float | None = None
    """Loss of a network whose output is zero, on the first batch"""
    network_calls = 0
    """Forward passes of the network that a sample takes"""
    validation_metrics: dict[str, float]
    """What the last validation found, by the names it has in the logs"""

    @property
    def compile_target(self) -> nn.Module | None:
        """What torch.compile may make faster, if anything."""
        return None

    @abstractmethod
    def batch_losses(self, batch: Batch) -> Tensor:
        """Loss of each sample, (B,), at random times where the system has times."""

    @abstractmethod
    def zero_prediction_loss(self, batch: Batch) -> float:
        """Mean loss of a network whose output is zero."""

    @abstractmethod
    def suggestions(self, run: str, measured: bool) -> list[tuple[str, str]]:
        """What to type next, (verb, arguments); `measured`: FID can be had."""

    def set_optimizer(
        self,
        optimizer: Callable[..., torch.optim.Optimizer],
        lr_schedule: Callable[[int, int], float],
    ) -> None:
        """Takes these once all parameters are there. Raises UserError."""
        with prefix_errors("optimizer"):
            optimizer(self.parameters())
        self.optimizer, self.lr_schedule = optimizer, lr_schedule

    def on_fit_start(self) -> None:
        self.skips, self.generator = NonFiniteGuard(self.device), torch.Generator(self.device)
        self.validation_metrics, self._validated = {}, 0
        if self._kept:
            self.skips.restore(self._kept["skips"])
            self.validation_metrics, self._validated = (
                self._kept["validation_metrics"],
                self._kept["validated"],
            )

    def on_train_start(self) -> None:
        watchdog.install_signal_handlers(alone=rank_and_world()[1] == 1)
        for weight, kept in (
            of for optimizer in self.trainer.optimizers for of in optimizer.state.items()
        ):
            for name in kept.keys() & MOMENTS:
                if (
                    kept[name].shape != weight.shape
                ):  # or a fused optimizer would write where there is no memory
                    raise CorruptFileError(
                        f"the checkpoint has {name} of shape {tuple(kept[name].shape)} for a weight of shape "
                        f"{tuple(weight.shape)}"
                    )
                if kept[name].stride() != weight.stride():  # which one on a CPU takes for granted
                    kept[name] = torch.empty_like(weight).copy_(kept[name])
        self.begun = True
        loop = self.trainer.fit_loop.epoch_loop
        done = loop.batch_progress.current.ready
        every = self.trainer.val_check_batch or math.inf
        if done and done % every == 0 and self._validated < done:  # was killed in between
            self.trainer.validating = True
            loop.val_loop.restarting = False
            loop.val_loop.run()
            self.trainer.training = True

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rank, _ = rank_and_world()
        assert self.generator is not None
        self.generator.manual_seed(derive_seed(self.seed, batch_idx, 1))
        # What the networks themselves draw, for dropout. torch.manual_seed would take a millisecond.
        cuda = self.device.type == "cuda"
        own = (
            torch.cuda.default_generators[self.device.index or 0]
            if cuda
            else torch.default_generator
        )
        own.manual_seed(derive_seed(self.seed, batch_idx, 2 + rank))
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad()

    def optimizer_zero_grad(self, *args: Any) -> None:
        """Nothing: they went before the forward pass. Lightning would keep them beside its activations."""

    def on_train_batch_end(self, *args: Any) -> None:
        watchdog.heartbeat()

    def on_validation_batch_start(self, *args: Any) -> None:
        watchdog.heartbeat()

    def on_validation_end(self) -> None:
        self._validated = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        self.validation_metrics = {
            name: value.item()
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("val/")
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["learner"] = {
            "skips": self.skips.state(),
            "validation_metrics": self.validation_metrics,
            "validated": self._validated,
        }

    _kept: dict[str, Any] | None = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not checkpoint["optimizer_states"] or not checkpoint["loops"]["fit_loop"]:
            raise KeyError("optimizer_states, loops")
        self._kept = checkpoint["learner"]

    def noise(self, size: int) -> BatchGenerator:
        """For a batch of which this process has `size` rows, and so have the others."""
        rank, world = rank_and_world()
        return BatchGenerator(rank * size, (world - 1 - rank) * size, self.generator)

    def shard_slice(self, total: int) -> slice:
        """The rows of this process, of `total` that all have."""
        rank, world = rank_and_world()
        return slice(rank * total // world, (rank + 1) * total // world)

    def log_mean(self, name: str, values: Tensor) -> None:
        """Logs the mean of `values` (B,) over all batches and processes; some may have none."""
        if len(values) or rank_and_world()[1] > 1:  # all processes must name the same means
            self.log(
                name, values.sum() / max(len(values), 1), batch_size=len(values), sync_dist=True
            )

    def configure_optimizers(self) -> Any:
        optimizer, steps = self.optimizer(self.parameters()), self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.lr_schedule(step, steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning's own refuses fused optimizers under mixed precision, even in bf16, where nothing is scaled.
        norms = []
        for parameters in self._clipped:
            norms.append(
                nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            )
            if gradient_clip_val:
                nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norms[-1])
        self.skips.check(optimizer, norms, self.trainer.global_step + 1)

    @cached_property
    def _clipped(self) -> list[list[nn.Parameter]]:
        return [
            [*part.parameters()] for part in self.clipped_modules()
        ]  # to find them takes as long as to clip them

    def clipped_modules(self) -> list[nn.Module]:
        """Parts of which each has a norm of its own where gradients are clipped."""
        return [self]


class TimestepSystem(BaseSystem):
    """Trains on noisy images of a process."""

    process: ForwardProcess
    timestep_sampler: TimestepSampler

    @abstractmethod
    def losses(self, batch: Batch, t: Tensor, noise: NoiseSampler = torch.randn_like) -> Tensor:
        """Of each sample, (B,), at one draw of x_t at times t (B,)."""

    def batch_losses(self, batch: Batch) -> Tensor:
        return self.losses(batch, Stratified(self.process.steps)(len(batch["x0"]), self.device)[0])

    @torch.no_grad()
    def zero_prediction_loss(self, batch: Batch) -> float:
        assert self.compile_target is not None
        hook = self.compile_target.register_forward_hook(
            lambda module, inputs, output: torch.zeros_like(output)
        )
        try:
            return self.batch_losses(batch).mean().item()
        finally:
            hook.remove()

    def set_timestep_sampler(self, timestep_sampler: Callable[[int], TimestepSampler]) -> None:
        """Takes the times of its process that training looks at. Raises UserError."""
        with prefix_errors("timestep_sampler"):
            self.timestep_sampler = timestep_sampler(self.process.steps)

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        size, (_, world) = len(batch["x0"]), rank_and_world()
        noise = self.noise(size)
        everyones = self.timestep_sampler(world * size, self.device, self.generator)
        t, weight = (part.narrow(0, noise.before, size) for part in everyones)
        losses = self.losses(batch, t, noise)
        self.timestep_sampler.update(t, losses.detach())
        return {
            "loss": (weight * losses).mean(),
            "losses": losses.detach(),
            "weight": weight,
            "t": t,
        }

    @contextmanager
    def validation_batch(
        self, batch: Batch, index: int
    ) -> Iterator[tuple[Batch, Tensor, NoiseSampler]]:
        """Of a held-out batch the rows of this process, (B, ...), their times t (B,), and noise: inside, the draw is
        the same at every validation; outside, the training stream stays where it was.
        """
        total = len(batch["x0"])
        mine = self.shard_slice(total)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(index)
            t, _ = Stratified(self.process.steps)(total, self.device)
            yield select_rows(batch, mine), t[mine], BatchGenerator(mine.start, total - mine.stop)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Without dropout, and back as it was."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
