"""Well-known sets, through torchvision, which knows their files and checks them. The splits are the official ones."""

import logging
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

from ddpm_lab.data.datasets import Images, MapSplit, Source, load_or_stream
from ddpm_lab.data.image_folder import ImageFiles
from ddpm_lab.data.image_transform import ImageTransform
from ddpm_lab.data.lsun import Database
from ddpm_lab.data.module import DataModule

LOG = logging.getLogger(__name__)
PATIENCE = 20
"""Seconds that a server may be silent"""


def cifar10(
    path: str,
    download: bool = True,
    resolution: int = 32,
    flip: bool = False,
    batch_size: int = 64,
    seed: int = 0,
) -> DataModule:
    """50,000 images and 10,000 to test, of ten classes, in memory. They are (3, 32, 32), or (3, `resolution`,
    `resolution`) by the means of pixels. Raises ValueError that says where the files belong.
    """
    return _arrays(datasets.CIFAR10, path, download, resolution, flip, batch_size, seed)


def cifar100(
    path: str,
    download: bool = True,
    resolution: int = 32,
    flip: bool = False,
    batch_size: int = 64,
    seed: int = 0,
) -> DataModule:
    """As CIFAR-10, of a hundred classes."""
    return _arrays(datasets.CIFAR100, path, download, resolution, flip, batch_size, seed)


def mnist(
    path: str,
    download: bool = True,
    resolution: int = 32,
    flip: bool = False,
    batch_size: int = 64,
    seed: int = 0,
) -> DataModule:
    """60,000 images and 10,000 to test, of ten classes, in memory. They are (1, 28, 28) with `resolution` 28; with 32
    they have a black margin of two pixels, so that they can be halved; with a divisor of 32, the means of its pixels.
    Raises ValueError that says where the files belong.
    """
    return _arrays(datasets.MNIST, path, download, resolution, flip, batch_size, seed)


def fashion_mnist(
    path: str,
    download: bool = True,
    resolution: int = 32,
    flip: bool = False,
    batch_size: int = 64,
    seed: int = 0,
) -> DataModule:
    """As MNIST, of clothes."""
    return _arrays(datasets.FashionMNIST, path, download, resolution, flip, batch_size, seed)


def celeba64(
    path: str,
    resolution: int = 64,
    in_memory: bool | None = None,
    flip: bool = False,
    batch_size: int = 64,
    workers: int = 2,
    seed: int = 0,
) -> DataModule:
    """162,770 faces and 19,962 to test (the validation split is not used), without labels: the square of DDIM's code,
    scaled as there. See `hold` for `resident`. Raises ValueError that says where the files belong.
    """
    root, fit = Path(path).expanduser(), CelebACrop(resolution, 3, convert=True)
    with _translate_errors(
        path,
        f"put img_align_celeba (a folder), list_eval_partition.txt, list_attr_celeba.txt, identity_CelebA"
        f".txt, list_bbox_celeba.txt and list_landmarks_align_celeba.txt into {root}/celeba",
    ):
        splits = [datasets.CelebA(root, split, target_type=[]) for split in ("train", "test")]
    faces = root / "celeba" / "img_align_celeba"
    sources = [ImageFiles(root, [faces / name for name in split.filename], fit) for split in splits]
    return _data(
        "celeba64", path, sources, fit, None, None, in_memory, flip, batch_size, workers, seed
    )


def lsun(
    path: str,
    category: str = "church_outdoor",
    resolution: int = 256,
    in_memory: bool | None = None,
    flip: bool = False,
    batch_size: int = 64,
    workers: int = 2,
    seed: int = 0,
) -> DataModule:
    """A `category` of LSUN: `path`/CATEGORY_train_lmdb, and the 300 images of CATEGORY_val_lmdb to test; without
    labels. Shorter sides are scaled to `resolution` and centres cut. See `hold` for `resident`. Raises ValueError that
    says where the files belong.
    """
    root, fit = Path(path).expanduser(), ImageTransform(resolution, 3, convert=True)
    wanted = [root / f"{category}_{split}_lmdb" for split in ("train", "val")]
    with _translate_errors(
        path,
        f"unpack what data.category={category} wants, {wanted[0].name} and {wanted[1].name}, in {root}",
    ):
        sources = [Database.select(part, fit) for part in wanted]
    return _data(
        f"lsun {category}",
        path,
        sources,
        fit,
        None,
        None,
        in_memory,
        flip,
        batch_size,
        workers,
        seed,
    )


def imagenet(
    path: str,
    resolution: int,
    in_memory: bool | None = None,
    flip: bool = False,
    batch_size: int = 64,
    workers: int = 2,
    seed: int = 0,
) -> DataModule:
    """1,281,167 images and 50,000 to test, of a thousand classes in the order of their WordNet numbers: `path`/train
    and `path`/val with a folder per class, or the archives, which torchvision unpacks. Classes have their first names
    where meta.bin or the development kit is there, else those of the folders.

    Shorter sides are scaled to `resolution` and centres cut. See `hold` for `resident`. Raises ValueError that says
    where the files belong.
    """
    root, fit = Path(path).expanduser(), ImageTransform(resolution, 3, convert=True)
    named = any((root / file).is_file() for file in ("meta.bin", "ILSVRC2012_devkit_t12.tar.gz"))
    with _translate_errors(
        path,
        f"put train and val, with a folder per class, into {root}, or the archives of image-net.org",
    ):
        splits = [
            datasets.ImageNet(root, split) if named else datasets.ImageFolder(root / split)
            for split in ("train", "val")
        ]
        if splits[0].classes != splits[1].classes:
            raise ValueError("train and val have other classes")
    sources = [ImageFiles(root, [Path(file) for file, _ in split.samples], fit) for split in splits]
    labels = [torch.tensor(split.targets) for split in splits]
    captions = [[names[0]] if named else [names] for names in splits[0].classes]
    return _data(
        "imagenet", path, sources, fit, labels, captions, in_memory, flip, batch_size, workers, seed
    )


@dataclass(frozen=True)
class CelebACrop(ImageTransform):
    """Of an aligned image of CelebA, the 128 x 128 whose centre is row 121, column 89, scaled bilinearly."""

    def __call__(self, image: Image.Image, name: str) -> Tensor:
        if image.size != (178, 218):
            raise ValueError(f"{name} is {image.width}x{image.height}, and 178x218 is wanted")
        face = image.crop((89 - 64, 121 - 64, 89 + 64, 121 + 64))
        return super().__call__(
            face.resize((self.side, self.side), Image.Resampling.BILINEAR), name
        )


def _arrays(
    kind: Any, path: str, download: bool, resolution: int, flip: bool, batch_size: int, seed: int
) -> DataModule:
    """Of a set that torchvision reads into memory."""
    root = Path(path).expanduser()
    if hasattr(kind, "base_folder"):
        place = f"put the folder {kind.base_folder} of {kind.url} into {root}"
    else:
        place = (
            f"put {kind.resources[0][0]} and its three neighbours from {kind.mirrors[0]}, unpacked, into "
            f"{root / kind.__name__ / 'raw'}"
        )
    with _translate_errors(path, place if download else f"try data.download=true, or {place}"):
        try:
            splits = _splits(kind, root)
        except Exception:  # torchvision raises many kinds for files that are missing or damaged
            if not download:
                raise
            _download(kind, root)
            splits = _splits(kind, root)
        images, labels = zip(
            *((torch.as_tensor(split.data), torch.as_tensor(split.targets)) for split in splits),
            strict=True,
        )
        for some, of in zip(images, labels, strict=True):
            if len(some) != len(of) or int(of.max()) >= len(splits[0].classes):
                raise ValueError(
                    f"{len(some)} images and {len(of)} labels of up to {int(of.max())}"
                )
    pixels = [
        _sized(some.permute(0, 3, 1, 2) if some.dim() == 4 else some[:, None], resolution)
        for some in images
    ]
    captions = [
        name.replace("_", " ").split(" - ") for name in splits[0].classes
    ]  # MNIST has "0 - zero"
    train, test = (Images(some, of) for some, of in zip(pixels, labels, strict=True))
    return DataModule(
        kind.__name__.lower(),
        train,
        test,
        classes=len(captions),
        batch_size=batch_size,
        flip=flip,
        seed=seed,
        captions=captions,
    )


def _splits(kind: Any, root: Path, download: bool = False) -> list[Any]:
    """Return the training and the test set."""
    return [kind(root, train=train, download=download) for train in (True, False)]


def _download(kind: Any, root: Path) -> None:
    """Download a set beside `root`, check it, and only then move its files into place."""
    beside = next(above for above in root.absolute().parents if above.is_dir())
    with TemporaryDirectory(prefix=f".{root.name}-", dir=beside) as scratch:
        with _socket_timeout():
            _splits(kind, Path(scratch), download=True)
        for file in (file for file in Path(scratch).rglob("*") if file.is_file()):
            place = root / file.relative_to(scratch)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)


def _sized(pixels: Tensor, resolution: int) -> Tensor:
    """(N, C, 28, 28) or (N, C, 32, 32) uint8 as (N, C, resolution, resolution)."""
    side = pixels.shape[-1]
    if resolution == side:
        return pixels.contiguous()
    if resolution < 1 or 32 % resolution:
        raise ValueError(
            f"resolution must be {side}, that of the images, or a divisor of 32 (got {resolution}); "
            "try 32"
        )
    padded = F.pad(pixels, 4 * [(32 - side) // 2])
    return F.avg_pool2d(padded.float(), 32 // resolution).round().byte()


def _data(
    name: str,
    path: str,
    sources: Sequence[Source],
    fit: ImageTransform,
    labels: Sequence[Tensor] | None,
    captions: list[list[str]] | None,
    in_memory: bool | None,
    flip: bool,
    batch_size: int,
    workers: int,
    seed: int,
) -> DataModule:
    """Of a training and a test source."""
    try:
        train, test = (
            load_or_stream(source, fit.shape, labels[i] if labels else None, in_memory=in_memory)
            for i, source in enumerate(sources)
        )
        if isinstance(train, MapSplit):
            sources[0][0]  # or a broken set would be told by a worker process
    except ValueError as error:
        raise ValueError(f"path: {error}") from error
    if fit.changes.counts and isinstance(train, Images):
        LOG.info("converted: %s", fit.changes)
    return DataModule(
        name,
        train,
        test,
        classes=len(captions) if captions else None,
        batch_size=batch_size,
        flip=flip,
        seed=seed,
        workers=workers,
        captions=captions,
    )


@contextmanager
def _translate_errors(path: str, place: str) -> Iterator[None]:
    """Around code of a library that reads files, which tells in many ways that they are missing or broken."""
    try:
        yield
    except Exception as error:
        said = (
            " ".join(str(error).replace(os.fspath(Path(path).expanduser()), path).split())
            or type(error).__name__
        )
        said = said.partition(" You can use download")[0]
        raise ValueError(
            f"path={path} does not hold the set, whole ({said[:150]}); {place}"
        ) from error


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Downloads end when the server is silent; of themselves they would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
