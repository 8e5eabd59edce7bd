"""The data module and the base of all systems: losses, validation with fixed noise, optimizer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import lightning as L
import torch
from torch import Tensor, nn

from ddpm_lab.data.datasets import Batch
from ddpm_lab.data.module import Data, TrainBatches, ValidationBatches
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import BatchGenerator, NoiseSampler, derive_seed
from ddpm_lab.diffusion.timestep_samplers import Stratified, TimestepSampler
from ddpm_lab.systems.nonfinite_steps import NonFiniteGuard
from ddpm_lab.systems.sharding import whole
from ddpm_lab.utils import watchdog
from ddpm_lab.utils.distributed import rank_and_world
from ddpm_lab.utils.errors import CorruptFileError, UserError, prefix_errors

MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}
"""State of torch's optimizers that has the shape of the weight"""


class DataModule(L.LightningDataModule):
    """Serve `Data` to a trainer. Data in memory is moved to the training device."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> TrainBatches:
        trainer, data = self.trainer, self.data
        assert trainer is not None  # set by Lightning
        return TrainBatches(
            data.train.to(trainer.strategy.root_device),
            data.batch_size,
            data.flip,
            data.seed,
            workers=data.workers,
            rank=trainer.global_rank,
            world=trainer.world_size,
            done=trainer.fit_loop.epoch_loop.batch_progress.current.ready,
        )

    def val_dataloader(self) -> ValidationBatches:
        data, (rank, world) = self.data, rank_and_world()
        return ValidationBatches(data.test, data.batch_size, data.workers, rank, world)


class BaseSystem(L.LightningModule, ABC):
    """One optimizer and its learning-rate schedule.

    All random numbers of training are functions of `seed`, the batch number and the process.
    Interrupted runs therefore resume bit for bit, and callbacks do not change the training.
    """

    validated: ClassVar[tuple[str, ...]] = ("loss",)
    """Metrics of every validation, without val/"""
    seed = 0
    generator: torch.Generator | None = None
    """Generator for noise that the processes share, seeded for each batch (None: torch's own)"""
    restored = False
    """True once the checkpoint has been restored completely"""
    skips = NonFiniteGuard(torch.device("cpu"))
    """Replaced at the start of each training"""
    zero_loss: float | None = None
    """Loss of a network whose output is zero, on the first batch"""
    validation_metrics: dict[str, float]
    """Metrics of the last validation, by their names in the logs"""
    _restored: dict[str, Any] | None = None

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise UserError: a checkpoint has weights, and config.yaml of its run the model."""
        run = Path(str(checkpoint_path)).parent.parent
        raise UserError(
            f"checkpoint_path={checkpoint_path} holds weights without their model; "
            f"try ddpm_lab.load({str(run)!r})"
        )

    @property
    def compile_target(self) -> nn.Module | None:
        """The module for torch.compile; None if there is nothing to compile."""
        return None

    @property
    def network_calls(self) -> int:
        """Number of forward passes of the network per sample."""
        return 0

    @abstractmethod
    def batch_losses(self, batch: Batch) -> Tensor:
        """Return the loss of each sample, (B,), at random times if the system has times."""

    @abstractmethod
    def zero_prediction_loss(self, batch: Batch) -> float:
        """Return the mean loss of a network whose output is zero."""

    @abstractmethod
    def suggestions(self, run: str, measured: bool) -> list[tuple[str, str]]:
        """Return the next commands, (verb, arguments). `measured`: FID is available."""

    def set_optimizer(
        self,
        optimizer: Callable[..., torch.optim.Optimizer],
        lr_schedule: Callable[[int, int], float],
    ) -> None:
        """Set the optimizer, once all parameters exist. Raises UserError for invalid options."""
        with prefix_errors("optimizer"):
            optimizer(self.parameters())
        self.optimizer, self.lr_schedule = optimizer, lr_schedule

    def on_fit_start(self) -> None:
        self.skips, self.generator = NonFiniteGuard(self.device), torch.Generator(self.device)
        self.validation_metrics, self._validated = {}, 0
        if self._restored:
            self.skips.restore(self._restored["skips"])
            self.validation_metrics = self._restored["validation_metrics"]
            self._validated = self._restored["validated"]

    def on_train_start(self) -> None:
        watchdog.install_signal_handlers(alone=rank_and_world()[1] == 1)
        for optimizer in self.trainer.optimizers:
            for weight, state in optimizer.state.items():
                _check_moments(weight, state)
        self.restored = True
        self._validate_if_due()

    def _validate_if_due(self) -> None:
        """Run the validation that an interruption prevented."""
        loop = self.trainer.fit_loop.epoch_loop
        batches = loop.batch_progress.current.ready
        interval = self.trainer.val_check_batch or math.inf
        if batches and batches % interval == 0 and self._validated < batches:
            self.trainer.validating = True
            loop.val_loop.restarting = False
            loop.val_loop.run()
            self.trainer.training = True

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rank, _ = rank_and_world()
        assert self.generator is not None
        self.generator.manual_seed(derive_seed(self.seed, batch_idx, 1))
        # The default generator is for dropout. torch.manual_seed would take a millisecond.
        default = torch.default_generator
        if self.device.type == "cuda":
            default = torch.cuda.default_generators[self.device.index or 0]
        default.manual_seed(derive_seed(self.seed, batch_idx, 2 + rank))
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad()

    def optimizer_zero_grad(self, *args: Any) -> None:
        """Do nothing: gradients are freed before the forward pass, which needs the memory."""

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not checkpoint["optimizer_states"] or not checkpoint["loops"]["fit_loop"]:
            raise KeyError("optimizer_states, loops")
        self._restored = checkpoint["learner"]

    def noise(self, size: int) -> BatchGenerator:
        """Return the noise for the rows of this process; every process has `size` rows."""
        rank, world = rank_and_world()
        return BatchGenerator(rank * size, (world - 1 - rank) * size, self.generator)

    def log_mean(self, name: str, values: Tensor) -> None:
        """Log the mean of `values` (B,), which may be empty, over all batches and processes."""
        if len(values) or rank_and_world()[1] > 1:  # all processes must log the same names
            mean = values.sum() / max(len(values), 1)
            self.log(name, mean, batch_size=len(values), sync_dist=True)

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
        # Lightning's own method rejects fused optimizers under mixed precision, even bf16.
        norms = []
        for parameters in self._clipped:
            gradients = [p.grad for p in parameters if p.grad is not None]
            norms.append(whole(nn.utils.get_total_norm(gradients)))
            if gradient_clip_val:
                nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norms[-1])
        self.skips.check(optimizer, norms, self.trainer.global_step + 1)

    @cached_property  # listing the parameters takes as long as clipping them
    def _clipped(self) -> list[list[nn.Parameter]]:
        return [[*part.parameters()] for part in self.clipped_modules()]

    def clipped_modules(self) -> list[nn.Module]:
        """Return the modules whose gradients are clipped independently."""
        return [self]


class TimestepSystem(BaseSystem):
    """Base of systems that train on x_t of a forward process."""

    process: ForwardProcess
    timestep_sampler: TimestepSampler

    @abstractmethod
    def losses(self, batch: Batch, t: Tensor, noise: NoiseSampler = torch.randn_like) -> Tensor:
        """Return the loss of each sample, (B,), at times t (B,), for one x_t per sample."""

    def batch_losses(self, batch: Batch) -> Tensor:
        return self.losses(batch, Stratified(self.process)(len(batch["x0"]), self.device)[0])

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

    def set_timestep_sampler(
        self, timestep_sampler: Callable[[ForwardProcess], TimestepSampler]
    ) -> None:
        """Set the distribution of training times. Raises UserError for invalid options."""
        with prefix_errors("timestep_sampler"):
            self.timestep_sampler = timestep_sampler(self.process)

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        size, (_, world) = len(batch["x0"]), rank_and_world()
        noise = self.noise(size)
        t, weight = self.timestep_sampler(world * size, self.device, self.generator)
        t, weight = (part.narrow(0, noise.before, size) for part in (t, weight))
        losses = self.losses(batch, t, noise)
        self.timestep_sampler.update(t, losses.detach())
        loss = (weight * losses).mean()
        return {"loss": loss, "losses": losses.detach(), "weight": weight, "t": t}

    @contextmanager
    def validation_noise(self, index: int) -> Iterator[tuple[Tensor, NoiseSampler]]:
        """Yield times (B,) and noise for validation batch `index`, equal in every validation."""
        batches = self.trainer.val_dataloaders
        assert isinstance(batches, ValidationBatches)  # of `DataModule`
        total, rows = batches.sizes[index], batches.rows[index]
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(index)
            t, _ = Stratified(self.process)(total, self.device)
            yield t[rows], BatchGenerator(rows.start, total - rows.stop)


def _check_moments(weight: Tensor, state: dict[str, Any]) -> None:
    """Raise CorruptFileError if restored moments do not have the shape of their weight.

    Fused optimizers would write out of bounds. On CPUs they also assume equal strides, so moments
    with other strides are copied.
    """
    for name in state.keys() & MOMENTS:
        moment = state[name]
        if moment.shape != weight.shape:
            shapes = f"{tuple(moment.shape)} for a weight of shape {tuple(weight.shape)}"
            raise CorruptFileError(f"the checkpoint has {name} of shape {shapes}")
        if moment.stride() != weight.stride():
            state[name] = torch.empty_like(weight).copy_(moment)
