"""Time and loss that training starts from, measured on one batch before its first step."""

import logging
import time

import lightning as L
import torch

from ddpm_lab.callbacks.periodic import Periodic, datamodule
from ddpm_lab.data.datasets import to_batch, to_device
from ddpm_lab.data.module import read_batches
from ddpm_lab.systems.base import BaseSystem

LOG = logging.getLogger(__name__)


class Forecast(L.Callback):
    """Logs how long training takes, and gives the system the loss of predicting zero, with which `Losses` compares.

    Two forward and backward passes on the first training images; the second is timed. Weights, gradients and random
    numbers of training stay as they are. With `timed` False, such as for compiled networks, no time is logged.
    """

    def __init__(self, timed: bool = True) -> None:
        self.timed = timed

    def on_train_start(self, trainer: L.Trainer, pl_module: BaseSystem) -> None:
        data, device = datamodule(trainer), pl_module.device
        size = data.batch_size // trainer.world_size
        images = next(
            iter(read_batches(data.train, [torch.arange(size)], min(1, data.workers)))
        )  # a worker has a timeout
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
        checks = (
            batches // trainer.val_check_batch if isinstance(trainer.val_check_batch, int) else 0
        )
        held_out = min(data.test.size // size, _limit(trainer.limit_val_batches))
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
        samples = sum(
            each.samples() * each.run_count(steps)
            for each in callbacks
            if isinstance(each, Periodic)
        )
        passes = pl_module.network_calls * samples / size
        LOG.info(
            "training: %d steps of %.2g s, about %s; validation, samples and metrics: about %s",
            steps,
            seconds[-1] * trainer.accumulate_grad_batches,
            _shown(seconds[-1] * batches),
            _shown(forward * (checks * held_out + passes)),
        )


def _seconds(system: BaseSystem, first: dict[str, torch.Tensor]) -> float:
    """Duration of a forward and a backward pass."""
    start = time.perf_counter()
    system.batch_losses(first).mean().backward()
    if system.device.type == "cuda":
        torch.cuda.synchronize(system.device)
    system.zero_grad()
    return time.perf_counter() - start


def _limit(batches: float | None) -> int:
    return batches if isinstance(batches, int) else 10**9


def _shown(seconds: float) -> str:
    """1 s, 2 min, 3.4 h"""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
