"""Which model is the champion: models/champion.json, replaced only by conditional write.

A caller states the generation its decision was based on; if another model has been promoted since, nothing is written. Each change
has an id, by which a writer that got no answer from the store finds out whether its change was made.
"""

from __future__ import annotations

import getpass
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from pydantic import Field

from components.core.config.file import FrozenModel
from components.core.errors import InputError, MissingObjectError, StepError
from components.core.registry.model_manifest import FINGERPRINT, MANIFEST, MODELS
from components.core.storage.object_store import ObjectStore
from components.core.stored_record import StoredRecord

CHAMPION = f"{MODELS}/champion.json"


class Promotion(FrozenModel):
    """A change of the champion: one entry of its history."""

    generation: int = Field(ge=1, description="1, 2, ...: number of changes so far")
    fingerprint: str = Field(pattern=f"^{FINGERPRINT}$", description="the model promoted")
    at: datetime = Field(description="time, by the clock of the process that promoted")
    why: str = Field(description="the reason")
    by: str = Field(description="a user, or a run of GitHub Actions")
    change: str = Field(pattern=r"^[0-9a-f]{32}$", description="id of the change")
    restores: int | None = Field(None, description="for a rollback, the generation it went back to")


class Champion(StoredRecord):
    """The content of champion.json."""

    KIND = "champion's record"
    IF_DAMAGED = "restore an earlier version of this object, or delete it and promote a model"

    now: Promotion
    history: tuple[Promotion, ...] = Field((), description="earlier ones, newest first")

    @property
    def promotions(self) -> tuple[Promotion, ...]:
        """All of them, newest first."""
        return (self.now, *self.history)

    def before(self) -> Promotion | None:
        """The promotion that a rollback restores: rolling back twice goes back two champions, not to and fro."""
        by_generation = {promotion.generation: promotion for promotion in self.promotions}
        generation = self.now.generation
        while generation in by_generation and (restored := by_generation[generation].restores) is not None:
            generation = restored
        return next((promotion for promotion in self.history if promotion.generation < generation), None)


class PromotionResult(NamedTuple):
    """The result of an attempt to change the champion, and the champion afterwards.

    The outcomes: promoted; already, it was the champion; overtaken, another was promoted since and nothing was written.
    """

    outcome: Literal["promoted", "already", "overtaken"]
    champion: Champion


def read_champion(store: ObjectStore) -> Champion | None:
    """The champion, None if no model was ever promoted; InputError if champion.json is damaged, or of a newer version."""
    return _read_versioned(store)[0]


def _read_versioned(store: ObjectStore) -> tuple[Champion | None, str]:
    try:
        content, version = store.get_versioned(CHAMPION)
    except MissingObjectError:
        return None, ""
    return Champion.parse(content, store.uri(CHAMPION)), version


def promote(store: ObjectStore, fingerprint: str, why: str, expected: int | None = None) -> PromotionResult:
    """Makes a published model the champion, unless another is promoted at the same time; `why` is for the history.

    `expected` is the generation that the decision was based on, 0 for no champion; None for the present one.

    Raises:
        InputError: no such model, or champion.json is damaged.
        StepError: the model was removed during the promotion.
    """
    found, version = _read_versioned(store)
    if found is None and expected:
        raise InputError(f"{store.uri(CHAMPION)}: there is no champion, but generation {expected} is expected")
    if found and expected is not None and found.now.generation != expected:
        return PromotionResult("overtaken", found)
    if found and found.now.fingerprint == fingerprint:
        return PromotionResult("already", found)
    return _replace(store, found, version, fingerprint, why)


def rollback(store: ObjectStore, why: str, expected: int | None = None) -> PromotionResult:
    """Makes the champion before the present one the champion again; otherwise as `promote`."""
    found, version = _read_versioned(store)
    if found is None:
        raise InputError(f"{store.uri(CHAMPION)}: there is no champion to go back from; promote a model first")
    if expected is not None and found.now.generation != expected:
        return PromotionResult("overtaken", found)
    earlier = found.before()
    if earlier is None:
        raise InputError(f"{store.uri(CHAMPION)}: there is no champion before this one; promote another model instead")
    return _replace(store, found, version, earlier.fingerprint, why, restores=earlier.generation)


def current_user(environment: Mapping[str, str] = os.environ) -> str:
    """The user, or the run of GitHub Actions, that this process belongs to."""
    actor, run = environment.get("GITHUB_ACTOR"), environment.get("GITHUB_RUN_ID")
    if actor or run:
        return " ".join(part for part in (actor, f"(GitHub run {run})" if run else "") if part)
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"  # a container's user has no name


def _replace(
    store: ObjectStore, found: Champion | None, version: str, fingerprint: str, why: str, restores: int | None = None
) -> PromotionResult:
    """Writes the next generation unless champion.json has another version by now."""
    model = store.uri(f"{MODELS}/{fingerprint}")
    manifest = f"{MODELS}/{fingerprint}/{MANIFEST}"
    if not store.exists(manifest):
        raise InputError(f"{model}: there is no such model; publish its run")
    promotion = Promotion(
        generation=found.now.generation + 1 if found else 1,
        fingerprint=fingerprint,
        at=datetime.now(UTC),
        why=why,
        by=current_user(),
        change=uuid.uuid4().hex,
        restores=restores,
    )
    champion = Champion(now=promotion, history=found.promotions if found else ())
    if store.put_if_version(CHAMPION, champion.to_json(), version):
        if not store.exists(manifest):  # a garbage collection that did not know of this promotion
            raise StepError(
                f"{model}: was removed while it was promoted, so the champion has no model; promote another model"
            )
        return PromotionResult("promoted", champion)
    found = read_champion(store)
    if found is None:
        raise InputError(f"{store.uri(CHAMPION)}: was deleted just now; check the store, then promote again")
    # If the store's answer was lost, the change is there, and others may have followed.
    mine = any(each.change == promotion.change for each in found.promotions)
    return PromotionResult("promoted" if mine else "overtaken", found)
