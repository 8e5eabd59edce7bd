"""Train the packaged feature extractor of digits: python scripts/train_digits_classifier.py

Writes src/ddpm_lab/evaluation/digits.safetensors and prints the accuracy on the held-out split.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from ddpm_lab.data.digits import digits
from ddpm_lab.evaluation.extractors import DigitsFeatures

FILE = Path(__file__).parents[1] / "src/ddpm_lab/evaluation/digits.safetensors"
EPOCHS = 15  # longer training collapses each class, so that FID ignores variety within it


def main() -> None:
    torch.manual_seed(0)
    data = digits()
    network = nn.ModuleDict({"features": DigitsFeatures(), "classifier": nn.Linear(64, 10)})
    steps = EPOCHS * (len(data.train.pixels) // 64)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(data.train.pixels)).split(64)[:-1]:
            pixels = _shift(data.train.pixels[index])
            loss = F.cross_entropy(
                network["classifier"](network["features"](pixels)), data.train.labels[index]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    for name, images in {"training": data.train, "held-out": data.test}.items():
        predictions = network["classifier"](network["features"](images.pixels)).argmax(1)
        print(f"{name} accuracy {(predictions == images.labels).float().mean():.4f}")
    save_file(network.state_dict(), FILE)
    print(f"{FILE.relative_to(Path.cwd())}: {FILE.stat().st_size / 1000:.0f} kB")


def _shift(pixels: torch.Tensor) -> torch.Tensor:
    """Shift each image by up to one pixel, with probability 0.3."""
    padded = F.pad(pixels, (1, 1, 1, 1))
    images = [
        padded[i, :, y : y + 8, x : x + 8] if p < 0.3 else pixels[i]
        for i, (p, y, x) in enumerate(
            zip(torch.rand(len(pixels)), *torch.randint(0, 3, (2, len(pixels))), strict=True)
        )
    ]
    return torch.stack(images)


if __name__ == "__main__":
    main()
