"""Fixtures for the whole suite: a real object store (SeaweedFS on loopback), one server a session or xdist worker."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from components.core.storage.embedded import EmbeddedStore
from components.core.storage.folder_store import FolderStore
from components.core.storage.object_store import ObjectStore

# One torch thread, before anything loads torch: networks as small as the tests' are summed in another order when their
# few channels are shared among threads, and the tests compare weights bit for bit.
os.environ["OMP_NUM_THREADS"] = "1"

BUCKET = "cellsignal"


@pytest.fixture(scope="session")
def embedded_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """A running server with the bucket `cellsignal`; the environment is left alone (`store` sets it for a test)."""
    with EmbeddedStore(tmp_path_factory.mktemp("object-store")) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture
def store(embedded_store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty store: a prefix of its own in the session's bucket, the AWS variables set for this test."""
    for name, value in embedded_store.environment().items():
        monkeypatch.setenv(name, value)
    return ObjectStore.connect(BUCKET, f"test-{uuid.uuid4().hex}")


@pytest.fixture(params=["s3", "folder"])
def either_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ObjectStore | FolderStore:
    """An empty store of either kind, for what must hold of both: a prefix of a bucket, or a folder outside of the test's."""
    if request.param == "folder":
        return FolderStore(tmp_path_factory.mktemp("store"))
    store: ObjectStore = request.getfixturevalue("store")
    return store
