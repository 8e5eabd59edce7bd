"""Helpers for several processes; all work without a process group too."""

import atexit
import os
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, TypeVar

from ddpm_lab.utils.errors import UserError

T = TypeVar("T")


def is_rank_zero() -> bool:
    """Return True for rank zero of torchrun, Lightning or SLURM, which writes files and logs."""
    names = ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def check_launch() -> None:
    """Raise UserError if torchrun's environment variables are incomplete or inconsistent."""
    hint = (
        "torchrun sets all of these variables, and a single process needs none: unset RANK "
        "LOCAL_RANK NODE_RANK WORLD_SIZE"
    )

    def error(name: str, problem: str) -> UserError:
        return UserError(f"{name}={os.environ[name]} in the environment {problem}; {hint}")

    variables = {}
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        if (value := os.environ.get(name)) is None:
            continue
        least = 1 if name.endswith("SIZE") else 0
        if not value.isdecimal() or int(value) < least:
            raise error(name, f"must be a whole number of at least {least}")
        variables[name] = int(value)
    world = variables.get("WORLD_SIZE", 1)
    local_world = variables.get("LOCAL_WORLD_SIZE", world)
    for name, limit in {"RANK": world, "NODE_RANK": world, "LOCAL_RANK": local_world}.items():
        if variables.get(name, 0) >= limit:
            raise error(name, f"must be below the number of processes, {limit}")
    if world > 1 and os.environ.keys().isdisjoint(("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        raise error("WORLD_SIZE", "needs RANK as well")
    if world > 1 and "MASTER_ADDR" not in os.environ:
        raise error("WORLD_SIZE", "needs MASTER_ADDR as well")


def init_process_group() -> None:
    """Join the process group if torchrun started several processes; each gets its own GPU."""
    import torch
    from torch import distributed

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    # Otherwise threads of the group may end the process with an error status.
    atexit.register(distributed.destroy_process_group)


def rank_and_world() -> tuple[int, int]:
    """Return (rank, number of processes) of torch's process group; (0, 1) without one."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def broadcast(value: T) -> T:
    """Return the `value` of rank zero, in all processes."""
    from torch import distributed

    values = [value]
    if rank_and_world()[1] > 1:
        distributed.broadcast_object_list(values)
    return values[0]


def shard(batches: Sequence[T]) -> Sequence[T]:
    """Return every n-th of `batches`, from the rank of this process on, for n processes."""
    rank, world = rank_and_world()
    return batches[rank::world]


def all_gather(parts: Sequence[Any]) -> list[Any]:
    """Return the `parts` of all processes, which must all call it, in the order before `shard`."""
    from torch import distributed

    _, world = rank_and_world()
    if world == 1:
        return [*parts]
    lists: list[Any] = [None] * world
    distributed.all_gather_object(lists, [*parts])
    missing = object()
    turns = zip_longest(*lists, fillvalue=missing)
    return [part for turn in turns for part in turn if part is not missing]
