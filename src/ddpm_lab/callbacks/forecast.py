"""Training time and the loss of predicting zero, measured on one batch before training."""

import logging
import time

import lightning as L
import torch

from ddpm_lab.callbacks.lightning_internals import callbacks, datamodule
from ddpm_lab.callbacks.periodic import Periodic
from ddpm_lab.data.datasets import to_batch, to_device
from ddpm_lab.data.module import read_batches
from ddpm_lab.systems.base import BaseSystem
from ddpm_lab.utils.errors import pluralize

LOG = logging.getLogger(__name__)


class Forecast(L.Callback):
    """Logs the expected training time and sets the system's `zero_loss`, which `Losses` uses.

    It runs two forward and backward passes on the first training images and times the second.
    Weights, gradients and random states of training do not change. With `timed=False`, as for
    compiled networks, no time is logged.
    """

    def __init__(self, timed: bool = True) -> None:
        self.timed = timed

    def on_train_start(self, trainer: L.Trainer, pl_module: BaseSystem) -> None:
        data, device = datamodule(trainer), pl_module.device
        size = data.batch_size // trainer.world_size
        workers = min(1, data.workers)  # a worker may time out
        images = next(iter(read_batches(data.train, [torch.arange(size)], workers)))
        first = to_device(to_batch(images), device)
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            trainer.precision_plugin.forward_context(),
        ):
            torch.manual_seed(0)
            pl_module.zero_loss = pl_module.zero_prediction_loss(first)
            seconds = [_seconds(pl_module, first) for _ in range(2 if self.timed else 0)]
        steps = trainer.max_steps - trainer.global_step
        if not seconds or not trainer.is_global_zero or steps <= 0:
            return
        batches = steps * trainer.accumulate_grad_batches
        forward = seconds[-1] / 3  # the backward pass takes twice as long
        interval, limit = trainer.val_check_batch, trainer.limit_val_batches
        validations = batches // interval if isinstance(interval, int) else 0
        val_batches = data.test.size // size
        if isinstance(limit, int):
            val_batches = min(val_batches, limit)
        periodic = [each for each in callbacks(trainer) if isinstance(each, Periodic)]
        samples = sum(each.samples() * each.run_count(steps) for each in periodic)
        passes = validations * val_batches + pl_module.network_calls * samples / size
        LOG.info(
            f"training: {pluralize(steps, 'step')} of "
            f"{seconds[-1] * trainer.accumulate_grad_batches:.2g} s, about "
            f"{_format_duration(seconds[-1] * batches)}; validation, samples and metrics: "
            f"about {_format_duration(forward * passes)}"
        )


def _seconds(system: BaseSystem, first: dict[str, torch.Tensor]) -> float:
    """Return the duration of a forward and a backward pass."""
    start = time.perf_counter()
    system.batch_losses(first).mean().backward()
    if system.device.type == "cuda":
        torch.cuda.synchronize(system.device)
    system.zero_grad()
    return time.perf_counter() - start


def _format_duration(seconds: float) -> str:
    """Format as 1 s, 2 min or 3.4 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
