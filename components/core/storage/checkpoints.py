"""The checkpoint of an unfinished step in the object store: one at a time, complete or absent.

checkpoints/<step>/<key>/<name>         the upload of one save
checkpoints/<step>/<key>/latest.json    names the newest, with its size and digest; written after it

<key> is the key of the step's finished outputs. Steps of one key side by side compute the same, so any of their checkpoints may be
the newest; each deletes only those that it wrote itself or resumed from.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from components.core.errors import MissingObjectError
from components.core.progress import warn
from components.core.storage.digests import digest_file
from components.core.storage.finished import DamagedError, StoredFile, download_checked

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore


class CheckpointStore:
    """The checkpoint of one step and key, in the store of its finished outputs."""

    def __init__(self, store: ObjectStore, step: str, key: str) -> None:
        self._store = store
        self._folder = f"checkpoints/{step}/{key}"
        self._own: str | None = None

    def write(self, file: Path) -> None:
        """Uploads a file as the newest checkpoint, then deletes the one before, which stays if the store fails."""
        latest = StoredFile(path=f"{uuid.uuid4().hex}.pt", size=file.stat().st_size, sha256=digest_file(file))
        self._store.upload_file(file, f"{self._folder}/{latest.path}")
        self._store.put(f"{self._folder}/latest.json", latest.model_dump_json().encode())
        before, self._own = self._own, latest.path
        if before is not None:
            self._store.delete(f"{self._folder}/{before}")

    def read(self, file: Path) -> bool:
        """Downloads the newest checkpoint; False if there is none, or it is damaged, after a warning."""
        damaged = b""
        while True:
            try:
                content = self._store.get(f"{self._folder}/latest.json")
            except MissingObjectError:
                return False
            try:
                latest = StoredFile.model_validate_json(content)
                download_checked(self._store, f"{self._folder}/{latest.path}", latest, file)
            except (ValidationError, DamagedError) as error:
                if content != damaged:  # a step of the same key may have put a newer one in its place
                    damaged = content
                    continue
                reason = error if isinstance(error, DamagedError) else "latest.json cannot be read"
                warn(f"{self._store.uri(self._folder)}: {reason}; starting from the beginning")
                return False
            self._own = latest.path
            return True

    def clear(self) -> None:
        """Deletes all checkpoints of the key: the step has finished."""
        self._store.delete_prefix(f"{self._folder}/")
