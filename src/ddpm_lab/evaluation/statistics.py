"""Sums over samples, from which scores of whatever number of samples are made: memory does not grow with it.

Samples fall into `BLOCKS` blocks by their numbers, so that a score can be had without each of them: its uncertainty and
its bias, by the jackknife.
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
    """Of how many splits the score of `count` samples is a mean: ten, or one of fewer than 5000. The score of n samples
    lies below its limit by a share of up to (classes - 1) / 2n, so that small splits say little.
    """
    return 10 if count >= 5000 else 1


def score_terms(p: Tensor) -> Tensor:
    """What the score is made of, (N, classes + 1): `p` (N, classes) and sum p log p, of each sample, in float64."""
    p = p.double()
    return torch.cat([p, xlogy(p, p).sum(1, keepdim=True)], dim=1)


def score(total: Tensor, count: Tensor) -> float:
    """exp E KL(p(y | x) || p(y)), the mean over splits, from the sums (splits, classes + 1) of `said` over as many
    samples, (splits,): 1 .. classes.
    """
    mean = total / count[:, None]
    return (mean[:, -1] - xlogy(mean[:, :-1], mean[:, :-1]).sum(1)).exp().mean().item()


def inception_score(p: Tensor, splits: int = 1) -> float:
    """That of `p` (N, classes), over consecutive `splits`."""
    parts = score_terms(p).tensor_split(splits)
    return score(
        torch.stack([part.sum(0) for part in parts]),
        p.new_tensor([len(part) for part in parts]).double(),
    )


BLOCKS = 10


class RunningStatistics:
    """Of features, or probabilities, (N, d) each, by block."""

    def __init__(self, dims: int, blocks: int, device: torch.device, squares: bool) -> None:
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.count, self.total = zeros(blocks), zeros(blocks, dims)
        self.outer = zeros(blocks, dims, dims) if squares else None

    def add(self, values: Tensor, block: Tensor) -> None:
        """`values` (B, d), each of a `block` (B,), in order. Without waiting for the device."""
        blocks, counts = block.unique_consecutive(return_counts=True)  # on the CPU
        parts = values.double().split(counts.tolist())
        for one, count, some in zip(blocks.tolist(), counts.tolist(), parts, strict=True):
            self.count[one] += count
            self.total[one] += some.sum(0)
            if self.outer is not None:
                self.outer[one].addmm_(some.T, some)

    def reduce(self) -> None:
        """Those of all processes."""
        if rank_and_world()[1] > 1:
            for part in (self.count, self.total, self.outer):
                if part is not None:
                    distributed.all_reduce(part)

    def gaussian(self, without: int | None = None) -> "Gaussian":
        """Mean and covariance of all blocks, or all but one."""
        assert self.outer is not None
        count, total, outer = (
            part.sum(0) - (0 if without is None else part[without])
            for part in (self.count, self.total, self.outer)
        )
        mean = total / count
        return Gaussian(mean, (outer - count * mean[:, None] * mean) / (count - 1), int(count))


class Gaussian(NamedTuple):
    """What FID takes features for."""

    mean: Tensor
    """(d,) float64"""
    covariance: Tensor
    """(d, d) float64"""
    size: int
    """How many samples it was made from"""

    def root(self) -> Tensor:
        """The symmetric square root of the covariance, (d, d)."""
        values, axes = torch.linalg.eigh(self.covariance)
        return (axes * values.clamp(min=0).sqrt()) @ axes.T


def frechet(samples: Gaussian, reference: Gaussian, root: Tensor) -> float:
    """The squared Frechet distance (Heusel et al., 2017, eq. 6); `root` is that of the reference.

    The trace of the root of a product of covariances is that of root @ covariance @ root, which is symmetric: the
    jackknife need not wait for eigenvalues of a general matrix, as torchmetrics and torch-fidelity do for the same.
    """
    shared = torch.linalg.eigvalsh(root @ samples.covariance @ root).clamp(min=0).sqrt().sum()
    traces = samples.covariance.trace() + reference.covariance.trace()
    return ((samples.mean - reference.mean).square().sum() + traces - 2 * shared).item()


class Score(NamedTuple):
    """What the jackknife says of a number."""

    value: float
    standard_error: float | None
    """Of other samples of the same model; None where there are too few"""
    infinite: float | None
    """Where it goes with ever more samples, as a line in 1 / n (Chong & Forsyth, 2020, by leaving out blocks)"""


def jackknife(score: Callable[[int | None], float], count: int) -> Score:
    """Of `score`, which is given the block to be left out (None: none), of `count` samples (Efron & Stein, 1981)."""
    value = score(None)
    if count < 2 * BLOCKS:
        return Score(value, None, None)
    each = torch.tensor([score(block) for block in range(BLOCKS)], dtype=torch.float64)
    error = math.sqrt((BLOCKS - 1) * each.var(correction=0).item())
    return Score(value, error, BLOCKS * value - (BLOCKS - 1) * each.mean().item())
