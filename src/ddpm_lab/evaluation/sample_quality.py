"""Metrics of samples: FID and its relatives, with everything that they depend on."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from types import MappingProxyType

import torch
from tqdm import tqdm

from ddpm_lab.data.datasets import head
from ddpm_lab.data.module import Data
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.fid import FIDEvaluator, baseline_scores
from ddpm_lab.evaluation.metrics import Results, Rows
from ddpm_lab.evaluation.statistics import split_count
from ddpm_lab.reports.terminal import format_with_error
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.utils.distributed import is_rank_zero, shard
from ddpm_lab.utils.safe_load import sha256_of_tensors


def evaluate_samples(
    cascade: Cascade,
    data: Data,
    extractor: Extractor,
    *,
    configurations: Mapping[str, Callable[[], None]] = MappingProxyType({"": lambda: None}),
    extra_metrics: Collection[str] = (),
    weights: str,
    split: str,
    count: int,
    seed: int,
    batch_size: int,
) -> Iterator[Results]:
    """Yield the metrics of `count` samples of `cascade` in each configuration, lazily.

    Args:
        cascade: The pipelines to sample from.
        data: Its `split` is the reference of FID.
        extractor: The feature extractor.
        configurations: Functions that set options of the cascade, by a name for the progress bar.
        extra_metrics: "kid", "prc", or both; see `FIDEvaluator`.
        weights: Name of the weights, for the protocol.

    Results contain the metrics of real images of the other split ("real") and of uniform noise
    ("noise"), and the protocol. An estimate of the time is printed first.
    """
    splits = {"train": head(data.train), "test": data.test}
    reference = splits.pop(split)
    (other,) = splits.values()
    pipeline = cascade.stages[-1]
    evaluator = FIDEvaluator(extractor, reference, extra_metrics, pipeline.device)
    baselines = baseline_scores(evaluator, other)
    conditions = cascade.stages[0].make_conditions(count, images=data.test)
    protocol = {
        "weights": weights,
        "weights_sha256": weights_digest(pipeline.denoiser),
        "count": count,
        "seed": seed,
        "split": split,
        "data": data.name,
        "data_count": reference.size,
        "data_sha256": evaluator.data_sha256,
        "labels": "all, in turn" if "label" in conditions else "none",
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "features": evaluator.dims,
        "resize": extractor.resize,
    }
    if "low_res" in conditions:
        protocol |= {"labels": "those of the images given", "given": "test"}
    if extractor.logits is not None:
        protocol["inception_score_splits"] = split_count(count)
    batches = shard(torch.arange(count).split(batch_size))
    options = {"seed": seed, "batch_size": batch_size}
    for name, configure in configurations.items():
        configure()
        prefix = f"{name}: " if name else ""
        total = cascade.num_steps(count, batch_size)
        if is_rank_zero():
            seconds = len(batches) * _seconds(cascade, extractor, data, min(count, batch_size))
            tqdm.write(
                f"{prefix}FID of {count} samples, {total // len(batches)} steps for each batch of "
                f"{batch_size}: about {_format_seconds(seconds)}"
            )
        hidden = None if is_rank_zero() else True
        desc = f"{prefix}sampling {count}"
        with tqdm(total=total, desc=desc, unit="step", disable=hidden, leave=False) as bar:
            _, last = cascade.sample_earlier_stages(conditions, count, **options, bar=bar)
            samples = pipeline.sample(count, conditions=last, **options, bar=bar)
            metrics = evaluator(zip(batches, samples, strict=True), count)
        yield {**metrics, **baselines, "protocol": {**cascade.protocol(), **protocol}}


def fid_rows(results: Results) -> Rows:
    """Format the metrics of `evaluate_samples` next to those of real images and noise."""
    real, noise, protocol = results["real"], results["noise"], results["protocol"]
    errors, features = results["standard_error"], protocol["features"]
    remark = f"held-out images {real['fid']:.3g}, noise {noise['fid']:.3g}"
    remark += f" (features: {protocol['extractor']})"
    small = [
        f"{name} {protocol[key]} images"
        for name, key in (("only", "count"), ("compared with only", "data_count"))
        if protocol[key] <= features
    ]
    if small:  # the covariance is singular, and FID mostly bias
        remark = f"{' and '.join(small)}, for {features} features: too few for FID; {remark}"
    rows = [("FID", format_with_error(results["fid"], errors.get("fid")), remark)]
    if "fid_infinity" in results and not small:
        rows.append(("FID, n -> inf", f"{results['fid_infinity']:.3g}", "extrapolated"))
    if "intra_fid" in results:
        remark = f"held-out images {real['intra_fid']:.3g}; " if "intra_fid" in real else ""
        rows.append(("intra FID", f"{results['intra_fid']:.3g}", f"{remark}mean over classes"))
    if "precision" in results and "precision" in real:
        pair, others = (f"{one['precision']:.3f}, {one['recall']:.3f}" for one in (results, real))
        rows.append(("precision, recall", pair, f"held-out images {others}"))
    if "kid" in results and "kid" in real:
        remark = f"standard deviation over subsets; held-out images {real['kid']:.3g}"
        rows.append(("KID", format_with_error(results["kid"], errors["kid"]), remark))
    if "inception_score" in results and "inception_score" in real:
        text = format_with_error(results["inception_score"], errors.get("inception_score"))
        rows.append(("inception score", text, f"held-out images {real['inception_score']:.3g}"))
    if "class_accuracy" in results:
        text, other = (f"{100 * one['class_accuracy']:.1f} %" for one in (results, real))
        rows.append(("class accuracy", text, f"held-out images {other}"))
    guidance = [
        f"{key}={value}" for key, value in protocol["guidance"].items() if key != "name" and value
    ]
    steps, weights = f"{protocol['steps']} steps", f"{protocol['weights']} weights"
    remark = ", ".join([protocol["sampler"]["name"], steps, weights, *guidance])
    return [*rows, ("samples", f"{protocol['count']}", remark)]


def weights_digest(denoiser: Denoiser) -> str:
    """Return the SHA-256 of the weights."""
    state = denoiser.state_dict()
    return sha256_of_tensors(
        {name: value for name, value in state.items() if torch.is_tensor(value)}
    )


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
