"""Images in a .npy or .npz file as a data set."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm_lab.data.arrays import ArrayImages, Layout, find_array, load_array, read_headers
from ddpm_lab.data.datasets import MaxImages, Splits, make_splits
from ddpm_lab.data.image_io import prefix_errors
from ddpm_lab.data.image_tree import TEST
from ddpm_lab.data.module import dataset
from ddpm_lab.utils.errors import join_first
from ddpm_lab.utils.ranges import OpenFraction

LOG = logging.getLogger(__name__)
NAMES = "class_names"
"""Array of the names of the classes"""


class Part(NamedTuple):
    """A split of a file, which the argument `key` names."""

    key: str
    images: ArrayImages
    labels: Tensor | None
    """(N,) int64"""
    class_names: list[str] | None


@dataset
def image_array(
    path: str | None,
    val_path: str | None = None,
    labels: str | None = None,
    class_names: list[str | int] | None = None,
    range: list[float] | None = None,
    layout: Layout | None = None,
    held_out: OpenFraction = 0.1,
    max_images: MaxImages | None = None,
    in_memory: bool | None = None,
) -> Splits:
    """Load images (N, H, W), (N, H, W, C) or (N, C, H, W) of a .npy or .npz file.

    `find_array` has the names of images and labels in an .npz. Labels can also be the file `labels`
    (N,). Classes are called `class_names`, or as the strings of the array "class_names", or by
    number. Values that are not uint8 are rounded to 8 bits from `range` [low, high]. For `layout`
    see `ArrayImages`. Held out are the images of the file `val_path`, the test images of the .npz,
    or else a share `held_out`. For `max_images` see `make_splits`, for `in_memory` `MapSplit.load`.

    Raises ValueError that names the file and the key.
    """
    if range is not None and not (len(range) == 2 and range[0] < range[1]):
        raise ValueError(f"range must be [LOW,HIGH] (got {range}); try [0,1]")
    train = _load_part("path", path, ("", "train"), layout, range, labels)
    parts, file = [train], train.images.file
    if val_path is not None:
        parts.append(_load_part("val_path", val_path, ("", *TEST), layout, range))
    elif "" not in (headers := read_headers(file)) and find_array(headers, "images", TEST):
        parts.append(_load_part("path", path, TEST, layout, range))
    names = [*map(str, class_names)] if class_names else train.class_names
    names = _check_classes(parts, names)
    _check_sizes(parts)
    _log(parts, range)
    part_labels = [part.labels if names else None for part in parts]
    sources = [part.images for part in parts]
    splits = make_splits(sources, train.images.shape, part_labels, held_out, max_images)
    with prefix_errors("path: "):
        train_split, test_split = (split.load(in_memory) for split in splits)
    return Splits(file.stem, train_split, test_split, [[name] for name in names] or None)


def _load_part(
    key: str,
    path: str | None,
    parts: Sequence[str],
    layout: Layout | None,
    value_range: Sequence[float] | None,
    labels: str | None = None,
) -> Part:
    """Open the first of `parts` that exists in a file. Raises ValueError that begins with `key`."""
    file = _require_file(key, path)
    with prefix_errors(f"{key}={path}: "):
        headers = read_headers(file)
        name = find_array(headers, "images", parts)
        if name is None:
            arrays = [f"{name} {header.shape}" for name, header in headers.items()]
            raise ValueError(
                f"none of its arrays is called images or x; it has {join_first(arrays, 6)}"
            )
        images = ArrayImages(file, name, layout, value_range)
        label_name = find_array(headers, "labels", parts)
        values = None if label_name is None else load_array(file, label_name)
        names = [*map(str, load_array(file, NAMES))] if NAMES in headers else None
    if labels is not None:
        file, key, path = _require_file("labels", labels), "labels", labels
        with prefix_errors(f"labels={labels}: "):
            headers = read_headers(file)
            values = load_array(file, find_array(headers, "labels", ("",)) or next(iter(headers)))
    with prefix_errors(f"{key}={path}: "):
        tensor = None if values is None else _label_tensor(values, len(images))
    return Part(key, images, tensor, names)


def _require_file(key: str, path: str | None) -> Path:
    file = Path(path or "").expanduser()
    if path is None or not file.is_file():
        hint = f"try data.{key}=FILE"
        if file.is_dir() and path is not None:
            hint = f"for a folder of images, try data=folder data.{key}={path}"
        raise ValueError(f"{key} must be a .npy or .npz file (got {path}); {hint}")
    return file


def _label_tensor(values: np.ndarray, count: int) -> Tensor:
    """Return labels (N,) of (N,) or (N, 1) integers. Raises ValueError."""
    if values.shape not in ((count,), (count, 1)) or values.dtype.kind not in "iu":
        raise ValueError(
            f"its labels are {values.shape} {values.dtype}, but {count} images need ({count},) "
            f"integers; names of classes are for {NAMES}"
        )
    if (low := values.min()) < 0:
        raise ValueError(f"its labels begin at {low}, but the first class is 0")
    return torch.from_numpy(values.reshape(-1).astype(np.int64))


def _check_classes(parts: Sequence[Part], names: list[str] | None) -> list[str]:
    """Return the names of the classes, [] if there are none. Raises ValueError if parts differ."""
    train = parts[0]
    if train.labels is None:
        if names is not None:
            raise ValueError(
                f"class_names={names}, but the data has no labels; try data.labels=FILE"
            )
        return []
    names = names or [str(label) for label in range(int(train.labels.max()) + 1)]
    for part in parts:
        file = part.images.file
        if part.labels is None:
            raise ValueError(
                f"{part.key}={file} has no labels, but path={train.images.file} has; save both "
                "as an .npz with images and labels"
            )
        if (largest := int(part.labels.max())) >= len(names):
            raise ValueError(
                f"{part.key}={file} has label {largest}, but the classes are 0 to "
                f"{len(names) - 1} ({join_first(names, 4)})"
            )
        other = [name for name in part.class_names or [] if name not in names]
        if part.class_names and part.class_names != names and part is not train:
            text = f"classes ({join_first(other, 4)})" if other else "labels of the same classes"
            raise ValueError(
                f"{part.key}={file} has other {text} than path={train.images.file}; try another "
                "val_path, or none, which holds out a share"
            )
    return names


def _check_sizes(parts: Sequence[Part]) -> None:
    """Raise ValueError for too few images, or images of different sizes."""
    train, test = parts[0], parts[-1]
    for part, least in ((train, 4), (test, 2)):
        if (count := len(part.images)) < least:
            raise ValueError(
                f"{part.key}={part.images.file} has {count} images, but at least {least} are needed"
            )
    if train.images.shape != test.images.shape:
        raise ValueError(
            f"{test.key}={test.images.file} has images of {test.images.shape} (C, H, W), but "
            f"path={train.images.file} has {train.images.shape}"
        )


def _log(parts: Sequence[Part], value_range: Sequence[float] | None) -> None:
    array, (channels, height, width) = parts[0].images.array, parts[0].images.shape
    text = f"{array.shape} {array.dtype} is read as images of {channels}x{height}x{width}"
    if value_range is not None:
        low, high = value_range
        text += f"; values are rounded to 8 bits, {low:g} to 0 and {high:g} to 255"
    LOG.info(text)
    if len(parts) > 1:
        LOG.info("held out: the %d images of %s", len(parts[1].images), parts[1].images)
