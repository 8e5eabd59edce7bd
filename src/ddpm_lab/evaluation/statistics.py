"""Running sums over samples, in constant memory, and the scores computed from them.

Samples fall into `BLOCKS` consecutive blocks. The jackknife over blocks gives a score's standard
error and bias.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, distributed
from torch.special import xlogy

from ddpm_lab.utils.distributed import rank_and_world


def split_count(count: int) -> int:
    """Return the number of splits of the inception score: ten, or one below 5000 samples.

    The score of n samples is biased low by up to a factor (classes - 1) / 2n.
    """
    return 10 if count >= 5000 else 1


def score_terms(p: Tensor) -> Tensor:
    """Return `p` (N, classes) and sum p log p of each sample, (N, classes + 1) float64."""
    p = p.double()
    return torch.cat([p, xlogy(p, p).sum(1, keepdim=True)], dim=1)


def score(total: Tensor, count: Tensor) -> float:
    """Return exp E KL(p(y | x) || p(y)), the mean over splits, in 1 .. classes.

    `total` (splits, classes + 1) is the sum of `score_terms` over `count` (splits,) samples.
    """
    mean = total / count[:, None]
    return (mean[:, -1] - xlogy(mean[:, :-1], mean[:, :-1]).sum(1)).exp().mean().item()


def inception_score(p: Tensor, splits: int = 1) -> float:
    """Return the inception score of `p` (N, classes), the mean over consecutive `splits`."""
    parts = score_terms(p).tensor_split(splits)
    return score(
        torch.stack([part.sum(0) for part in parts]),
        p.new_tensor([len(part) for part in parts]).double(),
    )


BLOCKS = 10


class RunningStatistics:
    """Sums of features or probabilities (N, d), by block."""

    def __init__(self, dims: int, blocks: int, device: torch.device, squares: bool) -> None:
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.count, self.total = zeros(blocks), zeros(blocks, dims)
        self.outer = zeros(blocks, dims, dims) if squares else None

    def add(self, values: Tensor, block: Tensor) -> None:
        """Add `values` (B, d), each to its `block` (B,), sorted, on the CPU.

        The device is not synchronized.
        """
        blocks, counts = block.unique_consecutive(return_counts=True)
        parts = values.double().split(counts.tolist())
        for i, count, part in zip(blocks.tolist(), counts.tolist(), parts, strict=True):
            self.count[i] += count
            self.total[i] += part.sum(0)
            if self.outer is not None:
                self.outer[i].addmm_(part.T, part)

    def reduce(self) -> None:
        """Sum over all processes."""
        if rank_and_world()[1] > 1:
            for part in (self.count, self.total, self.outer):
                if part is not None:
                    distributed.all_reduce(part)

    def gaussian(self, without: int | None = None) -> "Gaussian":
        """Return mean and covariance, leaving out block `without`."""
        assert self.outer is not None
        count, total, outer = (
            part.sum(0) - (0 if without is None else part[without])
            for part in (self.count, self.total, self.outer)
        )
        mean = total / count
        return Gaussian(mean, (outer - count * mean[:, None] * mean) / (count - 1), int(count))


class Gaussian(NamedTuple):
    """Mean and covariance of features."""

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


def frechet(samples: Gaussian, reference: Gaussian, root: Tensor) -> float:
    """Return the squared Frechet distance (Heusel et al., 2017, eq. 6).

    `root` is the square root of the reference covariance. The symmetric root @ covariance @ root
    has the eigenvalues of the product of covariances, and faster solvers than a general matrix.
    """
    shared = torch.linalg.eigvalsh(root @ samples.covariance @ root).clamp(min=0).sqrt().sum()
    traces = samples.covariance.trace() + reference.covariance.trace()
    return ((samples.mean - reference.mean).square().sum() + traces - 2 * shared).item()


class Score(NamedTuple):
    """A score with its jackknife estimates, None for too few samples."""

    value: float
    standard_error: float | None
    infinite: float | None
    """Limit for infinite samples, assuming linearity in 1 / n (Chong & Forsyth, 2020)"""


def jackknife(score: Callable[[int | None], float], count: int) -> Score:
    """Apply the jackknife (Efron & Stein, 1981) to the score of `count` samples.

    `score` takes the block to leave out; None leaves out no block.
    """
    value = score(None)
    if count < 2 * BLOCKS:
        return Score(value, None, None)
    each = torch.tensor([score(block) for block in range(BLOCKS)], dtype=torch.float64)
    error = math.sqrt((BLOCKS - 1) * each.var(correction=0).item())
    return Score(value, error, BLOCKS * value - (BLOCKS - 1) * each.mean().item())
