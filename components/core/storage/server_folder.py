"""What an embedded server's users and its supervisor agree on: the folder, its kernel locks and its state file.

Locks are flock(2): the kernel frees them however their holder ends. Three of them:

* `start.lock`, exclusive: one process at a time starts, attaches or leaves;
* `users.lock`, shared by every user; the supervisor stops the server as soon as it gets it exclusively;
* `server.lock`, exclusive: held by the supervisor and inherited by weed, so that one data folder has one server.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from components.core.storage.seaweedfs import HOST, Ports


@dataclass(frozen=True)
class ServerState:
    """A running server: who supervises it, where it listens and with which credentials."""

    supervisor: int
    weed: int
    ports: Ports
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)

    @property
    def url(self) -> str:
        """The S3 endpoint."""
        return f"http://{HOST}:{self.ports.http['s3']}"


class ServerFolder:
    """The data folder of an embedded server: `volumes` for the objects, `server` (mode 0700) for everything else."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.volumes = data_dir / "volumes"
        self.server = data_dir / "server"
        self.start_lock = self.server / "start.lock"
        self.users_lock = self.server / "users.lock"
        self.server_lock = self.server / "server.lock"
        self._state = self.server / "state.json"
        self._ports = self.server / "ports.json"

    def create(self) -> None:
        """Makes the folders, readable by this user only: neither images nor credentials are for others.

        Raises:
            OSError: the folder cannot be made or written.
        """
        self.data_dir.mkdir(parents=True, exist_ok=True)
        for folder in (self.volumes, self.server):
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)

    def write_state(self, state: ServerState) -> None:
        """Publishes the running server to its users, and remembers its ports for the next start."""
        _write_private(self._state, json.dumps(asdict(state)))
        _write_private(self._ports, json.dumps(asdict(state.ports)))

    def read_state(self) -> ServerState | None:
        """The running server, or None."""
        try:
            data = json.loads(self._state.read_text())
        except FileNotFoundError:
            return None
        return ServerState(**{**data, "ports": Ports(**data["ports"])})

    def remove_state(self) -> None:
        """No server runs here any more."""
        self._state.unlink(missing_ok=True)

    def last_ports(self) -> Ports | None:
        """Where the last server listened; the same ports keep its addresses valid across runs."""
        try:
            return Ports(**json.loads(self._ports.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None


class FileLock:
    """One holder's flock on a file. Not inherited by child processes unless passed on by number."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def shared(self) -> None:
        """Waits for a shared hold."""
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    def exclusive(self) -> None:
        """Waits for an exclusive hold."""
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Whether a shared hold was to be had at once."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self, seconds: float = 0.0) -> bool:
        """Whether an exclusive hold was to be had within the time."""
        deadline = time.monotonic() + seconds
        while not self._try(fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True

    def close(self) -> None:
        """Gives the hold up."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self.descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _write_private(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)
