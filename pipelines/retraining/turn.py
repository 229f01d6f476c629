"""Whose turn it is to retrain a fingerprint on a machine of their own: one at a time, however many start. The store is passed in.

Who is at it renews its claim. One that is not renewed any more, by the clock of whoever looks, or whose process is gone from
the same machine, is taken over; what it had finished is found in the store. On a cluster Kubeflow knows what is in progress.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from components.core.config import FrozenModel
from components.core.errors import ContactError, InputError, StepError
from components.core.storage.interface import MissingObjectError, ObjectStorage

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES = Path("/proc/self/ns/pid")


class Claim(FrozenModel):
    """Who is at it, or how it ended."""

    id: str
    host: str
    process: int
    started: str
    state: Literal["working", "done", "failed"] = "working"
    kind: Literal["", "input", "step", "contact"] = ""
    message: str = ""
    beat: int = 0

    @classmethod
    def mine(cls) -> Claim:
        """A claim of this process."""
        return cls(id=uuid.uuid4().hex, host=_host(), process=os.getpid(), started=_started(os.getpid()))

    @property
    def who(self) -> str:
        """For people."""
        return f"process {self.process} on {self.host.partition(' ')[0]}"

    def process_gone(self) -> bool:
        """Whether it is of this machine, since its last start, and its process is not there any more."""
        if self.host != _host():
            return False
        started = _started(self.process)
        return started != self.started if started else not _is_there(self.process)


@dataclass(frozen=True)
class Patience:
    """Seconds.

    Attributes:
        beat: between two renewals.
        stale: without a renewal, until a claim is taken over; many beats.
        poll: between two looks of who waits.
    """

    beat: float = 15.0
    stale: float = 120.0
    poll: float = 2.0


@dataclass(frozen=True)
class Followed:
    """How the retraining of somebody else ended, which was followed.

    Attributes:
        claim: as it was left.
    """

    claim: Claim

    def raise_failure(self) -> None:
        """Raises what it failed with, if it did; of the same kind, so that the exit code is the same."""
        if self.claim.state == "failed":
            kinds = {"input": InputError, "contact": ContactError}
            raise kinds.get(self.claim.kind, StepError)(
                f"{self.claim.message} (in {self.claim.who}, which was followed)"
            )


@contextmanager
def turn(
    store: ObjectStorage, path: str, said: Callable[[str], None], patience: Patience | None = None
) -> Iterator[Followed | None]:
    """Waits until it is our turn, or somebody else has had theirs.

    Args:
        store: of the claim.
        path: key of the claim.
        said: hears that somebody else is at it.
        patience: how often is looked.

    Yields:
        None where it is our turn: others wait until this block ends, and hear of an error that leaves it. Else how the one
        that was followed ended.
    """
    pace = patience or Patience()
    mine = Claim.mine()
    followed = _take(store, path, mine, said, pace)
    if followed is not None:
        yield followed
        return
    beating = _Beating(store, path, mine, pace.beat)
    try:
        yield None
    except (InputError, StepError, ContactError) as error:
        kind: Literal["input", "step", "contact"] = (
            "input" if isinstance(error, InputError) else "contact" if isinstance(error, ContactError) else "step"
        )
        beating.end("failed", kind, " ".join(str(error).split()))
        raise
    except BaseException as error:
        beating.end("failed", "step", type(error).__name__)
        raise
    beating.end("done")


def in_progress(store: ObjectStorage, path: str) -> Claim | None:
    """Who is at it by the record; None where nobody is."""
    found = _look(store, path)
    return found[0] if found and found[0].state == "working" and not found[0].process_gone() else None


def _take(store: ObjectStorage, path: str, mine: Claim, said: Callable[[str], None], pace: Patience) -> Followed | None:
    """Returns when the claim is ours (None), or that of somebody else has ended."""
    content = mine.model_dump_json().encode()
    seen, since, watched = "", 0.0, None
    while True:
        if store.put_if_absent(path, content):
            return None
        found = _look(store, path)
        if found is None:
            continue
        claim, version = found
        if claim.state != "working" and claim.id == watched:
            return Followed(claim)
        if version != seen:
            seen, since = version, time.monotonic()
        stale = time.monotonic() - since > pace.stale
        if claim.state != "working" or claim.process_gone() or stale:
            if store.put_if_version(path, content, version):
                return None
            continue
        if watched != claim.id:
            watched = claim.id
            said(f"{claim.who} is retraining the same; it is followed, and no second one is started")
        time.sleep(pace.poll)


def _look(store: ObjectStorage, path: str) -> tuple[Claim, str] | None:
    try:
        content, version = store.get_versioned(path)
    except MissingObjectError:
        return None
    try:
        return Claim.model_validate_json(content), version
    except ValidationError:
        # Whatever it is, nobody is at it.
        return Claim(id="", host="", process=0, started="", state="failed", message="damaged claim"), version


class _Beating:
    """Renews a claim in a thread of its own until its end."""

    def __init__(self, store: ObjectStorage, path: str, claim: Claim, seconds: float) -> None:
        self._store, self._path, self._claim, self._seconds = store, path, claim, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.wait(self._seconds):
            with suppress(InputError, StepError):  # an outage; the next renewal may succeed
                self._replace(self._claim.model_copy(update={"beat": self._claim.beat + 1}))

    def end(
        self, state: Literal["done", "failed"], kind: Literal["", "input", "step", "contact"] = "", message: str = ""
    ) -> None:
        """Says how it ended; where that cannot be said, others take the claim over when it is stale."""
        self._ended.set()
        self._thread.join()
        with suppress(InputError, StepError):
            self._replace(self._claim.model_copy(update={"state": state, "kind": kind, "message": message}))

    def _replace(self, claim: Claim) -> None:
        """Writes the claim unless somebody has taken it over."""
        found = _look(self._store, self._path)
        content = claim.model_dump_json().encode()
        if found and found[0].id == claim.id and self._store.put_if_version(self._path, content, found[1]):
            self._claim = claim


def _host() -> str:
    """This machine since its last start; in a container the container, whose name may be the machine's own."""
    try:
        boot, processes = _BOOT.read_text().strip(), str(_PROCESSES.readlink())
    except OSError:
        boot = processes = ""
    return f"{platform.node()} {boot} {processes}".rstrip()


def _started(process: int) -> str:
    """When a process was started, so that a later one of the same number is not taken for it; empty where nothing is told."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_there(process: int) -> bool:
    """Whether there is a process of this number; other users' may be hidden in /proc."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is not ours to signal
    return True
