"""Callbacks that follow a metric during training."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import lightning as L

HIGHER = {"accuracy", "class_accuracy", "inception_score", "psnr"}
"""Metrics of which higher values are better; of the others, lower ones"""


class Monitor(L.Callback, ABC):
    """Follows the best value of `metric`, by its name in the logs without eval/ or val/.

    `log_metrics` and validations pass the values. With `metric` None, nothing is followed.
    """

    argument: ClassVar[str]
    """Argument of the constructor that names the metric"""
    metric: str | None
    min_delta = 0.0
    """Smallest change that counts as an improvement"""
    best: float | None = None
    """Best value; None before the first"""
    best_step = 0

    @abstractmethod
    def observe(self, trainer: L.Trainer, improved: bool) -> None:
        """React to a value, which is the best so far if `improved`."""

    def receive(self, trainer: L.Trainer, metrics: Mapping[str, Any]) -> None:
        """Compare the value of `metric`, if it is in `metrics`, with the best."""
        names = (f"eval/{self.metric}", f"val/{self.metric}")
        for value in [float(metrics[name]) for name in names if name in metrics]:
            sign = -1 if self.metric in HIGHER else 1
            limit = math.inf if self.best is None else sign * self.best - self.min_delta
            improved = sign * value < limit
            if improved:
                self.best, self.best_step = value, trainer.global_step
            self.observe(trainer, improved)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics  # includes those of training
        self.receive(trainer, {name: metrics[name] for name in metrics if name[:4] == "val/"})

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["metric"] == self.metric:  # else it was changed on resume
            self.best, self.best_step = state_dict["best"], state_dict["best_step"]
