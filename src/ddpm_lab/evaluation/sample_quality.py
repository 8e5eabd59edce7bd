"""Sample quality, with the protocol that it depends on."""

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from tqdm import tqdm

from ddpm_lab.data.datasets import Batch, head
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.fid import FIDEvaluator, baseline_scores
from ddpm_lab.evaluation.statistics import split_count
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.distributed import is_rank_zero, shard


def evaluate_samples(
    system: Diffusion,
    denoiser: Denoiser,
    data: DataModule,
    extractor: Extractor,
    *,
    before: Sequence[Diffusion] = (),
    configurations: Mapping[str, Callable[[], None]] = MappingProxyType({"": lambda: None}),
    extra_metrics: Collection[str] = (),
    weights: str,
    split: str,
    count: int,
    seed: int,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """Yield the metrics of `count` samples against a split of the data, once per configuration.

    Each result includes "real" (images of the other split), "noise" (uniform noise) and the
    "protocol". The time is estimated and printed before sampling begins.

    Args:
        before: Earlier stages of a cascade.
        configurations: Functions that configure `system`, by a prefix for progress messages.
        extra_metrics: As in `FIDEvaluator`.
    """
    splits = {"train": head(data.train), "test": data.test}
    reference = splits.pop(split)
    (other,) = splits.values()
    evaluator = FIDEvaluator(extractor, reference, extra_metrics, system.device)
    baselines = baseline_scores(evaluator, other)
    cascade = Cascade([*before, system])
    conditions = cascade.stages[0].make_conditions(count, given=data.test)
    protocol = {
        "weights": weights,
        "weights_sha256": weights_digest(denoiser),
        "count": count,
        "seed": seed,
        "split": split,
        "data": data.name,
        "data_count": reference.size,
        "data_sha256": evaluator.data_sha256,
        **_condition_protocol(conditions),
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "features": evaluator.dims,
        "resize": extractor.resize,
    }
    if extractor.logits is not None:
        protocol["inception_score_splits"] = split_count(count)
    for name, configure in configurations.items():
        configure()
        prefix = f"{name}: " if name else ""
        steps = cascade.steps(count, batch_size)
        if is_rank_zero():
            batches = len(shard(range(math.ceil(count / batch_size))))
            batch_seconds = _seconds(cascade, denoiser, extractor, data, min(count, batch_size))
            tqdm.write(
                f"{prefix}FID of {count} samples, {steps // batches} steps for each batch of "
                f"{batch_size}: about {_format_duration(batches * batch_seconds)}"
            )
        with tqdm(
            total=steps,
            desc=f"{prefix}sampling {count}",
            unit="step",
            disable=None if is_rank_zero() else True,
            leave=False,
        ) as bar:
            options: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "bar": bar}
            _, last = cascade.sample_earlier_stages(conditions, count, **options)
            samples = system.sample(denoiser, count, conditions=last, **options)
            indices = shard(torch.arange(count).split(batch_size))
            metrics = evaluator(zip(indices, samples, strict=True), count)
        yield {**metrics, **baselines, "protocol": {**cascade.protocol(), **protocol}}


def _condition_protocol(conditions: Batch) -> dict[str, str]:
    if "low_res" in conditions:
        return {"labels": "those of the images given", "given": "test"}
    return {"labels": "all, in turn" if "label" in conditions else "none"}


def weights_digest(denoiser: Denoiser) -> str:
    """Return the SHA-256 of the weights."""
    digest = hashlib.sha256()
    for name, value in denoiser.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def _seconds(
    cascade: Cascade, denoiser: Denoiser, extractor: Extractor, data: DataModule, size: int
) -> float:
    """Estimate the time of a batch of `size` samples from one step of each stage."""
    total = 0.0
    for stage in cascade.stages:
        stage_denoiser = denoiser if stage is cascade.stages[-1] else stage.denoiser
        conditions = stage.make_conditions(size, given=data.test)
        trajectory = stage.trajectory(stage_denoiser, range(size), conditions, seed=0)
        # The first state is the noise; sum().item() waits for the device.
        times = [(x.sum().item(), time.perf_counter())[1] for _, x in islice(trajectory, 3)]
        trajectory.close()
        total += (times[-1] - times[-2]) * (len(stage.sampler.timesteps(stage.process.steps)) - 1)
    pixels = torch.zeros(size, *data.shape, dtype=torch.uint8, device=cascade.stages[-1].device)
    start = time.perf_counter()
    extractor.features(pixels).sum().item()
    return total + time.perf_counter() - start


def _format_duration(seconds: float) -> str:
    return next(
        f"{seconds / unit:.0f} {name}"
        for unit, name in ((3600, "h"), (60, "min"), (1, "s"))
        if seconds >= 2 * unit or unit == 1
    )
