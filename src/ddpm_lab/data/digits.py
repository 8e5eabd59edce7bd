"""Handwritten 8x8 digits from scikit-learn: a test set of UCI (Alpaydin & Kaynak, 1998)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lab.data.datasets import Images, Splits
from ddpm_lab.data.module import dataset

CAPTIONS = [
    ["zero", "a zero", "null"],
    ["one", "a one", "eins"],
    ["two", "a two", "zwei"],
    ["three", "a three", "drei"],
    ["four", "a four", "vier"],
    ["five", "a five", "fünf"],
    ["six", "a six", "sechs"],
    ["seven", "a seven", "sieben"],
    ["eight", "an eight", "acht"],
    ["nine", "a nine", "neun"],
]


@dataset
def digits(resolution: int = 8) -> Splits:
    """Return 1,437 training and 360 held-out images (1, 8, 8) of ten classes; the split is fixed.

    A lower `resolution` averages pixels. Raises ValueError unless it divides 8.
    """
    if resolution not in (1, 2, 4, 8):
        raise ValueError(
            f"resolution must be 8, the size of the images, or a divisor (got {resolution}); try 4"
        )
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    parts = train_test_split(
        bunch.images, bunch.target, test_size=360, random_state=0, stratify=bunch.target
    )
    train, test, train_labels, test_labels = (torch.as_tensor(part) for part in parts)
    return Splits(
        "digits",
        Images(_to_bytes(train, resolution), train_labels.long()),
        Images(_to_bytes(test, resolution), test_labels.long()),
        CAPTIONS,
    )


def _to_bytes(grey: Tensor, resolution: int) -> Tensor:
    """Scale the 17 levels 0..16 to 0..255: (N, 8, 8) to (N, 1, H, W) uint8."""
    return (F.avg_pool2d(grey[:, None], 8 // resolution) * (255 / 16)).round().byte()
