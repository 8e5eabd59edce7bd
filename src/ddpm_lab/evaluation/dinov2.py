"""Features of DINOv2, which follow human judgment better than Inception's (Stein et al., 2023)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.safe_load import sha256_of_tensors
from ddpm_lab.utils.shell import optional_package

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet"""
MODEL = "facebook/dinov2-large"
SIZE = 224
"""Side of the input"""


class DINOv2Features(nn.Module):
    """The class token of a DINOv2 of `transformers`, after the last norm."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.num_features = network, int(network.config.hidden_size)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map images (N, 1 or 3, H, W) uint8 to features (N, num_features)."""
        if (channels := pixels.shape[1]) not in (1, 3):
            raise UserError(
                f"extractor=dinov2 takes images of 1 or 3 channels (got {channels}); "
                "try extractor=none"
            )
        images = pixels.expand(-1, 3, -1, -1) / 255
        images = F.interpolate(images, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        features: Tensor = self.network((images - self.mean) / self.std).pooler_output
        return features


def dinov2(model: str = MODEL) -> Extractor:
    """Return DINOv2 from a folder that `save_pretrained` wrote, or from the Hugging Face Hub.

    Raises ValueError without the package `transformers`, or if the weights are not available.
    """
    with optional_package("transformers", f"model={model}"):
        from transformers import Dinov2Model
    try:
        network = Dinov2Model.from_pretrained(model, use_safetensors=True)
    except (OSError, ValueError) as error:
        sentence = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise ValueError(
            f"model={model} cannot be read or downloaded ({sentence}); try model=DIR, with the "
            f"config.json and model.safetensors of: hf download {MODEL} --local-dir DIR"
        ) from error
    features = DINOv2Features(network).requires_grad_(False).eval()
    digest = sha256_of_tensors(network.state_dict())
    return Extractor("dinov2", digest, features, None, resize=f"bicubic to {SIZE}x{SIZE}")
