"""Standard data sets with their official splits, through torchvision, which verifies the files.

All raise ValueError that states the place of missing files. For `max_images` see `make_splits`,
for `in_memory` `MapSplit.load`.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import datasets

from ddpm_lab.data.datasets import Images, MaxImages, Source, Splits, make_splits
from ddpm_lab.data.image_folder import ImageFiles, load_images
from ddpm_lab.data.image_io import prefix_errors
from ddpm_lab.data.image_transform import ImageTransform, Resolution, Side
from ddpm_lab.data.lsun import Database
from ddpm_lab.data.module import dataset

TIMEOUT = 20
"""Seconds to wait for a response of the server"""
CIFAR = "put the folder {0.base_folder} of {0.url} into {1}"
MNIST = (
    "put {0.resources[0][0]} and its three neighbors from {0.mirrors[0]}, unpacked, "
    "into {1}/{0.__name__}/raw"
)
CELEBA = (
    "put img_align_celeba (a folder), list_eval_partition.txt, list_attr_celeba.txt, "
    "identity_CelebA.txt, list_bbox_celeba.txt and list_landmarks_align_celeba.txt into {}/celeba"
)
IMAGENET = "put train and val, with a folder per class, into {}, or the archives of image-net.org"


@dataset
def cifar10(path: str, download: bool = True, resolution: int = 32) -> Splits:
    """Load 50,000 training and 10,000 test images (3, 32, 32) of ten classes into memory.

    A lower `resolution`, a divisor of 32, averages pixels.
    """
    return _load_arrays(datasets.CIFAR10, CIFAR, path, download, resolution)


@dataset
def cifar100(path: str, download: bool = True, resolution: int = 32) -> Splits:
    """Load CIFAR-100: like `cifar10`, with a hundred classes."""
    return _load_arrays(datasets.CIFAR100, CIFAR, path, download, resolution)


@dataset
def mnist(path: str, download: bool = True, resolution: int = 32) -> Splits:
    """Load 60,000 training and 10,000 test images (1, 32, 32) of ten classes into memory.

    They have a black margin of two pixels, or none with `resolution` 28. A divisor of 32 averages
    pixels.
    """
    return _load_arrays(datasets.MNIST, MNIST, path, download, resolution)


@dataset
def fashion_mnist(path: str, download: bool = True, resolution: int = 32) -> Splits:
    """Load Fashion-MNIST: like `mnist`, with clothes."""
    return _load_arrays(datasets.FashionMNIST, MNIST, path, download, resolution)


@dataset
def celeba64(
    path: str,
    resolution: Side = 64,
    max_images: MaxImages | None = None,
    in_memory: bool | None = None,
) -> Splits:
    """Load 162,770 training and 19,962 test images of faces without labels.

    They are cropped and scaled as in DDIM's code. The validation split is unused.
    """
    root, transform = Path(path).expanduser(), CelebACrop(resolution, 3, convert=True)
    with _translate_errors(path, CELEBA.format(root)):
        splits = [datasets.CelebA(root, split, target_type=[]) for split in ("train", "test")]
    folder = root / "celeba" / "img_align_celeba"
    files = [[folder / name for name in split.filename] for split in splits]
    sources = [ImageFiles(root, part, transform) for part in files]
    return _load("celeba64", sources, transform, max_images, in_memory)


@dataset
def lsun(
    path: str,
    category: str = "church_outdoor",
    resolution: Resolution = 256,
    max_images: MaxImages | None = None,
    in_memory: bool | None = None,
) -> Splits:
    """Load a `category` of LSUN without labels; the test split has 300 images.

    `path` contains CATEGORY_train_lmdb and CATEGORY_val_lmdb. For `resolution` see
    `ImageTransform`.
    """
    root, transform = Path(path).expanduser(), ImageTransform(resolution, 3, convert=True)
    train, test = (f"{category}_{split}_lmdb" for split in ("train", "val"))
    advice = f"unpack {train} and {test} of data.category={category} in {root}"
    with _translate_errors(path, advice):
        sources = [Database.open(root / name, transform) for name in (train, test)]
    return _load(f"lsun {category}", sources, transform, max_images, in_memory)


@dataset
def imagenet(
    path: str,
    resolution: Resolution,
    max_images: MaxImages | None = None,
    in_memory: bool | None = None,
) -> Splits:
    """Load 1,281,167 training and 50,000 test images of a thousand classes, sorted by WordNet ID.

    `path` contains train and val with a folder per class, or the archives, which torchvision
    unpacks. Captions are the first names of the classes if meta.bin or the development kit exists,
    else the names of the folders. For `resolution` see `ImageTransform`.
    """
    root, transform = Path(path).expanduser(), ImageTransform(resolution, 3, convert=True)
    has_names = any((root / f).is_file() for f in ("meta.bin", "ILSVRC2012_devkit_t12.tar.gz"))
    with _translate_errors(path, IMAGENET.format(root)):
        train, test = splits = [
            datasets.ImageNet(root, split) if has_names else datasets.ImageFolder(root / split)
            for split in ("train", "val")
        ]
        if train.classes != test.classes:
            raise ValueError("train and val have different classes")
    files = [[Path(file) for file, _ in split.samples] for split in splits]
    sources = [ImageFiles(root, part, transform) for part in files]
    labels = [torch.tensor(split.targets) for split in splits]
    captions = [[names[0]] if has_names else [names] for names in train.classes]
    return _load("imagenet", sources, transform, max_images, in_memory, labels, captions)


@dataclass(frozen=True)
class CelebACrop(ImageTransform):
    """Crops 128 x 128 pixels around row 121, column 89 of an aligned image; scales bilinearly."""

    def __call__(self, image: Image.Image, name: str) -> Tensor:
        if image.size != (178, 218):
            raise ValueError(f"{name} is {image.width}x{image.height}, expected 178x218")
        face = image.crop((89 - 64, 121 - 64, 89 + 64, 121 + 64))
        _, height, width = self.shape
        return super().__call__(face.resize((width, height), Image.Resampling.BILINEAR), name)


def _load_arrays(kind: Any, advice: str, path: str, download: bool, resolution: int) -> Splits:
    """Load a set that torchvision reads into memory."""
    root = Path(path).expanduser()
    advice = advice.format(kind, root)
    advice = advice if download else f"try data.download=true, or {advice}"
    with _translate_errors(path, advice):
        try:
            splits = _train_and_test(kind, root)
        except Exception:  # torchvision raises many types for missing or damaged files
            if not download:
                raise
            _download(kind, root)
            splits = _train_and_test(kind, root)
        classes = splits[0].classes
        arrays = [_checked_arrays(split, len(classes)) for split in splits]
    train, test = (Images(_resized(pixels, resolution), labels) for pixels, labels in arrays)
    captions = [name.replace("_", " ").split(" - ") for name in classes]  # MNIST: "0 - zero"
    return Splits(kind.__name__.lower(), train, test, captions)


def _train_and_test(kind: Any, root: Path, download: bool = False) -> list[Any]:
    return [kind(root, train=train, download=download) for train in (True, False)]


def _checked_arrays(split: Any, classes: int) -> tuple[Tensor, Tensor]:
    """Return pixels (N, C, H, W) and labels (N,). Raises ValueError if they do not match."""
    pixels, labels = torch.as_tensor(split.data), torch.as_tensor(split.targets)
    if len(pixels) != len(labels) or int(labels.max()) >= classes:
        raise ValueError(
            f"{len(pixels)} images and {len(labels)} labels of up to {int(labels.max())}"
        )
    return pixels.permute(0, 3, 1, 2) if pixels.dim() == 4 else pixels[:, None], labels


def _download(kind: Any, root: Path) -> None:
    """Download and verify a set next to `root`, then move its files there."""
    parent = next(folder for folder in root.absolute().parents if folder.is_dir())
    with TemporaryDirectory(prefix=f".{root.name}-", dir=parent) as scratch:
        before = socket.getdefaulttimeout()  # None: no limit
        socket.setdefaulttimeout(TIMEOUT)
        try:
            _train_and_test(kind, Path(scratch), download=True)
        finally:
            socket.setdefaulttimeout(before)
        for file in (file for file in Path(scratch).rglob("*") if file.is_file()):
            target = root / file.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)


def _resized(pixels: Tensor, resolution: int) -> Tensor:
    """Resize (N, C, 28, 28) or (N, C, 32, 32) uint8 to (N, C, resolution, resolution)."""
    side = pixels.shape[-1]
    if resolution == side:
        return pixels.contiguous()
    if resolution < 1 or 32 % resolution:
        raise ValueError(
            f"resolution must be {side}, the size of the images, or a divisor of 32 (got "
            f"{resolution}); try {side if side == 32 else f'{side} or 32'}"
        )
    padded = F.pad(pixels, 4 * [(32 - side) // 2])
    return F.avg_pool2d(padded.float(), 32 // resolution).round().byte()


def _load(
    name: str,
    sources: Sequence[Source],
    transform: ImageTransform,
    max_images: int | None,
    in_memory: bool | None,
    labels: Sequence[Tensor | None] = (None, None),
    captions: list[list[str]] | None = None,
) -> Splits:
    """Load a training and a test source."""
    with prefix_errors("path: "):
        splits = make_splits(sources, transform.shape, labels, max_images=max_images)
        train, test = load_images(splits, transform, in_memory)
    return Splits(name, train, test, captions)


@contextmanager
def _translate_errors(path: str, advice: str) -> Iterator[None]:
    """Raise ValueError with `advice` for any error of a library that reads files."""
    try:
        yield
    except Exception as error:
        message = str(error).replace(os.fspath(Path(path).expanduser()), path)
        message = " ".join(message.split()) or type(error).__name__
        message = message.partition(" You can use download")[0]
        raise ValueError(
            f"path={path} does not contain the complete data set ({message[:150]}); {advice}"
        ) from error
