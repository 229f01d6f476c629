"""Which model is the champion: one object in the store, replaced only by conditional write. The store is passed in.

models/champion.json    the champion and those before it, newest first

Whoever wants to replace it says which generation they have seen; where another was promoted meanwhile, nothing is written.
Every change has an id of its own, by which a writer that lost its answer finds out whether the change was made.
"""

from __future__ import annotations

import getpass
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from components.core.config import FrozenModel
from components.core.errors import InputError
from components.core.registry.model_manifest import FINGERPRINT, MANIFEST, MODELS
from components.core.storage.interface import MissingObjectError, ObjectStorage

SCHEMA = 1
CHAMPION = f"{MODELS}/champion.json"


class Reign(FrozenModel):
    """A model's time as champion."""

    generation: int = Field(ge=1, description="1, 2, ...: how many changes there have been")
    fingerprint: str = Field(pattern=f"^{FINGERPRINT}$")
    at: datetime = Field(description="when it was promoted, by the clock of whoever did")
    why: str = Field(description="their reason")
    by: str = Field(description="who did: a user, or a run of GitHub Actions")
    change: str = Field(pattern=r"^[0-9a-f]{32}$", description="id of the change")
    restores: int | None = Field(None, description="generation that a rollback went back to")


class Champion(FrozenModel):
    """The content of champion.json."""

    champion_schema: int = SCHEMA
    now: Reign
    history: tuple[Reign, ...] = Field((), description="earlier ones, newest first")
    removal: str = Field("", description="id of the last removal of models since the champion was promoted; see fence")

    @property
    def reigns(self) -> tuple[Reign, ...]:
        """All of them, newest first."""
        return (self.now, *self.history)

    def before(self) -> Reign | None:
        """The reign that a rollback goes back to: rolling back twice goes back two champions, not to and fro."""
        of = {reign.generation: reign for reign in self.reigns}
        generation = self.now.generation
        while generation in of and (restored := of[generation].restores) is not None:
            generation = restored
        return next((reign for reign in self.history if reign.generation < generation), None)


@dataclass(frozen=True)
class Change:
    """What became of an attempt to change the champion.

    Attributes:
        outcome: promoted; already: it is the champion; overtaken: another was promoted meanwhile, nothing was written.
        champion: what is known of the champion afterwards.
    """

    outcome: Literal["promoted", "already", "overtaken"]
    champion: Champion


def read_champion(store: ObjectStorage) -> Champion | None:
    """The champion, None where none was ever promoted.

    Raises:
        InputError: the object is damaged, or of a newer schema.
    """
    found = _read(store)
    return found[0] if found else None


def promote(
    store: ObjectStorage, fingerprint: str, why: str, by: str | None = None, expected: int | None = None
) -> Change:
    """Makes a model the champion, unless another is promoted meanwhile.

    Args:
        store: of the registry.
        fingerprint: of a published model.
        why: the reason, for whoever reads the history.
        by: who does; None for what the environment says.
        expected: generation that the decision was made on, 0 for no champion; None for the one of this moment.

    Raises:
        InputError: no such model, or champion.json is damaged.
        StepError: the store failed.
    """
    found = _read(store)
    _refuse_missing(store, fingerprint)
    if found and expected is not None and found[0].now.generation != expected:
        return Change("overtaken", found[0])
    if not found and expected:
        raise InputError(f"{store.uri(CHAMPION)}: there is no champion, but generation {expected} is expected")
    if found and found[0].now.fingerprint == fingerprint:
        return Change("already", found[0])
    return _replace(store, found, fingerprint, why, by, None)


def rollback(store: ObjectStorage, why: str, by: str | None = None, expected: int | None = None) -> Change:
    """Makes the champion before the present one the champion again.

    Args:
        store: of the registry.
        why: the reason.
        by: who does; None for what the environment says.
        expected: generation of the champion that is not wanted; None for the one of this moment.

    Raises:
        InputError: there is none before, its model was removed, or champion.json is damaged.
        StepError: the store failed.
    """
    found = _read(store)
    if not found:
        raise InputError(f"{store.uri(CHAMPION)}: there is no champion to go back from; promote a model first")
    if expected is not None and found[0].now.generation != expected:
        return Change("overtaken", found[0])
    earlier = found[0].before()
    if earlier is None:
        raise InputError(f"{store.uri(CHAMPION)}: there is no champion before this one; promote another model instead")
    return _replace(store, found, earlier.fingerprint, why, by, earlier.generation)


def who(environment: Mapping[str, str] = os.environ) -> str:
    """Whoever runs this, by what the environment says."""
    actor, run = environment.get("GITHUB_ACTOR"), environment.get("GITHUB_RUN_ID")
    if actor or run:
        return " ".join(part for part in (actor, f"(GitHub run {run})" if run else "") if part)
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"  # a container's, which has no name


def fence(store: ObjectStorage, version: str | None) -> bool:
    """Makes every promotion fail that was decided on this version of champion.json; says whether it was still of that.

    Whoever removes models hides them first and calls this then, so that a promotion either is seen or sees.

    Args:
        store: of the registry.
        version: from read_versioned; None where there was no champion.

    Raises:
        InputError: champion.json is damaged.
        StepError: the store failed.
    """
    found = _read(store)
    if found is None or version is None:
        return found is None and version is None
    if found[1] != version:
        return False
    fenced = found[0].model_copy(update={"removal": uuid.uuid4().hex})
    return store.put_if_version(CHAMPION, fenced.model_dump_json(indent=1).encode(), version)


def read_versioned(store: ObjectStorage) -> tuple[Champion | None, str | None]:
    """As read_champion, with the version of the object."""
    return _read(store) or (None, None)


def _replace(
    store: ObjectStorage,
    found: tuple[Champion, str] | None,
    fingerprint: str,
    why: str,
    by: str | None,
    restores: int | None,
) -> Change:
    earlier = found[0].reigns if found else ()
    while True:
        # Asked after the champion was read: whoever removes the model now makes the write below fail.
        _refuse_missing(store, fingerprint)
        reign = Reign(
            generation=earlier[0].generation + 1 if earlier else 1,
            fingerprint=fingerprint,
            at=datetime.now(UTC),
            why=why,
            by=by or who(),
            change=uuid.uuid4().hex,
            restores=restores,
        )
        champion = Champion(now=reign, history=earlier)
        content = champion.model_dump_json(indent=1).encode()
        if store.put_if_version(CHAMPION, content, found[1]) if found else store.put_if_absent(CHAMPION, content):
            return Change("promoted", champion)
        found = _read(store)
        if found is None:
            raise InputError(f"{store.uri(CHAMPION)}: was deleted meanwhile; look at the store, then promote again")
        if any(each.change == reign.change for each in found[0].reigns):
            return Change("promoted", found[0])  # the answer was lost, and others may have followed
        if found[0].reigns != earlier:
            return Change("overtaken", found[0])
        # Models were removed meanwhile, which changes the object and not the champion.


def _refuse_missing(store: ObjectStorage, fingerprint: str) -> None:
    if not store.exists(f"{MODELS}/{fingerprint}/{MANIFEST}"):
        raise InputError(f"{store.uri(f'{MODELS}/{fingerprint}')}: there is no such model; publish its run")


def _read(store: ObjectStorage) -> tuple[Champion, str] | None:
    """The champion and the version of its object."""
    where = store.uri(CHAMPION)
    try:
        content, version = store.get_versioned(CHAMPION)
    except MissingObjectError:
        return None
    try:
        plain = json.loads(content)
        if int(plain["champion_schema"]) > SCHEMA:
            raise InputError(
                f"{where}: champion schema {plain['champion_schema']} is newer than this version reads ({SCHEMA}); upgrade "
                "cellsignal"
            )
        return Champion.model_validate(plain), version
    except InputError:
        raise
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{where}: damaged, so which model is the champion is not known; put back an earlier version of this object, or "
            "delete it and promote a model"
        ) from None
