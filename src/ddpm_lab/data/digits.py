"""The 8x8 handwritten digits that ship with scikit-learn (a test set of UCI's, Alpaydin & Kaynak, 1998)."""

import torch

from ddpm_lab.data.splits import Data, Images

CAPTIONS = [
    ["zero", "a zero", "null"], ["one", "a one", "eins"], ["two", "a two", "zwei"], ["three", "a three", "drei"],
    ["four", "a four", "vier"], ["five", "a five", "fünf"], ["six", "a six", "sechs"], ["seven", "a seven", "sieben"],
    ["eight", "an eight", "acht"], ["nine", "a nine", "neun"],
]  # fmt: skip


def digits(batch_size: int = 64, seed: int = 0) -> Data:
    """1,437 training and 360 held-out pictures, (1, 8, 8), of ten classes; the split is always the same."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    splits = train_test_split(bunch.images, bunch.target, test_size=360, random_state=0, stratify=bunch.target)
    train, test, train_labels, test_labels = (torch.as_tensor(part) for part in splits)
    return Data("digits", _images(train, train_labels), _images(test, test_labels), classes=10,
                     batch_size=batch_size, seed=seed, captions=CAPTIONS)  # fmt: skip


def _images(grey: torch.Tensor, labels: torch.Tensor) -> Images:
    """17 levels of grey, 0..16, spread over 0..255."""
    return Images((grey * (255 / 16)).round().byte()[:, None], labels.long())
