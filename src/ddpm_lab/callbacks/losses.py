"""Losses and throughput during training, and a plot at the end."""

import logging
import math
import time
from collections import defaultdict
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ddpm_lab.callbacks.periodic import image_path, log_metrics
from ddpm_lab.reports.figures import save_curves
from ddpm_lab.systems.base import BaseSystem, TimestepSystem
from ddpm_lab.utils.distributed import all_gather
from ddpm_lab.utils.ranges import Count, check_ranges

LOG = logging.getLogger(__name__)
STUCK = 0.9
"""Fraction of the loss of predicting zero above which a warning is logged"""
FIRST_CHECK = 100
"""Step of the first check; each later one is at twice the step"""
SPIKE = 10
"""Factor over the recent loss above which a warning is logged"""


@check_ranges
class Losses(L.Callback):
    """Logs the mean loss, learning rate and images per second every `every` batches.

    For systems with times, also the loss by quarter of t (q1 nearest the data). Values stay on the
    device until they are logged, without synchronization in between.
    """

    values: dict[str, list[Tensor]]
    """Values of the batches since the last report, (B,), or (1,) for a scalar"""
    _state: dict[str, Any] | None = None

    def __init__(self, every: Count = 50) -> None:
        self.every, self._check_at = every, FIRST_CHECK
        self.curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
        """(step, value) of each loss"""

    def on_train_start(self, trainer: L.Trainer, pl_module: BaseSystem) -> None:
        self._restart()
        if self._state:
            self.batches = self._restored = self._state["batches"]
            # The number of processes may differ from that of the save.
            local = self._state["processes"][trainer.global_rank :: trainer.world_size]
            for name, value in (item for steps in local for step in steps for item in step.items()):
                self.values[name].append(value.to(pl_module.device))

    def on_train_batch_start(self, *args: Any) -> None:
        if self.batches == self._restored:
            self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: BaseSystem, outputs: Any, *args: Any
    ) -> None:
        weight = torch.ones_like(outputs["losses"])
        values = {"weight": weight, **outputs, **outputs.get("parts", {})}
        for name, value in values.items():
            if name not in ("loss", "parts"):
                self.values[name].append(value.detach().reshape(-1))
        self.batches += 1
        if self.batches == self.every:
            self._report(trainer, pl_module, len(outputs["losses"]) * trainer.world_size)
            self._restart()

    def on_validation_end(self, trainer: L.Trainer, pl_module: BaseSystem) -> None:
        loss = float(trainer.callback_metrics["val/loss"])
        self.curves["val/loss"].append((trainer.global_step, loss))

    def state_dict(self) -> dict[str, Any]:
        return {"curves": dict(self.curves), "batches": self.batches}

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        values = {name: value.cpu() for name, value in self._concatenate().items()}
        checkpoint["callbacks"]["Losses"]["processes"] = all_gather([[values] if values else []])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curves.update(state_dict["curves"])
        self._state = state_dict

    def on_train_end(self, trainer: L.Trainer, pl_module: BaseSystem) -> None:
        if self.curves and trainer.is_global_zero:
            quarters = " (q1 to q4: quarters of the times t, q1 nearest the data)"
            label = f"step{quarters if isinstance(pl_module, TimestepSystem) else ''}"
            save_curves(self.curves, image_path(trainer, "losses"), x=label)

    def _restart(self) -> None:
        self.batches = self._restored = 0
        self.values = defaultdict(list)

    def _concatenate(self) -> dict[str, Tensor]:
        """Concatenate the batches. Non-finite losses, those of skipped steps, get weight 0."""
        values = {name: torch.cat(parts) for name, parts in self.values.items()}
        if values:
            values["weight"] = values["weight"] * values["losses"].isfinite()
        return {name: value.nan_to_num(0, 0, 0) for name, value in values.items()}

    def _report(self, trainer: L.Trainer, system: BaseSystem, batch_size: int) -> None:
        parts = self._concatenate()
        losses, weight = parts.pop("losses"), parts.pop("weight")
        quarter, quarters = torch.zeros_like(losses), 0
        if isinstance(system, TimestepSystem):
            quarter, quarters = (parts.pop("t") - 1) * 4 // system.process.steps, 4
        # The weights undo importance sampling.
        weighted = torch.stack([weight * losses, weight]).float()
        sums = torch.stack([(weighted * (quarter == q)).sum(1) for q in range(4)], 1)
        sums, counts = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        seconds = time.perf_counter() - self._start
        loss = sum(sums) / sum(counts) if sum(counts) else math.nan
        metrics = {"train/loss": loss}
        for q in range(quarters):
            if counts[q]:
                metrics[f"train/loss_q{q + 1}"] = sums[q] / counts[q]
        self._warn(loss, trainer, system)
        for name, value in metrics.items():
            if math.isfinite(value):
                self.curves[name].append((trainer.global_step, value))
        for name, value in parts.items():
            mean = trainer.strategy.reduce(value.float().mean(), reduce_op="mean")
            metrics[f"train/{name}"] = mean.item()
        metrics["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        images = (self.batches - self._restored) * batch_size
        metrics["images_per_second"] = images / seconds
        if skipped := system.skips.counts[0].item():
            metrics["train/skipped"] = skipped
        log_metrics(trainer, metrics)

    def _warn(self, loss: float, trainer: L.Trainer, system: BaseSystem) -> None:
        """Log a warning if the loss rises suddenly or is close to that of predicting zero."""
        step, zero = trainer.global_step, system.zero_loss
        recent = [value for _, value in self.curves["train/loss"][-3:]]
        if recent and loss > SPIKE * max(recent):
            LOG.warning("step %d: the loss rose from %.3g to %.3g", step, recent[-1], loss)
        if zero is None or step < self._check_at:
            return
        while self._check_at <= step:
            self._check_at *= 2
        if not loss < STUCK * zero:
            rate = trainer.optimizers[0].param_groups[0]["initial_lr"]
            LOG.warning(
                f"step {step}: the loss is {loss:.3g}, and predicting zero has {zero:.3g}: nothing "
                f"is learned yet; try optimizer.lr={rate / 4:.2g} (now {rate:.2g})"
            )
