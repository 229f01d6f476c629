"""The processes that train one network together, and the parts of a batch that each computes. torch only.

torchrun starts the processes and passes each its rank in environment variables; a single process is a team of one. A batch
is cut into slots, `accumulate` for each process; slot s belongs to process s modulo their number. BatchNorm normalises a
slot by itself, or each domain of a slot, so two processes of one slot each and one process of two slots compute the same step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
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
"""Processes wait while the leader fetches or writes; if one dies, torchrun ends all of them."""
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Team:
    """A process and the others that train with it.

    All methods are collective: every process must call them.
    """

    rank: int = 0  # number of this process; 0 is the leader, the only one that writes and reports progress
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the leader."""
        return self.rank == 0

    def agreed(self, value: T) -> T:
        """The leader's value, on all processes."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, device=_CPU)
        return values[0]

    def gathered(self, value: T) -> list[T]:
        """The values of all processes by rank, on all processes."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def summed(self, array: NDArray[Any]) -> NDArray[Any]:
        """The sum of the processes' arrays of equal shape, on all processes."""
        if self.size == 1:
            return array
        total = torch.from_numpy(np.array(array))
        distributed.all_reduce(total)
        return total.numpy()

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors of one dtype by their mean over the processes, in place."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])  # one exchange instead of hundreds
        distributed.all_reduce(flat)
        means = torch.split(flat / self.size, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))


ALONE = Team()
"""The team of a single process."""


def is_started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[Team]:
    """This process's team: the processes that torchrun started, or this one alone."""
    if not is_started_by_torchrun():
        yield ALONE
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Small objects must not wait for the GPUs' queues, so they are exchanged by gloo.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=_LONGEST_WAIT)
    yield Team(distributed.get_rank(), distributed.get_world_size())
    # Not after an error: destroying an NCCL group waits for work of the other processes that will never come.
    distributed.destroy_process_group()


_LEAST = 2
"""Smallest number of wells in a slot: BatchNorm cannot normalise one value, which one image may be at 1 x 1 pixels."""
_FEW = 8
"""Number of images in a slot below which BatchNorm statistics are poor."""
_N = TypeVar("_N", bound=np.generic)


@dataclass(frozen=True)
class Slots:
    """The parts of a batch that this process computes."""

    team: Team
    accumulate: int = 1  # parts that each process computes one after the other
    fills: bool = False  # whether a lone image is repeated, because BatchNorm of embeddings cannot normalise it

    @property
    def count(self) -> int:
        """Number of parts of a batch, over all processes."""
        return self.team.size * self.accumulate

    @property
    def own(self) -> range:
        """Indices of this process's parts."""
        return range(self.team.rank, self.count, self.team.size)

    def domains_of_part(self, domains: int) -> int:
        """Number of domains in each part of a batch of several."""
        return domains // math.gcd(domains, self.count)

    def _cuts(self, domains: int) -> int:
        """Number of parts that a domain is cut into: parts take whole domains as far as their numbers allow."""
        return self.count // math.gcd(domains, self.count)

    def parts(self, batch: NDArray[_N], domains: int = 1) -> list[NDArray[_N]]:
        """This process's parts of a batch, of nearly equal size; a batch that is too small is filled by repetition.

        The domains of a batch come one after the other, equally many wells of each, and so do those of a part.
        """
        batch_DN = batch.reshape(domains, -1)
        if 0 < batch_DN.shape[1] < self._least(domains):
            batch_DN = batch_DN[:, np.resize(np.arange(batch_DN.shape[1]), self._least(domains))]
        groups = np.split(batch_DN, domains // self.domains_of_part(domains))
        parts = [part for group in groups for part in np.array_split(group, self._cuts(domains), axis=1)]
        return [parts[slot].reshape(-1) for slot in self.own]

    def _least(self, domains: int) -> int:
        """Smallest number of wells of a domain in a batch; smaller ones are filled by repetition."""
        return _LEAST * self._cuts(domains) if self.count > 1 or self.fills else 0

    def warn_of_small_parts(self, **batches: tuple[int, int]) -> None:
        """Warns if BatchNorm would see few images; the arguments are size and domains of a batch by the setting of its size."""
        for name, (wells, domains) in batches.items():
            at_a_time = wells / (domains * self._cuts(domains))
            if domains * self.count > 1 and int(at_a_time) < _FEW:
                several = f" and batch_norm.domains_per_step (here {domains})" if domains > 1 else ""
                warn(
                    f"{name} {wells} in {self.count} parts ({self.team.size} processes of {self.accumulate}) leaves BatchNorm "
                    f"{at_a_time:.3g} images at a time; raise it, or lower compute.processes or compute.accumulate{several}"
                )

    def size(self, batch: NDArray[_N], domains: int = 1) -> int:
        """Number of wells of all parts of a batch."""
        return max(len(batch), self._least(domains) * domains) if len(batch) else 0

    def weight(self, part: int, whole: int) -> float:
        """Weight of a part's mean loss, so that averaging gradients over processes weights parts by their number of wells."""
        return part / whole * self.team.size if whole else 0.0

    def generators(self, seed: int) -> list[Generator]:
        """One random stream for each of this process's parts; slot 0 has that of an undivided batch."""

        def of_slot(slot: int) -> int:
            return int(np.random.SeedSequence([seed, slot]).generate_state(1, np.uint64)[0] >> 2) if slot else seed

        return [Generator().manual_seed(of_slot(slot)) for slot in self.own]

    def states(self, generators: Sequence[Generator]) -> list[Tensor]:
        """The states of all processes' generators, by slot; every process must call it."""
        states = self.team.gathered([generator.get_state() for generator in generators])
        return [states[slot % self.team.size][slot // self.team.size] for slot in range(self.count)]

    def restore(self, generators: Sequence[Generator], states: Sequence[Tensor]) -> None:
        """Restores this process's generators from what `states` returned."""
        for slot, generator in zip(self.own, generators, strict=True):
            generator.set_state(states[slot])


class Replica:
    """A network that several processes train, averaging gradients; all start from equal copies."""

    def __init__(self, network: nn.Module, slots: Slots) -> None:
        self.network = network
        self._slots = slots
        # Running statistics are linear in those of the batches, so it suffices to average them once per epoch.
        self.forward: nn.Module = (
            DistributedDataParallel(network, forward_sync_buffers=False, gradient_as_bucket_view=True)
            if slots.team.size > 1
            else network
        )

    def __call__(self, *arguments: Any) -> Any:
        """The network's output."""
        return self.forward(*arguments)

    def part(self, k: int) -> AbstractContextManager[Any]:
        """Context for forward and backward of this process's k-th part; gradients are averaged with the last part only."""
        if isinstance(self.forward, DistributedDataParallel) and k + 1 < self._slots.accumulate:
            return self.forward.no_sync()
        return nullcontext()


def running_statistics(networks: Sequence[nn.Module]) -> list[Tensor]:
    """The running means and variances of all BatchNorm layers."""
    layers = [m for network in networks for m in network.modules() if isinstance(m, _BatchNorm)]
    return [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None]


def statistics_of_all(networks: Sequence[nn.Module], team: Team) -> list[list[Tensor]]:
    """The running statistics of every process, by rank, not averaged; empty for one process. Every process must call it."""
    if team.size == 1:
        return []
    return team.gathered([buffer.cpu() for buffer in running_statistics(networks)])


def restore_statistics(networks: Sequence[nn.Module], statistics: Sequence[Sequence[Tensor]], team: Team) -> None:
    """Restores this process's running statistics from what `statistics_of_all` returned."""
    if statistics:
        for buffer, own in zip(running_statistics(networks), statistics[team.rank], strict=True):
            buffer.copy_(own)


class StatisticsOfParts:
    """Running statistics of a step in parts: each part starts from the same ones, and their mean is kept.

    So they do not depend on the number of processes. Does nothing if a process has one part.
    """

    def __init__(self, networks: Sequence[nn.Module], parts: int) -> None:
        self._buffers = running_statistics(networks) if parts > 1 else []
        self._parts = parts

    @contextmanager
    def step(self) -> Iterator[Callable[[], AbstractContextManager[None]]]:
        """Context of a step; yields the context to enter for each part."""
        if not self._buffers:
            yield nullcontext
            return
        before = [buffer.clone() for buffer in self._buffers]
        total = [torch.zeros_like(buffer) for buffer in self._buffers]

        @contextmanager
        def part() -> Iterator[None]:
            torch._foreach_copy_(self._buffers, before)
            yield
            torch._foreach_add_(total, self._buffers)

        yield part
        torch._foreach_copy_(self._buffers, torch._foreach_div(total, float(self._parts)))
