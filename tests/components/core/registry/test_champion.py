"""The champion: one of several writers wins, nothing is lost or half-written, rollbacks restore, and damage is reported."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import InputError, StepError
from components.core.registry.champion import CHAMPION, Champion, current_user, promote, read_champion, rollback
from components.core.storage.object_store import ObjectStore
from tests.components.core.registry.small_models import put_model

PROMOTERS = 5
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path)


def champion_of(store: ObjectStore) -> Champion:
    found = read_champion(store)
    assert found is not None
    return found


def until_promoted(
    address: str, environment: Mapping[str, str], number: int, fingerprint: str, barrier: Barrier, results: Any
) -> None:
    """Promotes its model once, trying again while others come first."""
    os.environ.update(environment)
    store = ObjectStore(address)
    barrier.wait(120)
    while promote(store, fingerprint, "mine").outcome == "overtaken":
        pass
    results.put(number)


def until_killed(address: str, fingerprints: tuple[str, ...], ready: Any) -> None:
    """Promotes its models in turn until it is killed."""
    store = ObjectStore(address)
    n = 0
    while True:
        promote(store, fingerprints[n % len(fingerprints)], "in turn")
        if n == 3:
            ready.release()
        n += 1


def started(target: Callable[..., None], arguments: Iterable[tuple[Any, ...]]) -> list[ForkServerProcess]:
    processes = [CONTEXT.Process(target=target, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    return processes


def test_a_model_that_is_removed_while_it_is_promoted_is_reported(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, write = put_model(store, 1), store.put_if_version

    def collected(key: str, data: bytes, version: str) -> bool:
        store.delete_prefix(f"models/{model}/")
        return write(key, data, version)

    monkeypatch.setattr(store, "put_if_version", collected)
    with pytest.raises(StepError, match=f"{model}: was removed while it was promoted"):
        promote(store, model, "because")


def test_every_promotion_is_in_the_history_once_and_readers_see_complete_records(
    either_store: ObjectStore, request: pytest.FixtureRequest
) -> None:
    store = either_store
    environment = {} if store.root else request.getfixturevalue("s3_server").environment()
    models = [put_model(store, number) for number in range(PROMOTERS)]
    barrier, results = CONTEXT.Barrier(PROMOTERS), CONTEXT.Queue()
    processes = started(
        until_promoted, [(store.uri(""), environment, n, models[n], barrier, results) for n in range(PROMOTERS)]
    )
    done, generations = set(), [0]
    while len(done) < PROMOTERS:
        seen = read_champion(store)  # raises on an incomplete object
        generations.append(seen.now.generation if seen else 0)
        with contextlib.suppress(queue.Empty):
            done.add(results.get(timeout=0.01))
    for process in processes:
        process.join(60)
    assert generations == sorted(generations)
    champion = champion_of(store)
    assert sorted(promotion.fingerprint for promotion in champion.promotions) == sorted(models)
    assert [promotion.generation for promotion in champion.promotions] == list(range(PROMOTERS, 0, -1))


def test_killed_promoters_leave_a_readable_champion_and_block_no_other(store: ObjectStore) -> None:
    models = tuple(put_model(store, number) for number in range(3))
    for attempt in range(2):
        ready = CONTEXT.Semaphore(0)
        processes = started(until_killed, [(store.uri(""), models, ready)] * 3)
        assert ready.acquire(timeout=60)
        time.sleep(0.01 * attempt)
        for process in processes:
            os.kill(process.pid or 0, signal.SIGKILL)
        for process in processes:
            process.join(60)
        before = champion_of(store)
        assert [promotion.generation for promotion in before.promotions] == list(range(before.now.generation, 0, -1))
        other = next(model for model in models if model != before.now.fingerprint)
        change = promote(store, other, "after the kill", expected=before.now.generation)
        assert (change.outcome, change.champion.now.generation) == ("promoted", before.now.generation + 1)


def test_a_write_without_an_answer_is_found_in_the_history(
    either_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write succeeded, its answer was lost, and another promotion followed before the champion was read again."""
    store = either_store
    first, second, third = (put_model(store, number) for number in range(3))
    promote(store, first, "first")
    write = type(store).put_if_version

    def losing(self: ObjectStore, key: str, data: bytes, version: str) -> bool:
        monkeypatch.undo()
        assert write(self, key, data, version)
        assert promote(store, third, "third").outcome == "promoted"
        return False

    monkeypatch.setattr(type(store), "put_if_version", losing)
    change = promote(store, second, "second")
    assert (change.outcome, change.champion.now.fingerprint) == ("promoted", third)
    assert [promotion.why for promotion in champion_of(store).promotions] == ["third", "second", "first"]


def test_rollbacks_go_back_one_champion_each_and_stop_at_the_first(store: ObjectStore) -> None:
    a, b, c, d = (put_model(store, number) for number in range(4))
    for model in (a, b, c):
        promote(store, model, "better")
    assert rollback(store, "worse on new plates").champion.now.fingerprint == b
    assert champion_of(store).now.restores == 2
    assert rollback(store, "still worse").champion.now.fingerprint == a
    with pytest.raises(InputError, match="there is no champion before this one; promote another model instead"):
        rollback(store, "no more")
    promote(store, d, "better")
    assert rollback(store, "worse", expected=champion_of(store).now.generation).champion.now.fingerprint == a
    before = store.get(CHAMPION)
    assert rollback(store, "too late", expected=1).outcome == "overtaken"
    assert promote(store, c, "too late", expected=1).outcome == "overtaken"
    assert promote(store, a, "again").outcome == "already"
    assert store.get(CHAMPION) == before
    assert [promotion.fingerprint for promotion in champion_of(store).promotions] == [a, d, a, b, c, b, a]


def test_rejects_a_rollback_to_a_removed_model(store: ObjectStore) -> None:
    first, second = put_model(store, 1), put_model(store, 2)
    promote(store, first, "x")
    promote(store, second, "x")
    store.delete_prefix(f"models/{first}/")
    before = store.get(CHAMPION)
    with pytest.raises(InputError, match=f"models/{first}: there is no such model"):
        rollback(store, "x")
    assert store.get(CHAMPION) == before


def test_the_user_comes_from_the_environment() -> None:
    assert current_user({"GITHUB_ACTOR": "ada", "GITHUB_RUN_ID": "17"}) == "ada (GitHub run 17)"
    assert current_user({"GITHUB_RUN_ID": "17"}) == "(GitHub run 17)"
    assert current_user({}) != ""
