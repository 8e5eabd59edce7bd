"""Conditioners on captions, for data whose classes have captions."""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Batch, Condition, Conditioner, DataSpec, NoiseSampler
from ddpm_lab.networks.text_encoder import TextEncoder, decode_text, encode_text
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.ranges import Count, Fraction, check_ranges
from ddpm_lab.utils.shell import optional_package


class CaptionConditioner(Conditioner):
    """Base of conditioners on "text", (B, length) uint8 (see `encode_text`).

    In a batch without "text", a random caption of the label replaces it. Raises UserError for data
    without captions, ValueError if `length` is too short for them.
    """

    counts: Tensor
    """(classes,), number of captions per class"""
    table: Tensor
    """(classes, max(counts), length), captions, repeated to the same number"""

    def __init__(self, spec: DataSpec, length: int, dropout: float) -> None:
        super().__init__()
        if not spec.captions:
            raise UserError(
                "conditioner needs captions, which this data does not have; try conditioner=none, "
                "or data with labels"
            )
        longest = max(len(caption.encode()) for captions in spec.captions for caption in captions)
        if longest > length:
            raise ValueError(
                f"length={length} is too short for the captions of this data; try length={longest}"
            )
        self.classes, self.dropout, self.text_length = spec.classes, dropout, length
        counts = [len(captions) for captions in spec.captions]
        rows = [
            encode_text([captions[i % len(captions)] for i in range(max(counts))], length)
            for captions in spec.captions
        ]
        self.register_buffer("table", torch.stack(rows), persistent=False)
        self.register_buffer("counts", torch.tensor(counts), persistent=False)

    def caption_indices(self, label: Tensor, noise: NoiseSampler) -> Tensor:
        """Draw the index of a caption for each label, (B,)."""
        chance = torch.special.ndtr(noise(torch.empty(len(label), device=label.device)))
        counts = self.counts[label]
        return (chance * counts).long().clamp(max=counts - 1)

    def text(self, batch: Batch, noise: NoiseSampler) -> Tensor:
        """Return the text of each sample, (B, length) uint8."""
        if "text" in batch:
            return batch["text"]
        label = batch["label"]
        return self.table[label, self.caption_indices(label, noise)]

    def resolve(self, batch: Batch) -> Batch:
        return super().resolve(batch) | {"text": self.text(batch, torch.zeros_like)}


@check_ranges
class Text(CaptionConditioner):
    """Captions of at most `length` bytes, encoded by a small transformer in training."""

    def __init__(
        self,
        spec: DataSpec,
        length: Count = 24,
        width: Count = 64,
        blocks: Count = 2,
        heads: Count = 4,
        dropout: Fraction = 0.1,
    ) -> None:
        if width % heads:
            raise ValueError(
                f"heads={heads} must divide the width {width}; try heads={math.gcd(heads, width)}"
            )
        super().__init__(spec, length, dropout)
        self.cond_dims = {"context": width}
        self.encoder = TextEncoder(length, width, blocks, heads)

    def forward(self, batch: Batch, noise: NoiseSampler = torch.randn_like) -> Condition:
        return Condition(context=self.encoder(self.text(batch, noise)))


@check_ranges
class PretrainedText(CaptionConditioner):
    """Captions, encoded by a frozen encoder of the `transformers` package.

    Checkpoints do not contain the encoder; every run loads it again. The data's captions are
    encoded once.

    Args:
        model: Folder written by `save_pretrained`, or a name on the Hugging Face hub.
        length: Maximum number of tokens.
    """

    contexts: Tensor
    """(classes, max(counts), length, width)"""

    def __init__(
        self, spec: DataSpec, model: str, length: Count = 64, dropout: Fraction = 0.1
    ) -> None:
        super().__init__(spec, length, dropout)
        self.model = model
        _load_pretrained(model)
        try:
            contexts = torch.cat([self._encode(rows) for rows in self.table])
        # Positions that end before `length`, or a tokenizer without a padding token.
        except (ValueError, IndexError, RuntimeError) as error:
            raise ValueError(
                f"model={model} cannot encode captions of up to length={length} tokens "
                f"({_shorten(error)}); try a smaller length, or another model"
            ) from error
        contexts = contexts.unflatten(0, self.table.shape[:2])
        self.register_buffer("contexts", contexts, persistent=False)
        self.cond_dims = {"context": contexts.shape[-1]}

    def forward(self, batch: Batch, noise: NoiseSampler = torch.randn_like) -> Condition:
        if "text" in batch:
            return Condition(context=self._encode(batch["text"]))
        label = batch["label"]
        return Condition(context=self.contexts[label, self.caption_indices(label, noise)])

    @torch.no_grad()
    def _encode(self, text: Tensor) -> Tensor:
        """(B, bytes) -> (B, length, width)"""
        tokenizer, encoder = _load_pretrained(self.model)
        tokens = tokenizer(
            decode_text(text),
            padding="max_length",
            truncation=True,
            max_length=self.text_length,
            return_tensors="pt",
        ).to(text.device)
        return encoder.to(text.device)(**tokens).last_hidden_state


@cache  # not a submodule, which would be saved and averaged
def _load_pretrained(model: str) -> tuple[Any, Any]:
    """Return tokenizer and encoder."""
    with optional_package("transformers", f"model={model}"):
        import transformers
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        kind = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False).model_type
        name = {"t5": "T5EncoderModel", "clip": "CLIPTextModel"}.get(kind, "AutoModel")
        encoder = getattr(transformers, name).from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model={model} cannot be read by transformers ({_shorten(error)}); try a folder that "
            "save_pretrained wrote, or a name on the hub"
        ) from error
    return tokenizer, encoder.requires_grad_(False).eval()


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
