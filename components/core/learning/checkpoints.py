"""Saves the whole state of a training by time, random numbers included, and resumes from it after a kill. torch only.

A state is plain data: numbers, strings, lists, dictionaries and tensors, so that reading it runs no code.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Generator, Tensor

from components.core.errors import StepError
from components.core.learning.team import Slots, Team
from components.core.progress import note, warn

State = Mapping[str, Any]


class Place(Protocol):
    """Where the checkpoint of one piece of work lies."""

    def write(self, file: Path) -> None:
        """Makes a file the newest checkpoint."""

    def read(self, file: Path) -> bool:
        """Brings the newest checkpoint to a file; False where there is none."""


class Checkpoints:
    """The checkpoints of a step.

    Args:
        place: where they lie; None keeps none.
        seconds: between two; 0 saves whenever asked.
        team: its leader writes.
    """

    def __init__(self, place: Place | None = None, seconds: float = 300.0, team: Team | None = None) -> None:
        self._place, self._seconds, self._team = place, seconds, team or Team()
        self._saved = time.monotonic()
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def resume(self) -> dict[str, Any] | None:
        """The newest state, on all processes; None where there is none."""
        if self._place is None:
            return None
        return self._team.agreed(self._read() if self._team.leads else None)

    def due(self) -> bool:
        """Whether it is time to save; every process must ask, and all get the leader's answer."""
        if self._place is None:
            return False
        # While one is still being written, training does not wait for it to begin the next.
        busy = self._seconds > 0 and self._writing is not None and not self._writing.done()
        return self._team.agreed(not busy and time.monotonic() - self._saved >= self._seconds)

    def save(self, state: State) -> None:
        """Saves a state as it is now; writing goes on in the background. On the leader alone.

        A failure is said and does not end the work: the checkpoint before is still there.
        """
        self._saved = time.monotonic()
        if self._place is None or not self._team.leads:
            return
        self._wait()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = self._writer.submit(self._write, self._place, _snapshot(state))

    def save_if_due(self, state: Callable[[], State]) -> None:
        """Saves where it is time; every process must ask."""
        if self.due():
            self.save(state())

    def close(self) -> None:
        """Waits for what is being written."""
        self._wait()
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    @staticmethod
    def _write(place: Place, state: State) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
                file = Path(folder) / "checkpoint.pt"
                torch.save(state, file)
                place.write(file)
        except Exception as error:
            # Whatever it is (torch reports a full disk as a RuntimeError of its zip writer), the training is worth more.
            reason = " ".join(str(error).split())[:300]
            warn(f"this checkpoint could not be saved ({reason}); training goes on, the one before is kept")

    def _read(self) -> dict[str, Any] | None:
        assert self._place is not None
        try:
            with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
                file = Path(folder) / "checkpoint.pt"
                if not self._place.read(file):
                    return None
                if not is_zipfile(file):
                    raise UnpicklingError
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except OSError as error:
            raise StepError(f"the checkpoint cannot be read ({error.strerror}); make room and run again") from None
        except UnpicklingError:
            warn("the checkpoint is not one; starting from the beginning")
            return None
        note("going on from the last checkpoint")
        return state


def _snapshot(value: Any) -> Any:
    """The same with its tensors copied to the CPU, so that training may go on meanwhile."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _snapshot(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_snapshot(inner) for inner in value)
    return value


def fold_seed(seed: int, fold: int) -> int:
    """The seed of a fold's trainings: another one for every fold of every run of up to 1,009 folds."""
    return seed * 1009 + fold


class RandomState:
    """All streams that a training draws from.

    Attributes:
        of_sites: order of wells and their sites, drawn at the start of an epoch and alike on all processes.
        of_views: views and jitter, one stream for each of this process's parts of a batch; on the CPU.

    Args:
        seed: of both.
        slots: the parts of a batch.
    """

    def __init__(self, seed: int | tuple[int, ...], slots: Slots) -> None:
        self.of_sites = np.random.default_rng(seed)
        # Where sites have a seed of several numbers, views are seeded by the first draw.
        views = seed if isinstance(seed, int) else int(self.of_sites.integers(2**62))
        self.of_views: list[Generator] = slots.generators(views)
        self._slots = slots
        if slots.team.size > 1:
            # Processes start with equal weights, and so from one seed; from here on each drops what it drops.
            torch.manual_seed(views + slots.team.rank)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Marks where an epoch's sites are drawn from: going on within it draws them again."""
        self._epoch = self.of_sites.bit_generator.state

    def state(self) -> dict[str, Any]:
        """Where all streams are; every process must ask."""
        return {
            "sites": self._epoch,
            "views": self._slots.states(self.of_views),
            "layers": self._slots.team.gathered(_of_layers()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Puts all streams back, that of the sites to the start of the epoch."""
        self.of_sites.bit_generator.state = state["sites"]
        self._slots.restore(self.of_views, state["views"])
        on_cpu, on_gpu = state["layers"][self._slots.team.rank]
        torch.set_rng_state(on_cpu)
        if on_gpu is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(on_gpu)
        self.begin_epoch()


def _of_layers() -> tuple[torch.Tensor, torch.Tensor | None]:
    """Torch's own streams, from which drop-out and its like draw: of the CPU, and of this process's GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None
