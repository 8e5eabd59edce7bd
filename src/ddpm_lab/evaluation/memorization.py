"""Memorization: the share of samples that are closer to training images than new images are."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import Split, evenly_spaced, head
from ddpm_lab.data.module import Data, read_batches
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.fid import READERS, indexed_batches
from ddpm_lab.evaluation.metrics import ImageMetric, Number, Results, Rows
from ddpm_lab.reports.grids import save_grid
from ddpm_lab.utils.distributed import all_gather

BLOCK = 250
"""Rows and columns of the blocks in which distances are computed"""
MAX_HELD_OUT = 10_000
"""Maximum number of held-out images, evenly spaced"""
NUM_PAIRS = 10
"""Number of samples in the picture"""
Nearest = tuple[Tensor, Tensor]
"""Distances to the nearest training images, and their indices, (N,) each"""


class Memorization(ImageMetric):
    """Share of samples that are closer to the training images than half the held-out images are.

    The distance of an image to the training images is that to the nearest one: Euclidean, between
    features, and between pixels in [0, 1]. The share is 50 % for held-out images and 100 % for
    copies of training images.
    """

    numbers = (
        Number("memorization.features", "memorization (features)", "lower", "{:.1%}"),
        Number("memorization.pixels", "memorization (pixels)", "lower", "{:.1%}"),
    )
    min_count = NUM_PAIRS

    def __init__(self) -> None:
        self.pairs: tuple[Tensor, list[float]] | None = None
        """The samples closest in pixels, then their nearest training images; the distances"""

    @torch.inference_mode()
    def compute(
        self, pixels: Tensor, data: Data, extractor: Extractor, device: torch.device
    ) -> Results:
        train, count = head(data.train), len(pixels)
        index = evenly_spaced(data.test.size, MAX_HELD_OUT).split(BLOCK)
        held_out = [batch.values.cpu() for batch in read_batches(data.test, index, READERS)]
        nearest = _nearest(torch.cat([pixels, *held_out]), train, extractor, device)
        shares, medians, errors = {}, {}, {}
        for space, (distances, _) in nearest.items():
            median = distances[count:].quantile(0.5)
            share = (distances[:count] < median).double().mean().item()
            shares[space], medians[space] = share, median.item()
            errors[space] = math.sqrt(share * (1 - share) / count)
        distances, indices = (part[:count] for part in nearest["pixels"])
        closest = distances.argsort()[:NUM_PAIRS]
        samples, images = pixels[closest], train.select(indices[closest]).values.cpu()
        norms = ((samples.float() - images.float()) / 255).flatten(1).norm(dim=1).tolist()
        self.pairs = torch.cat([samples, images]), norms
        numbers = zip(closest.tolist(), indices[closest].tolist(), norms, strict=True)
        return {
            "memorization": {
                **shares,
                "standard_error": errors,
                "median_of_held_out": medians,
                "held_out_count": sum(map(len, held_out)),
                "closest": [{"sample": i, "train": j, "pixels": norm} for i, j, norm in numbers],
            }
        }

    def rows(self, results: Results) -> Rows:
        results = results["memorization"]
        errors = results["standard_error"]
        return [
            (
                f"memorization ({space})",
                f"{100 * results[space]:.1f} +- {100 * errors[space]:.1f} %",
                "held-out images 50 %, copies of training images 100 %",
            )
            for space in ("features", "pixels")
        ]

    def save_figures(self, results: Results, folder: Path) -> list[Path]:
        if self.pairs is None:  # computed before an interruption
            return []
        median = results["memorization"]["median_of_held_out"]["pixels"]
        pixels, distances = self.pairs
        caption = (
            "Top: the samples nearest to training images. Bottom: those images. Distances of "
            f"pixels in [0, 1]: {', '.join(f'{distance:.3g}' for distance in distances)}. "
            f"Median of held-out images: {median:.3g}."
        )
        return [save_grid(pixels, folder / "memorization.png", len(distances), caption)]


def _nearest(
    pixels: Tensor, train: Split, extractor: Extractor, device: torch.device
) -> dict[str, Nearest]:
    """Return the nearest training images of `pixels` (N, C, H, W) in features and in pixels.

    Each process compares with its share of the training images.
    """

    def embed(images: Tensor) -> dict[str, Tensor]:
        images = images.to(device)
        return {"features": extractor.features(images), "pixels": images}

    def scale(values: Tensor) -> Tensor:
        return values.flatten(1).float() / (255 if values.dtype == torch.uint8 else 1)

    blocks = [embed(block) for block in pixels.split(BLOCK)]
    far = torch.full((len(pixels),), math.inf), torch.zeros(len(pixels), dtype=torch.long)
    nearest: dict[str, Nearest] = dict.fromkeys(blocks[0], far)
    batches, total = indexed_batches(train, BLOCK), math.ceil(train.size / BLOCK)
    for numbers, batch in tqdm(
        batches, "nearest training images", total, leave=False, disable=None
    ):
        for space, values in embed(batch.values).items():
            points = scale(values)
            parts = [torch.cdist(scale(block[space]), points).min(1) for block in blocks]
            distances, columns = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
            nearest[space] = _closer([nearest[space], (distances, numbers[columns])])
    return {space: _closer(all_gather([part])) for space, part in nearest.items()}


def _closer(parts: Sequence[Nearest]) -> Nearest:
    """Return the nearest of the training images of all `parts`."""
    distances, indices = (torch.stack(part) for part in zip(*parts, strict=True))
    values, row = distances.min(0)
    return values, indices.gather(0, row[None])[0]
