"""Data sets of the Hugging Face Hub, and folders that the `datasets` library reads."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ddpm_lab.data.datasets import IterableSplit, Split, Splits, load_or_stream
from ddpm_lab.data.huggingface_rows import (
    HubStream,
    HubTable,
    RowDecoder,
    label_tensor,
    open_stream,
)
from ddpm_lab.data.image_folder import INSPECTED, log_changes, train_test_split
from ddpm_lab.data.image_io import ImageInfo, inspect_image
from ddpm_lab.data.image_transform import infer_transform
from ddpm_lab.data.image_tree import TEST
from ddpm_lab.data.module import dataset
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.shell import install_command

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
    resolution: int | None = None,
    channels: int | None = None,
    convert: bool = False,
    bits: int | None = None,
    held_out: float = 0.1,
    streaming: bool = False,
    shuffle_buffer: int = 1000,
    size: int | None = None,
    test_size: int = 1000,
    in_memory: bool | None = None,
) -> Splits:
    """Load `name`, a data set of the Hub or a folder, as `datasets.load_dataset(name, config)`.

    Code from the Hub is never executed. `cache` is the download folder (None: the library's).
    `image` and `label` are columns (None: the only one of that type). `resolution` and `channels`
    None are those of the images; for `convert` and `bits` see `ImageTransform`, for `in_memory`
    see `load_or_stream`. `split_test` "auto" is the first of `TEST` that exists, else None: a share
    `held_out` of the training split is held out.

    With `streaming` nothing is stored on disk:
    - Images are shuffled within a buffer of `shuffle_buffer` encoded images.
    - The first `test_size` images are held out: of the test split or, if None, of the training
      split, which is then read by one worker.
    - `size` is the number of training images, if the set does not state it.
    - For the limits see `IterableSplit`.

    Raises ValueError that names the key.
    """
    if name is None:
        raise ValueError(
            "name must be that of a data set of the Hub, or a folder (got None); "
            "try data.name=OWNER/NAME"
        )
    splits = _load_splits(name, config, cache, streaming)
    if split_test == "auto":
        split_test = _find_test_split(splits, split_train)
    _check_splits(name, splits, split_train, split_test)
    features = splits[split_train].features or {}
    image = _column("image", image, "Image", features)
    label = _column("label", label, "ClassLabel", features)
    if image is None:
        columns = ", ".join(features)
        raise ValueError(f"image: {name} has no column of images; its columns are {columns}")
    train = _encoded(splits[split_train], image, label)
    test = None if split_test is None else _encoded(splits[split_test], image, label)
    with _name_errors(name, ("resolution", "channels", "bits")):
        infos = _inspect(train, image, streaming)
        transform = infer_transform(infos, resolution, channels, convert, bits)
    decoder = RowDecoder(image, label, transform)
    pair = (
        _stream(name, train, test, decoder, size, test_size, shuffle_buffer)
        if streaming
        else _load(name, train, test, decoder, held_out, in_memory)
    )
    log_changes(transform, *pair)
    captions = [[text] for text in features[label].names] if label else None
    return Splits(name, pair[0], pair[1], captions)


def _find_test_split(splits: Mapping[str, Any], split_train: str) -> str | None:
    test = next((split for split in TEST if split in splits and split != split_train), None)
    share = "a share of the training split (no test split)"
    LOG.info("held out: %s", f"the split {test}" if test else share)
    return test


def _check_splits(
    name: str, splits: Mapping[str, Any], split_train: str, split_test: str | None
) -> None:
    """Log unused splits. Raises ValueError if a split does not exist."""
    if rest := [split for split in splits if split not in (split_train, split_test)]:
        LOG.info("left aside in %s: the splits %s", name, ", ".join(rest))
    if split_train not in splits:
        advice = f"try {', '.join(splits)}"
        raise ValueError(f"split_train={split_train} is not a split of {name}; {advice}")
    if split_test is not None and split_test not in splits:
        advice = f"try {', '.join(splits)}, or null, which holds out a share of the training split"
        raise ValueError(f"split_test={split_test} is not a split of {name}; {advice}")


def _inspect(rows: Any, image: str, streaming: bool) -> list[ImageInfo]:
    """Inspect the first images of a stream, or evenly spaced images of a table."""
    count = 16 if streaming else min(len(rows), INSPECTED)
    numbers = [i if streaming else i * len(rows) // count for i in range(count)]
    sample = islice(rows, count) if streaming else (rows[number] for number in numbers)
    infos = []
    for number, row in zip(numbers, sample, strict=False):
        with open_stream(row[image], f"row {number}") as (stream, name):
            infos.append(inspect_image(stream, name))
    if not infos:
        raise ValueError("the training split has no images")
    return infos


def _load(
    name: str, train: Any, test: Any, decoder: RowDecoder, held_out: float, in_memory: bool | None
) -> list[Split]:
    """Return the training and test split of tables on disk."""
    parts = train_test_split(len(train), held_out) if test is None else (None, None)
    splits: list[Split] = []
    for table, part in zip((train, train if test is None else test), parts, strict=True):
        labels = label_tensor(table[decoder.label][:]) if decoder.label else None
        labels = labels if labels is None or part is None else labels[part]
        source, shape = HubTable(table, decoder), decoder.transform.shape
        with _name_errors(name):
            splits.append(load_or_stream(source, shape, labels, part, in_memory))
    return splits


def _stream(
    name: str,
    train: Any,
    test: Any,
    decoder: RowDecoder,
    size: int | None,
    test_size: int,
    buffer: int,
) -> list[Split]:
    """Return the training and test split of iterable sets."""
    for key, value in {"test_size": test_size, "shuffle_buffer": buffer}.items():
        if value < 1:
            raise ValueError(f"{key} must be at least 1 (got {value}); try 1000")
    info = (train.info.splits or {}).get(str(train.split))
    size = info.num_examples if size is None and info else size
    if size is None:
        raise ValueError(
            f"size, the number of training images, is required: {name} does not state it"
        )
    skipped = test_size if test is None else 0
    if size <= skipped:
        raise ValueError(
            f"test_size={test_size} leaves nothing of {size} images to train on; "
            f"try {max(1, size // 10)}"
        )
    stream = HubStream(train, decoder, buffer, skipped, f"{name} {train.split}")
    held_out = HubStream(train if test is None else test, decoder, buffer, 0, name)
    with _name_errors(name):
        head = held_out.first(test_size)
    return [IterableSplit(stream, size - skipped, decoder.transform.shape), head]


def _load_splits(
    name: str, config: str | None, cache: str | None, streaming: bool
) -> dict[str, Any]:
    try:
        from datasets import load_dataset
        from huggingface_hub import HfApi, constants
    except ImportError as error:
        raise ValueError(
            f"name: the library datasets is not installed; try {install_command('datasets')}"
        ) from error
    path = Path(name).expanduser()
    try:
        if not path.exists() and not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, timeout=TIMEOUT)  # load_dataset would try six times
        target = str(path) if path.exists() else name
        return load_dataset(target, config, cache_dir=cache, streaming=streaming)
    except Exception as error:  # HTTP, the Hub, the library and file formats have their own types
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


@contextmanager
def _name_errors(name: str, keys: tuple[str, ...] = ()) -> Iterator[None]:
    """Prefix errors that begin with an image, not with one of `keys`."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        own = bool(keys) and str(error).startswith(keys)
        raise ValueError(str(error) if own else f"name={name}: {error}") from error
