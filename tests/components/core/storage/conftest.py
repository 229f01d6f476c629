"""Both kinds of store, for what must hold of either."""

from __future__ import annotations

import pytest

from components.core.storage.folder_store import FolderStore
from components.core.storage.interface import ObjectStorage


@pytest.fixture(params=["s3", "folder"])
def either_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ObjectStorage:
    """An empty store: a prefix of a bucket, or a folder outside of the test's own."""
    if request.param == "folder":
        return FolderStore(tmp_path_factory.mktemp("store"))
    store: ObjectStorage = request.getfixturevalue("store")
    return store
