"""Fully sharded data parallelism (FSDP2): each process stores a part of each weight."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    FullyShardedDataParallel,
    OptimStateKeyType,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from ddpm_lab.diffusion.denoiser import Denoiser

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FSDPStrategy(ModelParallelStrategy):
    """Shards weights, gradients, averages and optimizer state over all processes.

    Checkpoints are those of a single process: rank zero writes whole tensors. They fit any number
    of processes, and every program that reads a run.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the checkpoint as every program does, and restore weights and optimizers."""
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path)
        assert self.model is not None
        set_model_state_dict(self.model, checkpoint["state_dict"], options=WHOLE)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            by_name = FullyShardedDataParallel.rekey_optim_state_dict(
                state, OptimStateKeyType.PARAM_NAME, self.model
            )
            set_optimizer_state_dict(self.model, optimizer, by_name, options=WHOLE)
        return checkpoint


def shard(denoiser: Denoiser, mesh: DeviceMesh | None) -> None:
    """Shard `denoiser` in place, unless there is no mesh.

    Each layer of `sharding_units` is gathered when it runs.
    """
    if mesh is None:
        return
    # FSDP requires it. Activations of convolutions remain in channels_last.
    denoiser.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    # The denoiser's own forward pass is not that of training, so its parts are the roots.
    for root in (denoiser.network, denoiser.conditioner):
        for part in (*sharding_units(root), root):
            if next(part.parameters(), None) is not None:
                fully_shard(part, mesh=mesh["data_parallel"], reshard_after_forward=True)


def sharding_units(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers in the topmost module lists of `module`."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child if type(child) is nn.ModuleList else [child]
        else:
            yield from sharding_units(child)


def compile_units(network: nn.Module) -> list[nn.Module]:
    """Return the modules to compile: `network`, or its layers if they are sharded."""
    return [*sharding_units(network)] if isinstance(network, FSDPModule) else [network]


@contextmanager
def gather_weights(module: nn.Module) -> Iterator[None]:
    """Give each process the whole weights of `module`, for forward passes of its own.

    All processes must enter it. Weights that are not sharded stay as they are.
    """
    parts = _sharded_parts(module)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state of `module` with whole tensors, on rank zero; all processes must call it.

    Without shards, it is `module.state_dict()` in all processes.
    """
    if not _sharded_parts(module):
        return module.state_dict()
    return cast(dict[str, Tensor], get_model_state_dict(module, options=WHOLE))


def load_whole_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole tensors into `module`, which may be sharded."""
    set_model_state_dict(module, dict(state), options=WHOLE)


def whole(tensor: Tensor) -> Tensor:
    """Return the value of a tensor that may be sharded, or a sum over shards."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded_parts(module: nn.Module) -> list[FSDPModule]:
    return [each for each in module.modules() if isinstance(each, FSDPModule)]
