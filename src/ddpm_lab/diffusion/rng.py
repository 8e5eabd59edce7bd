"""Random numbers as functions of the sample, independent of batches and devices."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from ddpm_lab.utils.ranges import NonNegativeInt, check_ranges

NoiseSampler = Callable[[Tensor], Tensor]
"""Source of standard normal noise in the shape of a tensor, such as `torch.randn_like`."""


def make_generator(*numbers: int) -> torch.Generator:
    """Return a CPU generator seeded by a hash of `numbers`, so that neighbors are independent."""
    return torch.Generator().manual_seed(derive_seed(*numbers))


def derive_seed(*numbers: int) -> int:
    """Hash `numbers`, each at least 0. Trailing zeros do not count."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@check_ranges
class PerSampleGenerator:
    """A `NoiseSampler` with one CPU generator per sample.

    The noise of sample i depends on (seed, i) and a nonzero `stream` only, not on batch or device.
    Raises ValueError if `seed` is negative.
    """

    def __init__(self, seed: NonNegativeInt, samples: Iterable[int], stream: int = 0) -> None:
        self.generators = [
            make_generator(seed, i, stream) if stream else make_generator(seed, i) for i in samples
        ]

    def __call__(self, like: Tensor) -> Tensor:
        """Draw noise in the shape, dtype and device of `like` (B, ...), one row per sample."""
        rows = [torch.randn(like.shape[1:], generator=generator) for generator in self.generators]
        return torch.stack(rows).to(like, non_blocking=True)


class BatchGenerator:
    """A `NoiseSampler` for a rank's rows of a batch.

    It draws numbers for the whole batch and discards the `before` rows ahead of its own and the
    `after` rows behind them. Training is then independent of the number of ranks. `generator` None
    is torch's default.
    """

    def __init__(self, before: int, after: int, generator: torch.Generator | None = None) -> None:
        self.before, self.after, self.generator = before, after, generator

    def __call__(self, like: Tensor) -> Tensor:
        return self._rows(torch.randn, like)

    def uniform(self, like: Tensor) -> Tensor:
        """Draw numbers in [0, 1) in the shape of `like` (B, ...)."""
        return self._rows(torch.rand, like)

    def _rows(self, draw: Callable[..., Tensor], like: Tensor) -> Tensor:
        shape = (self.before + len(like) + self.after, *like.shape[1:])
        batch = draw(*shape, dtype=like.dtype, device=like.device, generator=self.generator)
        return batch.narrow(0, self.before, len(like))


def uniform(noise: NoiseSampler, like: Tensor) -> Tensor:
    """Draw numbers in [0, 1) in the shape of `like`, from the source of `noise`."""
    draw: NoiseSampler = getattr(noise, "uniform", torch.rand_like)
    return draw(like)


def bernoulli(noise: NoiseSampler) -> bool:
    """Draw one fair bit for the whole batch, from the source of `noise`."""
    generator: torch.Generator | None = getattr(noise, "generator", None)
    device = generator.device if generator else "cpu"
    return bool(torch.rand((), generator=generator, device=device) < 0.5)
