"""Random timesteps for training. Samplers are modules, so that checkpoints have their state."""

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn

from ddpm_lab.diffusion.process import ForwardProcess, time_at
from ddpm_lab.utils.ranges import Count, Positive, check_ranges


class TimestepSampler(nn.Module, ABC):
    """A distribution over times of a process, in [1, T].

    Importance weights keep losses unbiased: E[weight loss(t)] is the mean over uniform t. Samplers
    that emphasize times on purpose have weights of 1.
    """

    unbiased = True
    """True if weighted losses average to the mean over uniform t"""

    def __init__(self, process: ForwardProcess) -> None:
        super().__init__()
        self.steps = process.steps

    @abstractmethod
    def forward(
        self, size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw times (size,), int64 in 1..T or float64, and return them with weights (size,)."""

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Update the distribution from unweighted losses (B,) at times t (B,)."""


class Uniform(TimestepSampler):
    """Independent uniform times."""

    def forward(
        self, size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        t = torch.randint(1, self.steps + 1, (size,), device=device, generator=generator)
        return t, torch.ones(size, device=device)


class Stratified(TimestepSampler):
    """Uniform times at equal strides from one random offset, for a loss of lower variance.

    The low-discrepancy sampler of Kingma et al. (2021, appendix I.1).
    """

    def forward(
        self, size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        offset = torch.rand(1, dtype=torch.float64, device=device, generator=generator)
        positions = (offset + torch.arange(size, device=device) / size) % 1
        return 1 + (positions * self.steps).long(), torch.ones(size, device=device)


@check_ranges
class LogNormal(TimestepSampler):
    """Float times at which log(sigma_t / alpha_t) is normal, with weight 1 (Karras et al., 2022).

    With the unweighted loss of prediction=v it is their training (table 1): their weight
    1 / c_out^2 of the squared error of x_0 is 1 for the network's output. Noise levels outside of
    the range of the schedule move to its end.
    """

    unbiased = False

    log_snr: Tensor
    """(T + 1,) float64"""

    def __init__(self, process: ForwardProcess, mean: float = -1.2, std: Positive = 1.2) -> None:
        super().__init__(process)
        self.mean, self.std = mean, std
        self.register_buffer("log_snr", process.table[:, 2], persistent=False)

    def forward(
        self, size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        z = torch.randn(size, dtype=torch.float64, device=device, generator=generator)
        t = time_at(self.log_snr, (self.mean + self.std * z).exp()).clamp(min=1)
        return t, torch.ones(size, device=device)


@check_ranges
class LogitNormal(TimestepSampler):
    """t / T = sigmoid(n), n ~ N(mean, std^2), for middle times (Esser et al., 2024, eq. 19)."""

    unbiased = False

    def __init__(self, process: ForwardProcess, mean: float = 0.0, std: Positive = 1.0) -> None:
        super().__init__(process)
        self.mean, self.std = mean, std

    def forward(
        self, size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        n = torch.randn(size, dtype=torch.float64, device=device, generator=generator)
        t = (self.steps * torch.sigmoid(self.mean + self.std * n)).ceil().long()
        return t.clamp(1, self.steps), torch.ones(size, device=device)


@check_ranges
class Importance(TimestepSampler):
    """p_t proportional to sqrt(E[loss_t^2]) over the last `history` losses at t.

    Mixed with a share `uniform` of the uniform distribution, and uniform until every time has
    `history` losses (Nichol & Dhariwal, 2021, eq. 18). Losses are gathered from all ranks, so that
    all have the same distribution. Updates do not synchronize with the device.
    """

    losses: Tensor
    """(T + 1, history) float64: ring buffers of the newest losses; row 0 takes discarded ones"""
    counts: Tensor
    """(T + 1,) int64: number of losses so far"""

    def __init__(
        self,
        process: ForwardProcess,
        history: Count = 10,
        uniform: Annotated[float, Gt(0), Le(1)] = 0.001,
    ) -> None:
        super().__init__(process)
        steps, self.history, self.uniform = self.steps, history, uniform
        self.register_buffer("losses", torch.zeros(steps + 1, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(steps + 1, dtype=torch.int64))

    def weights(self) -> Tensor:
        """p_t for t = 1..T, (T,) float64."""
        size = self.losses[1:].square().mean(1).sqrt()
        mixture = (1 - self.uniform) * size / size.sum() + self.uniform / self.steps
        ready = (self.counts[1:].min() >= self.history) & (size.sum() > 0)
        return torch.where(ready, mixture, 1 / self.steps)

    def forward(
        self, size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        p = self.weights()
        t = torch.multinomial(p, size, replacement=True, generator=generator)
        return t + 1, (1 / (self.steps * p[t])).float()

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor) -> None:
        t, losses = _all_gather(t, losses)
        t = torch.where(losses.isfinite(), t, 0)  # losses of non-finite steps are discarded
        # Fill the rings in one write: sort by time, and count positions within a time.
        order = t.argsort(stable=True)
        t, losses = t[order], losses[order].double()
        first, end = torch.searchsorted(t, t), torch.searchsorted(t, t, right=True)
        position = torch.arange(len(t), device=t.device) - first
        newest = position >= end - first - self.history  # a ring has room for `history` losses
        row = torch.where(newest, t, 0)
        self.losses[row, (self.counts[t] + position) % self.history] = losses
        self.counts.index_add_(0, t, torch.ones_like(t))


def _all_gather(t: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return t, losses
    local = torch.stack([t.double(), losses.double()])
    ranks = [torch.zeros_like(local) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(ranks, local)
    t, losses = torch.cat(ranks, dim=1)
    return t.long(), losses
