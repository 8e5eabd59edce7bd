"""A small caption encoder, trained together with the network that attends to its output."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def encode_text(texts: Sequence[str], length: int) -> Tensor:
    """Return the UTF-8 bytes of `texts`, padded with zeros, (N, length) uint8.

    Raises ValueError for a text that is empty or has more than `length` bytes.
    """
    rows = torch.zeros(len(texts), length, dtype=torch.uint8)
    for row, text in zip(rows, texts, strict=True):
        encoded = text.strip().encode()
        if not encoded:
            raise ValueError("text is empty; try text='a seven'")
        if len(encoded) > length:
            raise ValueError(
                f"text={text} has {len(encoded)} bytes, but this model takes {length}; try a "
                f"shorter text, or train with conditioner.length={len(encoded)}"
            )
        row[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    return rows


def decode_text(rows: Tensor) -> list[str]:
    """Return the texts that `encode_text` encoded."""
    return [bytes(row).rstrip(b"\0").decode() for row in rows.tolist()]


class TextEncoder(nn.Module):
    """Transformer on bytes, (B, length) uint8 -> (B, length, width).

    Padding is not masked, as in latent diffusion (Rombach et al., 2022).
    """

    def __init__(self, length: int, width: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Parameter(torch.randn(length, width))
        options: dict[str, Any] = {"activation": "gelu", "batch_first": True, "norm_first": True}
        layers = [
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, **options)
            for _ in range(blocks)
        ]
        self.body = nn.Sequential(*layers, nn.LayerNorm(width))

    def forward(self, text: Tensor) -> Tensor:
        return self.body(self.bytes(text.int()) + self.places)
