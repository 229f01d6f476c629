"""A real S3 server (SeaweedFS) on loopback for laptop, CI and tests: users attach to one server per data folder.

The first user starts it, the last one stops it, kill -9 included: see server_folder.py for the locks that see to it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from botocore.exceptions import BotoCoreError, ClientError

from components.core.errors import InputError, StepError
from components.core.storage.endpoint import Endpoint
from components.core.storage.seaweedfs import HOST, last_log_lines, weed_binary
from components.core.storage.server_folder import FileLock, ServerFolder, ServerState

_REGION = "us-east-1"
_START_SECONDS = 90.0
_ANSWER_SECONDS = 30.0
_LEAVE_SECONDS = 20.0


class EmbeddedStore:
    """The server of a data folder, for as long as the `with` block lasts.

    The data outlive the server. Concurrent processes with the same folder share one server.
    Entering raises InputError where the folder cannot be written, StepError where the server does not start.
    """

    def __init__(self, data_dir: Path) -> None:
        """Takes the folder of the data; made when missing, in the block only."""
        self.data_dir = Path(data_dir).expanduser().absolute()
        self._folder = ServerFolder(self.data_dir)
        self._state: ServerState | None = None
        self._users: FileLock | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"EmbeddedStore({str(self.data_dir)!r})"

    def __enter__(self) -> EmbeddedStore:
        weed_binary()  # its absence is an error of its own
        try:
            self._folder.create()
            start = FileLock(self._folder.start_lock)
            users = FileLock(self._folder.users_lock)
        except OSError as error:
            raise InputError(
                f"{self.data_dir}: the object store's data cannot be written here ({error.strerror}); "
                "choose another folder with --store"
            ) from None
        try:
            with start:
                start.exclusive()
                users.shared()  # waits out a server that is just being stopped
                self._state = self._attach() or self._start()
        except BaseException:
            users.close()
            raise
        self._users = users
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._users is not None:
            self._users.close()
            self._users = None
            self._state = None
            self._wait_if_last()

    def environment(self) -> dict[str, str]:
        """The variables that lead any S3 client in this or a child process to the server.

        The session token is empty on purpose: one from the user's shell would not match these credentials.
        Where the shell names a proxy, NO_PROXY is among them, since a proxy cannot reach this machine's loopback.
        """
        state = self._running()
        direct = {}
        if any(os.environ.get(name) for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")):
            excluded = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
            direct = dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(filter(None, (excluded, HOST))))
        return {
            **direct,
            "AWS_ENDPOINT_URL": state.url,
            "AWS_ACCESS_KEY_ID": state.access_key,
            "AWS_SECRET_ACCESS_KEY": state.secret_key,
            "AWS_SESSION_TOKEN": "",
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,
        }

    def create_bucket(self, name: str) -> None:
        """Creates the bucket unless it is there.

        Raises:
            InputError: not a bucket name (3 to 63 of a-z, 0-9, dot and hyphen).
            StepError: the server failed.
        """
        endpoint = self._endpoint(self._running())
        try:
            endpoint.control_client().create_bucket(Bucket=name)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
                return
            if code == "InvalidBucketName":
                raise InputError(f"bucket {name!r}: use 3 to 63 of a-z, 0-9, dot and hyphen (store.bucket)") from None
            raise StepError(f"bucket {name!r}: the embedded store cannot create it ({code})") from None
        except BotoCoreError as error:
            raise InputError(f"bucket {name!r}: {endpoint.conceal(str(error))}") from None

    def _running(self) -> ServerState:
        if self._state is None:
            raise RuntimeError("EmbeddedStore is used outside of its `with` block")
        return self._state

    def _attach(self) -> ServerState | None:
        """The running server, or None where there is none; we hold the users' lock, so it cannot be stopping."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while (state := self._folder.read_state()) is not None:
            if self._answers(state):
                return state
            with FileLock(self._folder.server_lock) as server:
                if server.try_exclusive():  # neither supervisor nor weed lives; the next supervisor cleans up
                    return None
            if time.monotonic() > deadline:
                raise StepError(f"{self.data_dir}: the object store runs but does not answer ({self._log()})")
            time.sleep(0.2)
        return None

    def _start(self) -> ServerState:
        root = Path(__file__).resolve().parents[3]
        path = os.pathsep.join(p for p in (str(root), os.environ.get("PYTHONPATH", "")) if p)
        with (self._folder.server / "supervisor.log").open("wb") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-m", "components.core.storage.supervisor", str(self.data_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._supervisor.poll() is None:
            state = self._folder.read_state()
            if state is not None and state.supervisor == self._supervisor.pid and self._answers(state):
                return state
            time.sleep(0.05)
        raise StepError(f"{self.data_dir}: the object store did not start ({self._log()})")

    def _answers(self, state: ServerState) -> bool:
        """Whether the server takes a signed request, so that a stranger on the same port is not mistaken for it."""
        try:
            self._endpoint(state).control_client(impatient=True).list_buckets()
        except (ClientError, BotoCoreError):
            return False
        return True

    def _endpoint(self, state: ServerState) -> Endpoint:
        return Endpoint(state.url, _REGION, state.access_key, state.secret_key)

    def _log(self) -> str:
        folder = self._folder.server
        return f"{last_log_lines(folder)}; all of it in {folder / 'weed.log'}"

    def _wait_if_last(self) -> None:
        """Returns once the server is gone, or at once when somebody else uses it."""
        deadline = time.monotonic() + _LEAVE_SECONDS
        while time.monotonic() < deadline and not self._gone_or_needed():
            time.sleep(0.1)
        if self._supervisor is not None and self._folder.read_state() is None:
            # The supervisor gives its locks up a moment before it ends; ours to reap, since we started it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._supervisor.wait(timeout=5)

    def _gone_or_needed(self) -> bool:
        # Under the start lock nobody else arrives or probes, so what the other locks say has one meaning.
        with FileLock(self._folder.start_lock) as start:
            if not start.try_exclusive():
                return False
            with FileLock(self._folder.server_lock) as server:
                if server.try_exclusive():
                    return True
            with FileLock(self._folder.users_lock) as users:
                if users.try_exclusive():  # nobody: the supervisor is about to notice
                    return False
                return users.try_shared()  # refused: the supervisor is stopping the server
