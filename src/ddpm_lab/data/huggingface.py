"""Data sets of the Hugging Face Hub, and folders that the `datasets` library reads."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_lab.data.datasets import MaxImages, Split, Splits, evenly_spaced, make_splits
from ddpm_lab.data.huggingface_rows import (
    HubStream,
    HubTable,
    RowDecoder,
    label_tensor,
    open_stream,
)
from ddpm_lab.data.image_folder import INSPECTED, load_images
from ddpm_lab.data.image_io import ImageInfo, inspect_image, prefix_errors
from ddpm_lab.data.image_transform import Bits, Resolution, infer_transform
from ddpm_lab.data.image_tree import TEST
from ddpm_lab.data.module import dataset
from ddpm_lab.utils.ranges import Count, OpenFraction
from ddpm_lab.utils.shell import optional_package

LOG = logging.getLogger(__name__)
TIMEOUT = 10
"""Seconds to wait for the Hub's description of a data set"""


@dataset
def hub(
    name: str | None,
    config: str | None = None,
    split_train: str = "train",
    split_test: str | None = "auto",
    image: str | None = None,
    label: str | None = None,
    cache: str | None = None,
    resolution: Resolution | None = None,
    channels: int | None = None,
    convert: bool = False,
    bits: Bits | None = None,
    held_out: OpenFraction = 0.1,
    streaming: bool = False,
    shuffle_buffer: Count = 1000,
    size: Count | None = None,
    test_size: Count = 1000,
    max_images: MaxImages | None = None,
    in_memory: bool | None = None,
) -> Splits:
    """Load `name`, a data set of the Hub or a folder, as `datasets.load_dataset(name, config)`.

    Code from the Hub is never executed. `cache` is the download folder (None: the library's).
    `image` and `label` are columns (None: the only one of that type). `split_test` "auto" is the
    first of `TEST` that exists, else None: a share `held_out` of the training split is held out.
    See `infer_transform` for `resolution`, `channels`, `convert` and `bits`, `make_splits` for
    `max_images`, `MapSplit.load` for `in_memory`. With `streaming`, nothing is stored on disk (see
    `IterableSplit`). Images are shuffled within a buffer of `shuffle_buffer`. The first `test_size`
    images are held out: of the test split or, if None, of the training split, which is then read by
    one worker. `size` is the number of training images, if the set does not state it.

    Raises ValueError that names the key.
    """
    if name is None:
        raise ValueError("name=None is not a data set or a folder; try data.name=OWNER/NAME")
    if streaming and max_images is not None:
        raise ValueError(f"max_images={max_images} is not for streams; try data.size={max_images}")
    splits = _load_splits(name, config, cache, streaming)
    split_test = _test_split(name, splits, split_train, split_test)
    features = splits[split_train].features or {}
    image = _column("image", image, "Image", features)
    label = _column("label", label, "ClassLabel", features)
    if image is None:
        columns = ", ".join(features)
        raise ValueError(f"image: {name} has no column of images; columns: {columns}")
    names = [split_train] if split_test is None else [split_train, split_test]
    tables = [_encoded(splits[split], image, label) for split in names]
    with prefix_errors(f"name={name}: "):
        infos = _inspect(tables[0], image, streaming)
        transform = infer_transform(infos, resolution, channels, convert, bits)
    decoder = RowDecoder(image, label, transform)
    train, test = (
        _stream(name, tables, decoder, size, test_size, shuffle_buffer)
        if streaming
        else _load(name, tables, decoder, held_out, max_images, in_memory)
    )
    return Splits(name, train, test, [[text] for text in features[label].names] if label else None)


def _test_split(
    name: str, splits: Mapping[str, Any], split_train: str, split_test: str | None
) -> str | None:
    """Return the test split, and log it and unused splits. Raises ValueError if one is missing."""
    if split_test == "auto":
        split_test = next((name for name in TEST if name in splits and name != split_train), None)
        share = "a share of the training split (no test split)"
        LOG.info("held out: %s", f"the split {split_test}" if split_test else share)
    if rest := [split for split in splits if split not in (split_train, split_test)]:
        LOG.info("%s: unused splits: %s", name, ", ".join(rest))
    advice = f"try {', '.join(splits)}"
    if split_train not in splits:
        raise ValueError(f"split_train={split_train} is not a split of {name}; {advice}")
    if split_test is not None and split_test not in splits:
        advice += ", or null, which holds out a share of the training split"
        raise ValueError(f"split_test={split_test} is not a split of {name}; {advice}")
    return split_test


def _inspect(rows: Any, image: str, streaming: bool) -> list[ImageInfo]:
    """Inspect the first images of a stream, or evenly spaced images of a table."""
    numbers = [*range(16)] if streaming else evenly_spaced(len(rows), INSPECTED).tolist()
    sample = rows.take(16) if streaming else rows.select(numbers)
    infos = []
    for number, row in zip(numbers, sample, strict=False):
        with open_stream(row[image], f"row {number}") as (stream, name):
            infos.append(inspect_image(stream, name))
    if not infos:
        raise ValueError("the training split has no images")
    return infos


def _load(
    name: str,
    tables: Sequence[Any],
    decoder: RowDecoder,
    held_out: float,
    max_images: int | None,
    in_memory: bool | None,
) -> Sequence[Split]:
    """Return the training and test split of tables on disk."""
    sources = [HubTable(table, decoder) for table in tables]
    labels = [label_tensor(table[decoder.label][:]) if decoder.label else None for table in tables]
    splits = make_splits(sources, decoder.transform.shape, labels, held_out, max_images)
    with prefix_errors(f"name={name}: "):
        return load_images(splits, decoder.transform, in_memory)


def _stream(
    name: str,
    tables: Sequence[Any],
    decoder: RowDecoder,
    size: int | None,
    test_size: int,
    buffer: int,
) -> Sequence[Split]:
    """Return the training and test split of iterable sets."""
    train = tables[0]
    info = (train.info.splits or {}).get(str(train.split))
    size = info.num_examples if size is None and info else size
    if size is None:
        raise ValueError(
            f"size, the number of training images, is not stated by {name}; try data.size=N"
        )
    skipped = test_size if len(tables) == 1 else 0
    if size <= skipped:
        raise ValueError(
            f"test_size={test_size} leaves nothing of {size} images to train on; "
            f"try {max(1, size // 10)}"
        )
    shape, origin = decoder.transform.shape, f"{name} {train.split}"
    stream = HubStream(size - skipped, shape, train, decoder, buffer, skipped, origin)
    held_out = HubStream(test_size, shape, tables[-1], decoder, buffer, 0, name)
    with prefix_errors(f"name={name}: "):
        return stream, held_out.first(test_size)


def _load_splits(
    name: str, config: str | None, cache: str | None, streaming: bool
) -> dict[str, Any]:
    with optional_package("datasets", f"name={name}"):
        from datasets import load_dataset
        from huggingface_hub import HfApi, constants
    path = Path(name).expanduser()
    try:
        if not path.exists() and not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, timeout=TIMEOUT)  # load_dataset would retry six times
        target = str(path) if path.exists() else name
        return load_dataset(target, config, cache_dir=cache, streaming=streaming)
    except Exception as error:  # HTTP, the Hub, the library and file formats raise their own types
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"name={name} cannot be loaded ({reason}); try a folder, or OWNER/NAME of the Hub. "
            "Without a network, HF_HUB_OFFLINE=1 uses earlier downloads"
        ) from error


def _column(key: str, column: str | None, kind: str, features: Mapping[str, Any]) -> str | None:
    """Return `column` if it has type `kind`; if None, the only column of that type."""
    columns = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if column is not None and column not in columns:
        raise ValueError(
            f"{key}={column} is not a column of type {kind}; "
            f"try {', '.join(columns) or 'null (there are none)'}"
        )
    if column is None and len(columns) > 1:
        raise ValueError(f"{key} is one of {', '.join(columns)}; try data.{key}={columns[0]}")
    return column or (columns[0] if columns else None)


def _encoded(rows: Any, image: str, label: str | None) -> Any:
    """Select the two columns, with encoded images."""
    import datasets

    columns = [image] if label is None else [image, label]
    return rows.select_columns(columns).cast_column(image, datasets.Image(decode=False))
