"""Saves the whole state of a training by time, random numbers included, and resumes from it after a kill. torch only.

A state is plain data: numbers, strings, lists, dictionaries and tensors, so that reading it runs no code. A step has one
checkpoint, an object that is complete or absent. Steps of one key side by side compute the same, so any of them may write it.
"""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import numpy as np
import torch
from torch import Generator, Tensor

from components.core.errors import MissingObjectError, StepError
from components.core.learning.team import ALONE, Slots, Team
from components.core.progress import note, warn

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

State = Mapping[str, Any]


class Checkpoints:
    """The checkpoints of a step, which the team's leader writes.

    Args:
        store: None keeps none.
        key: the checkpoint's key in the store.
        seconds: time between two checkpoints; 0 saves at every opportunity.
        team: the processes that share the step.
    """

    def __init__(
        self, store: ObjectStore | None = None, key: str = "", seconds: float = 300.0, team: Team = ALONE
    ) -> None:
        self._store, self._key, self._seconds, self._team = store, key, seconds, team
        self._saved = time.monotonic()
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def resume(self) -> dict[str, Any] | None:
        """The newest state, on all processes; None if there is none."""
        if self._store is None:
            return None
        return self._team.agreed(self._read() if self._team.leads else None)

    def _due(self) -> bool:
        """Whether it is time to save; all processes get the leader's answer."""
        if self._store is None:
            return False
        # Training does not wait for a checkpoint that is still being written.
        busy = self._seconds > 0 and self._writing is not None and not self._writing.done()
        return self._team.agreed(not busy and time.monotonic() - self._saved >= self._seconds)

    def save(self, state: State) -> None:
        """Takes a snapshot of a state and writes it in the background; only the leader writes.

        A failure to write is a warning and does not end the training: the previous checkpoint is still there.
        """
        self._saved = time.monotonic()
        if self._store is None or not self._team.leads:
            return
        self._wait()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = self._writer.submit(self._write, self._store, self._key, _snapshot(state))

    def save_if_due(self, state: Callable[[], State]) -> None:
        """Saves if it is time; every process must call it."""
        if self._due():
            self.save(state())

    def close(self) -> None:
        """Waits for the checkpoint that is being written."""
        self._wait()
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    @staticmethod
    def _write(store: ObjectStore, key: str, state: State) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
                file = Path(folder) / "checkpoint.pt"
                torch.save(state, file)
                store.upload_file(file, key)
        except Exception as error:
            # Any error (torch reports a full disk as a RuntimeError of its zip writer): the training is worth more.
            reason = " ".join(str(error).split())[:300]
            warn(f"this checkpoint could not be saved ({reason}); training continues, the previous one is kept")

    def _read(self) -> dict[str, Any] | None:
        assert self._store is not None
        try:
            with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
                file = Path(folder) / "checkpoint.pt"
                self._store.download_file(self._key, file)
                state = _load(file)
        except MissingObjectError:
            return None
        except OSError as error:
            raise StepError(f"the checkpoint cannot be read ({error.strerror}); make room and run again") from None
        if state is None:
            warn(f"{self._store.uri(self._key)}: damaged; starting from the beginning")
        else:
            note("resuming from the last checkpoint")
        return state


def _load(file: Path) -> dict[str, Any] | None:
    """The state in a file; None if it is damaged, which zipfile and torch report by errors of many types."""
    try:
        with ZipFile(file) as archive:  # torch does not compare checksums
            if archive.testzip():
                return None
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which a damaged offset is
            raise
        return None
    return state


def _snapshot(value: Any) -> Any:
    """A copy with its tensors on the CPU, so that training can continue while it is written."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _snapshot(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_snapshot(inner) for inner in value)
    return value


class RandomState:
    """All random streams of a training, which a checkpoint saves and restores.

    Attributes:
        of_sites: order of wells and their sites; drawn at the start of an epoch, equal on all processes.
        of_views: views and jitter, on the CPU, one stream for each of this process's parts of a batch.
    """

    def __init__(self, seed: int | tuple[int, ...], slots: Slots) -> None:
        self.of_sites = np.random.default_rng(seed)
        # If the seed is several numbers, views are seeded by the first draw.
        views = seed if isinstance(seed, int) else int(self.of_sites.integers(2**62))
        self.of_views: list[Generator] = slots.generators(views)
        self._slots = slots
        if slots.team.size > 1:
            # Processes start with equal weights, so from one seed; from here on each drops different units.
            torch.manual_seed(views + slots.team.rank)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Marks the point from which an epoch's sites are drawn: a training that resumes within it draws them again."""
        self._epoch = self.of_sites.bit_generator.state

    def state(self) -> dict[str, Any]:
        """The state of all streams; every process must call it."""
        return {
            "sites": self._epoch,
            "views": self._slots.states(self.of_views),
            "layers": self._slots.team.gathered(_torch_state()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restores all streams, that of the sites to the start of the epoch."""
        self.of_sites.bit_generator.state = state["sites"]
        self._slots.restore(self.of_views, state["views"])
        on_cpu, on_gpu = state["layers"][self._slots.team.rank]
        torch.set_rng_state(on_cpu)
        if on_gpu is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(on_gpu)
        self.begin_epoch()


def _torch_state() -> tuple[Tensor, Tensor | None]:
    """Torch's own streams, which layers such as dropout draw from: of the CPU, and of this process's GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None
