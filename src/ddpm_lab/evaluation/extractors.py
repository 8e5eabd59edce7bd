"""Feature extractors of FID."""

import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import torch
from safetensors.torch import load
from torch import Tensor, nn

from ddpm_lab.data.datasets import Split, head
from ddpm_lab.evaluation.cache import cache_dir, cached
from ddpm_lab.evaluation.small_cnn import SmallCNN, make_classifier, train_classifier
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.safe_load import (
    load_tensors,
    save_tensors,
    sha256_of_file,
    sha256_of_tensors,
    sha256_of_text,
)

VERSION = 1
"""Version of the training of `trained`"""


class Extractor(NamedTuple):
    """A network whose features FID compares."""

    name: str
    """Name in tables"""
    sha256: str
    """SHA-256 of the weights file"""
    features: nn.Module
    """Map from images (N, C, H, W) uint8 to features (N, num_features)"""
    classifier: nn.Module | None
    """Map from features to logits (N, classes) of the classes of the data, if there is one"""
    logits: nn.Module | None = None
    """Map from features to logits (N, K) of its training classes, for the inception score"""
    resize: str = "none"
    """Name of the resizing, for the protocol"""
    train: "Callable[[Split], Extractor] | None" = None
    """Function of the training images that returns the extractor; None if it is ready"""

    def ready(self, images: Split) -> "Extractor":
        """Return the extractor for data with the training `images`. Raises UserError."""
        return self if self.train is None else self.train(images)

    def to(self, device: torch.device) -> "Extractor":
        for network in (self.features, self.classifier, self.logits):
            if network is not None:
                network.to(device)
        return self

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if it does not take images of `shape` (C, H, W)."""
        self.features(torch.zeros(2, *shape, dtype=torch.uint8))


def digits() -> Extractor:
    """Return the packaged CNN for digits."""
    content = files("ddpm_lab.evaluation").joinpath("digits.safetensors").read_bytes()
    return _small_cnn("digits", hashlib.sha256(content).hexdigest(), load(content), (1, 8, 8))


def trained() -> Extractor:
    """Return a small CNN that is trained on the training images and labels, once for each data set.

    The weights are cached under the hash of images and labels.
    """
    return Extractor("trained", "", _UntrainedFeatures(), None, train=_train)


class _UntrainedFeatures(nn.Module):
    """A stand-in for `Extractor.check`: a network for any images that `trained` takes."""

    def forward(self, pixels: Tensor) -> Tensor:
        return SmallCNN(tuple(pixels.shape[1:]))(pixels)


def _train(images: Split) -> Extractor:
    images = head(images)
    if images.labels is None:
        raise UserError(
            "extractor=trained learns from labels, and these images have none; try "
            "extractor=inception"
        )
    classes = int(images.labels.max()) + 1
    key = f"{VERSION} {images.digest()}"
    state = cached(
        cache_dir() / f"extractor-{sha256_of_text(key)}.safetensors",
        lambda: train_classifier(images, classes).state_dict(),
        lambda file: load_tensors(file)[0],
        save_tensors,
    )
    return _small_cnn("trained", sha256_of_tensors(state), state, images.shape)


def _small_cnn(
    name: str, digest: str, state: Mapping[str, Tensor], shape: tuple[int, ...]
) -> Extractor:
    network = make_classifier(shape, len(state["classifier.bias"]), name)
    network.load_state_dict(state)
    network.requires_grad_(False).eval()
    classifier = network["classifier"]
    return Extractor(name, digest, network["features"], classifier, classifier)


INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


class InceptionFeatures(nn.Module):
    """The Inception network that defines FID, in torch-fidelity's port."""

    num_features = 2048

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map images (N, 1 or 3, H, W) uint8 to features (N, 2048)."""
        if (channels := pixels.shape[1]) not in (1, 3):
            raise UserError(
                f"extractor=inception takes images of 1 or 3 channels (got {channels}); "
                "try extractor=none"
            )
        return self.network(pixels.expand(-1, 3, -1, -1))[0]

    def logits(self) -> nn.Linear:
        """Return the map (N, 2048) -> (N, 1008), torch-fidelity's "logits_unbiased"."""
        head = nn.Linear(2048, 1008, bias=False)
        head.weight = self.network.fc.weight
        return head


def inception(weights: str | None = None) -> Extractor:
    """Return Inception with the file `weights`, or with the download in torch's hub folder.

    Raises ValueError if the file is missing, cannot be downloaded or has another SHA-256.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    file = Path(torch.hub.get_dir(), "checkpoints", INCEPTION) if weights is None else Path(weights)
    if weights is None and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), hash_prefix="6726825d")
        except (URLError, OSError, RuntimeError) as error:
            raise ValueError(
                f"weights=null: the download failed ({error}); save {INCEPTION}, whose SHA-256 "
                f"begins with 6726825d, as {file}, or set extractor.weights=FILE; for images with "
                "labels, extractor=trained needs no file"
            ) from error
    if not file.is_file():
        raise ValueError(f"weights={weights} is not a file; the usual name is {INCEPTION}")
    digest = sha256_of_file(file)
    if not digest.startswith("6726825d"):  # torch-fidelity unpickles the file
        raise ValueError(
            f"weights={file} is not {INCEPTION}: its SHA-256 begins with {digest[:8]}, not 6726825d"
        )
    features = InceptionFeatures(file).requires_grad_(False).eval()
    return Extractor(
        "inception",
        digest,
        features,
        None,
        features.logits(),
        "bilinear to 299x299, as TensorFlow 1 did",
    )


def none() -> Extractor:
    """Raise UserError; the default of data without an extractor."""
    raise UserError(
        "extractor=none has no features; try extractor=inception, or extractor=trained for images "
        "with labels"
    )
