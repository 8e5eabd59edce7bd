"""Defaults that follow from the data: the size of the network, the learning rate and the length of training."""

import logging
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ddpm_lab.conditioners.base import DataSpec
from ddpm_lab.config.instantiate import build
from ddpm_lab.data.module import Data
from ddpm_lab.utils.errors import prefix_errors

LOG = logging.getLogger(__name__)
MANY = 20_000
"""Training images in color from which on the network is twice as wide and trains for twice as long"""
STEPS = ((8, 800), (16, 1500), (32, 2500))
"""(resolution up to which, optimizer steps); beyond the last: `LONGEST`"""
LONGEST = 4000
RATE, WIDTH_RATE = 4e-3, 0.256
"""The learning rate is WIDTH_RATE / (channels of the widest level), at most RATE"""


def build_system(config: DictConfig, data: Data, **given: Any) -> Any:
    """The system that `config` describes, `complete` for `data`."""
    fill_defaults(config, data)
    return build(config, "system", **data.spec, **given)


def fill_defaults(config: DictConfig, data: Data) -> None:
    """Replace nulls of `model`, `optimizer.lr`, `trainer.max_steps` and of the size of batches and images of `data`.

    They are logged in a line, and saved with the run, so that a run stays what it is when rules or images change.
    """
    many = data.train.size >= MANY and len(data.shape) == 3 and data.shape[0] > 1
    filled: dict[str, Any] = {
        "data.batch_size": data.batch_size,
        "trainer.max_steps": training_steps(data.shape, many),
    }
    if len(data.shape) == 3:
        filled |= {"data.resolution": data.shape[1], "data.channels": data.shape[0]}
        if any(_is_null(config, f"model.{key}") for key in ("channels", "multipliers", "blocks")):
            channels = max(_sizes(config.model.get("channels")), default=None)
            network = unet_size(min(_shape(config, data)[1:]), many, channels)
            filled |= {f"model.{key}": value for key, value in network.items()}
    filled = {key: value for key, value in filled.items() if _is_null(config, key)}
    for key, value in filled.items():
        OmegaConf.update(config, key, value)
    if _is_null(config, "optimizer.lr"):
        config.optimizer.lr = filled["optimizer.lr"] = learning_rate(config.model)
    if filled:
        kind = "points" if data.bin_width is None else "images"
        LOG.info(
            "chosen for %d %s of %s: %s",
            data.train.size,
            kind,
            "x".join(map(str, data.shape)),
            " ".join(f"{key}={_compact(value)}" for key, value in filled.items()),
        )


def unet_size(side: int, many: bool, channels: int | None = None) -> dict[str, Any]:
    """The levels of a U-Net for images of `side` x `side`: the coarsest is 4x4, or as near as halving gets.

    Twice the channels at half the resolution, up to 64 for 8x8 and 128 for larger images.
    """
    halvings = 0
    while side % 2 ** (halvings + 1) == 0 and (side // 2**halvings > 4 or not halvings):
        halvings += 1
    wide = 2 if many else 1
    channels = channels or wide * (32 if side <= 16 else 16)
    most = max(1, wide * (128 if side > 8 else 64) // channels)
    return {
        "channels": channels,
        "multipliers": [min(2**level, most) for level in range(halvings + 1)],
        "blocks": 1,
    }


def training_steps(shape: Sequence[int], many: bool) -> int:
    """Optimizer steps by the resolution of images; points count as the smallest."""
    side = min(shape[1:], default=1)
    length = next((length for most, length in STEPS if side <= most), LONGEST)
    return 2 * length if many and side > 8 else length


def learning_rate(model: DictConfig) -> float:
    """The rate for Adam: it falls in proportion to the width of the widest level."""
    channels, multipliers = _sizes(model.get("channels")), _sizes(model.get("multipliers"))
    widest = max(channels, default=64) * max(multipliers, default=1)
    return float(f"{min(RATE, WIDTH_RATE / widest):.2g}")


def _sizes(value: Any) -> list[Any]:
    """The positive numbers in `value`, a number or a list; [] for anything else, which the network refuses."""
    sizes = [*value] if isinstance(value, ListConfig) else [value]
    return sizes if all(type(size) in (int, float) and size > 0 for size in sizes) else []


def _shape(config: DictConfig, data: Data) -> Sequence[int]:
    """Shape of the network's input: that of the data or, with codec=autoencoder, of its latents."""
    if "codec" not in config.system:
        return data.shape
    with prefix_errors("codec"):
        return build(config, "codec")(DataSpec(**data.spec)).shape


def _is_null(config: DictConfig, key: str) -> bool:
    group, _, name = key.partition(".")
    return name in config[group] and config[group][name] is None


def _compact(value: Any) -> str:
    return f"[{','.join(f'{one:g}' for one in value)}]" if isinstance(value, list) else f"{value:g}"
