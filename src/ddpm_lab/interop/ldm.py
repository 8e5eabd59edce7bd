"""Checkpoints of latent-diffusion (Rombach et al., 2022) without cross-attention."""

from typing import Any

import torch

from ddpm_lab.interop import ho, openai
from ddpm_lab.interop.layout import Tensors
from ddpm_lab.interop.network import Network
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.safe_load import select_prefix

UNET, AVERAGE = "model.diffusion_model.", "model_ema.diffusion_model"
HEADS: dict[int, dict[str, Any]] = {
    224: {"model.heads": None, "model.head_channels": 32},
    192: {"model.heads": 8},
}
"""Attention heads of the released models, by their channels"""


def latent_diffusion(state: Tensors, weights: str = "ema") -> Network:
    """Describe the U-Net with the `weights` "ema" or "raw", and its autoencoder.

    Raises UserError if it has none, or layers that this project does not have.
    """
    tensors = select_prefix(state, UNET)
    if weights == "ema":
        tensors = {name: _average(name, state) for name in tensors}
    network = openai.unet(tensors)
    network.format = "latent-diffusion"
    network.missing = {"data.resolution": "data.resolution=256"}
    if "betas" not in state:
        raise UserError("it has no betas, from which the schedule is read")
    heads = HEADS.get(network.overrides["model.channels"])
    if heads is None:
        network.missing["model.heads"] = openai.HEADS
    network.overrides |= {
        **(heads or {}),
        **_schedule(state["betas"]),
        "model.norm_groups": 32,
        "model.time_shift": -1,
        "variance": "beta_tilde",
        "sampler": "ddim",
        "sampler.clip": None,
        "prediction": "eps",
    }
    network.autoencoder = ho.autoencoder(select_prefix(state, "first_stage_model."))
    network.scale = float(state["scale_factor"]) if "scale_factor" in state else 1.0
    return network


def _average(name: str, state: Tensors) -> torch.Tensor:
    """Return the average of a tensor, whose name in the file has no dots."""
    average = AVERAGE + name.replace(".", "")
    if average not in state:
        raise UserError(f"the file has no averaged weights ({average} is missing); try weights=raw")
    return state[average]


def _schedule(betas: torch.Tensor) -> dict[str, Any]:
    """Return the schedule with these betas. Raises UserError."""
    steps = len(betas)
    start, end = (float(f"{value:.6g}") for value in (betas[0].item(), betas[-1].item()))
    lines = {
        "linear": torch.linspace(start, end, steps, dtype=torch.float64),
        "quadratic": torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2,
    }
    for name, line in lines.items():
        if torch.allclose(line, betas.double(), rtol=1e-4):
            return {
                "schedule": name,
                "schedule.steps": steps,
                "schedule.start": start,
                "schedule.end": end,
                "schedule.rescale": False,
            }
    raise UserError("its betas are neither linear nor quadratic")
