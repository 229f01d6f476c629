"""Fixtures for the whole suite: a real object store (SeaweedFS on loopback), one server a session or xdist worker."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator

import pytest

from components.core.storage.object_store import ObjectStore
from tests import seaweedfs
from tests.seaweedfs import BUCKET, S3Server

# One torch thread, before anything loads torch: networks as small as the tests' are summed in another order when their
# few channels are shared among threads, and the tests compare weights bit for bit.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_default_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The default store of tests is theirs, and no choice in the shell counts."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name in ("CELLSIGNAL_STORE", "CELLSIGNAL_CONFIG"):
            patched.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def _restore_signal_handlers() -> Iterator[None]:
    """A command that a test calls in this process installs handlers of SIGINT and SIGTERM; they end with the test."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running server with the bucket `cellsignal`; the environment is left alone (`store` sets it for a test)."""
    with seaweedfs.s3_server(tmp_path_factory.mktemp("object-store")) as server:
        yield server


@pytest.fixture
def store(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty store: a prefix of its own in the session's bucket, the AWS variables set for this test."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return ObjectStore(f"s3://{BUCKET}/test-{uuid.uuid4().hex}")


@pytest.fixture(params=["s3", "folder"])
def either_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    """An empty store of either kind, for what must hold of both: a prefix of a bucket, or a folder outside of the test's."""
    if request.param == "folder":
        return ObjectStore(tmp_path_factory.mktemp("store"))
    store: ObjectStore = request.getfixturevalue("store")
    return store
