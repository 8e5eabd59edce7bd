"""The inception score (Salimans et al., 2016)."""

import torch
from torch import Tensor
from torch.special import xlogy


def split_count(count: int) -> int:
    """Of how many splits the score of `count` samples is a mean: ten, or one of fewer than 5000. The score of n samples
    lies below its limit by a share of up to (classes - 1) / 2n, so that small splits say little.
    """
    return 10 if count >= 5000 else 1


def said(p: Tensor) -> Tensor:
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
    parts = said(p).tensor_split(splits)
    return score(
        torch.stack([part.sum(0) for part in parts]),
        p.new_tensor([len(part) for part in parts]).double(),
    )
