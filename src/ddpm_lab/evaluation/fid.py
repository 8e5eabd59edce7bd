"""How far images are from those of a reference, in the features of an extractor."""

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

KEPT = 50_000
"""Of how many images of a reference, evenly over it, KID, precision and recall know the features"""
SUBSETS = 1000
"""How many images are in each subset of KID"""
ENOUGH = 10
"""Samples for each feature, from which on FID is close to a line in 1 / n"""
READERS = min(8, os.cpu_count() or 1)
"""How many processes read images that are streamed"""
NOISE = 2000
"""At most so many images of noise are measured"""
VERSION = 2
"""Of what the cache holds"""

IndexedBatches = Iterable[tuple[Tensor, InMemorySplit]]
"""Batches, and the numbers (B,) of the samples in each"""


def cache_dir() -> Path:
    """Where statistics of references are kept: $DDPM_LAB_CACHE, or ~/.cache/ddpm-lab."""
    return Path(os.environ.get("DDPM_LAB_CACHE") or "~/.cache/ddpm-lab").expanduser()


def indexed_batches(split: Split, size: int = 500) -> Iterator[tuple[Tensor, InMemorySplit]]:
    """The batches of images of a split that are this process's."""
    chosen = shard(torch.arange(split.size).split(size))
    return zip(chosen, read_batches(split, chosen, READERS), strict=True)


class FIDEvaluator:
    """An extractor and the images that samples are compared with. What it must know of these is computed once, and
    kept in `cache()` by the hash of the images, of their labels and of the extractor.

    `thorough`: which of "kid" and "prc" (precision and recall) are wanted as well, for which features are kept.
    """

    def __init__(
        self,
        extractor: Extractor,
        reference: Split,
        extra_metrics: Collection[str] = (),
        device: torch.device = torch.device("cpu"),
    ) -> None:
        self.extractor, self.extra_metrics, self.device = (
            extractor.to(device),
            extra_metrics,
            device,
        )
        self.dims = cast(int, extractor.features.num_features)
        self.data_sha256 = reference.digest()
        key = f"{VERSION} {self.data_sha256} {extractor.name} {extractor.sha256} {bool(extra_metrics)}"
        self.digest = hashlib.sha256(key.encode()).hexdigest()
        file = cache_dir() / f"{self.digest}.safetensors"
        known = _kept(lambda: load_tensors(file)[0])
        if known is None:
            known = self._known(reference)
            if is_rank_zero():
                _keep(file, lambda: save_tensors(known, file))
        known = {name: value.to(device) for name, value in known.items()}
        self.features = known.pop("features", None)
        names = sorted({name.partition(".")[0] for name in known}, key=int)
        each = {
            int(name): Gaussian(
                known[f"{name}.mean"], known[f"{name}.covariance"], int(known[f"{name}.size"])
            )
            for name in names
        }
        self.reference = {label: (gaussian, gaussian.root()) for label, gaussian in each.items()}
        """By label; -1: all of them"""

    @torch.inference_mode()
    def __call__(self, samples: IndexedBatches, count: int) -> dict[str, Any]:
        """FID of `count` samples, and the inception score, where the extractor has logits. Where images have labels
        that the extractor's classifier knows, also the share of them it names, and the mean over classes of the FID
        within each (Miyato & Koyama, 2018).

        "standard_error" has those of them that samples can be had of; "fid_infinity" is what FID goes to with ever more
        samples, where they are `ENOUGH` for that. KID is that of torch-fidelity, a mean over 100 subsets, and its error
        the standard deviation over these. Precision and recall are the shares of samples within the manifold of the
        reference and the other way round, by third neighbours (Kynkaanniemi et al., 2019). Several processes each give
        batches of their own.
        """
        sums = {label: self._sums(BLOCKS if label < 0 else 1) for label in self.reference}
        scores = self._scores()
        right = torch.zeros(2, dtype=torch.float64, device=self.device)
        kept = []
        for numbers, batch in samples:
            assert isinstance(batch, Images)  # points have no extractor
            features = self.extractor.features(batch.pixels.to(self.device))
            block = numbers * BLOCKS // count
            self._add(sums, features, batch.labels, block)
            if self.extractor.logits is not None and scores is not None:
                scores.add(score_terms(self.extractor.logits(features).softmax(1)), block)
            if batch.labels is not None and self.extractor.classifier is not None:
                answers = self.extractor.classifier(features).argmax(1) == batch.labels.to(
                    self.device
                )
                right += torch.stack([answers.sum(), answers.new_ones(len(answers)).sum()])
            if self.extra_metrics:
                kept.append(features.cpu())
        gathered = torch.cat(all_gather(kept)) if self.extra_metrics else None
        return self._found(sums, scores, right, gathered, count)

    def _found(
        self,
        sums: dict[int, RunningStatistics],
        scores: RunningStatistics | None,
        right: Tensor,
        kept: Tensor | None,
        count: int,
    ) -> dict[str, Any]:
        everything = RunningStatistics(2, 1, self.device, squares=False)
        everything.add(right[None], torch.zeros(1, dtype=torch.long))
        for part in (*sums.values(), *([scores] if scores else []), everything):
            part.reduce()
        named, conditions = everything.total[0].tolist()
        fid = jackknife(
            lambda without: frechet(sums[-1].gaussian(without), *self.reference[-1]), count
        )
        found: dict[str, Any] = {"fid": fid.value}
        errors = {"fid": fid.standard_error}
        if fid.infinite is not None and count >= ENOUGH * self.dims:
            found["fid_infinity"] = fid.infinite
        within = [label for label in self.reference if label >= 0]
        if within and all(sums[label].count.item() >= 2 for label in within):
            each = [frechet(sums[label].gaussian(), *self.reference[label]) for label in within]
            found["intra_fid"] = sum(each) / len(each)
        if scores is not None:
            found["inception_score"], errors["inception_score"] = _inception_score(scores, count)
        if conditions:
            share = found["class_accuracy"] = named / conditions
            errors["class_accuracy"] = math.sqrt(share * (1 - share) / conditions)
        if self.features is not None and kept is not None:
            self._thoroughly(kept, self.features, found, errors)
        return {
            **found,
            "standard_error": {name: error for name, error in errors.items() if error is not None},
        }

    def _thoroughly(
        self,
        kept: Tensor,
        reference: Tensor,
        found: dict[str, Any],
        errors: dict[str, float | None],
    ) -> None:
        fewest = min(len(kept), len(reference))
        if "prc" in self.extra_metrics and fewest > 3:
            found["precision"], found["recall"] = calculate_precision_recall_part(
                kept.to(self.device), reference
            )
        if "kid" in self.extra_metrics and fewest > 3:
            kid = kid_features_to_metric(
                kept, reference, kid_subset_size=min(SUBSETS, fewest), verbose=False
            )
            found["kid"], errors["kid"] = kid[KEY_METRIC_KID_MEAN], kid[KEY_METRIC_KID_STD]

    @torch.inference_mode()
    def _known(self, reference: Split) -> dict[str, Tensor]:
        sums = {-1: self._sums(1)}
        if self.extractor.classifier is not None and reference.labels is not None:
            labels, counts = reference.labels.unique(return_counts=True)
            if counts.min() >= 2:  # a class of one image has no covariance
                sums |= {label: self._sums(1) for label in labels.tolist()}
        stride, kept = math.ceil(reference.size / KEPT), []
        batches = math.ceil(reference.size / 500)
        hidden = (
            None if is_rank_zero() and batches > 20 else True
        )  # shown on a terminal, where it takes long
        for some, batch in tqdm(
            indexed_batches(reference), "features of the data", batches, leave=False, disable=hidden
        ):
            assert isinstance(batch, Images)
            features = self.extractor.features(batch.pixels.to(self.device))
            self._add(sums, features, batch.labels, torch.zeros_like(some))
            if self.extra_metrics:
                kept.append(features[(some % stride == 0).to(self.device)].cpu())
        known: dict[str, Tensor] = {}
        for label, part in sums.items():
            part.reduce()
            mean, covariance, size = part.gaussian()
            known |= {
                f"{label}.mean": mean,
                f"{label}.covariance": covariance,
                f"{label}.size": torch.tensor(size),
            }
        if self.extra_metrics:
            known["features"] = torch.cat(all_gather(kept)).to(self.device)
        return known

    def _scores(self) -> RunningStatistics | None:
        """For the inception score; also in a process that will have no batch, since all add up theirs."""
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
                    some = features[labels == label]
                    part.add(some, torch.zeros(len(some), dtype=torch.long))


def _inception_score(scores: RunningStatistics, count: int) -> tuple[float, float | None]:
    """The score, and its standard error: the standard deviation over splits (Salimans et al., 2016), where there are
    several, else by the jackknife.
    """
    if split_count(count) > 1:
        each = [score(scores.total[i : i + 1], scores.count[i : i + 1]) for i in range(BLOCKS)]
        return score(scores.total, scores.count), torch.tensor(each).std(correction=0).item()

    def without(block: int | None) -> float:
        chosen = torch.tensor([i for i in range(BLOCKS) if i != block], device=scores.total.device)
        return score(
            scores.total[chosen].sum(0, keepdim=True), scores.count[chosen].sum(0, keepdim=True)
        )

    return jackknife(without, count)[:2]


def baseline_scores(evaluator: FIDEvaluator, other: Split) -> dict[str, Any]:
    """What `judge` says of real images, "real", and of uniform "noise", as many if they are not over `NOISE`, without
    which an FID says nothing; kept as statistics are.
    """
    digest = hashlib.sha256(
        f"{other.digest()} {NOISE} {sorted(evaluator.extra_metrics)}".encode()
    ).hexdigest()
    file = cache_dir() / f"{evaluator.digest[:32]}-{digest[:32]}.json"
    found: dict[str, Any] | None = _kept(lambda: read_sealed_json(file))
    if found is None:
        shape = (min(other.size, NOISE), *other.shape)
        noise = Images(
            torch.randint(256, shape, generator=make_generator(0), dtype=torch.uint8), None
        )
        found = {
            name: evaluator(indexed_batches(split), split.size)
            for name, split in (("real", other), ("noise", noise))
        }
        if is_rank_zero():
            _keep(file, lambda: write_sealed_json(found, file))
    return found


def _kept(read_batches: Callable[[], Any]) -> Any:
    """What the cache holds; None where it does not, or is damaged, for any of the processes."""
    try:
        found = read_batches()
    except (OSError, ValueError):
        found = None
    return found if all(all_gather([found is not None])) else None


def _keep(file: Path, write: Callable[[], None]) -> None:
    """A cache that cannot be written to is done without."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write()
