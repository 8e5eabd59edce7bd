"""Names of the layers of autoencoders, which are numbered in sequence here."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddpm_lab.interop.layout import Names, Part, Rename, UNetLayout, rename_layers, rename_parts


def _rename_quant_conv(conv: str, matrix: str | None) -> Iterator[Rename]:
    """Yield the last convolution of an encoder, times the 1x1 convolution that follows it."""
    if matrix is None:
        yield from rename_layers({"quant_conv.2": conv})
        return

    def weight(tensors: Any) -> Tensor:
        kernel, factor = tensors
        product = factor.double().flatten(1) @ kernel.double().flatten(1)
        return product.to(kernel.dtype).view(-1, *kernel.shape[1:])

    def bias(tensors: Any) -> Tensor:
        offset, factor, other = (tensor.double() for tensor in tensors)
        return (factor.flatten(1) @ offset + other).to(tensors[0].dtype)

    def split(tensor: Tensor) -> list[Tensor]:
        size = len(tensor)
        return [tensor, torch.eye(size, dtype=tensor.dtype).view(size, size, 1, 1)]

    yield Rename("quant_conv.2.weight", (f"{conv}.weight", f"{matrix}.weight"), weight, split)
    yield Rename(
        "quant_conv.2.bias",
        (f"{conv}.bias", f"{matrix}.weight", f"{matrix}.bias"),
        bias,
        lambda tensor: [tensor, split(tensor)[1], torch.zeros_like(tensor)],
    )


def rename_autoencoder(
    layout: UNetLayout,
    names: Names,
    outer: Mapping[str, str],
    *,
    middle: bool,
    codebook: bool,
    quant_conv: str | None,
    latent_conv: bool,
) -> Iterator[Rename]:
    """Yield the tensors of an autoencoder; `outer` has the layers outside of the levels."""
    yield from rename_layers(outer)
    yield from _rename_quant_conv("encoder.conv_out", quant_conv)
    if latent_conv:
        yield from rename_layers({"latent_conv": "post_quant_conv"})
    if codebook:
        yield Rename("bottleneck.codebook", ("quantize.embedding.weight",))
    encoder = [*layout.down_parts(), *_middle(layout, middle)]
    decoder = [*_middle(layout, middle), *layout.up_parts()]
    for half, parts in (("encoder", encoder), ("decoder", decoder)):
        # Layers of an autoencoder are numbered in sequence, and have no embedding of the time.
        numbered = [replace(part, name=f"{half}.{i}") for i, part in enumerate(parts)]
        for rename in rename_parts(numbered, names, heads=lambda width: 1):
            if ".emb." not in rename.ours:
                yield rename._replace(theirs=tuple(f"{half}.{name}" for name in rename.theirs))


def _middle(layout: UNetLayout, attention: bool) -> list[Part]:
    return [part for part in layout.middle_parts() if attention or part.kind != "attention"]
