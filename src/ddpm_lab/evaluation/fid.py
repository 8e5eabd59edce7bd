"""FID and its relatives: distances of samples to reference images in feature space."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import Images, InMemorySplit, Split
from ddpm_lab.data.module import read_batches
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.evaluation.cache import cache_dir, cached
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.metrics import FeatureMetric, Results
from ddpm_lab.evaluation.statistics import (
    BLOCKS,
    Gaussian,
    RunningStatistics,
    Score,
    frechet,
    jackknife,
    score,
    score_terms,
    split_count,
)
from ddpm_lab.utils.distributed import all_gather, is_rank_zero, shard
from ddpm_lab.utils.safe_load import (
    load_tensors,
    read_sealed_json,
    save_tensors,
    sha256_of_text,
    write_sealed_json,
)

MAX_FEATURES = 50_000
"""Maximum number of reference images, evenly spaced, whose features are cached"""
SAMPLES_PER_FEATURE = 10
"""Samples per feature above which FID is close to a line in 1 / n"""
READERS = min(8, os.cpu_count() or 1)
"""Processes that read streamed images"""
NOISE_IMAGES = 2000
"""Maximum number of noise images for the baseline"""
VERSION = 2
"""Version of the cache"""
IndexedBatches = Iterable[tuple[Tensor, InMemorySplit]]
"""Sample numbers (B,) and batch"""


def indexed_batches(split: Split, size: int = 500) -> Iterator[tuple[Tensor, InMemorySplit]]:
    """Yield this process's batches of a split with their sample numbers."""
    index = shard(torch.arange(split.size).split(size))
    return zip(index, read_batches(split, index, READERS), strict=True)


class FIDEvaluator:
    """FID of samples to a reference split, whose statistics are computed once and cached.

    The key of the cache is the hash of images, labels and extractor.

    Args:
        extractor: The feature extractor.
        reference: The images to compare with.
        feature_metrics: Metrics that need all features, such as KID.
    """

    def __init__(
        self,
        extractor: Extractor,
        reference: Split,
        feature_metrics: Sequence[FeatureMetric] = (),
        device: torch.device = torch.device("cpu"),
    ) -> None:
        self.extractor, self.device = extractor.to(device), device
        self.feature_metrics = feature_metrics
        self.dims = cast(int, extractor.features.num_features)
        self.data_sha256 = reference.digest()
        key = f"{VERSION} {self.data_sha256} {extractor.name} {extractor.sha256}"
        self.digest = sha256_of_text(f"{key} {bool(feature_metrics)}")
        statistics = cached(
            cache_dir() / f"{self.digest}.safetensors",
            lambda: self._statistics(reference),
            lambda file: load_tensors(file)[0],
            save_tensors,
        )
        statistics = {name: value.to(device) for name, value in statistics.items()}
        self.features = statistics.pop("features", None)
        self.reference: dict[int, tuple[Gaussian, Tensor]] = {}
        """Gaussian of each label, and the root of its covariance; -1: all images"""
        for label in sorted({int(name.partition(".")[0]) for name in statistics}):
            mean, covariance, size = (
                statistics[f"{label}.{name}"] for name in ("mean", "covariance", "size")
            )
            gaussian = Gaussian(mean, covariance, int(size))
            self.reference[label] = gaussian, gaussian.root()

    @torch.inference_mode()
    def __call__(
        self,
        samples: IndexedBatches,
        count: int,
        others: "Mapping[str, FIDEvaluator]" = MappingProxyType({}),
    ) -> Results:
        """Return the metrics of `count` samples, of which each process passes its batches.

        - fid, and its extrapolation fid_infinity if there are `SAMPLES_PER_FEATURE` samples.
        - FID to the reference of each of `others`, by its name.
        - inception_score, if the extractor has logits.
        - class_accuracy, class_fid, the FID within each class by label, and intra_fid, their mean
          (Miyato & Koyama, 2018), for images with labels that the extractor's classifier has.
        - those of the feature metrics, if there are at least `min_count` samples.
        - standard_error, of the metrics that have one.
        """
        sums = {label: self._sums(BLOCKS if label < 0 else 1) for label in self.reference}
        scores = self._score_sums()
        correct = torch.zeros(
            2, dtype=torch.float64, device=self.device
        )  # and the number of labels
        features_list = []
        for numbers, batch in samples:
            assert isinstance(batch, Images)  # points have no extractor
            features = self.extractor.features(batch.pixels.to(self.device))
            block = numbers * BLOCKS // count
            self._add(sums, features, batch.labels, block)
            if self.extractor.logits is not None and scores is not None:
                scores.add(score_terms(self.extractor.logits(features).softmax(1)), block)
            if batch.labels is not None and self.extractor.classifier is not None:
                predictions = self.extractor.classifier(features).argmax(1)
                matches = predictions == batch.labels.to(self.device)
                correct += torch.stack([matches.sum(), matches.new_ones(len(matches)).sum()])
            if self.feature_metrics:
                features_list.append(features.cpu())
        accuracy = RunningStatistics(2, 1, self.device, squares=False)
        accuracy.add(correct[None], torch.zeros(1, dtype=torch.long))
        for part in (*sums.values(), *([scores] if scores else []), accuracy):
            part.reduce()
        results, errors = self._distances(sums, count)
        for name, other in others.items():
            results[name], errors[name] = other.fid(sums[-1], count)[:2]
        if scores is not None:
            value, error = _inception_score(scores, count)
            results["inception_score"], errors["inception_score"] = value, error
        num_correct, num_labels = accuracy.total[0].tolist()
        if num_labels:
            share = results["class_accuracy"] = num_correct / num_labels
            errors["class_accuracy"] = math.sqrt(share * (1 - share) / num_labels)
        if self.features is not None:
            all_features = torch.cat(all_gather(features_list))
            for metric in self.feature_metrics:
                if min(len(all_features), len(self.features)) >= metric.min_count:
                    estimates = metric.compute(all_features, self.features, self.device)
                    results |= {name: value for name, (value, _) in estimates.items()}
                    errors |= {name: error for name, (_, error) in estimates.items()}
        standard_errors = {name: error for name, error in errors.items() if error is not None}
        return {**results, "standard_error": standard_errors}

    def fid(self, sums: RunningStatistics, count: int) -> Score:
        """Return FID of `count` samples to the reference, by the sums of their features."""
        return jackknife(lambda block: frechet(sums.gaussian(block), *self.reference[-1]), count)

    def _distances(
        self, sums: dict[int, RunningStatistics], count: int
    ) -> tuple[Results, dict[str, float | None]]:
        """Return FID, its extrapolation and intra FID, and standard errors."""
        fid = self.fid(sums[-1], count)
        results: Results = {"fid": fid.value}
        if fid.infinite is not None and count >= SAMPLES_PER_FEATURE * self.dims:
            results["fid_infinity"] = fid.infinite
        labels = [label for label in self.reference if label >= 0]
        if labels and all(sums[label].count.item() >= 2 for label in labels):
            each = [frechet(sums[label].gaussian(), *self.reference[label]) for label in labels]
            results["intra_fid"] = sum(each) / len(each)
            results["class_fid"] = dict(zip(map(str, labels), each, strict=True))
        return results, {"fid": fid.standard_error}

    @torch.inference_mode()
    def _statistics(self, reference: Split) -> dict[str, Tensor]:
        """Compute mean, covariance and size of all images and of each class, and the features."""
        sums = {-1: self._sums(1)}
        if self.extractor.classifier is not None and reference.labels is not None:
            labels, counts = reference.labels.unique(return_counts=True)
            if counts.min() >= 2:  # one image has no covariance
                sums |= {label: self._sums(1) for label in labels.tolist()}
        stride = math.ceil(reference.size / MAX_FEATURES)
        total = math.ceil(reference.size / 500)
        hidden = None if is_rank_zero() and total > 20 else True
        batches = indexed_batches(reference)
        features_list = []
        for numbers, batch in tqdm(
            batches, "features of the data", total, leave=False, disable=hidden
        ):
            assert isinstance(batch, Images)
            features = self.extractor.features(batch.pixels.to(self.device))
            self._add(sums, features, batch.labels, torch.zeros_like(numbers))
            if self.feature_metrics:
                features_list.append(features[(numbers % stride == 0).to(self.device)].cpu())
        statistics: dict[str, Tensor] = {}
        for label, part in sums.items():
            part.reduce()
            mean, covariance, size = part.gaussian()
            statistics[f"{label}.mean"] = mean
            statistics[f"{label}.covariance"] = covariance
            statistics[f"{label}.size"] = torch.tensor(size)
        if self.feature_metrics:
            statistics["features"] = torch.cat(all_gather(features_list)).to(self.device)
        return statistics

    def _score_sums(self) -> RunningStatistics | None:
        """Return sums for the inception score, also in processes without a batch."""
        if self.extractor.logits is None:
            return None
        classes = self.extractor.logits(torch.zeros(1, self.dims, device=self.device)).shape[1]
        return RunningStatistics(classes + 1, BLOCKS, self.device, squares=False)

    def _sums(self, blocks: int) -> RunningStatistics:
        return RunningStatistics(self.dims, blocks, self.device, squares=True)

    def _add(
        self,
        sums: dict[int, RunningStatistics],
        features: Tensor,
        labels: Tensor | None,
        block: Tensor,
    ) -> None:
        sums[-1].add(features, block)
        if labels is not None:
            labels = labels.to(self.device)
            for label, part in sums.items():
                if label >= 0:
                    rows = features[labels == label]
                    part.add(rows, torch.zeros(len(rows), dtype=torch.long))


def _inception_score(scores: RunningStatistics, count: int) -> tuple[float, float | None]:
    """Return the score and its error.

    The error is the standard deviation over splits (Salimans et al., 2016), or by the jackknife if
    there is one split.
    """
    if split_count(count) > 1:
        each = [score(scores.total[i : i + 1], scores.count[i : i + 1]) for i in range(BLOCKS)]
        return score(scores.total, scores.count), torch.tensor(each).std(correction=0).item()

    def without(block: int | None) -> float:
        index = torch.tensor([i for i in range(BLOCKS) if i != block], device=scores.total.device)
        total, number = (part[index].sum(0, keepdim=True) for part in (scores.total, scores.count))
        return score(total, number)

    return jackknife(without, count)[:2]


def baseline_scores(evaluator: FIDEvaluator, other: Split) -> Results:
    """Return the metrics of real images ("real") and of uniform "noise", cached like statistics."""
    names = [number.key for metric in evaluator.feature_metrics for number in metric.numbers]
    key = f"{other.digest()} {NOISE_IMAGES} {sorted(names)}"
    digest = sha256_of_text(key)

    def compute() -> Results:
        shape = (min(other.size, NOISE_IMAGES), *other.shape)
        pixels = torch.randint(256, shape, generator=make_generator(0), dtype=torch.uint8)
        splits = {"real": other, "noise": Images(pixels, None)}
        return {
            name: evaluator(indexed_batches(split), split.size) for name, split in splits.items()
        }

    file = cache_dir() / f"{evaluator.digest[:32]}-{digest[:32]}.json"
    return cached(file, compute, read_sealed_json, write_sealed_json)
