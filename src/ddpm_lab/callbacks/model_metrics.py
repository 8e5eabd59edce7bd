"""Metrics of samples, at the end of training and optionally during training."""

import logging
from collections.abc import Callable
from typing import Annotated, Any

import lightning as L
from annotated_types import Ge

from ddpm_lab.callbacks.ema import ema_or_raw
from ddpm_lab.callbacks.lightning_internals import datamodule
from ddpm_lab.callbacks.loggers import log_protocol
from ddpm_lab.callbacks.periodic import Periodic, log_metrics
from ddpm_lab.data.module import Data
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.ode_nll import OdeNLL
from ddpm_lab.evaluation.sample_quality import SampleQuality
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.errors import prefix_errors
from ddpm_lab.utils.ranges import Count, check_ranges

LOG = logging.getLogger(__name__)
LOGGED = ("fid", "fid_held_out", "fid_infinity", "intra_fid", "inception_score", "class_accuracy")


class ODELikelihood(L.Callback):
    """Logs the NLL of `count` held-out points."""

    supports = ("points",)

    @check_ranges
    def __init__(self, count: Annotated[int, Ge(2)] = 1000) -> None:
        self.metric = OdeNLL("test", count)
        self.result: dict[str, Any] = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: Diffusion) -> None:
        with ema_or_raw(trainer, pl_module) as (weights, pipeline):
            if trainer.is_global_zero:
                data = datamodule(trainer)
                self.result = self.metric.compute(Cascade([pipeline]), data, weights)
                log_metrics(trainer, {"eval/ode_nll": self.result["nll"]})


class FID(Periodic):
    """Logs the metrics of `count` samples every `every` steps (None: only at the end).

    If the extractor is unavailable, a line is logged and training continues without FID.
    """

    supports = ("images",)

    @check_ranges
    def __init__(
        self,
        extractor: Callable[[], Extractor],
        count: Annotated[int, Ge(2)] = 1000,
        every: Count | None = None,
        batch_size: Count = 250,
    ) -> None:
        self.metric = SampleQuality(extractor, count=count, batch_size=batch_size)
        self.every, self.available = every, False
        self.result: dict[str, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: Diffusion, stage: str) -> None:
        try:
            with prefix_errors("extractor"):
                extractor = self.metric.loaded_extractor
                extractor.check(pl_module.shape)
                extractor.ready(datamodule(trainer).train)  # and its errors precede training
            self.available = True
        except ValueError as error:
            LOG.info("FID will not be measured: %s", error)

    def measured(self, system: Diffusion, data: Data) -> list[str]:
        if self.every is None:
            return []
        try:
            extractor = self.metric.loaded_extractor
            extractor.check(system.shape)
        except ValueError:
            return []
        names, classes = ["fid"], extractor.train is not None
        if extractor.logits is not None or classes:
            names.append("inception_score")
        if extractor.classifier is not None or classes:
            conditions = system.pipeline.make_conditions(2, images=data.test)
            names += ["class_accuracy", "intra_fid"] if "label" in conditions else []
        return names

    def samples(self) -> int:
        return self.metric.count if self.available else 0

    def run(self, trainer: L.Trainer, system: Diffusion) -> None:
        if not self.available:
            return
        with ema_or_raw(trainer, system) as (weights, pipeline):
            self.result = self.metric.compute(Cascade([pipeline]), datamodule(trainer), weights)
        metrics = {f"eval/{key}": self.result[key] for key in LOGGED if key in self.result}
        errors = self.result["standard_error"]
        metrics |= {f"eval/{key}_error": errors[key] for key in LOGGED if key in errors}
        log_metrics(trainer, metrics)
        log_protocol(trainer.loggers, self.result["protocol"])
