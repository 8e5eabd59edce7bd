"""The end of training when a metric has stopped improving."""

import logging
from typing import Any

import lightning as L

from ddpm_lab.callbacks.monitor import Monitor
from ddpm_lab.utils.ranges import Count, NonNegative, check_ranges

LOG = logging.getLogger(__name__)


@check_ranges
class EarlyStopping(Monitor):
    """Ends training after `patience` values of `metric` in a row that do not improve.

    Lightning's own would compare at validations only, where FID is not measured, and would restore
    the patience of a checkpoint. With `metric` None, training never ends early.
    """

    argument = "metric"
    waited = 0
    """Values since the best one"""

    def __init__(
        self, metric: str | None = None, patience: Count = 5, min_delta: NonNegative = 0.0
    ) -> None:
        self.metric, self.patience, self.min_delta = metric, patience, min_delta

    def observe(self, trainer: L.Trainer, improved: bool) -> None:
        self.waited = 0 if improved else self.waited + 1
        self._stop_if_due(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_if_due(trainer)  # a run that ended early ends again when it is resumed

    def _stop_if_due(self, trainer: L.Trainer) -> None:
        if self.waited >= self.patience and not trainer.should_stop:
            trainer.should_stop = True
            best = f"best: {self.best:.4g} at step {self.best_step}"
            LOG.info(
                f"step {trainer.global_step}: training ends early, because {self.metric} stopped "
                f"improving {self.waited} values ago ({best})"
            )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict["metric"] == self.metric:
            self.waited = state_dict["waited"]
