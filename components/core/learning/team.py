"""The processes that train one network together, and the parts of a batch that each computes. torch only.

torchrun starts the processes and passes each its rank in environment variables; a single process is a team of one. A batch
is cut into slots, `accumulate` for each process; slot s belongs to process s modulo their number. BatchNorm normalises a
slot by itself, so two processes of one slot each and one process of two slots compute the same step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from components.core.progress import warn

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


LEAST = 2
"""Wells of a slot: BatchNorm has no variance of one value, which a single image may give at 1 x 1 pixels."""
FEW = 8
"""Images of a slot below which its mean and variance are poor."""
_N = TypeVar("_N", bound=np.generic)


@dataclass(frozen=True)
class Slots:
    """The parts of a batch that this process computes.

    Attributes:
        team: the processes.
        accumulate: parts that each of them computes one after the other.
    """

    team: Team
    accumulate: int = 1

    @property
    def count(self) -> int:
        """Parts of a batch, over all processes."""
        return self.team.size * self.accumulate

    @property
    def own(self) -> range:
        """This process's parts."""
        return range(self.team.rank, self.count, self.team.size)

    def parts(self, batch: NDArray[_N]) -> list[NDArray[_N]]:
        """This process's parts of a batch, nearly equal ones; a batch too small for all is filled by repetition."""
        if 0 < len(batch) < LEAST * self.count and self.count > 1:
            batch = np.resize(batch, LEAST * self.count)
        parts = np.array_split(batch, self.count)
        return [parts[slot] for slot in self.own]

    def warn_of_small_parts(self, **batches: int) -> None:
        """Says where BatchNorm would have few images to go by; the batches are settings by name, in wells."""
        for name, wells in batches.items():
            if self.count > 1 and wells // self.count < FEW:
                warn(
                    f"{name} {wells} in {self.count} parts ({self.team.size} processes of {self.accumulate}) leaves BatchNorm "
                    f"{wells / self.count:.3g} images at a time; raise it, or lower compute.processes or compute.accumulate"
                )

    def size(self, batch: NDArray[_N]) -> int:
        """How many wells all parts of a batch hold together."""
        return max(len(batch), LEAST * self.count) if len(batch) and self.count > 1 else len(batch)

    def weight(self, part: int, whole: int) -> float:
        """What a part's mean loss counts, where processes average their gradients: parts weigh as many wells as they have."""
        return part / whole * self.team.size if whole else 0.0

    def generators(self, seed: int) -> list[Generator]:
        """One stream of random numbers for each own part; the first part's is that of an undivided batch."""
        return [Generator().manual_seed(_slot_seed(seed, slot)) for slot in self.own]

    def states(self, generators: Sequence[Generator]) -> list[Tensor]:
        """The states of all processes' generators, by slot; every process must ask."""
        states = self.team.gathered([generator.get_state() for generator in generators])
        return [states[slot % self.team.size][slot // self.team.size] for slot in range(self.count)]

    def restore(self, generators: Sequence[Generator], states: Sequence[Tensor]) -> None:
        """Puts the own generators back to what `states` told."""
        for slot, generator in zip(self.own, generators, strict=True):
            generator.set_state(states[slot])


def _slot_seed(seed: int, slot: int) -> int:
    return seed if slot == 0 else int(np.random.SeedSequence([seed, slot]).generate_state(1, np.uint64)[0] >> 2)


class Replica:
    """A network that several processes train: gradients are averaged over them, running statistics too when asked.

    Args:
        network: this process's copy; alike on all.
        slots: the parts of a batch.
    """

    def __init__(self, network: nn.Module, slots: Slots) -> None:
        self.network = network
        self._slots = slots
        # Every process keeps its own running statistics between two means of them: they are linear in the batches'.
        self.forward: nn.Module = (
            DistributedDataParallel(network, forward_sync_buffers=False, gradient_as_bucket_view=True)
            if slots.team.size > 1
            else network
        )

    def __call__(self, *arguments: Any) -> Any:
        """The network's output."""
        return self.forward(*arguments)

    def part(self, k: int) -> AbstractContextManager[Any]:
        """Around forward and backward of the k-th own part: gradients cross processes with the last one only."""
        if isinstance(self.forward, DistributedDataParallel) and k + 1 < self._slots.accumulate:
            return self.forward.no_sync()
        return nullcontext()


def running_statistics(networks: Sequence[nn.Module]) -> list[Tensor]:
    """The running means and variances of all BatchNorm layers."""
    layers = [m for network in networks for m in network.modules() if isinstance(m, _BatchNorm)]
    return [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None]


def statistics_of_all(networks: Sequence[nn.Module], team: Team) -> list[list[Tensor]]:
    """The running statistics of every process, by rank, not averaged; every process must ask. Empty for one by itself."""
    if team.size == 1:
        return []
    return team.gathered([buffer.cpu() for buffer in running_statistics(networks)])


def restore_statistics(networks: Sequence[nn.Module], statistics: Sequence[Sequence[Tensor]], team: Team) -> None:
    """Puts this process's running statistics back to what `statistics_of_all` told."""
    if statistics:
        for buffer, own in zip(running_statistics(networks), statistics[team.rank], strict=True):
            buffer.copy_(own)


class StatisticsOfParts:
    """Running statistics of a step in parts: each part starts from the step's own, and the mean of all parts stays.

    So they do not depend on how many processes there are. Nothing is done where a process has one part.
    """

    def __init__(self, networks: Sequence[nn.Module], parts: int) -> None:
        self._buffers = running_statistics(networks) if parts > 1 else []
        self._parts = parts

    @contextmanager
    def step(self) -> Iterator[AbstractContextManager[None]]:
        """Around a step; gives the context of a part, to be entered for each."""
        if not self._buffers:
            yield nullcontext()
            return
        before = [buffer.clone() for buffer in self._buffers]
        total = [torch.zeros_like(buffer) for buffer in self._buffers]
        yield _Part(self._buffers, before, total)
        torch._foreach_copy_(self._buffers, torch._foreach_div(total, float(self._parts)))


class _Part(AbstractContextManager[None]):
    """One part after the other: back to the start, then into the sum."""

    def __init__(self, buffers: list[Tensor], before: list[Tensor], total: list[Tensor]) -> None:
        self._buffers, self._before, self._total = buffers, before, total

    def __enter__(self) -> None:
        torch._foreach_copy_(self._buffers, self._before)

    def __exit__(self, *_: object) -> None:
        torch._foreach_add_(self._total, self._buffers)
