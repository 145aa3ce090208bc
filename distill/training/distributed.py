"""One run on many processes, started by torchrun: what each of them is, and what they share.

Without torchrun's environment there is one process and nothing is initialised. With it, networks
are copied to every process (DDP) or spread over them (FSDP2), and gradients are averaged.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from distill.errors import UserError
from distill.networks import Denoiser

# A first step compiles kernels and a distance is measured between two exchanges: both may take
# long, and a process that died is found out by torchrun much sooner.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class DistributedContext:
    """This process among those of its run.

    Attributes:
        device: where this process computes.
        rank: its number, 0 writes the files.
        size: how many there are.
        shard: whether networks are spread over the processes instead of copied to each.
        cuda_graph: whether steps may be captured, see `distill.training.cuda_graph`.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    shard: bool = False
    cuda_graph: bool = True

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    @property
    def build_device(self) -> torch.device:
        """Where to build a whole network: the CPU if it is to be sharded, block by block."""
        return torch.device("cpu") if self.shard else self.device

    def prepare_trainable(self, network: Denoiser) -> nn.Module:
        """Return what a forward pass goes through so that gradients reach every process.

        Call it once, while the parameters that will ever learn want gradients.
        """
        if self.shard:
            return shard(network, self.device)
        if self.size == 1:
            return network
        ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            network, device_ids=ids, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def prepare_frozen(self, network: Denoiser) -> Denoiser:
        """Return a network that learns nothing here, in this process's share of it."""
        return shard(network, self.device) if self.shard else network

    def any(self, flag: bool) -> bool:
        """Whether any process says so; every process must ask."""
        if self.size == 1:
            return flag
        flags = torch.tensor(float(flag))  # on the host: the card need not have come so far
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def average(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes, on the device; every process must ask."""
        if self.size == 1:
            return value
        dist.all_reduce(value)
        return value / self.size

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Average scalars over the processes; every process must ask."""
        if not values:
            return {}
        stacked = torch.stack([value.detach().double() for value in values.values()])
        if self.size > 1:
            dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.size).tolist(), strict=True))

    def broadcast_from_main(self, value: Any) -> Any:
        """Process 0's value, at every process; every process must ask."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def join_process_group(
    device: torch.device, shard: bool = False, cuda_graph: bool = True
) -> Iterator[DistributedContext]:
    """Join the run that torchrun started, if any, and leave it at the end.

    Args:
        device: where to compute; "cuda" without a number is the one of torchrun's LOCAL_RANK.
        shard: spread networks over the processes (FSDP2), for those that do not fit on one.
        cuda_graph: capture steps as CUDA graphs where that can be.

    Raises:
        UserError: sharding was asked for without torchrun.
    """
    if "WORLD_SIZE" not in os.environ:
        if shard:
            raise UserError("--shard spreads a network over processes: start it by torchrun")
        yield DistributedContext(device, cuda_graph=cuda_graph)
        return
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backends = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backends, timeout=PATIENCE)
    try:
        yield DistributedContext(device, dist.get_rank(), dist.get_world_size(), shard, cuda_graph)
    finally:
        dist.destroy_process_group()


def shard(network: Denoiser, device: torch.device) -> Denoiser:
    """Spread a network's parameters over the processes, block by block (FSDP2), in place.

    Args:
        network: whole, on the CPU, so that the device holds one whole block at a time.
        device: where each process computes its part.
    """
    # FSDP2 takes no weights in channels_last; activations still are.
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in network.model.blocks():
        fully_shard(block, mesh=mesh)
    # Always: else the outermost weights stay whole after an image was drawn, unlike the average's.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    return network


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
