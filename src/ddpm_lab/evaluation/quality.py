"""How good samples are: FID, the inception score, and the share that a classifier recognises."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.metric_prc import calculate_precision_recall_part
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from ddpm_lab.data.module import Data
from ddpm_lab.data.splits import Held, Images
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.noise import generator
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.inception_score import inception_score, split_count
from ddpm_lab.systems.cascade import Cascade
from ddpm_lab.systems.diffusion import Diffusion


class Judge:
    """An extractor and the pictures that samples are compared with. `thorough`: precision and recall as well, for which
    all features are kept.
    """

    @torch.inference_mode()
    def __init__(self, extractor: Extractor, reference: Images, thorough: bool = False) -> None:
        self.extractor, self.device, self.thorough = extractor, reference.pixels.device, thorough
        for network in (extractor.features, extractor.logits):
            if network is not None:
                network.to(self.device)
        self.whole = self._metric()
        self.within: dict[int, FrechetInceptionDistance] = {}
        if extractor.classifier is not None and reference.labels is not None:
            extractor.classifier.to(self.device)
            labels, counts = reference.labels.unique(return_counts=True)
            if counts.min() >= 2:  # a class of one picture has no covariance
                self.within = {label: self._metric() for label in labels.tolist()}
        kept = []
        for batch in _batches(reference):
            features = extractor.features(batch.pixels)
            self._update(features, batch.labels, real=True)
            kept.append(features)
        self.features = torch.cat(kept) if thorough else None

    @torch.inference_mode()
    def __call__(self, samples: Iterable[Held]) -> dict[str, float]:
        """FID of `samples`, a stream of batches, and the inception score, where the extractor has logits. Where
        pictures have labels that the extractor's classifier knows, also the share of them it names, and the mean over
        classes of the FID within each (Miyato & Koyama, 2018).

        Precision and recall are the shares of samples within the manifold of the reference and the other way round, by
        third neighbours (Kynkaanniemi et al., 2019).
        """
        for metric in (self.whole, *self.within.values()):
            metric.reset()  # of the samples before
        total = right = 0
        counts: Counter[int] = Counter()
        kept, named = [], []
        for batch in samples:
            features = self.extractor.features(batch[0])
            self._update(features, batch.labels, real=False)
            if self.extractor.logits is not None:
                named.append(self.extractor.logits(features).softmax(1))
            if batch.labels is not None and self.extractor.classifier is not None:
                right += int((self.extractor.classifier(features).argmax(1) == batch.labels).sum())
                total += len(features)
                counts.update(batch.labels.tolist())
            if self.thorough:
                kept.append(features)
        found = {"fid": float(self.whole.compute())}
        if self.within and all(counts[label] >= 2 for label in self.within):
            found["fid_within"] = sum(float(metric.compute()) for metric in self.within.values()) / len(self.within)
        if named:
            found["inception_score"] = inception_score(torch.cat(named), split_count(sum(map(len, named))))
        if total:
            found["recognised"] = right / total
        if self.features is not None and min(len(self.features), sum(map(len, kept))) > 3:
            found["precision"], found["recall"] = calculate_precision_recall_part(torch.cat(kept), self.features)
        return found

    def _metric(self) -> FrechetInceptionDistance:
        identity = nn.Identity()
        identity.num_features = self.extractor.features.num_features
        return FrechetInceptionDistance(feature=identity, reset_real_features=False).to(self.device)

    def _update(self, features: Tensor, labels: Tensor | None, real: bool) -> None:
        self.whole.update(features, real=real)
        if labels is not None:
            for label, metric in self.within.items():
                if len(mine := features[labels == label]):
                    metric.update(mine, real=real)


def assess(
    system: Diffusion,
    denoiser: Denoiser,
    data: Data,
    extractor: Extractor,
    *,
    before: Sequence[Diffusion] = (),
    ways: Sequence[Callable[[], None]] = (lambda: None,),
    thorough: bool = False,
    weights: str,
    split: str,
    count: int,
    seed: int,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """The quality of `count` samples of `denoiser`, measured against a split of the data, after each of `ways` was
    called, which makes the system draw in that way. Before it may stand other stages of a cascade.

    Beside it stand what the same measurement says of the other split's real pictures (the floor) and of uniform noise,
    without which an FID says nothing, and the protocol: all that the figures depend on.
    """
    splits = {"train": data.train.to(system.device), "test": data.test.to(system.device)}
    reference = splits.pop(split)
    (other,) = splits.values()
    assert isinstance(reference, Images) and isinstance(other, Images)
    judge = Judge(extractor, reference, thorough)
    noise = torch.randint(256, other.pixels.shape, generator=generator(0), dtype=torch.uint8).to(system.device)
    others = {"real": judge(_batches(other)), "noise": judge(_batches(Images(noise, None)))}
    cascade = Cascade([*before, system])
    first = cascade.stages[0].ask(count, given=data.test)
    labels = "all, in turn" if "label" in first else "none"
    said = {"labels": "those of the pictures given", "given": "test"} if "low_res" in first else {"labels": labels}
    for way in ways:
        way()
        total = cascade.steps(count, batch_size)
        with tqdm(total=total, desc=f"sampling {count}", unit="step", disable=None, leave=False) as bar:
            _, asked = cascade.lead(first, count, seed=seed, batch_size=batch_size, bar=bar)
            samples = system.sample(denoiser, count, asked=asked, seed=seed, batch_size=batch_size, bar=bar)
            found = judge(samples)
        yield {
            **found,
            **others,
            "protocol": {
                **cascade.protocol(), "weights": weights, "count": count, "seed": seed, "split": split,
                **said, "extractor": extractor.name, "extractor_sha256": extractor.sha256,
                **({"inception_score_splits": split_count(count)} if extractor.logits is not None else {}),
            },
        }  # fmt: skip


def _batches(images: Images) -> list[Images]:
    return [images.at(some) for some in torch.arange(len(images.pixels)).split(500)]
