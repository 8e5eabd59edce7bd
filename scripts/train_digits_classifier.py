"""Train the packaged feature extractor of digits: python scripts/train_digits_classifier.py

Writes src/ddpm_lab/evaluation/digits.safetensors and prints the accuracy of both splits.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

from pathlib import Path

from safetensors.torch import save_file

from ddpm_lab.data.digits import digits
from ddpm_lab.evaluation.small_cnn import train_classifier

FILE = Path(__file__).parents[1] / "src/ddpm_lab/evaluation/digits.safetensors"


def main() -> None:
    data = digits()
    network = train_classifier(data.train, 10).eval()
    for name, images in {"training": data.train, "held-out": data.test}.items():
        predictions = network["classifier"](network["features"](images.pixels)).argmax(1)
        print(f"{name} accuracy {(predictions == images.labels).float().mean():.4f}")
    save_file(network.state_dict(), FILE)
    print(f"{FILE.relative_to(Path.cwd())}: {FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
