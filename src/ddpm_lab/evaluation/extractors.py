"""Feature extractors of FID."""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import torch
from safetensors.torch import load
from torch import Tensor, nn

from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.safe_load import sha256_of_file


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

    def to(self, device: torch.device) -> "Extractor":
        for network in (self.features, self.classifier, self.logits):
            if network is not None:
                network.to(device)
        return self

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if it does not take images of `shape` (C, H, W)."""
        self.features(torch.zeros(2, *shape, dtype=torch.uint8))


class DigitsFeatures(nn.Module):
    """A small CNN for 1x8x8 digits, trained by `scripts/train_digits_classifier.py`."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(256, 64),
            nn.ReLU(),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Map images (N, 1, 8, 8) uint8 to features (N, 64)."""
        if pixels.shape[1:] != (1, 8, 8):
            size = "x".join(map(str, pixels.shape[1:]))
            raise UserError(
                f"extractor=digits takes images of 1x8x8 (got {size}); try extractor=inception"
            )
        return self.body(pixels.float() / 127.5 - 1)


def digits() -> Extractor:
    """Return the packaged CNN for digits."""
    content = files("ddpm_lab.evaluation").joinpath("digits.safetensors").read_bytes()
    network = nn.ModuleDict({"features": DigitsFeatures(), "classifier": nn.Linear(64, 10)})
    network.load_state_dict(load(content))
    network.requires_grad_(False).eval()
    classifier = network["classifier"]
    return Extractor(
        "digits", hashlib.sha256(content).hexdigest(), network["features"], classifier, classifier
    )


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
                f"begins with 6726825d, as {file}, or set extractor.weights=FILE"
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
        "extractor=none has no features; try extractor=inception, or extractor=digits for 1x8x8 "
        "digits"
    )
