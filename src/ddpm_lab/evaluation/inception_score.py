"""The inception score (Salimans et al., 2016)."""

from torch import Tensor
from torch.special import xlogy


def split_count(count: int) -> int:
    """Of how many splits the score of `count` samples is a mean: ten, or one of fewer than 5000. The score of n samples
    lies below its limit by a share of up to (classes - 1) / 2n, so that small splits say little.
    """
    return 10 if count >= 5000 else 1


def inception_score(p: Tensor, splits: int = 1) -> float:
    """exp E KL(p(y | x) || p(y)) of `p` (N, classes), the mean over consecutive `splits`: 1 .. classes."""
    each = [xlogy(q, q) - xlogy(q, q.mean(0)) for q in p.double().tensor_split(splits)]
    return sum(kl.sum(1).mean().exp().item() for kl in each) / splits
