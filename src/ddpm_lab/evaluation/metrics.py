"""Interfaces of metrics.

A metric is one class with one file in configs/metric, whose name `metrics=[...]` of evaluate.py
lists: a `Metric`, or a `FeatureMetric` or `ImageMetric` for samples.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ddpm_lab.data.datasets import InMemorySplit, Split
from ddpm_lab.data.module import Data
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.utils.errors import UserError, choice_name

Results = dict[str, Any]
"""Results of a metric, as in metrics.json"""
Rows = list[tuple[str, str, str]]
"""Label, value and remark of each row on the terminal"""
Estimates = Mapping[str, tuple[float, float | None]]
"""Values and standard errors (or None) by key"""
SplitName = Literal["train", "test"]


class Number(NamedTuple):
    """A number of metrics.json."""

    key: str
    """Key, with dots between the levels"""
    label: str
    """Name in tables and plots"""
    better: Literal["lower", "higher"]
    """Direction of improvement"""
    format: str = "{:.3g}"
    """Format of the number in tables"""


class Metric(ABC):
    """A metric of a model."""

    numbers: ClassVar[tuple[Number, ...]]
    """Numbers for tables, in the order of columns"""
    supports_cascades: ClassVar[bool] = False

    def check(self, cascade: Cascade) -> None:
        """Raise UserError, or ValueError that begins with an option, if the metric does not fit."""
        if len(cascade.stages) > 1 and not self.supports_cascades:
            raise UserError(
                f"metrics=[{choice_name(self)}] is for one model, but cascade= has "
                f"{len(cascade.stages)}; try metrics=[fid], or run=DIR"
            )

    @abstractmethod
    def compute(self, cascade: Cascade, data: Data, weights: str) -> Results:
        """Return the results and their protocol, which names the `weights`, "ema" or "raw"."""

    @abstractmethod
    def rows(self, results: Results) -> Rows:
        """Format the results of `compute`."""

    def save_figures(self, results: Results, folder: Path) -> list[Path]:
        """Save figures in `folder`, and return their files."""
        return []


class SampleMetric(ABC):
    """A metric of samples; all share the samples of FID."""

    numbers: ClassVar[tuple[Number, ...]]
    """Numbers for tables"""
    min_count: ClassVar[int] = 4
    """Minimum number of samples"""

    @abstractmethod
    def rows(self, results: Results) -> Rows:
        """Format the results, which contain those of held-out images under "real"."""


class FeatureMetric(SampleMetric):
    """A metric of the features of samples."""

    @abstractmethod
    def compute(self, features: Tensor, reference: Tensor, device: torch.device) -> Estimates:
        """Compare features of samples (N, D) with those of real images (M, D).

        The features of samples are on the CPU, those of real images on `device`.
        """


class ImageMetric(SampleMetric):
    """A metric of the pixels of samples, which may compare them with any images of the data."""

    @abstractmethod
    def compute(
        self, pixels: Tensor, data: Data, extractor: Extractor, device: torch.device
    ) -> Results:
        """Return results of samples (N, C, H, W) uint8 on the CPU, in each process."""

    def save_figures(self, results: Results, folder: Path) -> list[Path]:
        """Save figures in `folder`, and return their files."""
        return []


def first_samples(
    data: Data, split: SplitName, count: int | None, device: torch.device
) -> InMemorySplit:
    """Return the first `count` samples of a split (None: all) on `device`."""
    samples: Split = {"train": data.train, "test": data.test}[split]
    return samples.select(slice(count)).to(device)


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean."""
    return values.std().item() / len(values) ** 0.5
