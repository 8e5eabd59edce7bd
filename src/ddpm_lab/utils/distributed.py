"""One process of several: which it is, what is its part, and what all of them found. Alone, it is the first of one."""

import atexit
import os
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, TypeVar

from ddpm_lab.utils.errors import UserError

T = TypeVar("T")


def is_rank_zero() -> bool:
    """Whether this is the process that writes and speaks, by what torchrun, Lightning or SLURM told it."""
    told = (
        os.environ.get(name, "0") for name in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID")
    )
    return all(number == "0" for number in told)


def check_launch() -> None:
    """Raises UserError where the variables of torchrun do not say which process of how many this is."""
    said = {
        name: os.environ[name]
        for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        if name in os.environ
    }
    way = "torchrun sets all of them, and one process needs none: unset RANK LOCAL_RANK NODE_RANK WORLD_SIZE"
    for name, value in said.items():
        if not value.isdecimal() or (name.endswith("SIZE") and int(value) < 1):
            raise UserError(
                f"{name}={value} in the environment is no number of a process, or of processes; {way}"
            )
    numbers = {name: int(value) for name, value in said.items()}
    world = numbers.get("WORLD_SIZE", 1)
    for name, most in {
        "RANK": world,
        "NODE_RANK": world,
        "LOCAL_RANK": numbers.get("LOCAL_WORLD_SIZE", world),
    }.items():
        if numbers.get(name, 0) >= most:
            raise UserError(
                f"{name}={said[name]} in the environment must be below the number of processes, {most}; "
                f"{way}"
            )
    if world > 1 and not {"RANK", "LOCAL_RANK", "SLURM_PROCID"} & {*os.environ}:
        raise UserError(
            f"WORLD_SIZE={world} in the environment, and no RANK says which of them this is; {way}"
        )
    if world > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"WORLD_SIZE={world} in the environment, and no MASTER_ADDR where they meet; {way}"
        )


def init_process_group() -> None:
    """Joins the processes that torchrun started, if it did; each has a GPU of its own, where there are any."""
    import torch
    from torch import distributed

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(
        distributed.destroy_process_group
    )  # or its threads may end the process as if it had failed


def rank_and_world() -> tuple[int, int]:
    """(rank, number) of this process in the group that torch.distributed knows."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def shard(batches: Sequence[T]) -> Sequence[T]:
    """Those whose turn is this process's."""
    rank, world = rank_and_world()
    return batches[rank::world]


def all_gather(parts: Sequence[Any]) -> list[Any]:
    """What all processes made of `mine(batches)`, in the order of the batches; every process must ask."""
    from torch import distributed

    _, world = rank_and_world()
    if world == 1:
        return [*parts]
    lists: list[Any] = [None] * world
    distributed.all_gather_object(lists, [*parts])
    nothing = object()
    return [
        part
        for turn in zip_longest(*lists, fillvalue=nothing)
        for part in turn
        if part is not nothing
    ]
