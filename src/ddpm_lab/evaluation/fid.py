"""FID, KID, precision, recall and scores of images, in the features of an extractor."""

import hashlib
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch_fidelity.metric_kid import (
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    kid_features_to_metric,
)
from torch_fidelity.metric_prc import calculate_precision_recall_part
from tqdm import tqdm

from ddpm_lab.data.datasets import Images, InMemorySplit, Split
from ddpm_lab.data.module import read_batches
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.statistics import (
    BLOCKS,
    Gaussian,
    RunningStatistics,
    frechet,
    jackknife,
    score,
    score_terms,
    split_count,
)
from ddpm_lab.utils.distributed import all_gather, is_rank_zero, shard
from ddpm_lab.utils.safe_load import load_tensors, read_sealed_json, save_tensors, write_sealed_json

MAX_FEATURES = 50_000
"""Maximum number of reference images, evenly spaced, for KID, precision and recall"""
KID_SUBSET_SIZE = 1000
MIN_SAMPLES_PER_FEATURE = 10
"""Samples per feature from which FID is close to linear in 1 / n"""
READERS = min(8, os.cpu_count() or 1)
"""Processes that read streamed images"""
MAX_NOISE_IMAGES = 2000
CACHE_VERSION = 2

IndexedBatches = Iterable[tuple[Tensor, InMemorySplit]]
"""Sample indices (B,) and the batch"""


def cache_dir() -> Path:
    """Return the folder of cached statistics: $DDPM_LAB_CACHE, or ~/.cache/ddpm-lab."""
    return Path(os.environ.get("DDPM_LAB_CACHE") or "~/.cache/ddpm-lab").expanduser()


def indexed_batches(split: Split, size: int = 500) -> Iterator[tuple[Tensor, InMemorySplit]]:
    """Return this process's shard of a split's batches, with their indices."""
    indices = shard(torch.arange(split.size).split(size))
    return zip(indices, read_batches(split, indices, READERS), strict=True)


class FIDEvaluator:
    """An extractor and reference statistics, with which samples are compared.

    The statistics are cached in `cache_dir()` by the hash of the images, labels and extractor.

    `extra_metrics`: any of "kid" and "prc" (precision and recall), which need reference features.
    """

    def __init__(
        self,
        extractor: Extractor,
        reference: Split,
        extra_metrics: Collection[str] = (),
        device: torch.device = torch.device("cpu"),
    ) -> None:
        self.extractor = extractor.to(device)
        self.extra_metrics, self.device = extra_metrics, device
        self.dims = cast(int, extractor.features.num_features)
        self.data_sha256 = reference.digest()
        key = (
            f"{CACHE_VERSION} {self.data_sha256} {extractor.name} {extractor.sha256} "
            f"{bool(extra_metrics)}"
        )
        self.digest = hashlib.sha256(key.encode()).hexdigest()
        file = cache_dir() / f"{self.digest}.safetensors"
        statistics = _read_cache(lambda: load_tensors(file)[0])
        if statistics is None:
            statistics = self._compute_reference(reference)
            if is_rank_zero():
                _write_cache(file, lambda: save_tensors(statistics, file))
        statistics = {name: value.to(device) for name, value in statistics.items()}
        self.features = statistics.pop("features", None)
        self.reference: dict[int, tuple[Gaussian, Tensor]] = {}
        """Statistics and the root of the covariance, by label; label -1 is all images"""
        for label in sorted({int(name.partition(".")[0]) for name in statistics}):
            mean, covariance, size = (
                statistics[f"{label}.{part}"] for part in ("mean", "covariance", "size")
            )
            gaussian = Gaussian(mean, covariance, int(size))
            self.reference[label] = (gaussian, gaussian.root())

    @torch.inference_mode()
    def __call__(self, samples: IndexedBatches, count: int) -> dict[str, Any]:
        """Return the metrics of `count` samples, by key.

        - fid, and fid_infinity, its limit for infinite samples, given enough samples.
        - inception_score, if the extractor has logits.
        - class_accuracy and intra_fid, the mean of FID within each class (Miyato & Koyama, 2018),
          if samples have labels that the extractor's classifier supports.
        - kid: torch-fidelity's mean over 100 subsets; its error is the deviation over these.
        - precision and recall by third neighbors (Kynkaanniemi et al., 2019).
        - standard_error: a mapping from those of the keys that have one.

        Each of several processes passes its own batches.
        """
        sums = {label: self._sums(BLOCKS if label < 0 else 1) for label in self.reference}
        scores = self._scores()
        correct = torch.zeros(2, dtype=torch.float64, device=self.device)
        all_features = []
        for indices, batch in samples:
            assert isinstance(batch, Images)  # points have no extractor
            features = self.extractor.features(batch.pixels.to(self.device))
            block = indices * BLOCKS // count
            self._add(sums, features, batch.labels, block)
            if self.extractor.logits is not None and scores is not None:
                scores.add(score_terms(self.extractor.logits(features).softmax(1)), block)
            if batch.labels is not None and self.extractor.classifier is not None:
                matches = self.extractor.classifier(features).argmax(1) == batch.labels.to(
                    self.device
                )
                correct += torch.stack([matches.sum(), matches.new_ones(len(matches)).sum()])
            if self.extra_metrics:
                all_features.append(features.cpu())
        gathered = torch.cat(all_gather(all_features)) if self.extra_metrics else None
        return self._compute(sums, scores, correct, gathered, count)

    def _compute(
        self,
        sums: dict[int, RunningStatistics],
        scores: RunningStatistics | None,
        correct: Tensor,
        features: Tensor | None,
        count: int,
    ) -> dict[str, Any]:
        accuracy = RunningStatistics(2, 1, self.device, squares=False)
        accuracy.add(correct[None], torch.zeros(1, dtype=torch.long))
        for part in (*sums.values(), *([scores] if scores else []), accuracy):
            part.reduce()
        fid = jackknife(
            lambda without: frechet(sums[-1].gaussian(without), *self.reference[-1]), count
        )
        metrics: dict[str, Any] = {"fid": fid.value}
        errors = {"fid": fid.standard_error}
        if fid.infinite is not None and count >= MIN_SAMPLES_PER_FEATURE * self.dims:
            metrics["fid_infinity"] = fid.infinite
        classes = [label for label in self.reference if label >= 0]
        if classes and all(sums[label].count.item() >= 2 for label in classes):
            each = [frechet(sums[label].gaussian(), *self.reference[label]) for label in classes]
            metrics["intra_fid"] = sum(each) / len(each)
        if scores is not None:
            metrics["inception_score"], errors["inception_score"] = _inception_score(scores, count)
        matches, labels = accuracy.total[0].tolist()
        if labels:
            share = metrics["class_accuracy"] = matches / labels
            errors["class_accuracy"] = math.sqrt(share * (1 - share) / labels)
        if self.features is not None and features is not None:
            self._compare_features(features, self.features, metrics, errors)
        standard_error = {name: error for name, error in errors.items() if error is not None}
        return {**metrics, "standard_error": standard_error}

    def _compare_features(
        self,
        features: Tensor,
        reference: Tensor,
        metrics: dict[str, Any],
        errors: dict[str, float | None],
    ) -> None:
        size = min(len(features), len(reference))
        if size <= 3:
            return
        if "prc" in self.extra_metrics:
            metrics["precision"], metrics["recall"] = calculate_precision_recall_part(
                features.to(self.device), reference
            )
        if "kid" in self.extra_metrics:
            kid = kid_features_to_metric(
                features, reference, kid_subset_size=min(KID_SUBSET_SIZE, size), verbose=False
            )
            metrics["kid"], errors["kid"] = kid[KEY_METRIC_KID_MEAN], kid[KEY_METRIC_KID_STD]

    @torch.inference_mode()
    def _compute_reference(self, reference: Split) -> dict[str, Tensor]:
        sums = {-1: self._sums(1)}
        if self.extractor.classifier is not None and reference.labels is not None:
            labels, counts = reference.labels.unique(return_counts=True)
            if counts.min() >= 2:  # a class of one image has no covariance
                sums |= {label: self._sums(1) for label in labels.tolist()}
        stride, all_features = math.ceil(reference.size / MAX_FEATURES), []
        total = math.ceil(reference.size / 500)
        disable = None if is_rank_zero() and total > 20 else True  # short bars only flicker
        batches = indexed_batches(reference)
        for indices, batch in tqdm(
            batches, "features of the data", total, leave=False, disable=disable
        ):
            assert isinstance(batch, Images)
            features = self.extractor.features(batch.pixels.to(self.device))
            self._add(sums, features, batch.labels, torch.zeros_like(indices))
            if self.extra_metrics:
                all_features.append(features[(indices % stride == 0).to(self.device)].cpu())
        statistics: dict[str, Tensor] = {}
        for label, part in sums.items():
            part.reduce()
            mean, covariance, size = part.gaussian()
            statistics |= {
                f"{label}.mean": mean,
                f"{label}.covariance": covariance,
                f"{label}.size": torch.tensor(size),
            }
        if self.extra_metrics:
            statistics["features"] = torch.cat(all_gather(all_features)).to(self.device)
        return statistics

    def _scores(self) -> RunningStatistics | None:
        """Return sums for the inception score. A process without batches takes part in reduce."""
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
                    members = features[labels == label]
                    part.add(members, torch.zeros(len(members), dtype=torch.long))


def _inception_score(scores: RunningStatistics, count: int) -> tuple[float, float | None]:
    """Return the score and its standard error.

    The error is the standard deviation over splits (Salimans et al., 2016), or the jackknife's for
    a single split.
    """
    if split_count(count) > 1:
        each = [score(scores.total[i : i + 1], scores.count[i : i + 1]) for i in range(BLOCKS)]
        return score(scores.total, scores.count), torch.tensor(each).std(correction=0).item()

    def without(block: int | None) -> float:
        rest = torch.tensor([i for i in range(BLOCKS) if i != block], device=scores.total.device)
        total, size = (part[rest].sum(0, keepdim=True) for part in (scores.total, scores.count))
        return score(total, size)

    return jackknife(without, count)[:2]


def baseline_scores(evaluator: FIDEvaluator, other: Split) -> dict[str, Any]:
    """Return the metrics of the images of `other`, "real", and of uniform "noise".

    There are as many noise images as real ones, up to `MAX_NOISE_IMAGES`. The results are cached.
    """
    key = f"{other.digest()} {MAX_NOISE_IMAGES} {sorted(evaluator.extra_metrics)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    file = cache_dir() / f"{evaluator.digest[:32]}-{digest[:32]}.json"
    baselines: dict[str, Any] | None = _read_cache(lambda: read_sealed_json(file))
    if baselines is None:
        shape = (min(other.size, MAX_NOISE_IMAGES), *other.shape)
        pixels = torch.randint(256, shape, generator=make_generator(0), dtype=torch.uint8)
        noise = Images(pixels, None)
        baselines = {
            name: evaluator(indexed_batches(split), split.size)
            for name, split in (("real", other), ("noise", noise))
        }
        if is_rank_zero():
            _write_cache(file, lambda: write_sealed_json(baselines, file))
    return baselines


def _read_cache(read: Callable[[], Any]) -> Any:
    """Return the content, or None if it is missing or corrupt in any process."""
    try:
        content = read()
    except (OSError, ValueError):
        content = None
    return content if all(all_gather([content is not None])) else None


def _write_cache(file: Path, write: Callable[[], None]) -> None:
    """Write to the cache; errors are ignored."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write()
