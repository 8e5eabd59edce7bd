"""Conditioners: what a batch says to the denoiser. Built with what the data dictates, a `Spec`."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition, Conditioner, NoiseSampler
from ddpm_lab.networks.text_encoder import TextEncoder, decode_text, encode_text
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.shell import install_command


class DataSpec(NamedTuple):
    """What the data dictates to a model."""

    shape: tuple[int, ...]
    """(C, H, W), or (d,) of points"""
    classes: int | None
    """None without labels"""
    bin_width: float | None
    """That of the bins that x_0 is rounded to; None where it is not rounded"""
    captions: Sequence[Sequence[str]] | None
    """What each class is called; None without labels"""


class Label(Conditioner):
    """The class index. Raises ValueError if the data has no labels."""

    def __init__(self, spec: DataSpec, dropout: float = 0.1) -> None:
        super().__init__()
        self.classes, self.dropout = require_classes(spec), check_dropout(dropout)
        self.cond_dims = {"classes": self.classes}

    def forward(
        self, batch: dict[str, Tensor], noise: NoiseSampler = torch.randn_like
    ) -> Condition:
        return Condition(label=batch["label"])


class Tokens(Conditioner):
    """A learned sequence of `count` tokens of `width` numbers for each class. Raises ValueError if the data has no
    labels.
    """

    def __init__(
        self, spec: DataSpec, count: int = 4, width: int = 64, dropout: float = 0.1
    ) -> None:
        super().__init__()
        _at_least_1(count=count, width=width)
        self.classes, self.dropout = require_classes(spec), check_dropout(dropout)
        self.cond_dims, self.shape = {"context": width}, (count, width)
        self.table = nn.Embedding(self.classes, count * width)

    def forward(
        self, batch: dict[str, Tensor], noise: NoiseSampler = torch.randn_like
    ) -> Condition:
        return Condition(context=self.table(batch["label"]).unflatten(1, self.shape))


class CaptionConditioner(Conditioner):
    """Hears "text", (B, length) uint8 (see `spelled`), or in its place a caption of the label's, by chance."""

    counts: Tensor
    table: Tensor

    def __init__(self, spec: DataSpec, length: int, dropout: float) -> None:
        super().__init__()
        _at_least_1(length=length)
        if not spec.captions:
            raise UserError(
                "conditioner needs captions, which this data has not; try conditioner=none, or data with "
                "labels"
            )
        if (
            longest := max(len(text.encode()) for texts in spec.captions for text in texts)
        ) > length:
            raise ValueError(
                f"length={length} is too short for the captions of this data; try length={longest}"
            )
        self.classes, self.dropout, self.length = spec.classes, check_dropout(dropout), length
        most = max(map(len, spec.captions))
        rows = [
            encode_text([texts[i % len(texts)] for i in range(most)], length)
            for texts in spec.captions
        ]
        self.register_buffer(
            "table", torch.stack(rows), persistent=False
        )  # (classes, most, length)
        self.register_buffer(
            "counts", torch.tensor([len(texts) for texts in spec.captions]), persistent=False
        )

    def which(self, label: Tensor, noise: NoiseSampler) -> Tensor:
        """(B,), of the captions of each label."""
        chance = torch.special.ndtr(noise(torch.empty(len(label), device=label.device)))
        counts = self.counts[label]
        return (chance * counts).long().clamp(max=counts - 1)

    def text(self, batch: dict[str, Tensor], noise: NoiseSampler) -> Tensor:
        """(B, length)"""
        return (
            batch["text"]
            if "text" in batch
            else self.table[batch["label"], self.which(batch["label"], noise)]
        )

    def resolve(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return super().resolve(batch) | {"text": self.text(batch, torch.zeros_like)}


class Text(CaptionConditioner):
    """Captions of up to `length` bytes, through a small transformer that is trained along."""

    def __init__(
        self,
        spec: DataSpec,
        length: int = 24,
        width: int = 64,
        blocks: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        _at_least_1(width=width, blocks=blocks, heads=heads)
        if width % heads:
            raise ValueError(
                f"heads={heads} must divide the width {width}; try heads={math.gcd(heads, width)}"
            )
        super().__init__(spec, length, dropout)
        self.cond_dims = {"context": width}
        self.encoder = TextEncoder(length, width, blocks, heads)

    def forward(
        self, batch: dict[str, Tensor], noise: NoiseSampler = torch.randn_like
    ) -> Condition:
        return Condition(context=self.encoder(self.text(batch, noise)))


class PretrainedText(CaptionConditioner):
    """Captions through a frozen encoder of the `transformers` package (`pip install transformers`): `model` is a folder
    that its `save_pretrained` wrote, or a name on the hub. It is in no checkpoint, and each run reads it again. What it
    says of the captions of the data is computed once.
    """

    contexts: Tensor

    def __init__(self, spec: DataSpec, model: str, length: int = 64, dropout: float = 0.1) -> None:
        super().__init__(spec, length, dropout)
        self.model = model
        _pretrained(model)
        try:
            contexts = torch.cat([self._encoded(row) for row in self.table]).unflatten(
                0, self.table.shape[:2]
            )
        except (
            ValueError,
            IndexError,
            RuntimeError,
        ) as error:  # too few positions, no token for padding
            raise ValueError(
                f"model={model} cannot encode captions of up to length={length} tokens "
                f"({' '.join(str(error).split())[:160]}); try a smaller length, or another model"
            ) from error
        self.register_buffer(
            "contexts", contexts, persistent=False
        )  # (classes, most, length, width)
        self.cond_dims = {"context": contexts.shape[-1]}

    def forward(
        self, batch: dict[str, Tensor], noise: NoiseSampler = torch.randn_like
    ) -> Condition:
        if "text" in batch:
            return Condition(context=self._encoded(batch["text"]))
        return Condition(context=self.contexts[batch["label"], self.which(batch["label"], noise)])

    @torch.no_grad()
    def _encoded(self, text: Tensor) -> Tensor:
        """(B, bytes) -> (B, length, width)"""
        tokenizer, encoder = _pretrained(self.model)
        tokens = tokenizer(
            decode_text(text),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        ).to(text.device)
        return encoder.to(text.device)(**tokens).last_hidden_state


@cache
def _pretrained(model: str) -> tuple[Any, Any]:
    """Its tokenizer and its encoder; beside the modules of a run, so that these neither save nor average it."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"model={model} is read by a package that is not installed; try "
            f"{install_command('transformers')}"
        ) from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        kind = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False).model_type
        name = {"t5": "T5EncoderModel", "clip": "CLIPTextModel"}.get(kind, "AutoModel")
        encoder = getattr(transformers, name).from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model={model} cannot be read by transformers ({' '.join(str(error).split())[:160]}); give a "
            "folder that save_pretrained wrote, or a name on the hub"
        ) from error
    return tokenizer, encoder.requires_grad_(False).eval()


def require_classes(spec: DataSpec) -> int:
    """How many classes there are. Raises UserError if there are none."""
    if spec.classes is None:
        raise UserError(
            "conditioner needs labels, which this data has not; try conditioner=none, or data with labels"
        )
    return spec.classes


def check_dropout(dropout: float) -> float:
    """It. Raises ValueError unless it is a probability."""
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout is a probability and must lie in [0, 1] (got {dropout:g})")
    return dropout


def _at_least_1(**numbers: int) -> None:
    for name, count in numbers.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1 (got {count})")
