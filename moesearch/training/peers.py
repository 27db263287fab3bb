"""Several processes, one per device, that train one model: each has a part of every batch, and gradients are averaged.

What DistributedDataParallel does, without its hooks: they need gradients that stay in place from step to step, and a
step here hands them over. ``torchrun`` starts the processes and tells them of one another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Peers:
    """The processes of a run, seen from one of them."""

    rank: int
    """0 .. count - 1."""
    count: int

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def part(self, batch: Tensor) -> Tensor:
        """This process' part of the last dimension of a batch, which the others have the rest of."""
        size = batch.shape[-1] // self.count
        return batch[..., self.rank * size : (self.rank + 1) * size]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes; all must be of one type."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        means = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether any process says so: all get one answer, and must have asked equally often."""
        told = torch.tensor(flag, dtype=torch.int32)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)


@contextmanager
def joined_peers() -> Iterator[Peers | None]:
    """The processes that torchrun started; None where this process was not started by it, or alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield None
        return
    # Flags lie on the host, gradients on the devices.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Peers(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


def own_device(name: str) -> str:
    """The device of this process: on a machine with several GPUs, that of its number on the machine."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name
