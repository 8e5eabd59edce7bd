"""At which times training looks. A sampler of times is a module: what it has learned is part of a checkpoint."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class TimestepSampler(nn.Module, ABC):
    """Built with T, `steps`. Its weights keep losses unbiased: E[weight loss(t)] is the mean over uniform t."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    @abstractmethod
    def forward(
        self, size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Times (size,) int64 in 1..T and their weights (size,), from `stream` (None: torch's own)."""

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Hears the losses (B,) at times t (B,), unweighted."""


class Uniform(TimestepSampler):
    """Each time alike, independently."""

    def forward(
        self, size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        return torch.randint(
            1, self.steps + 1, (size,), device=device, generator=generator
        ), torch.ones(size, device=device)


class Stratified(TimestepSampler):
    """Each time alike, spread evenly over the batch: one uniform offset, then equal strides (the antithetic times of
    Kingma et al., 2021, appendix I.1). The batch's loss varies less.
    """

    def forward(
        self, size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        offset = torch.rand(1, dtype=torch.float64, device=device, generator=generator)
        places = (offset + torch.arange(size, device=device) / size) % 1
        return 1 + (places * self.steps).long(), torch.ones(size, device=device)


class Importance(TimestepSampler):
    """p_t proportional to sqrt(E[loss_t^2]) over the last `history` losses at t, mixed with a share `uniform` of the
    uniform law; uniform until every time has that many (Nichol & Dhariwal, 2021, eq. 18).

    Ranks hear one another's losses, so that all have the same law; it is kept in checkpoints. No step waits for the
    device.
    """

    losses: Tensor
    """(T + 1, history) float64: the newest losses of each time, in a ring; row 0 takes what is thrown away"""
    counts: Tensor
    """(T + 1,) int64: how many losses each time has had"""

    def __init__(self, steps: int, history: int = 10, uniform: float = 0.001) -> None:
        super().__init__(steps)
        if history < 1:
            raise ValueError(f"history must be at least 1 (got {history}); try 10")
        if not 0 < uniform <= 1:
            raise ValueError(
                f"uniform is a share and must lie in (0, 1] (got {uniform:g}), or weights would be infinite"
            )
        self.history, self.uniform = history, uniform
        self.register_buffer("losses", torch.zeros(steps + 1, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(steps + 1, dtype=torch.int64))

    def weights(self) -> Tensor:
        """p_t for t = 1..T, (T,) float64."""
        size = self.losses[1:].square().mean(1).sqrt()
        learned = (1 - self.uniform) * size / size.sum() + self.uniform / self.steps
        ready = (self.counts[1:].min() >= self.history) & (size.sum() > 0)
        return torch.where(ready, learned, 1 / self.steps)

    def forward(
        self, size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        law = self.weights()
        t = torch.multinomial(law, size, replacement=True, generator=generator)
        return t + 1, (1 / (self.steps * law[t])).float()

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone = [
                torch.zeros(2, len(t), dtype=torch.float64, device=t.device)
                for _ in range(torch.distributed.get_world_size())
            ]
            torch.distributed.all_gather(everyone, torch.stack([t.double(), losses.double()]))
            t, losses = torch.cat(everyone, dim=1)
            t = t.long()
        t = torch.where(losses.isfinite(), t, 0)  # a step that is left out teaches nothing
        # Losses of the same time fill its ring in order, in one write: sort by time, count places within a time.
        order = t.argsort(stable=True)
        t, losses = t[order], losses[order].double()
        place = torch.arange(len(t), device=t.device) - torch.searchsorted(t, t)
        count = torch.searchsorted(t, t, right=True) - torch.searchsorted(t, t)
        row = torch.where(
            place >= count - self.history, t, 0
        )  # of more than the ring holds, only the newest
        self.losses[row, (self.counts[t] + place) % self.history] = losses
        self.counts.index_add_(0, t, torch.ones_like(t))
