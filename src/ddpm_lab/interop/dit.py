"""Diffusion transformers of Peebles & Xie (2023)."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ddpm_lab.interop.layout import Rename, Tensors, rename_layers
from ddpm_lab.interop.network import Network
from ddpm_lab.networks.dit import sincos_pos_embed
from ddpm_lab.utils.errors import UserError

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads of DiT-S, B, L and XL, by their width"""
BLOCK = {
    "qkv": "attn.qkv",
    "out": "attn.proj",
    "first": "mlp.fc1",
    "second": "mlp.fc2",
    "emb": "adaLN_modulation.1",
}


def dit(tensors: Tensors) -> Network:
    """Describe a DiT. Raises UserError for one without a null label."""
    width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    tokens = tensors["pos_embed"].shape[1]
    outputs = tensors["final_layer.linear.weight"].shape[0] // (patch**2 * channels)
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    table = "y_embedder.embedding_table.weight"
    if table not in tensors:
        raise UserError(f"{table} is missing; the file is incomplete")
    classes = len(tensors[table]) - 1  # the last row is the null label
    overrides: dict[str, Any] = {
        "model": "dit_s",
        "model.patch": patch,
        "model.channels": width,
        "model.blocks": len(blocks),
        "model.time_shift": -1,
        "conditioner": "label",
        "conditioner.dropout": 0.1,
        "schedule": "linear",
        "schedule.steps": 1000,
        "prediction": "eps",
        "variance": "learned_range" if outputs == 2 else "beta",
        "sampler": "ddpm",
        "sampler.clip": None,
    }
    missing = {"codec.run": "codec.run=DIR of an imported autoencoder"} if channels > 3 else {}
    side = round(tokens**0.5) * patch
    positions = sincos_pos_embed(side // patch, side // patch, width)
    if not torch.allclose(tensors["pos_embed"].float()[0], positions, atol=1e-4):
        raise UserError("its pos_embed is not that of sines and cosines, which DiT has")
    overrides["data.resolution"] = side
    if width in HEADS:
        overrides["model.heads"] = HEADS[width]
    else:
        missing["model.heads"] = "model.heads=16"

    def renames(model: DictConfig) -> Iterator[Rename]:
        yield from rename_layers(
            {
                "time.1": "t_embedder.mlp.0",
                "time.3": "t_embedder.mlp.2",
                "first": "x_embedder.proj",
                "emb": "final_layer.adaLN_modulation.1",
            }
        )
        yield Rename("label.table.weight", (table,), lambda one: one[0][:-1])
        yield Rename("label.null", (table,), lambda one: one[0][-1])
        for number in sorted(blocks):
            yield from rename_layers(BLOCK, f"blocks.{number}.", f"blocks.{number}.")
        for kind in ("weight", "bias"):

            def rows(tensors: Sequence[Tensor]) -> Tensor:
                # A patch has its channels last there and first here.
                size = tensors[0].shape[1:]
                return tensors[0].view(patch**2, -1, *size).transpose(0, 1).flatten(0, 1)

            yield Rename(f"last.{kind}", (f"final_layer.linear.{kind}",), rows)

    return Network(
        "DiT",
        tensors,
        renames,
        overrides=overrides,
        missing=missing,
        channels=channels,
        classes=classes,
        unused=("pos_embed",),
        side=side,
        remark="the last row of the label embedding is the null label",
        scale=0.18215 if channels > 3 else 1.0,  # of Stable Diffusion's autoencoder
    )
