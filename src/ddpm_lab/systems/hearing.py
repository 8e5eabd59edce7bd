"""Whether a network can hear what it is to be told."""

import inspect
from collections.abc import Callable

from torch import nn

from ddpm_lab.codecs import Codec
from ddpm_lab.diffusion.condition import Conditioner
from ddpm_lab.errors import UserError, choice
from ddpm_lab.systems.asking import by

HEARS = {"classes": "unet", "context": "unet_cross", "image": "unet"}
"""A model that has the door"""


def check_hearing(
    network: Callable[..., nn.Module], told: Conditioner, codec: Codec, shape: tuple[int, ...]
) -> None:
    """Raises UserError unless a `network` can be built with the doors by which `told` speaks, for data of `shape`."""
    offered = inspect.signature(network).parameters
    if "outputs" not in offered:
        raise UserError(
            "model is one that cannot draw; classifier is for system=classifier, autoencoder_kl and "
            "autoencoder_vq are for system=autoencoder"
        )
    if deaf := told.doors.keys() - offered.keys():
        instead = f"model={HEARS[min(deaf)]}" if len(shape) == 3 else "conditioner=label"
        raise UserError(
            f"conditioner={choice(told)} speaks by {' and '.join(deaf)}, which this model cannot hear; "
            f"try {instead}"
        )
    if "image" in told.doors and codec.space:
        raise UserError(
            f"conditioner={choice(told)} lays a picture beside what is drawn, which codec={choice(codec)} "
            f"makes {by(codec.shape)}; try codec=pixels"
        )
