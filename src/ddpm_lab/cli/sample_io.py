"""What sample.py reads and writes."""

import logging
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from ddpm_lab.data.datasets import Batch, Images, InMemorySplit, Points
from ddpm_lab.data.image_folder import read_images
from ddpm_lab.reports.figures import save_grid, save_scatter
from ddpm_lab.runs import data_check
from ddpm_lab.sampling.conditions import format_size
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.safe_load import read_npz

LOG = logging.getLogger(__name__)
SPLITS = ("train", "test")
CONDITION_KEYS = {"label": "labels", "text": "text", "low_res": "low_res"}
"""What samples were asked to be, and under which names an .npz has it"""
ROWS = {"label": (1, "iu", np.int64), "text": (2, "u", np.uint8), "low_res": (4, "f", np.float32)}
"""Dimensions of these arrays, the kinds of numbers that are read, and the type that a model takes"""


def read_samples(
    config: DictConfig, shape: tuple[int, ...], system: Diffusion, count: int | None = 100
) -> InMemorySplit:
    """`config.count` samples of `shape`: of the data's split that `config.input` names, where null means `count`, or
    those in a file or folder.
    """
    if config.input in SPLITS:
        data = data_check.load_data(config)
        return getattr(data, config.input).select(slice(config.count or count))
    file = Path(str(config.input))
    if (file / "samples.npz").is_file():
        file /= "samples.npz"
    if system.bin_width is None:
        points, said = read_array(file, "points", shape, system.classes)
        return Points(points, said.get("label")).select(slice(config.count))
    if file.is_dir():
        try:
            return read_images(file, shape).select(slice(config.count))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"input={error}") from error
    channels, height, width = shape
    pixels, said = read_array(file, "images", (height, width, channels), system.classes, np.uint8)
    return Images(pixels.permute(0, 3, 1, 2), said.get("label")).select(slice(config.count))


def read_array(
    file: str | Path,
    name: str,
    shape: tuple[int, ...],
    classes: int | None,
    kind: type = np.float32,
) -> tuple[Tensor, Batch]:
    """The array `name` (N, *shape) of an .npz, and what its rows are said to be. Raises UserError where it is not
    there, or does not fit.
    """
    try:
        with read_npz(Path(file).resolve()) as saved:
            read_array = saved[name]
            said = {key: saved[stored] for key, stored in CONDITION_KEYS.items() if stored in saved}
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(
            f"input={file} is not there; it is an .npz that sample.py wrote, or a folder of images"
        ) from error
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        RuntimeError,
        MemoryError,
        BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"input={file} holds no array {name} ({type(error).__name__}); "
            "it is an .npz that sample.py wrote, or a folder of images"
        ) from error
    if (
        read_array.shape[1:] != shape
        or read_array.ndim != len(shape) + 1
        or read_array.dtype != kind
        or not len(read_array)
    ):
        raise UserError(
            f"input={file}: {name} is {read_array.shape} {read_array.dtype}, and this run wants (N, "
            f"{', '.join(map(str, shape))}) {np.dtype(kind)}"
        ) from None
    if not np.isfinite(read_array).all():
        raise UserError(f"input={file}: {name} has numbers that are not finite")
    for key, values in said.items():
        rank, kinds, taken = ROWS[key]
        if values.ndim != rank or values.dtype.kind not in kinds or len(values) != len(read_array):
            raise UserError(
                f"input={file}: {CONDITION_KEYS[key]} is {values.shape} {values.dtype}, and {len(read_array)} {name} want "
                f"({len(read_array)}{',' + ' ...' * (rank > 1)}) {np.dtype(taken)}"
            )
    labels = said.get("label")
    if (
        labels is not None
        and classes is not None
        and not ((labels >= 0) & (labels < classes)).all()
    ):
        raise UserError(
            f"input={file} has labels in {labels.min()}..{labels.max()}, and this model knows 0.."
            f"{classes - 1}"
        )
    return torch.as_tensor(read_array), {
        key: torch.as_tensor(value.astype(ROWS[key][2])) for key, value in said.items()
    }


def to_arrays(name: str, values: Tensor, said: Batch) -> dict[str, Any]:
    """Of an .npz: `values`, and what they are said to be."""
    return {name: values.numpy()} | {
        CONDITION_KEYS[key]: value.cpu().numpy() for key, value in said.items()
    }


def save_samples(
    system: Diffusion, values: Tensor, labels: Tensor | None, out: Path, columns: int = 10
) -> None:
    """Samples as `show` gives them, uint8 images or float points, to `out`."""
    said: Batch = {} if labels is None else {"label": labels}
    if system.bin_width is None:
        lines: list[tuple[str, Path | str]] = [
            ("a image", save_scatter({"samples": (values, labels)}, out / "scatter.png"))
        ]
        kept = to_arrays("points", values, said)
    else:
        (out / "images").mkdir(exist_ok=True)
        for i, image in enumerate(values):
            to_pil_image(image).save(out / "images" / f"{i:06d}.png")
        grid = save_grid(values[:400], out / "grid.png", columns=min(columns, len(values)))
        lines = [("a grid", grid), ("one by one", out / "images")]
        kept = to_arrays("images", values.permute(0, 2, 3, 1), said)
    np.savez_compressed(out / "samples.npz", **kept)
    what = " and ".join(f"{name} {array.shape} {array.dtype}" for name, array in kept.items())
    lines.append(("an array", f"{out / 'samples.npz'}, {what}"))
    LOG.info(
        "%d samples of %s\n%s",
        len(values),
        format_size(system.shape),
        "\n".join(f"  {name:<11} {where}" for name, where in lines),
    )
