"""How good samples are: FID, and the share that a classifier recognises."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ddpm_lab.data.splits import Data, Images, Split
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.noise import generator
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.systems.diffusion import Diffusion


@torch.inference_mode()
def measure(extractor: Extractor, reference: Images, samples: Iterable[Split]) -> dict[str, float]:
    """FID of `samples`, a stream of batches, to `reference`; where pictures have labels that the extractor's classifier
    knows, also the share of them it names. Features are computed once and not kept.
    """
    identity = nn.Identity()
    identity.num_features = extractor.features.num_features
    metric = FrechetInceptionDistance(feature=identity).to(reference.pixels.device)
    for pixels in reference.pixels.split(500):
        metric.update(extractor.features(pixels), real=True)
    total = right = 0
    for batch in samples:
        features = extractor.features(batch[0])
        metric.update(features, real=False)
        if batch.labels is not None and extractor.classifier is not None:
            right += int((extractor.classifier(features).argmax(1) == batch.labels).sum())
            total += len(features)
    return {"fid": float(metric.compute())} | ({"recognised": right / total} if total else {})


def assess(
    system: Diffusion,
    denoiser: Denoiser,
    data: Data,
    extractor: Extractor,
    *,
    weights: str,
    split: str,
    count: int,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """The quality of `count` samples of `denoiser`, measured against a split of the data.

    Beside it stand what the same measurement says of the other split's real pictures (the floor) and of uniform noise,
    without which an FID says nothing, and the protocol: all that the figures depend on.
    """
    device = system.device
    extractor.features.to(device)
    if extractor.classifier is not None:
        extractor.classifier.to(device)
    splits = {"train": data.train.to(device), "test": data.test.to(device)}
    reference = splits.pop(split)
    (other,) = splits.values()
    assert isinstance(reference, Images) and isinstance(other, Images)
    labels = system.labels(count)
    samples = system.sample(denoiser, count, labels=labels, seed=seed, batch_size=batch_size, progress=True)
    noise = torch.randint(256, other.pixels.shape, generator=generator(0), dtype=torch.uint8).to(device)
    return {
        **measure(extractor, reference, samples),
        "real": measure(extractor, reference, _batches(other)),
        "noise": measure(extractor, reference, _batches(Images(noise, None))),
        "protocol": {
            **system.protocol(), "weights": weights, "count": count, "seed": seed, "split": split,
            "labels": "none" if labels is None else "all, in turn",
            "extractor": extractor.name, "extractor_sha256": extractor.sha256,
        },
    }  # fmt: skip


def _batches(images: Images) -> list[Images]:
    labels: list[Tensor | None] = [None] * len(images.pixels) if images.labels is None else [*images.labels.split(500)]
    return [Images(pixels, label) for pixels, label in zip(images.pixels.split(500), labels, strict=False)]
