"""How good the samples of a model are, and all that the figures depend on."""

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from tqdm import tqdm

from ddpm_lab.data.datasets import head
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.fid import FIDEvaluator, baseline_scores
from ddpm_lab.evaluation.statistics import split_count
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.utils.distributed import is_rank_zero, shard


def evaluate_samples(
    cascade: Cascade,
    data: DataModule,
    extractor: Extractor,
    *,
    configurations: Mapping[str, Callable[[], None]] = MappingProxyType({"": lambda: None}),
    extra_metrics: Collection[str] = (),
    weights: str,
    split: str,
    count: int,
    seed: int,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """The quality of `count` samples of `denoiser`, measured against a split of the data, after each of `ways` was
    called, which makes the pipeline draw in that way; their names stand before each line of progress. Before it may stand
    other stages of a cascade; `thorough` is as in `Judge`. What it will cost is estimated and said before it begins.

    Beside it stand what the same measurement says of the other split's real images (the floor) and of uniform noise,
    without which an FID says nothing, and the protocol: all that the figures depend on.
    """
    splits = {"train": head(data.train), "test": data.test}
    reference = splits.pop(split)
    (other,) = splits.values()
    evaluator = FIDEvaluator(extractor, reference, extra_metrics, cascade.stages[-1].device)
    others = baseline_scores(evaluator, other)
    pipeline = cascade.stages[-1]
    conditions = cascade.stages[0].make_conditions(count, images=data.test)
    weights_sha256 = weights_digest(pipeline.denoiser)
    labels = "all, in turn" if "label" in conditions else "none"
    said = (
        {"labels": "those of the images given", "given": "test"}
        if "low_res" in conditions
        else {"labels": labels}
    )
    for name, way in configurations.items():
        way()
        named = f"{name}: " if name else ""
        total, batches = (
            cascade.num_steps(count, batch_size),
            len(shard(range(math.ceil(count / batch_size)))),
        )
        if is_rank_zero():
            seconds = batches * _seconds(cascade, extractor, data, min(count, batch_size))
            tqdm.write(
                f"{named}FID of {count} samples, {total // batches} steps for each batch of {batch_size}: about "
                f"{_spelled(seconds)}"
            )
        with tqdm(
            total=total,
            desc=f"{named}sampling {count}",
            unit="step",
            disable=None if is_rank_zero() else True,
            leave=False,
        ) as bar:
            _, last = cascade.sample_earlier_stages(
                conditions, count, seed=seed, batch_size=batch_size, bar=bar
            )
            samples = pipeline.sample(
                count, conditions=last, seed=seed, batch_size=batch_size, bar=bar
            )
            numbers = shard(torch.arange(count).split(batch_size))
            found = evaluator(zip(numbers, samples, strict=True), count)
        yield {
            **found,
            **others,
            "protocol": {
                **cascade.protocol(),
                "weights": weights,
                "weights_sha256": weights_sha256,
                "count": count,
                "seed": seed,
                "split": split,
                "data": data.name,
                "data_count": reference.size,
                "data_sha256": evaluator.data_sha256,
                **said,
                "extractor": extractor.name,
                "extractor_sha256": extractor.sha256,
                "features": evaluator.dims,
                "resize": extractor.resize,
                **(
                    {"inception_score_splits": split_count(count)}
                    if extractor.logits is not None
                    else {}
                ),
            },
        }


def weights_digest(denoiser: Denoiser) -> str:
    """SHA-256 of its weights."""
    found = hashlib.sha256()
    for name, value in denoiser.state_dict().items():
        if isinstance(value, torch.Tensor):
            found.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


@torch.inference_mode()
def _seconds(cascade: Cascade, extractor: Extractor, data: DataModule, size: int) -> float:
    """How long a batch of `size` samples takes, about: one step of each stage and the features are timed."""
    total = 0.0
    for stage in cascade.stages:
        trajectory = stage.trajectory(
            range(size), stage.make_conditions(size, images=data.test), seed=0
        )
        times = [
            (x.sum().item(), time.perf_counter())[1] for _, x in islice(trajectory, 3)
        ]  # the first is where it begins
        trajectory.close()
        total += (times[-1] - times[-2]) * (len(stage.sampler.timesteps(stage.process.steps)) - 1)
    pixels = torch.zeros(size, *data.shape, dtype=torch.uint8, device=cascade.stages[-1].device)
    started = time.perf_counter()
    extractor.features(pixels).sum().item()
    return total + time.perf_counter() - started


def _spelled(seconds: float) -> str:
    return next(
        f"{seconds / unit:.0f} {name}"
        for unit, name in ((3600, "h"), (60, "min"), (1, "s"))
        if seconds >= 2 * unit or unit == 1
    )
