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

from pydantic import Field, ValidationError

from components.core.config import FrozenModel
from components.core.errors import MissingObjectError
from components.core.progress import warn
from components.core.storage.digests import digest_file

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

CHECKPOINTS = "checkpoints"


class Latest(FrozenModel):
    """The content of latest.json."""

    name: str = Field(pattern=r"^[0-9a-f]+\.pt$")
    size: int
    sha256: str


class CheckpointStore:
    """The checkpoint of one step and key.

    Args:
        store: where finished outputs are kept as well.
        step: the step's name.
        key: digest of the step's inputs.
    """

    def __init__(self, store: ObjectStore, step: str, key: str) -> None:
        self._store = store
        self._folder = f"{CHECKPOINTS}/{step}/{key}"
        self._own: str | None = None

    def write(self, file: Path) -> None:
        """Uploads a file as the newest checkpoint, then deletes the one before.

        Raises:
            StepError: the store failed; the checkpoint before is still there.
            InputError: the store refuses the credentials.
        """
        latest = Latest(name=f"{uuid.uuid4().hex}.pt", size=file.stat().st_size, sha256=digest_file(file))
        self._store.upload_file(file, f"{self._folder}/{latest.name}")
        self._store.put(f"{self._folder}/latest.json", latest.model_dump_json().encode())
        before, self._own = self._own, latest.name
        if before is not None:
            self._store.delete(f"{self._folder}/{before}")

    def read(self, file: Path) -> bool:
        """Downloads the newest checkpoint; False if there is none, or it is damaged, after a warning.

        Raises:
            StepError: the store failed.
            InputError: the store refuses the credentials, or the file cannot be written.
        """
        missing = ""
        while True:
            try:
                latest = Latest.model_validate_json(self._store.get(f"{self._folder}/latest.json"))
            except MissingObjectError:
                return False
            except ValidationError:
                warn(f"{self._store.uri(self._folder)}/latest.json: cannot be read; starting from the beginning")
                return False
            try:
                self._store.download_file(f"{self._folder}/{latest.name}", file)
                break
            except MissingObjectError:
                # A step of the same key may have put a newer one in its place since.
                if latest.name == missing:
                    warn(f"{self._store.uri(self._folder)}/{latest.name}: missing; starting from the beginning")
                    return False
                missing = latest.name
        if file.stat().st_size != latest.size or digest_file(file) != latest.sha256:
            warn(f"{self._store.uri(self._folder)}/{latest.name}: damaged; starting from the beginning")
            return False
        self._own = latest.name
        return True

    def clear(self) -> None:
        """Deletes all checkpoints of the key: the step has finished.

        Raises:
            StepError: the store failed.
        """
        self._store.delete_prefix(f"{self._folder}/")
