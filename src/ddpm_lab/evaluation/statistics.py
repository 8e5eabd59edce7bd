"""Running sums over samples, whose memory does not grow with the number of samples.

Samples are divided into `BLOCKS` blocks by their numbers. Leaving out each block in turn gives the
standard error and the bias of a score (jackknife).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, distributed
from torch.special import xlogy

from ddpm_lab.utils.distributed import rank_and_world

BLOCKS = 10


class Gaussian(NamedTuple):
    """Mean and covariance of features, which FID compares."""

    mean: Tensor
    """(d,) float64"""
    covariance: Tensor
    """(d, d) float64"""
    size: int
    """Number of samples"""

    def root(self) -> Tensor:
        """Return the symmetric square root of the covariance, (d, d)."""
        values, axes = torch.linalg.eigh(self.covariance)
        return (axes * values.clamp(min=0).sqrt()) @ axes.T


class RunningStatistics:
    """Sums of vectors (d,), such as features or probabilities, by block, in float64.

    Args:
        dims: d.
        blocks: Number of blocks.
        squares: Also sum outer products, for covariances.
    """

    def __init__(self, dims: int, blocks: int, device: torch.device, squares: bool) -> None:
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.count, self.total = zeros(blocks), zeros(blocks, dims)
        self.outer = zeros(blocks, dims, dims) if squares else None

    def add(self, values: Tensor, block: Tensor) -> None:
        """Add `values` (B, d) of the blocks `block` (B,), ascending, on the CPU. No device sync."""
        blocks, counts = block.unique_consecutive(return_counts=True)
        parts = values.double().split(counts.tolist())
        for index, count, part in zip(blocks.tolist(), counts.tolist(), parts, strict=True):
            self.count[index] += count
            self.total[index] += part.sum(0)
            if self.outer is not None:
                self.outer[index].addmm_(part.T, part)

    def reduce(self) -> None:
        """Add the sums of all processes."""
        if rank_and_world()[1] > 1:
            for sums in (self.count, self.total, self.outer):
                if sums is not None:
                    distributed.all_reduce(sums)

    def gaussian(self, without: int | None = None) -> Gaussian:
        """Return mean and covariance of all blocks, except the block `without`."""
        assert self.outer is not None
        count, total, outer = (
            sums.sum(0) - (0 if without is None else sums[without])
            for sums in (self.count, self.total, self.outer)
        )
        mean = total / count
        return Gaussian(mean, (outer - count * mean[:, None] * mean) / (count - 1), int(count))


def frechet(samples: Gaussian, reference: Gaussian, root: Tensor) -> float:
    """Return the squared Frechet distance (Heusel et al., 2017, eq. 6).

    `root` is `reference.root()`. The trace of the root of the product of the covariances is that of
    root @ covariance @ root, which is symmetric. This makes the jackknife fast.
    """
    shared = torch.linalg.eigvalsh(root @ samples.covariance @ root).clamp(min=0).sqrt().sum()
    traces = samples.covariance.trace() + reference.covariance.trace()
    return ((samples.mean - reference.mean).square().sum() + traces - 2 * shared).item()


class Score(NamedTuple):
    """A number with its jackknife estimates."""

    value: float
    standard_error: float | None
    """Standard error over samples of the same model; None for fewer than 2 * BLOCKS samples"""
    infinite: float | None
    """Extrapolation to n -> inf as a line in 1 / n (Chong & Forsyth, 2020)"""


def jackknife(score: Callable[[int | None], float], count: int) -> Score:
    """Return `score(None)` of `count` samples with its error (Efron & Stein, 1981).

    `score(block)` is the score without a block.
    """
    value = score(None)
    if count < 2 * BLOCKS:
        return Score(value, None, None)
    scores = torch.tensor([score(block) for block in range(BLOCKS)], dtype=torch.float64)
    error = math.sqrt((BLOCKS - 1) * scores.var(correction=0).item())
    return Score(value, error, BLOCKS * value - (BLOCKS - 1) * scores.mean().item())


def split_count(count: int) -> int:
    """Return the number of splits of the inception score: 10, or 1 below 5,000 samples.

    The score of n samples is below its limit by a share of up to (classes - 1) / 2n.
    """
    return 10 if count >= 5000 else 1


def score_terms(p: Tensor) -> Tensor:
    """Return p and sum p log p of probabilities `p` (N, classes), (N, classes + 1) float64."""
    p = p.double()
    return torch.cat([p, xlogy(p, p).sum(1, keepdim=True)], dim=1)


def score(total: Tensor, count: Tensor) -> float:
    """Return the inception score exp E KL(p(y | x) || p(y)), the mean over splits, in 1..classes.

    `total` (splits, classes + 1) are sums of `score_terms` over `count` (splits,) samples.
    """
    mean = total / count[:, None]
    return (mean[:, -1] - xlogy(mean[:, :-1], mean[:, :-1]).sum(1)).exp().mean().item()


def inception_score(p: Tensor, splits: int = 1) -> float:
    """Return the inception score of `p` (N, classes) over splits (Salimans et al., 2016)."""
    parts = score_terms(p).tensor_split(splits)
    counts = p.new_tensor([len(part) for part in parts]).double()
    return score(torch.stack([part.sum(0) for part in parts]), counts)
