"""A small classifier of images, whose features FID compares where Inception does not fit."""

import logging
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_lab.data.datasets import Split
from ddpm_lab.utils.errors import UserError

LOG = logging.getLogger(__name__)
EPOCHS = 15
"""Passes over the images; longer training collapses classes, so that FID ignores their variety"""
MAX_STEPS = 2000
"""Maximum number of optimizer steps, for large data sets"""
BATCH = 64


class SmallCNN(nn.Module):
    """Map images (N, C, H, W) uint8 of one size to features (N, 64).

    Each of two blocks of 64 channels halves the resolution, and so do blocks of 32 channels before
    them in images of 16 pixels or more. Raises UserError for images below 4x4.
    """

    num_features = 64

    def __init__(self, shape: tuple[int, ...], name: str = "trained") -> None:
        super().__init__()
        self.shape, self.name = shape, name
        channels, height, width = shape
        if min(height, width) < 4:
            raise UserError(f"extractor=trained takes images of 4x4 or more (got {height}x{width})")
        more = min(height, width).bit_length() - 4  # halvings before the last two
        layers: list[nn.Module] = []
        for i, out in enumerate([32] * max(1, more) + [64, 64]):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
            if i or more > 0:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
        size = channels * height * width
        head = [nn.Flatten(), nn.Dropout(0.3), nn.Linear(size, self.num_features), nn.ReLU()]
        self.body = nn.Sequential(*layers, *head)

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[1:] != self.shape:
            got, own = ("x".join(map(str, size)) for size in (pixels.shape[1:], self.shape))
            raise UserError(
                f"extractor={self.name} takes images of {own} (got {got}); try extractor=trained "
                "for images with labels, or extractor=inception"
            )
        return self.body(pixels.float() / 127.5 - 1)


def make_classifier(shape: tuple[int, ...], classes: int, name: str = "trained") -> nn.ModuleDict:
    """Return a network with the parts "features" and "classifier", a map to logits."""
    features = SmallCNN(shape, name)
    return nn.ModuleDict(
        {"features": features, "classifier": nn.Linear(features.num_features, classes)}
    )


def train_classifier(images: Split, classes: int) -> nn.ModuleDict:
    """Train a classifier of `images`, which have labels, on the CPU. The same images give the same
    weights, up to rounding.
    """
    start, size = time.monotonic(), images.size
    steps = min(MAX_STEPS, EPOCHS * max(1, size // BATCH))
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        network = make_classifier(images.shape, classes)
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        order = torch.empty(0, dtype=torch.long)
        for _ in tqdm(range(steps), "training the extractor", leave=False, disable=None):
            if len(order) < min(BATCH, size):
                order = torch.randperm(size)
            index, order = order[:BATCH], order[BATCH:]
            pixels, labels = images.select(index.to(images.device)).to(torch.device("cpu"))
            assert labels is not None  # checked by the caller
            loss = F.cross_entropy(
                network["classifier"](network["features"](shift(pixels))), labels
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.monotonic() - start
    LOG.info("extractor: trained on %d images in %.0f s", size, seconds)
    return network


def shift(pixels: Tensor) -> Tensor:
    """Shift 30 % of images (N, C, H, W) by up to an eighth of their size; edges are black."""
    count, _, height, width = pixels.shape
    reach = max(1, min(height, width) // 8)
    offsets = torch.randint(2 * reach + 1, (2, count, 1))
    offsets[:, torch.rand(count) >= 0.3] = reach
    y, x = (offset + torch.arange(n) for offset, n in zip(offsets, (height, width), strict=True))
    padded = F.pad(pixels, 4 * [reach]).permute(0, 2, 3, 1)
    sample = torch.arange(count)[:, None, None]
    return padded[sample, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
