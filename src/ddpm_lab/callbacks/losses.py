"""Logs what training is doing, and draws it at the end."""

import logging
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ddpm_lab.callbacks.periodic import log_metrics
from ddpm_lab.reports.figures import save_curves
from ddpm_lab.systems.base import BaseSystem, TimestepSystem
from ddpm_lab.utils.distributed import all_gather

LOG = logging.getLogger(__name__)
STUCK = 0.9
"""Share of the loss of predicting zero, above which training warns that the network does not learn"""
FIRST_CHECK = 100
"""Step of the first such warning; the next ones come at twice the step of the one before"""
SPIKE = 10
"""Times the loss that it was, above which training says so"""


class Losses(L.Callback):
    """Every `every` batches: the mean loss since the last time, also by quarter of the times t where there are any (q1
    nearest the data), the learning rate and images per second.

    What steps find stays on the device and is looked at when logged, so that a step costs nothing.
    """

    found: dict[str, list[Tensor]]
    """By name, the values of the batches since the last report: (B,), or (1,) for a scalar"""

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 (got {every})")
        self.every = every
        self._check_at = FIRST_CHECK
        self.curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
        """(step, value) of each loss"""

    def on_train_start(self, trainer: L.Trainer, pl_module: BaseSystem) -> None:
        self._restart()
        if self._kept:
            self.batches = self._before = self._kept["batches"]
            mine = self._kept["processes"][
                trainer.global_rank :: trainer.world_size
            ]  # there may be fewer or more now
            for name, value in (pair for kept in mine for step in kept for pair in step.items()):
                self.found[name].append(value.to(pl_module.device))

    def on_train_batch_start(self, *args: Any) -> None:
        if self.batches == self._before:
            self.since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: BaseSystem,
        outputs: dict[str, Any],
        batch: Any,
        batch_idx: int,
    ) -> None:
        found = {
            "weight": torch.ones_like(outputs["losses"]),
            **outputs,
            **outputs.get("parts", {}),
        }
        for name, value in found.items():
            if name not in ("loss", "parts"):
                self.found[name].append(value.detach().reshape(-1))
        self.batches += 1
        if self.batches == self.every:
            self._report(trainer, pl_module, len(outputs["losses"]) * trainer.world_size)
            self._restart()

    def on_validation_end(self, trainer: L.Trainer, pl_module: BaseSystem) -> None:
        self.curves["val/loss"].append(
            (trainer.global_step, float(trainer.callback_metrics["val/loss"]))
        )

    def state_dict(self) -> dict[str, Any]:
        return {"curves": dict(self.curves), "batches": self.batches}

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        kept = {name: value.cpu() for name, value in self._all().items()}
        checkpoint["callbacks"]["Losses"]["processes"] = all_gather([[kept] if kept else []])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curves.update(state_dict["curves"])
        self._kept = state_dict

    def on_train_end(self, trainer: L.Trainer, pl_module: BaseSystem) -> None:
        if self.curves and trainer.is_global_zero:
            file = Path(trainer.default_root_dir) / "images" / "losses.png"
            timed = (
                " (q1 to q4: quarters of the times t, q1 nearest the data)"
                if isinstance(pl_module, TimestepSystem)
                else ""
            )
            save_curves(self.curves, file, x=f"step{timed}")

    _kept: dict[str, Any] | None = None

    def _restart(self) -> None:
        self.batches = self._before = 0
        self.found = defaultdict(list)

    def _all(self) -> dict[str, Tensor]:
        """The values of all batches together, by name. Losses that are not finite, of a skipped step, have weight 0."""
        found = {name: torch.cat(values) for name, values in self.found.items()}
        if found:
            found["weight"] = found["weight"] * found["losses"].isfinite()
        return {name: value.nan_to_num(0, 0, 0) for name, value in found.items()}

    def _report(self, trainer: L.Trainer, system: BaseSystem, batch_size: int) -> None:
        parts = self._all()
        losses, weight = parts.pop("losses"), parts.pop("weight")
        quarter = torch.zeros_like(losses)
        if isinstance(system, TimestepSystem):
            quarter = (parts.pop("t") - 1) * 4 // system.process.steps
        weighted = torch.stack(
            [weight * losses, weight]
        ).float()  # weights undo importance sampling
        sums = torch.stack([(weighted * (quarter == q)).sum(1) for q in range(4)], 1)
        sums, counts = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        seconds = time.perf_counter() - self.since
        timed = range(4 if isinstance(system, TimestepSystem) else 0)
        quarters = {f"train/loss_q{q + 1}": sums[q] / counts[q] for q in timed if counts[q]}
        found = {"train/loss": sum(sums) / sum(counts) if sum(counts) else math.nan, **quarters}
        usual = [value for _, value in self.curves["train/loss"][-3:]]
        if usual and found["train/loss"] > SPIKE * max(usual):
            LOG.warning(
                "step %d: the loss is %.3g, and was %.3g",
                trainer.global_step,
                found["train/loss"],
                usual[-1],
            )
        self._check_learning(found["train/loss"], trainer, system)
        for name, value in found.items():
            if math.isfinite(value):
                self.curves[name].append((trainer.global_step, value))
        skipped = system.skips.counts[0].item()
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        means = {
            f"train/{name}": trainer.strategy.reduce(value.float().mean(), reduce_op="mean").item()
            for name, value in parts.items()
        }
        rates = {
            "lr": rate,
            "images_per_second": (self.batches - self._before) * batch_size / seconds,
        }
        log_metrics(
            trainer, {**found, **means, **rates, **({"train/skipped": skipped} if skipped else {})}
        )

    def _check_learning(self, loss: float, trainer: L.Trainer, system: BaseSystem) -> None:
        """Warn of a loss that is about that of predicting zero."""
        step, zero = trainer.global_step, system.zero_loss
        if zero is None or step < self._check_at:
            return
        while self._check_at <= step:
            self._check_at *= 2
        if not loss < STUCK * zero:
            rate = trainer.optimizers[0].param_groups[0]["initial_lr"]
            LOG.warning(
                "step %d: the loss is %.3g, and predicting zero has %.3g: the network has not learned anything "
                "yet; try optimizer.lr=%.2g (now %.2g)",
                step,
                loss,
                zero,
                rate / 4,
                rate,
            )
