"""The processes that train one network together, one a GPU: who leads, what all agree on, means and sums over all. torch only.

torchrun starts them and tells each its rank by environment variables; a process by itself is a team of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

T = TypeVar("T")
_LONGEST_WAIT = timedelta(hours=1)
"""Others wait while the leader fetches or writes; torchrun ends all when one dies, so that nobody waits in vain."""
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Team:
    """One process's place among those that train together.

    Attributes:
        rank: its number; 0 leads: it alone writes, and speaks.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def agreed(self, value: T) -> T:
        """The leader's value, on all; every process must ask."""
        if self.size == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told, src=0, device=_CPU)
        return told[0]

    def gathered(self, value: T) -> list[T]:
        """The values of all processes by rank, on all; every process must ask."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def summed(self, array: NDArray[Any]) -> NDArray[Any]:
        """The sum of the processes' arrays of one shape, on all; every process must ask."""
        if self.size == 1:
            return array
        total = torch.from_numpy(np.array(array))
        distributed.all_reduce(total)
        return total.numpy()

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors of one type by their mean over the processes, in place; every process must ask."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])  # one exchange instead of hundreds
        distributed.all_reduce(flat)
        means = torch.split(flat / self.size, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))


def is_started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[Team]:
    """This process's team: the one that torchrun started, or itself alone."""
    if not is_started_by_torchrun():
        yield Team()
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # What all agree on is small and must not wait for the GPUs' queues, so it goes by gloo.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=_LONGEST_WAIT)
    yield Team(distributed.get_rank(), distributed.get_world_size())
    # Not after an error: taking NCCL down waits for work of the others that will never come.
    distributed.destroy_process_group()
