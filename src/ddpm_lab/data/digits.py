"""The 8x8 handwritten digits that ship with scikit-learn (a test set of UCI's, Alpaydin & Kaynak, 1998)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lab.data.datasets import Images
from ddpm_lab.data.module import DataModule

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


def digits(resolution: int = 8, batch_size: int = 64, seed: int = 0) -> DataModule:
    """1,437 training and 360 held-out images of ten classes; the split is always the same. They are (1, 8, 8), or
    (1, `resolution`, `resolution`) by the means of pixels. Raises ValueError unless it divides 8.
    """
    if resolution not in (1, 2, 4, 8):
        raise ValueError(
            f"resolution must be 8, that of the images, or a divisor (got {resolution}); try 4"
        )
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    splits = train_test_split(
        bunch.images, bunch.target, test_size=360, random_state=0, stratify=bunch.target
    )
    train, test, train_labels, test_labels = (torch.as_tensor(part) for part in splits)
    images = [
        Images(_bytes(grey, resolution), labels.long())
        for grey, labels in ((train, train_labels), (test, test_labels))
    ]
    return DataModule(
        "digits", *images, classes=10, batch_size=batch_size, seed=seed, captions=CAPTIONS
    )


def _bytes(grey: Tensor, resolution: int) -> Tensor:
    """17 levels of grey, 0..16, spread over 0..255."""
    return (F.avg_pool2d(grey[:, None], 8 // resolution) * (255 / 16)).round().byte()
