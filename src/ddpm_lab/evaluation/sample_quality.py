"""Metrics of samples: FID and related metrics, with their protocol."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge
from tqdm import tqdm

from ddpm_lab.data.datasets import CPU, InMemorySplit, head
from ddpm_lab.data.module import Data
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.fid import FIDEvaluator, baseline_scores
from ddpm_lab.evaluation.metrics import (
    FeatureMetric,
    ImageMetric,
    Metric,
    Number,
    Results,
    Rows,
    SplitName,
)
from ddpm_lab.evaluation.statistics import split_count
from ddpm_lab.reports.grids import save_grid
from ddpm_lab.reports.terminal import format_with_error
from ddpm_lab.sampling.captions import describe_conditions, describe_sampler
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.utils.distributed import all_gather, is_rank_zero, shard
from ddpm_lab.utils.errors import UserError, pluralize, prefix_errors
from ddpm_lab.utils.ranges import Count, NonNegativeInt, check_ranges
from ddpm_lab.utils.safe_load import sha256_of_tensors

FID_KEYS = {"train": "fid_train", "test": "fid_held_out"}
"""Keys of FID to each split"""
IMAGES = {"train": "training images", "test": "held-out images"}
ROWS, COLUMNS = 4, 10
"""Size of the grid of the first samples"""


@check_ranges
@dataclass(frozen=True)
class SampleQuality(Metric):
    """FID and related metrics of `count` samples.

    `fid` is FID to `split`. `fid_train` and `fid_held_out` are FID to either split; a split with no
    more images than features is left out, unless it is `split`.

    Results contain the metrics of real images of the other split ("real") and of uniform noise
    ("noise"), and the protocol, all settings that they depend on.

    Args:
        extractor: Returns the feature extractor.
        split: The reference images.
        feature_metrics: Metrics of features that share the samples, such as KID.
        image_metrics: Metrics of images that share the samples.
    """

    numbers = (
        Number("fid", "FID", "lower"),
        Number("fid_held_out", "FID to held-out images", "lower"),
        Number("intra_fid", "intra FID", "lower"),
        Number("inception_score", "IS", "higher"),
        Number("class_accuracy", "class accuracy", "higher", "{:.1%}"),
    )
    supports_cascades = True
    extractor: Callable[[], Extractor]
    split: SplitName = "train"
    count: Annotated[int, Ge(2)] = 1000
    seed: NonNegativeInt = 0
    batch_size: Count = 250
    feature_metrics: Sequence[FeatureMetric] = ()
    image_metrics: Sequence[ImageMetric] = ()
    first: "FirstSamples" = field(default_factory=lambda: FirstSamples(), init=False, compare=False)
    """Samples of the last configuration"""

    @property
    def all_numbers(self) -> tuple[Number, ...]:
        """The numbers of this and of the feature metrics."""
        return sum((metric.numbers for metric in self.feature_metrics), self.numbers)

    @cached_property
    def loaded_extractor(self) -> Extractor:
        """The feature extractor, before training. Raises ValueError if it is not available."""
        return self.extractor()

    def check(self, cascade: Cascade) -> None:
        super().check(cascade)
        pipeline = cascade.stages[-1]
        if pipeline.bin_width is None:
            raise UserError(
                "metrics=[fid], and metrics that share its samples, compare images, but this run "
                "samples points; try metrics=[ode_nll]"
            )
        with prefix_errors("extractor"):
            self.loaded_extractor.check(pipeline.shape)
        metrics = [*self.feature_metrics, *self.image_metrics]
        minimum = max([2, *(metric.min_count for metric in metrics)])
        if self.count < minimum:
            raise UserError(f"count must be at least {minimum} (got {self.count}); try count=1000")

    def compute(self, cascade: Cascade, data: Data, weights: str) -> Results:
        return next(self.compute_each(cascade, data, weights, {"": lambda: None}))

    def compute_each(
        self,
        cascade: Cascade,
        data: Data,
        weights: str,
        configurations: Mapping[str, Callable[[], None]],
    ) -> Iterator[Results]:
        """Yield the results in each of `configurations`, lazily: functions that set options of the
        cascade, by a name for the progress bar. Logs a time estimate first.
        """
        if not data.test.size:
            raise UserError(
                f"metrics=[fid] needs held-out images, and {data.name} has none; hold out some"
            )
        splits = {"train": head(data.train), "test": data.test}
        reference = splits.pop(self.split)
        ((other_split, other),) = splits.items()
        pipeline = cascade.stages[-1]
        with prefix_errors("extractor"):
            extractor = self.loaded_extractor.ready(data.train)
        evaluator = FIDEvaluator(extractor, reference, self.feature_metrics, pipeline.device)
        baselines = baseline_scores(evaluator, other)
        others = {}
        if other.size > evaluator.dims:
            other_evaluator = FIDEvaluator(extractor, other, device=pipeline.device)
            others[FID_KEYS[other_split]] = other_evaluator
        conditions = cascade.stages[0].make_conditions(self.count, images=data.test)
        protocol = {
            "weights": weights,
            "weights_sha256": weights_digest(pipeline.denoiser),
            "count": self.count,
            "seed": self.seed,
            "split": self.split,
            "data": data.name,
            "data_count": reference.size,
            "data_sha256": evaluator.data_sha256,
            "other_count": other.size,
            "other_sha256": other.digest(),
            "labels": "all, in turn" if "label" in conditions else "none",
            "extractor": extractor.name,
            "extractor_sha256": extractor.sha256,
            "features": evaluator.dims,
            "resize": extractor.resize,
        }
        if "low_res" in conditions:
            protocol |= {"labels": "those of the images given", "given": "test"}
        if extractor.logits is not None:
            protocol["inception_score_splits"] = split_count(self.count)
        batches = shard(torch.arange(self.count).split(self.batch_size))
        options = {"seed": self.seed, "batch_size": self.batch_size}
        for name, configure in configurations.items():
            configure()
            prefix = f"{name}: " if name else ""
            total = cascade.num_steps(self.count, self.batch_size)
            if is_rank_zero():
                size = min(self.count, self.batch_size)
                seconds = len(batches) * _seconds(cascade, extractor, data, size)
                steps = pluralize(total // len(batches), "step")
                tqdm.write(
                    f"{prefix}FID of {self.count} samples, {steps} for each batch "
                    f"of {self.batch_size}: about {_format_seconds(seconds)}"
                )
            hidden = None if is_rank_zero() else True
            desc = f"{prefix}sampling {self.count}"
            with tqdm(total=total, desc=desc, unit="step", disable=hidden, leave=False) as bar:
                _, last = cascade.sample_earlier_stages(conditions, self.count, **options, bar=bar)
                samples = pipeline.sample(self.count, conditions=last, **options, bar=bar)
                parts = [batch.to(CPU) for batch in samples] if self.image_metrics else []
                pairs = zip(batches, self.first.watch(parts or samples), strict=True)
                results = evaluator(pairs, self.count, others)
            order = describe_conditions(conditions, pipeline.classes, COLUMNS)
            self.first.caption = f"{describe_sampler(pipeline, weights)}. {order}"
            if self.image_metrics:
                pixels = torch.cat([batch.values for batch in all_gather(parts)])
                for metric in self.image_metrics:
                    results |= metric.compute(pixels, data, extractor, pipeline.device)
            for values in (results, results["standard_error"]):
                if "fid" in values:
                    values[FID_KEYS[self.split]] = values["fid"]
            if "class_fid" in results and (names := pipeline.class_names):
                by_label = results["class_fid"].items()
                results["class_fid"] = {names[int(label)]: fid for label, fid in by_label}
            yield {**results, **baselines, "protocol": {**cascade.protocol(), **protocol}}

    def rows(self, results: Results) -> Rows:
        """Format the metrics next to those of real images and noise."""
        real, protocol, errors = results["real"], results["protocol"], results["standard_error"]
        (other,) = {*FID_KEYS} - {protocol["split"]}
        real_images = IMAGES[other]
        remark = f"{real_images} {real['fid']:.3g}, noise {results['noise']['fid']:.3g}"
        remark += f" (features: {protocol['extractor']})"
        small = _too_few(protocol, "data_count")
        rows = [("FID", format_with_error(results["fid"], errors.get("fid")), small + remark)]
        if "fid_infinity" in results and not small:
            rows.append(("FID, n -> inf", f"{results['fid_infinity']:.3g}", "extrapolated"))
        key, text = FID_KEYS[other], "-"
        if key in results:
            text = format_with_error(results[key], errors.get(key))
        remark = f"{_too_few(protocol, 'other_count')}{IMAGES[protocol['split']]} {real['fid']:.3g}"
        rows.append((f"FID to {real_images}", text, remark))
        if "intra_fid" in results:
            remark = f"{real_images} {real['intra_fid']:.3g}; " if "intra_fid" in real else ""
            rows.append(("intra FID", f"{results['intra_fid']:.3g}", f"{remark}mean over classes"))
        if "inception_score" in results and "inception_score" in real:
            text = format_with_error(results["inception_score"], errors.get("inception_score"))
            remark = f"{real_images} {real['inception_score']:.3g}"
            rows.append(("inception score", text, remark))
        if "class_accuracy" in results:
            text, remark = (f"{100 * one['class_accuracy']:.1f} %" for one in (results, real))
            rows.append(("class accuracy", text, f"{real_images} {remark}"))
        for metric in self.feature_metrics:
            if all(number.key in one for number in metric.numbers for one in (results, real)):
                rows += metric.rows(results)
        for image_metric in self.image_metrics:
            rows += image_metric.rows(results)
        guidance = [
            f"{key}={value}"
            for key, value in protocol["guidance"].items()
            if key != "name" and value
        ]
        steps, weights = pluralize(protocol["steps"], "step"), f"{protocol['weights']} weights"
        remark = ", ".join([protocol["sampler"]["name"], steps, weights, *guidance])
        return [*rows, ("samples", f"{protocol['count']}", remark)]

    def save_figures(self, results: Results, folder: Path) -> list[Path]:
        figures = [metric.save_figures(results, folder) for metric in self.image_metrics]
        return [*self.first.save(folder / "samples.png"), *chain.from_iterable(figures)]


class FirstSamples:
    """The first samples of an evaluation, for a grid."""

    pixels: torch.Tensor | None = None
    """(N, C, H, W) uint8; None before an evaluation, or if an interrupted one had ended"""
    caption = ""

    def watch(self, batches: Iterable[InMemorySplit]) -> Iterator[InMemorySplit]:
        """Yield `batches`, and keep the first samples of this process."""
        parts: list[torch.Tensor] = []
        for batch in batches:
            if sum(map(len, parts)) < ROWS * COLUMNS:
                parts.append(batch.values[: ROWS * COLUMNS].cpu())
                self.pixels = torch.cat(parts)[: ROWS * COLUMNS]
            yield batch

    def save(self, file: Path) -> list[Path]:
        """Save the grid, if there are samples, and return its file."""
        return [] if self.pixels is None else [save_grid(self.pixels, file, COLUMNS, self.caption)]


def _too_few(protocol: Mapping[str, int], reference: str) -> str:
    """Return a remark if the covariance of samples or reference is singular, and FID mostly bias.

    The number of reference images is that of the key `reference`.
    """
    features = protocol["features"]
    small = [
        f"{name} {protocol[key]} images"
        for name, key in (("only", "count"), ("compared with only", reference))
        if protocol[key] <= features
    ]
    return f"{' and '.join(small)}, for {features} features: too few for FID; " if small else ""


def weights_digest(denoiser: Denoiser) -> str:
    """Return the SHA-256 of the weights."""
    return sha256_of_tensors(dict(denoiser.named_parameters()))  # state_dict would shard them


@torch.inference_mode()
def _seconds(cascade: Cascade, extractor: Extractor, data: Data, size: int) -> float:
    """Estimate the seconds of a batch from one timed step of each stage and the features."""
    total = 0.0
    for stage in cascade.stages:
        conditions = stage.make_conditions(size, images=data.test)
        trajectory = stage.trajectory(range(size), conditions, seed=0)
        times = []
        for _, x in islice(trajectory, 3):  # x_T, a first step, and the one that is timed
            x.sum().item()
            times.append(time.perf_counter())
        trajectory.close()
        total += (times[-1] - times[-2]) * stage.num_steps
    pixels = torch.zeros(size, *data.shape, dtype=torch.uint8, device=cascade.stages[-1].device)
    start = time.perf_counter()
    extractor.features(pixels).sum().item()
    return total + time.perf_counter() - start


def _format_seconds(seconds: float) -> str:
    units = ((3600, "h"), (60, "min"), (1, "s"))
    unit, name = next(one for one in units if seconds >= 2 * one[0] or one[0] == 1)
    return f"{seconds / unit:.0f} {name}"
