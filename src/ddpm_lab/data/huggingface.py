"""Sets of the Hugging Face Hub, and folders, as its library `datasets` reads them: parquet, images, archives."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ddpm_lab.data.datasets import Images, IterableSplit, MapSplit, Split, load_or_stream
from ddpm_lab.data.huggingface_rows import (
    HubStream,
    HubTable,
    RowDecoder,
    label_tensor,
    open_stream,
)
from ddpm_lab.data.image_folder import LOOKS, train_test_split
from ddpm_lab.data.image_io import ImageInfo, inspect_image
from ddpm_lab.data.image_transform import infer_transform
from ddpm_lab.data.image_tree import TEST
from ddpm_lab.data.module import DataModule
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.shell import install_command

LOG = logging.getLogger(__name__)
PATIENCE = 10
"""Seconds that the Hub has to say that it knows a set"""


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
    flip: bool = False,
    batch_size: int | None = None,
    workers: int = 2,
    seed: int = 0,
) -> DataModule:
    """The set `name` of the Hub, or a folder, as `datasets.load_dataset(name, config)` takes it; code of the Hub is
    never run. `cache` is where it is kept (None: where the library keeps its own).

    `image` and `label` are columns (None: the only one of that kind). `resolution` and `channels` None are those of the
    images; for `convert` and `bits` see `Fit`, for `resident` see `hold`. `split_test` "auto" is the first of `TEST`
    that the set has, or None: then a share `held_out` of the training split is kept from training.

    With `streaming` nothing is kept on disk, images are shuffled within a buffer of `shuffle_buffer` encoded ones,
    and held out are the first `test_size` of the test split or, with `split_test` None, of the training split, which is
    then read by one worker. `size` is the number of training images, where the set does not say it. See `Flow` for
    what cannot be done. Raises ValueError that names the key.
    """
    if name is None:
        raise ValueError(
            "name must be that of a set of the Hub, or a folder (got None); try data.name=OWNER/NAME"
        )
    splits = _loaded(name, config, cache, streaming)
    if split_test == "auto":
        split_test = next(
            (split for split in TEST if split in splits and split != split_train), None
        )
        LOG.info(
            "held out: %s",
            f"the split {split_test}"
            if split_test
            else "a part of the training split, the set has none for testing",
        )
    if rest := [split for split in splits if split not in (split_train, split_test)]:
        LOG.info("left aside in %s: the splits %s", name, ", ".join(rest))
    for key, value in {"split_train": split_train, "split_test": split_test}.items():
        if value is not None and value not in splits:
            null = ", or null, which keeps a part of the training split" * (key == "split_test")
            raise ValueError(f"{key}={value} is no split of {name}; try {', '.join(splits)}{null}")
    features = splits[split_train].features or {}
    image, label = (
        _column("image", image, "Image", features),
        _column("label", label, "ClassLabel", features),
    )
    if image is None:
        raise ValueError(
            f"image: {name} has no column of images; its columns are {', '.join(features)}"
        )
    train = _encoded(splits[split_train], image, label)
    test = None if split_test is None else _encoded(splits[split_test], image, label)
    try:
        fit = infer_transform(_looks(train, image, streaming), resolution, channels, convert, bits)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        named = str(error).startswith(("resolution", "channels", "bits"))
        raise ValueError(str(error) if named else f"name={name}: {error}") from error
    decoder = RowDecoder(image, label, fit)
    if streaming:
        pair: Sequence[Split] = _flowing(
            name, train, test, decoder, size, test_size, shuffle_buffer
        )
    else:
        pair = _kept(name, train, test, decoder, held_out, in_memory)
    if fit.changes.counts and isinstance(pair[0], Images):
        LOG.info("converted: %s", fit.changes)
    names = features[label].names if label else []
    return DataModule(
        name,
        *pair,
        classes=len(names) or None,
        batch_size=batch_size,
        flip=flip,
        seed=seed,
        workers=workers,
        captions=[[each] for each in names] or None,
    )


def _looks(rows: Any, image: str, streaming: bool) -> list[ImageInfo]:
    """Look at the first rows of a stream, or at rows of a table that are evenly spaced."""
    count = 16 if streaming else min(len(rows), LOOKS)
    indices = (
        islice(rows, count) if streaming else (rows[i * len(rows) // count] for i in range(count))
    )
    found = []
    for i, row in enumerate(indices):
        with open_stream(row[image], f"row {i if streaming else i * len(rows) // count}") as (
            stream,
            where,
        ):
            found.append(inspect_image(stream, where))
    if not found:
        raise ValueError("the training split holds no images")
    return found


def _kept(
    name: str, train: Any, test: Any, decoder: RowDecoder, held_out: float, in_memory: bool | None
) -> Sequence[Split]:
    """Training and test split of tables on disk."""
    parts = train_test_split(len(train), held_out) if test is None else (None, None)
    splits: list[Split] = []
    for table, part in zip((train, train if test is None else test), parts, strict=True):
        source, labels = (
            HubTable(table, decoder),
            label_tensor(table[decoder.label][:]) if decoder.label else None,
        )
        with _naming(name):
            indices = labels if labels is None or part is None else labels[part]
            splits.append(load_or_stream(source, decoder.fit.shape, indices, part, in_memory))
            if isinstance(splits[-1], MapSplit):
                source[0]  # or a wrong resolution would be told by a worker process
    return splits


def _flowing(
    name: str,
    train: Any,
    test: Any,
    decoder: RowDecoder,
    size: int | None,
    test_size: int,
    buffer: int,
) -> Sequence[Split]:
    """Training and test split of iterable sets."""
    for key, value in {"test_size": test_size, "shuffle_buffer": buffer}.items():
        if value < 1:
            raise ValueError(f"{key} must be at least 1 (got {value}); try 1000")
    said = (train.info.splits or {}).get(str(train.split))
    size = said.num_examples if size is None and said else size
    if size is None:
        raise ValueError(
            f"size is needed, the number of training images, which {name} does not say"
        )
    skipped = test_size if test is None else 0
    if size <= skipped:
        raise ValueError(
            f"test_size={test_size} leaves nothing of {size} images to train on; try {max(1, size // 10)}"
        )
    stream = HubStream(train, decoder, buffer, skipped, f"{name} {train.split}")
    with _naming(name):
        held = HubStream(train if test is None else test, decoder, buffer, 0, name).first(test_size)
    return IterableSplit(stream, size - skipped, decoder.fit.shape), held


def _loaded(name: str, config: str | None, cache: str | None, streaming: bool) -> dict[str, Any]:
    """Its splits, by name."""
    try:
        from datasets import load_dataset
        from huggingface_hub import HfApi, constants
    except ImportError as error:
        raise ValueError(
            f"name: the library datasets is not installed; try {install_command('datasets')}"
        ) from error
    place = Path(name).expanduser()
    try:
        if not place.exists() and not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, timeout=PATIENCE)  # load_dataset would try six times
        return load_dataset(
            str(place) if place.exists() else name, config, cache_dir=cache, streaming=streaming
        )
    except Exception as error:  # of HTTP, of the Hub, of the library, of a file's format
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"name={name} cannot be loaded ({said}); try a folder, or OWNER/NAME of the Hub. Without a "
            "network, HF_HUB_OFFLINE=1 takes what was loaded before"
        ) from error


def _column(key: str, asked: str | None, kind: str, features: Mapping[str, Any]) -> str | None:
    """The column of a kind: that which was asked for, or else the only one."""
    found = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if asked is not None and asked not in found:
        raise ValueError(
            f"{key}={asked} is no column of kind {kind}; try {', '.join(found) or 'null: there is none'}"
        )
    if asked is None and len(found) > 1:
        raise ValueError(f"{key} is one of {', '.join(found)}; try data.{key}={found[0]}")
    return asked or (found[0] if found else None)


def _encoded(rows: Any, image: str, label: str | None) -> Any:
    """Without other columns, and with images as they lie in the files."""
    import datasets

    return rows.select_columns([image] + [label] * (label is not None)).cast_column(
        image, datasets.Image(decode=False)
    )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Around the reading of images, whose errors begin with the image."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise ValueError(f"name={name}: {error}") from error
