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

from ddpm_lab.callbacks.log import log
from ddpm_lab.evaluation.pictures import save_curves
from ddpm_lab.ranks import everyones
from ddpm_lab.systems.training import Learner, System

LOG = logging.getLogger(__name__)
SPIKE = 10
"""Times the loss that it was, above which training says so"""


class Losses(L.Callback):
    """Every `every` batches: the mean loss since the last time, also by quarter of the times t where there are any (q1
    nearest the data), the learning rate and images per second.

    Sums stay on the device and are read when logged, so that a step costs no synchronisation.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 (got {every})")
        self.every = every
        self.curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
        """(step, value) of each loss"""

    def on_train_start(self, trainer: L.Trainer, pl_module: Learner) -> None:
        self._restart(pl_module.device)
        if self._kept:
            self.batches = self._before = self._kept["batches"]
            kept = self._kept["processes"][trainer.global_rank]
            self.parts.update({name: value.to(pl_module.device) for name, value in kept["parts"].items()})
            self.sums = kept["sums"].to(pl_module.device)

    def on_train_batch_start(self, *args: Any) -> None:
        if self.batches == self._before:
            self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Learner, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        losses = outputs["losses"].float()
        if isinstance(pl_module, System):
            weight, quarter = outputs["weight"].float(), (outputs["t"] - 1) * 4 // pl_module.process.steps
        else:
            weight, quarter = torch.ones_like(losses), torch.zeros_like(losses, dtype=torch.long)
        weight = weight * losses.isfinite()  # those of a step that is left out do not count
        losses = losses.nan_to_num(0, 0, 0)
        self.sums.index_add_(1, quarter, torch.stack([weight * losses, weight]))  # weights undo importance sampling
        for name, part in outputs.get("parts", {}).items():
            self.parts[name] = self.parts.get(name, 0) + part.detach().mean()
        self.batches += 1
        if self.batches == self.every:
            self._report(trainer, pl_module, len(losses) * trainer.world_size)
            self._restart(pl_module.device)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Learner) -> None:
        self.curves["val/loss"].append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))

    def state_dict(self) -> dict[str, Any]:
        return {"curves": dict(self.curves), "batches": self.batches}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        parts = {name: value.cpu() for name, value in self.parts.items()}
        checkpoint["callbacks"]["Losses"]["processes"] = everyones([{"sums": self.sums.cpu(), "parts": parts}])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curves.update(state_dict["curves"])
        self._kept = state_dict

    def on_train_end(self, trainer: L.Trainer, pl_module: Learner) -> None:
        if self.curves and trainer.is_global_zero:
            file = Path(trainer.default_root_dir) / "pictures" / "losses.png"
            timed = " (q1 to q4: quarters of the times t, q1 nearest the data)" if isinstance(pl_module, System) else ""
            save_curves(self.curves, file, x=f"step{timed}")

    _kept: dict[str, Any] | None = None

    def _restart(self, device: torch.device) -> None:
        self.batches = self._before = 0
        self.parts: dict[str, Tensor] = {}
        """Sums of what a loss is made of, where it has parts."""
        self.sums = torch.zeros(2, 4, device=device)
        """Sum of weighted losses and of weights, by quarter."""

    def _report(self, trainer: L.Trainer, system: Learner, batch_size: int) -> None:
        everyones = trainer.strategy.reduce(self.sums, reduce_op="sum")
        sums, counts = everyones.tolist()  # on a GPU this waits for the last batch, so the clock is read after it
        seconds = time.perf_counter() - self.since
        timed = range(4 if isinstance(system, System) else 0)
        quarters = {f"train/loss_q{q + 1}": sums[q] / counts[q] for q in timed if counts[q]}
        losses = {"train/loss": sum(sums) / sum(counts) if sum(counts) else math.nan, **quarters}
        usual = [value for _, value in self.curves["train/loss"][-3:]]
        if usual and losses["train/loss"] > SPIKE * max(usual):
            LOG.warning("step %d: the loss is %.3g, and was %.3g", trainer.global_step, losses["train/loss"], usual[-1])
        for name, value in losses.items():
            if math.isfinite(value):
                self.curves[name].append((trainer.global_step, value))
        skipped = system.skips.counts[0].item()
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        parts = {f"train/{name}": trainer.strategy.reduce(value, reduce_op="mean").item() / self.batches
                 for name, value in self.parts.items()}  # fmt: skip
        rates = {"lr": rate, "images_per_second": (self.batches - self._before) * batch_size / seconds}
        log(trainer, {**losses, **parts, **rates, **({"train/skipped": skipped} if skipped else {})})
