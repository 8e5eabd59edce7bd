"""Feature extractors for FID: functions that return an `Extractor`, whose weights are found when first asked for."""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import torch
from safetensors.torch import load
from torch import Tensor, nn

from ddpm_lab.utils.errors import UserError


class Extractor(NamedTuple):
    """A network that judges images."""

    name: str
    sha256: str
    """Of the file of weights."""
    features: nn.Module
    """(N, C, H, W) uint8 -> (N, num_features)"""
    classifier: nn.Module | None
    """features -> (N, classes), where it knows the classes of the data"""
    logits: nn.Module | None = None
    """features -> (N, K), of the classes that it was trained on, for the inception score"""

    resize: str = "none"
    """What is done to images first"""

    def to(self, device: torch.device) -> "Extractor":
        for network in (self.features, self.classifier, self.logits):
            if network is not None:
                network.to(device)
        return self

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if it does not judge images of `shape` (C, H, W)."""
        self.features(torch.zeros(2, *shape, dtype=torch.uint8))


class DigitsFeatures(nn.Module):
    """The body of a small CNN for 1x8x8 digits. Trained by `scripts/train_digits_classifier.py`."""

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
        """(N, 1, 8, 8) uint8 -> (N, 64)"""
        if pixels.shape[1:] != (1, 8, 8):
            raise UserError(
                f"extractor=digits judges images of 1x8x8 (got {'x'.join(map(str, pixels.shape[1:]))}); "
                "try extractor=inception"
            )
        return self.body(pixels.float() / 127.5 - 1)


def digits() -> Extractor:
    """The packaged CNN."""
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
    """torch-fidelity's port of the Inception network that FID is defined by."""

    num_features = 2048

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 1 or 3, H, W) uint8 -> (N, 2048)"""
        return self.network(pixels.expand(-1, 3, -1, -1))[0]

    def logits(self) -> nn.Linear:
        """(N, 2048) -> (N, 1008), torch-fidelity's "logits_unbiased"."""
        head = nn.Linear(2048, 1008, bias=False)
        head.weight = self.network.fc.weight
        return head


def inception(weights: str | None = None) -> Extractor:
    """Inception, from the file `weights`, or from torch's hub folder, where it is downloaded to if it is not there.

    Raises ValueError that names the file and the place if it cannot be had, or is not what its name says.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    file = Path(torch.hub.get_dir(), "checkpoints", INCEPTION) if weights is None else Path(weights)
    if weights is None and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), hash_prefix="6726825d")
        except (URLError, OSError, RuntimeError) as error:
            raise ValueError(
                f"weights=null: Inception's could not be downloaded ({error}); put {INCEPTION}, whose "
                f"SHA-256 begins with 6726825d, at {file}, or name it in extractor.weights=FILE"
            ) from error
    if not file.is_file():
        raise ValueError(f"weights={weights} is no file; Inception's is called {INCEPTION}")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not digest.startswith("6726825d"):  # torch-fidelity unpickles it, so nothing else may pass
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
    """For data that no extractor fits."""
    raise UserError(
        "extractor=none measures nothing; try extractor=inception, or extractor=digits for 1x8x8 digits"
    )
