"""Random numbers that belong to samples, not to batches."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

Noise = Callable[[Tensor], Tensor]
"""Standard normal numbers like a tensor: `torch.randn_like`, `SampleNoise`."""


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator seeded by a hash of `numbers`, each at least 0: neighbouring numbers give unrelated streams."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


class SampleNoise:
    """Standard normal numbers of which sample i draws the same whatever batch or device it is computed in.

    One CPU generator per sample, seeded by a hash of (seed, i), and of `stream` where that is not 0; draws like
    `torch.randn_like`.
    """

    def __init__(self, seed: int, samples: Iterable[int], stream: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed must be at least 0 (got {seed})")
        self.generators = [generator(seed, i, stream) if stream else generator(seed, i) for i in samples]

    def __call__(self, like: Tensor) -> Tensor:
        """(B, ...) in the shape, type and place of `like`, whose rows are the samples."""
        drawn = torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in self.generators])
        return drawn.to(like, non_blocking=True)
