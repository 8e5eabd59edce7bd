"""A small encoder of captions, trained along with the network that attends to what it says."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def encode_text(texts: Sequence[str], length: int) -> Tensor:
    """The bytes of `texts` in UTF-8, with zeros behind, (N, length) uint8: any text can be said, without a vocabulary.

    Raises ValueError for a text that is empty, or longer.
    """
    rows = torch.zeros(len(texts), length, dtype=torch.uint8)
    for row, text in zip(rows, texts, strict=True):
        said = text.strip().encode()
        if not said:
            raise ValueError("text is empty; say something, such as text='a seven'")
        if len(said) > length:
            raise ValueError(
                f"text={text} has {len(said)} bytes, and the model hears {length}; try a shorter one, or "
                f"train with conditioner.length={len(said)}"
            )
        row[: len(said)] = torch.frombuffer(bytearray(said), dtype=torch.uint8)
    return rows


def decode_text(text: Tensor) -> list[str]:
    """The texts that `spelled` spelled."""
    return [bytes(row).rstrip(b"\0").decode() for row in text.tolist()]


class TextEncoder(nn.Module):
    """(B, length) uint8 -> (B, length, width). What is behind the end of a text is a byte like others, as padding is in
    latent diffusion (Rombach et al., 2022).
    """

    def __init__(self, length: int, width: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Parameter(torch.randn(length, width))
        layers = [
            nn.TransformerEncoderLayer(
                width,
                heads,
                4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(blocks)
        ]
        self.body = nn.Sequential(*layers, nn.LayerNorm(width))

    def forward(self, text: Tensor) -> Tensor:
        return self.body(self.bytes(text.int()) + self.places)
