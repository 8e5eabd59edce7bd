"""Metrics of samples, at the end of training and optionally during training."""

import logging
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lab.callbacks.ema import ema_or_raw
from ddpm_lab.callbacks.lightning_internals import datamodule
from ddpm_lab.callbacks.periodic import Periodic, log_metrics
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.ode_nll import evaluate_ode_nll
from ddpm_lab.evaluation.sample_quality import evaluate_samples
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.systems.diffusion import Diffusion

LOG = logging.getLogger(__name__)
LOGGED = ("fid", "fid_infinity", "intra_fid", "class_accuracy")


class ODELikelihood(L.Callback):
    """Logs the NLL of `count` held-out points (`evaluate_ode_nll`)."""

    supports = ("points",)

    def __init__(self, count: int = 1000) -> None:
        if count < 2:
            raise ValueError(f"count must be at least 2 (got {count})")
        self.count = count
        self.result: dict[str, Any] = {}

    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: Diffusion) -> None:
        weights, pipeline = ema_or_raw(trainer, pl_module)
        data = datamodule(trainer)
        self.result = evaluate_ode_nll(
            pipeline, data, weights=weights, split="test", count=self.count
        )
        log_metrics(trainer, {"eval/ode_nll": self.result["nll"]})


class FID(Periodic):
    """Logs the metrics of `count` samples every `every` steps (None: only at the end).

    If the extractor is not available, one line is logged and training continues without FID.
    """

    supports = ("images",)

    def __init__(
        self,
        extractor: Callable[[], Extractor],
        count: int = 1000,
        every: int | None = None,
        batch_size: int = 250,
    ) -> None:
        if count < 2:
            raise ValueError(
                f"count must be at least 2 (got {count}); FID of few samples is not meaningful, "
                "try 1000"
            )
        if batch_size < 1 or (every is not None and every < 1):
            raise ValueError(
                f"every={every} and batch_size={batch_size} must be at least 1; try every=null"
            )
        self.load_extractor, self.count, self.every, self.batch_size = (
            extractor,
            count,
            every,
            batch_size,
        )
        self.extractor: Extractor | None = None
        self.result: dict[str, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: Diffusion, stage: str) -> None:
        try:
            extractor = self.load_extractor()
            extractor.check(pl_module.shape)
            self.extractor = extractor
        except ValueError as error:
            LOG.info("FID will not be measured: %s", error)

    def samples(self) -> int:
        return 0 if self.extractor is None else self.count

    def on_train_end(self, trainer: L.Trainer, pl_module: Diffusion) -> None:
        self.run(trainer, pl_module)

    def run(self, trainer: L.Trainer, system: Diffusion) -> None:
        if self.extractor is None:
            return
        weights, pipeline = ema_or_raw(trainer, system)
        self.result = next(
            evaluate_samples(
                Cascade([pipeline]),
                datamodule(trainer),
                self.extractor,
                weights=weights,
                split="train",
                count=self.count,
                seed=0,
                batch_size=self.batch_size,
            )
        )
        metrics = {f"eval/{key}": self.result[key] for key in LOGGED if key in self.result}
        log_metrics(trainer, metrics)
