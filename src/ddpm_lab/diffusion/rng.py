"""Random numbers that belong to samples, not to batches."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

NoiseSampler = Callable[[Tensor], Tensor]
"""Standard normal numbers like a tensor: `torch.randn_like`, `SampleNoise`."""


def make_generator(*numbers: int) -> torch.Generator:
    """A CPU generator seeded by a hash of `numbers`, each at least 0: neighbouring numbers give unrelated streams."""
    return torch.Generator().manual_seed(derive_seed(*numbers))


def derive_seed(*numbers: int) -> int:
    """A hash of `numbers`, each at least 0; zeros at their end do not count."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class PerSampleGenerator:
    """Standard normal numbers of which sample i draws the same whatever batch or device it is computed in.

    One CPU generator per sample, seeded by a hash of (seed, i), and of `stream` where that is not 0; draws like
    `torch.randn_like`.
    """

    def __init__(self, seed: int, samples: Iterable[int], stream: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed must be at least 0 (got {seed})")
        self.generators = [
            make_generator(seed, i, stream) if stream else make_generator(seed, i) for i in samples
        ]

    def __call__(self, like: Tensor) -> Tensor:
        """(B, ...) in the shape, type and place of `like`, whose rows are the samples."""
        drawn = torch.stack(
            [
                torch.randn(like.shape[1:], generator=make_generator)
                for make_generator in self.generators
            ]
        )
        return drawn.to(like, non_blocking=True)


class BatchGenerator:
    """Random numbers for some rows of a batch, like `torch.randn_like`. They are drawn for the whole batch from one
    stream and the others thrown away, so that what training meets does not depend on how many processes share a batch.

    `before` and `after` are the numbers of the others' rows; `stream` None is torch's own.
    """

    def __init__(self, before: int, after: int, stream: torch.Generator | None = None) -> None:
        self.before, self.after, self.stream = before, after, stream

    def __call__(self, like: Tensor) -> Tensor:
        return self._rows(torch.randn, like)

    def uniform(self, like: Tensor) -> Tensor:
        """In [0, 1)"""
        return self._rows(torch.rand, like)

    def _rows(self, draw: Callable[..., Tensor], like: Tensor) -> Tensor:
        size = self.before + len(like) + self.after
        drawn = draw(
            size, *like.shape[1:], dtype=like.dtype, device=like.device, generator=self.stream
        )
        return drawn.narrow(0, self.before, len(like))


def uniform(noise: NoiseSampler, like: Tensor) -> Tensor:
    """Numbers in [0, 1) like a tensor, from where `noise` comes from in training."""
    return noise.uniform(like) if isinstance(noise, BatchGenerator) else torch.rand_like(like)


def bernoulli(noise: NoiseSampler) -> bool:
    """The same for the whole batch, from where `noise` comes from in training."""
    stream = noise.stream if isinstance(noise, BatchGenerator) else None
    return bool(torch.rand((), generator=stream, device=stream.device if stream else "cpu") < 0.5)
