"""Owns one embedded server from its first user to its last. Runs as `python -m components.core.storage.supervisor DIR`.

A process of its own session: Ctrl-C in a user's terminal does not reach it. It ends when nobody holds the users' lock,
when weed ends, or on SIGTERM; in each case the state file goes first. Standard library only, so that it stays small.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from components.core.storage.seaweedfs import Ports, remove_sockets, start_weed, stop_weed, wait_until_ready
from components.core.storage.server_folder import FileLock, ServerFolder, ServerState

_POLL_SECONDS = 0.3
_START_ATTEMPTS = 4  # anybody may take a port between its choice and its use; then others are tried
_READY_SECONDS = 45.0


def main(data_dir: Path) -> int:
    """Runs the server until it is no longer needed; the exit code is 0 when it was stopped for lack of users."""
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder = ServerFolder(data_dir)
    with FileLock(folder.server_lock) as server_lock, FileLock(folder.users_lock) as users_lock:
        _end_orphan(folder)
        if not server_lock.try_exclusive(seconds=10):
            return _give_up("another server runs on this folder")
        for attempt in range(_START_ATTEMPTS):
            last = folder.last_ports() if attempt == 0 else None
            ports = last if last is not None and last.are_free() else Ports.free()
            access_key, secret_key = secrets.token_hex(10), secrets.token_urlsafe(30)
            weed = start_weed(folder.volumes, folder.server, ports, access_key, secret_key, (server_lock.descriptor,))
            try:
                if was_ready := wait_until_ready(weed, ports, folder.volumes, _READY_SECONDS):
                    folder.write_state(ServerState(os.getpid(), weed.pid, ports, access_key, secret_key))
                    # Once ours, the users' lock stays ours until the server is gone: a newcomer waits for that.
                    while not stopping and weed.poll() is None and not users_lock.try_exclusive():
                        time.sleep(_POLL_SECONDS)
                died = weed.poll() is not None
            finally:
                folder.remove_state()
                stop_weed(weed, ports)
            if was_ready:
                return _give_up("weed ended by itself") if died else 0
    return _give_up("weed did not start")


def _end_orphan(folder: ServerFolder) -> None:
    """Kills a weed that outlived its supervisor (where the kernel does not do it), if its arguments prove it ours."""
    state = folder.read_state()
    if state is None:
        return
    listed = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(state.weed)], capture_output=True, text=True, check=False
    )
    if f"-dir={folder.volumes} " in listed.stdout:
        os.kill(state.weed, signal.SIGKILL)
    folder.remove_state()
    remove_sockets(state.ports)


def _give_up(reason: str) -> int:
    print(f"supervisor: {reason}", file=sys.stderr)  # noqa: T201 - its log is all it has
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
