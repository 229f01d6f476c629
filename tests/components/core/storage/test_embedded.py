"""The embedded server lives from its first user to its last, whatever becomes of them, and its data outlive it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from components.core.errors import InputError, StepError
from components.core.storage.embedded import EmbeddedStore
from components.core.storage.endpoint import Endpoint
from components.core.storage.object_store import ObjectStore
from components.core.storage.server_folder import ServerFolder, ServerState

ROOT = Path(__file__).resolve().parents[4]
USER = """
import sys
from pathlib import Path
from components.core.storage.embedded import EmbeddedStore
with EmbeddedStore(Path(sys.argv[1])) as server:
    print(server.environment()["AWS_ENDPOINT_URL"], flush=True)
    sys.stdin.read()
"""


def _store(server: EmbeddedStore) -> ObjectStore:
    server.create_bucket("cellsignal")
    return ObjectStore(Endpoint.from_environment(server.environment()), "cellsignal")


def _state(data_dir: Path) -> ServerState:
    state = ServerFolder(data_dir).read_state()
    assert state is not None
    return state


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _soon(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def _gone(data_dir: Path, state: ServerState) -> bool:
    return ServerFolder(data_dir).read_state() is None and not _alive(state.weed) and not _alive(state.supervisor)


@contextmanager
def _user_process(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(data_dir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_data_outlive_the_server_which_leaves_nothing_running(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as server:
        state = _state(tmp_path)
        _store(server).put("plate/site", b"pixels")
        assert os.getsid(state.supervisor) != os.getsid(0)  # Ctrl-C in this terminal does not reach it
    assert _gone(tmp_path, state)
    assert not any(path.exists() for path in state.ports.socket_files())
    with EmbeddedStore(tmp_path) as server:
        assert _store(server).get("plate/site") == b"pixels"
    with socket.create_server(("127.0.0.1", state.ports.http["s3"])), EmbeddedStore(tmp_path) as server:
        assert _state(tmp_path).url != state.url  # somebody else has the port now
        store = _store(server)
        assert store.get("plate/site") == b"pixels"
        store.put("plate/site2", b"more")
        assert store.get_many(["plate/site", "plate/site2"]) == [b"pixels", b"more"]


def test_users_share_one_server_and_the_last_stops_it(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as first:
        state = _state(tmp_path)
        with EmbeddedStore(tmp_path) as second:
            assert second.environment() == first.environment()
        time.sleep(1)  # three polls of the supervisor
        _store(first).put("a", b"1")
    assert _gone(tmp_path, state)


def test_processes_that_start_together_share_one_server_which_ends_when_they_are_killed(tmp_path: Path) -> None:
    with _user_process(tmp_path) as one, _user_process(tmp_path) as two, _user_process(tmp_path) as three:
        assert len({_line(one), _line(two), _line(three)}) == 1
        state = _state(tmp_path)
        one.kill()
        two.kill()
        time.sleep(1)
        assert _alive(state.weed)
        three.kill()
        assert _soon(lambda: _gone(tmp_path, state))


def test_a_server_that_is_killed_is_replaced_for_the_next_user(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as first:
        _store(first).put("a", b"1")
        state = _state(tmp_path)
        os.kill(state.weed, signal.SIGKILL)
        assert _soon(lambda: ServerFolder(tmp_path).read_state() is None)
        with EmbeddedStore(tmp_path) as second:
            assert _store(second).get("a") == b"1"
            state = _state(tmp_path)
            os.kill(state.supervisor, signal.SIGKILL)
            assert _soon(lambda: not _alive(state.weed))
            with EmbeddedStore(tmp_path) as third:
                assert _store(third).get("a") == b"1"
                state = _state(tmp_path)
    assert _soon(lambda: _gone(tmp_path, state), seconds=5)


def test_the_secret_is_in_no_argument_log_or_readable_file(embedded_store: EmbeddedStore) -> None:
    secret = embedded_store.environment()["AWS_SECRET_ACCESS_KEY"]
    state = _state(embedded_store.data_dir)
    assert len(secret) >= 30
    assert secret not in repr(embedded_store) + repr(state)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        assert secret.encode() not in arguments
    assert secret.encode() not in Path(f"/proc/{state.weed}/environ").read_bytes()
    folder = ServerFolder(embedded_store.data_dir)
    assert folder.server.stat().st_mode & 0o777 == 0o700
    assert folder.volumes.stat().st_mode & 0o777 == 0o700
    holding = [p for p in folder.server.iterdir() if p.is_file() and secret.encode() in p.read_bytes()]
    assert sorted(p.name for p in holding) == ["s3.json", "state.json"]
    assert {p.stat().st_mode & 0o777 for p in holding} == {0o600}


def test_it_listens_on_loopback_only_and_refuses_strangers(embedded_store: EmbeddedStore) -> None:
    ports = _state(embedded_store.data_dir).ports
    listening = {f"{port:04X}" for port in (*ports.http.values(), *ports.grpc.values())}
    entries = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    hosts = {entry[1].split(":")[0] for entry in entries if entry[3] == "0A" and entry[1].split(":")[1] in listening}
    assert hosts == {"0100007F"}
    environment = {**embedded_store.environment(), "AWS_SECRET_ACCESS_KEY": "guess"}
    with pytest.raises(InputError, match="refused the credentials"):
        ObjectStore(Endpoint.from_environment(environment), "cellsignal").check()


def test_the_environment_leads_past_a_proxy_and_a_foreign_session(
    embedded_store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another account")
    for name, value in embedded_store.environment().items():
        monkeypatch.setenv(name, value)
    store = ObjectStore.connect("cellsignal", "proxied")
    store.put("a", b"1")
    assert store.list() == ["a"]


def test_a_bucket_name_is_checked_and_an_existing_bucket_kept(embedded_store: EmbeddedStore) -> None:
    with pytest.raises(InputError, match="bucket 'B': use 3 to 63"):
        embedded_store.create_bucket("B")
    store = _store(embedded_store)
    store.put("kept", b"1")
    embedded_store.create_bucket("cellsignal")
    assert store.get("kept") == b"1"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/data: .*cannot be written here .*--store"):
        EmbeddedStore(tmp_path / "file" / "data").__enter__()


def test_a_server_that_does_not_start_shows_its_log_and_leaves_nothing(tmp_path: Path) -> None:
    ServerFolder(tmp_path).create()
    (tmp_path / "volumes" / "filerldb2").write_text("a file where weed keeps its database")
    with pytest.raises(StepError, match=r"did not start \(.*filerldb2.*weed\.log\)") as caught:
        EmbeddedStore(tmp_path).__enter__()
    assert "\n" not in str(caught.value)
    assert ServerFolder(tmp_path).read_state() is None
