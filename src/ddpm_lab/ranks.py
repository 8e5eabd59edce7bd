"""One process of several: which it is, what is its part, and what all of them found. Alone, it is the first of one."""

import atexit
import os
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, TypeVar

T = TypeVar("T")


def first() -> bool:
    """Whether this is the process that writes and speaks, by what torchrun, Lightning or SLURM told it."""
    told = (os.environ.get(name, "0") for name in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return all(number == "0" for number in told)


def join() -> None:
    """Joins the processes that torchrun started, if it did; each has a GPU of its own, where there are any."""
    import torch
    from torch import distributed

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(distributed.destroy_process_group)  # or its threads may end the process as if it had failed


def place() -> tuple[int, int]:
    """(rank, number) of this process in the group that torch.distributed knows."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def mine(batches: Sequence[T]) -> Sequence[T]:
    """Those whose turn is this process's."""
    rank, world = place()
    return batches[rank::world]


def everyones(parts: Sequence[Any]) -> list[Any]:
    """What all processes made of `mine(batches)`, in the order of the batches; every process must ask."""
    from torch import distributed

    _, world = place()
    if world == 1:
        return [*parts]
    lists: list[Any] = [None] * world
    distributed.all_gather_object(lists, [*parts])
    nothing = object()
    return [part for turn in zip_longest(*lists, fillvalue=nothing) for part in turn if part is not nothing]
