"""A network of another codebase, as its file describes it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from ddpm_lab.interop.layout import Rename, Tensors
from ddpm_lab.utils.errors import CorruptFileError, UserError


@dataclass
class Network:
    """Tensors of another codebase and the configuration that they determine."""

    format: str
    tensors: Tensors
    renames: Callable[[DictConfig], Iterable[Rename]]
    """Function of the model's configuration"""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Overrides of train.py that the file determines"""
    missing: dict[str, str] = field(default_factory=dict)
    """Keys that the file does not determine, and values that would do"""
    attention: Sequence[bool] | None = None
    """Levels with attention, which `model.attention` names by their resolution"""
    channels: int = 3
    """Channels of the images"""
    classes: int | None = None
    new: Tensors = field(default_factory=dict)
    """Tensors that only this project has"""
    unused: Sequence[str] = ()
    """Names, or their beginnings, that are not part of the network"""
    autoencoder: "Network | None" = None
    """Autoencoder of a model in latents"""
    side: int | None = None
    """Height of its input, if the tensors determine it"""
    scale: float = 1.0
    """Factor on the latents"""
    parameters: int = 0
    """Number of parameters, after the conversion"""
    remark: str = ""


def convert(network: Network, model: DictConfig) -> dict[str, Any]:
    """Return the tensors with the names and layouts of this project.

    Raises CorruptFileError if tensors are missing, and UserError if some have no place.
    """
    tensors, used = dict(network.new), set[str]()
    for rename in network.renames(model):
        absent = [name for name in rename.theirs if name not in network.tensors]
        if absent and is_optional(rename.ours):
            continue
        if absent:
            raise CorruptFileError(
                f"{network.format}: the tensor {absent[0]} is missing; the file is incomplete, or "
                "model= has other layers"
            )
        used.update(rename.theirs)
        values = [_check(name, network) for name in rename.theirs]
        try:
            tensors[rename.ours] = rename.read(values).contiguous()
        except (IndexError, RuntimeError) as error:
            shapes = " and ".join(str(tuple(value.shape)) for value in values)
            raise CorruptFileError(
                f"{network.format}: {rename.theirs[0]} of shape {shapes} does not fit the model "
                "that its configuration describes"
            ) from error
    unused = tuple(network.unused)
    extra = [name for name in network.tensors if name not in used and not name.startswith(unused)]
    if extra:
        raise UserError(
            f"{network.format}: {len(extra)} tensors have no place in the networks of this "
            f"project, such as {extra[0]}"
        )
    return tensors


def _check(name: str, network: Network) -> Tensor:
    """Return a tensor in float32. Raises CorruptFileError unless it has finite real numbers."""
    value = network.tensors[name]
    if not value.is_floating_point() or not (value := value.float()).isfinite().all():
        raise CorruptFileError(
            f"{network.format}: {name} has values that are not finite real numbers "
            f"(its type is {str(network.tensors[name].dtype).removeprefix('torch.')})"
        )
    return value


def is_optional(name: str) -> bool:
    """Return True for layers that only some blocks have, such as the convolution of a skip."""
    return ".skip." in name


def describe(values: Mapping[str, Any]) -> list[str]:
    """Return overrides as `key=value`."""
    return [f"{key}={_text(value)}" for key, value in values.items()]


def _text(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case None:
            return "null"
        case list() | tuple():
            return f"[{','.join(map(_text, value))}]"
    return str(value)
