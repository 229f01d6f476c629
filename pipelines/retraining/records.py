"""What the object store remembers of retrainings, so that the next one knows what the last one came to. The store is passed in.

retrainings/NAME/latest.json               the last one that was concluded
retrainings/NAME/FINGERPRINT/start.json    the configuration that all who retrain this fingerprint use
retrainings/NAME/FINGERPRINT/turn.json     who is at it on a machine of their own, see turn.py
retrainings/NAME/FINGERPRINT/outcome.json  what it came to
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import AwareDatetime, Field, ValidationError

from components.core.config import FrozenModel
from components.core.errors import InputError
from components.core.storage.interface import MissingObjectError, ObjectStorage
from pipelines.retraining.fingerprint import Fingerprint

SCHEMA = 1
RETRAININGS = "retrainings"
_Record = TypeVar("_Record", bound=FrozenModel)


class Start(FrozenModel):
    """What a retraining starts from; whoever comes first decides it for all."""

    retraining_schema: int = SCHEMA
    config: dict[str, Any] = Field(description="the whole configuration of the challenger's run")
    fold_source: str | None = Field(description="model whose folds the known experiments keep")
    at: AwareDatetime
    by: str


class Outcome(FrozenModel):
    """What a retraining came to."""

    retraining_schema: int = SCHEMA
    name: str = Field(description="of the configuration")
    fingerprint: Fingerprint
    run: str = Field(description="key of the challenger's run")
    model: str = Field(description="fingerprint of the challenger")
    champion: str | None = Field(description="fingerprint of the model that it was compared with")
    generation: int = Field(description="of the champion afterwards; 0 for none")
    promoted: bool = Field(description="whether the challenger is the champion since")
    reason: str = Field(description="one line")
    looked: AwareDatetime = Field(description="when the screen was looked at whose state this is")
    at: AwareDatetime = Field(description="when it was decided")
    by: str


def source_of(name: str, digest: str = "") -> str:
    """The prefix of a configuration's retrainings, or of one of them; without a slash at its end."""
    return "/".join(part for part in (RETRAININGS, name, digest) if part)


def read_latest(store: ObjectStorage, name: str) -> Outcome | None:
    """The last retraining of a configuration that was concluded; None where there is none."""
    return _read(store, f"{source_of(name)}/latest.json", Outcome)


def read_outcome(store: ObjectStorage, name: str, digest: str) -> Outcome | None:
    """What one came to; None where it is not concluded."""
    return _read(store, f"{source_of(name, digest)}/outcome.json", Outcome)


def write_outcome(store: ObjectStorage, outcome: Outcome) -> None:
    """Concludes a retraining; the last one stays where it is of a later state of the screen."""
    content, latest = outcome.model_dump_json(indent=1).encode(), f"{source_of(outcome.name)}/latest.json"
    store.put(f"{source_of(outcome.name, outcome.fingerprint.digest)}/outcome.json", content)
    while not store.put_if_absent(latest, content):
        try:
            there, version = store.get_versioned(latest)
        except MissingObjectError:
            continue
        known = _parsed(store.uri(latest), there, Outcome)
        if known.looked > outcome.looked or store.put_if_version(latest, content, version):
            return


def read_start(store: ObjectStorage, name: str, digest: str) -> Start | None:
    """What a retraining was started from; None where it was not."""
    return _read(store, f"{source_of(name, digest)}/start.json", Start)


def agree(store: ObjectStorage, name: str, digest: str, mine: Start) -> Start:
    """The start of whoever came first, which is ours where nobody did."""
    path = f"{source_of(name, digest)}/start.json"
    if store.put_if_absent(path, mine.model_dump_json(indent=1).encode()):
        return mine
    return _read(store, path, Start) or mine


def now() -> datetime:
    """By this machine's clock."""
    return datetime.now(UTC)


def _read(store: ObjectStorage, path: str, kind: type[_Record]) -> _Record | None:
    try:
        return _parsed(store.uri(path), store.get(path), kind)
    except MissingObjectError:
        return None


def _parsed(where: str, content: bytes, kind: type[_Record]) -> _Record:
    try:
        plain = json.loads(content)
        if int(plain["retraining_schema"]) > SCHEMA:
            raise InputError(
                f"{where}: retraining schema {plain['retraining_schema']} is newer than this version reads ({SCHEMA}); "
                "upgrade cellsignal"
            )
        return kind.model_validate(plain)
    except InputError:
        raise
    except (ValidationError, ValueError, KeyError, TypeError):
        raise InputError(f"{where}: damaged, not a record of a retraining; delete it and retrain") from None
