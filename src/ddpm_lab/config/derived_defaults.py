"""Defaults that depend on the data: the size of the network, the learning rate, the length."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.config.instantiate import build
from ddpm_lab.data.image_transform import to_resolution
from ddpm_lab.data.module import Data
from ddpm_lab.diffusion.conditioning import DataSpec
from ddpm_lab.sampling.conditions import format_size
from ddpm_lab.utils.errors import UserError, prefix_errors

LOG = logging.getLogger(__name__)
MANY = 20_000
"""Minimum number of color images for a network twice as wide, trained twice as long"""
STEPS = ((8, 800), (16, 1500), (32, 2500))
"""(maximum resolution, optimizer steps)"""
LONGEST = 4000
"""Optimizer steps for larger images"""
COARSEST = 32
"""Maximum side of the coarsest level, whose attention takes time proportional to side^4"""
RATE, WIDTH_RATE = 4e-3, 0.256
"""The learning rate is WIDTH_RATE / (channels of the widest level), at most RATE"""


def build_system(config: DictConfig, data: Data, **arguments: Any) -> Any:
    """Build the system of `config`, with defaults for `data`."""
    fill_defaults(config, data)
    return build(config, "system", **data.spec, **arguments)


def fill_defaults(config: DictConfig, data: Data) -> None:
    """Replace nulls of `model`, `optimizer.lr`, `trainer.max_steps` and sizes in `data`."""
    many = data.train.size >= MANY and len(data.shape) == 3 and data.shape[0] > 1
    values: dict[str, Any] = {
        "data.batch_size": data.batch_size,
        "trainer.max_steps": training_steps(data.shape, many),
    }
    if len(data.shape) == 3:
        values |= {
            "data.resolution": to_resolution(*data.shape[1:]),
            "data.channels": data.shape[0],
        }
        if any(_is_null(config, f"model.{key}") for key in ("channels", "multipliers", "blocks")):
            channels = max(_sizes(config.model.get("channels")), default=None)
            size = _shape(config, data)[1:]
            network = unet_size(size, many, channels)
            if _is_null(config, "model.multipliers"):
                _check_coarsest(config, size, len(network["multipliers"]) - 1)
            values |= {f"model.{key}": value for key, value in network.items()}
    values = {key: value for key, value in values.items() if _is_null(config, key)}
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    if _is_null(config, "optimizer.lr"):
        config.optimizer.lr = values["optimizer.lr"] = learning_rate(config.model)
    if values:
        kind = "points" if data.bin_width is None else "images"
        text = " ".join(f"{key}={_compact(value)}" for key, value in values.items())
        shape = format_size(data.shape)
        LOG.info("chosen for %d %s of %s: %s", data.train.size, kind, shape, text)


def unet_size(size: Sequence[int], many: bool, channels: int | None = None) -> dict[str, Any]:
    """Return the levels of a U-Net for images of `size` (H, W).

    The shorter side of the coarsest level is 4, or as close as halving both gets. Each halving
    doubles the channels, up to 64 for 8x8 and to 128 for larger images.
    """
    halvings, side = 0, min(size)
    while math.gcd(*size) % 2 ** (halvings + 1) == 0 and (side // 2**halvings > 4 or not halvings):
        halvings += 1
    factor = 2 if many else 1
    channels = channels or factor * (32 if side <= 16 else 16)
    limit = max(1, factor * (128 if side > 8 else 64) // channels)
    return {
        "channels": channels,
        "multipliers": [min(2**level, limit) for level in range(halvings + 1)],
        "blocks": 1,
    }


def _check_coarsest(config: DictConfig, size: Sequence[int], halvings: int) -> None:
    """Raise UserError for images (H, W) that cannot be halved often enough for a U-Net."""
    side = min(size)
    if side // 2**halvings <= (COARSEST if halvings else 8):
        return
    factor = 2 ** max(2, (side - 1).bit_length() - 5)
    lower = [one // factor * factor for one in size]
    sizes = [_compact(to_resolution(*(one + more for one in lower))) for more in (factor, 0)]
    convert = "data.convert=true " if config.data.get("convert") is False else ""
    hint = f"{convert}data.resolution={' or '.join(sizes)}, or "
    levels = ",".join(["1", *["2"] * halvings])
    odd = next(one // 2**halvings for one in size if one // 2**halvings % 2)
    raise UserError(
        f"model.multipliers=null: the default network halves {size[1]}x{size[0]} images until they "
        f"are small, but {odd} is odd; try {hint if 'resolution' in config.data else ''}"
        f"model.multipliers=[{levels}]"
    )


def training_steps(shape: Sequence[int], many: bool) -> int:
    """Return the optimizer steps for data of `shape`; points count as the smallest images."""
    side = min(shape[1:], default=1)
    length = next((steps for maximum, steps in STEPS if side <= maximum), LONGEST)
    return 2 * length if many and side > 8 else length


def learning_rate(model: DictConfig) -> float:
    """Return Adam's learning rate, inversely proportional to the width of the widest level."""
    channels, multipliers = _sizes(model.get("channels")), _sizes(model.get("multipliers"))
    widest = max(channels, default=64) * max(multipliers, default=1)
    return float(f"{min(RATE, WIDTH_RATE / widest):.2g}")


def _sizes(value: Any) -> list[Any]:
    """Return the positive numbers in a number or a list; [] for anything else."""
    sizes = [*value] if OmegaConf.is_list(value) else [value]
    return sizes if all(type(size) in (int, float) and size > 0 for size in sizes) else []


def _shape(config: DictConfig, data: Data) -> Sequence[int]:
    """Return the shape of the network's input: data or, with codec=autoencoder, latents."""
    if "codec" not in config.system:
        return data.shape
    with prefix_errors("codec"):
        return build(config, "codec")(DataSpec(**data.spec)).shape


def _is_null(config: DictConfig, key: str) -> bool:
    group, _, name = key.partition(".")
    return name in config[group] and config[group][name] is None


def _compact(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(f'{number:g}' for number in value)}]"
    return f"{value:g}"
