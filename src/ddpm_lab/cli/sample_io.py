"""Files that sample.py reads and writes."""

import logging
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from ddpm_lab.data.datasets import Batch, Images, InMemorySplit, Points
from ddpm_lab.data.image_folder import read_images
from ddpm_lab.data.image_io import is_image
from ddpm_lab.runs.run_dir import RunDir
from ddpm_lab.sampling.class_names import is_numbered
from ddpm_lab.sampling.conditions import format_size
from ddpm_lab.sampling.samples import ARRAYS, Samples
from ddpm_lab.utils.errors import UserError, escape_control, join_first
from ddpm_lab.utils.safe_load import read_npz

LOG = logging.getLogger(__name__)
SPLITS = ("train", "test")


def read_samples(
    config: DictConfig, shape: tuple[int, ...], run: RunDir, count: int | None = 100
) -> InMemorySplit:
    """Return `config.count` samples of `shape` from `config.input`: a split, a file or a folder.

    `count` is the default for a split; a file or folder is read whole. A file is an .npz or image.
    """
    if config.input in SPLITS:
        split: InMemorySplit = getattr(run.data, config.input)
        return split.select(slice(config.count or count))
    file, first = Path(str(config.input)), slice(config.count)
    classes = run.pipeline.classes
    if (file / "samples.npz").is_file():
        file /= "samples.npz"
    if run.pipeline.bin_width is None:
        points, conditions = read_array(file, "points", shape, classes)
        return Points(points, conditions.get("label")).select(first)
    if file.is_dir() or (file.is_file() and is_image(file)):
        try:
            return read_images(file, shape).select(first)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"input={error}") from error
    channels, height, width = shape
    size = (height, width, channels)
    pixels, conditions = read_array(file, "images", size, classes, np.uint8)
    return Images(pixels.permute(0, 3, 1, 2), conditions.get("label")).select(first)


def read_array(
    file: str | Path,
    name: str,
    shape: tuple[int, ...],
    classes: int | None,
    kind: type = np.float32,
) -> tuple[Tensor, Batch]:
    """Return the array `name` (N, *shape) of an .npz and the conditions of its rows.

    Raises UserError if the file is missing or unreadable, or if an array does not fit.
    """
    hint = "input is an .npz of sample.py, an image, or a folder of images"
    try:
        with read_npz(Path(file).resolve()) as arrays:
            array = arrays[name]
            saved = {key: arrays[key] for key, *_ in ARRAYS.values() if key in arrays}
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"input={file} does not exist; {hint}") from error
    except Exception as error:  # numpy, zipfile and zlib raise many types
        message = f"input={file} has no readable array {name} ({type(error).__name__}); {hint}"
        raise UserError(message) from error
    fits = array.ndim == len(shape) + 1 and array.shape[1:] == shape and array.dtype == kind
    if not fits or not len(array):
        raise UserError(
            f"input={file}: {name} is {array.shape} {array.dtype}, but this run needs (N, "
            f"{', '.join(map(str, shape))}) {np.dtype(kind)}"
        )
    if not np.isfinite(array).all():
        raise UserError(f"input={file}: {name} has non-finite numbers")
    conditions: Batch = {}
    for condition, (key, ndim, kinds, dtype) in ARRAYS.items():
        if (values := saved.get(key)) is None:
            continue
        if values.ndim != ndim or values.dtype.kind not in kinds or len(values) != len(array):
            raise UserError(
                f"input={file}: {key} is {values.shape} {values.dtype}, and {len(array)} {name} "
                f"need ({len(array)}{',' + ' ...' * (ndim > 1)}) {np.dtype(dtype)}"
            )
        conditions[condition] = torch.as_tensor(values.astype(dtype))
    if "label" in conditions and classes is not None:
        low, high = conditions["label"].min(), conditions["label"].max()
        if low < 0 or high >= classes:
            raise UserError(
                f"input={file} has labels in {low}..{high}, but this model takes 0..{classes - 1}"
            )
    return torch.as_tensor(array), conditions


def save_samples(samples: Samples, out: Path, columns: int = 10) -> None:
    """Save `samples` to `out` and log the files."""
    lines: list[tuple[str, object]] = [*samples.save(out, columns).items()]
    if samples.labels is not None and samples.class_names:
        captions = [[name] for name in samples.class_names]
        if not is_numbered(captions):
            used = samples.labels.unique().tolist()
            names = join_first((f"{label} {samples.class_names[label]}" for label in used), 40)
            lines.insert(1, ("classes", escape_control(names)))
    arrays = samples.arrays().items()
    shapes = " and ".join(f"{name} {array.shape} {array.dtype}" for name, array in arrays)
    lines[-1] = ("arrays", f"{lines[-1][1]}, {shapes}")
    text = "\n".join(f"  {name:<11} {value}" for name, value in lines)
    LOG.info("%d samples of %s\n%s", len(samples), format_size(samples.tensor.shape[1:]), text)
