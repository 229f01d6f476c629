"""A model is found by any of its names and downloaded for prediction; damage and wrong names are rejected in one line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import InputError
from components.core.registry.champion import promote
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.published_models import download_networks, find_model
from components.core.storage.object_store import ObjectStore
from tests.components.core.registry.finished_run import CELL_TYPES, FinishedRun
from tests.components.core.registry.small_models import put_model, small_model

Spoil = Callable[[ObjectStore, ModelManifest], object]


def manifest(model: ModelManifest) -> str:
    return f"models/{model.fingerprint}/manifest.json"


def everything(store: Any) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list("")}


def test_a_model_is_found_as_champion_by_digits_and_by_address(either_store: ObjectStore, tmp_path: Path) -> None:
    store = either_store
    first, second = put_model(store, 1), put_model(store, 2)
    promote(store, second, "x")
    own = ObjectStore(tmp_path / "empty")
    for searched, name, expected in (
        (store, "champion", second),
        (store, first[:5], first),
        (store, first, first),
        (own, store.uri("models/champion"), second),
        (own, store.uri("models/champion.json"), second),
        (own, f"{store.uri('models')}/{first}/", first),
        (own, f"{store.uri('models')}/{first[:8]}", first),
    ):
        registry, model = find_model(searched, name)
        assert (registry.uri(""), model.fingerprint) == (store.uri(""), expected)


def test_rejects_names_of_no_model_or_of_several(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "store")
    for number, end in enumerate("ab"):
        put_model(store, number, fingerprint="12345" + end * 59)
    before = everything(store)
    for name, message in (
        ("champion", "models/champion.json: no model has been promoted yet; promote one with `cellsignal models prom"),
        ("0" * 20, "no such model below"),
        ("1234", "1234: 12345aaaaaaa, 12345bbbbbbb begin with it; give more digits"),
        ("abc", "neither `champion` nor the first digits"),
        ("best", "neither `champion` nor the first digits"),
        ("s3://bucket/runs/a-1", "nor its address, which looks like s3://"),
        ("s3://models/abcdef", "nor its address, which looks like s3://"),
        (f"{store.uri('')}/models/newest", "nor its address, which looks like s3://"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            find_model(store, name)
        assert "\n" not in str(raised.value)
    assert everything(store) == before


def rewrite(**changes: Any) -> Spoil:
    def spoil(store: ObjectStore, model: ModelManifest) -> None:
        store.put(manifest(model), json.dumps({**json.loads(store.get(manifest(model))), **changes}).encode())

    return spoil


def damage_weights(store: ObjectStore, model: ModelManifest) -> None:
    key = model.key(model.networks[3].path)
    content = bytearray(store.get(key))
    content[-1] ^= 1
    store.put(key, bytes(content))


def download_champion(store: ObjectStore, folder: Path) -> None:
    registry, model = find_model(store, "champion")
    for fold, cell_type in itertools.product((0, 1), CELL_TYPES):
        download_networks(registry, model, fold, cell_type, folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rewrite(a_field_to_come=1), r"of another version of cellsignal, not a model's manifest \(a_field_to_come"),
        (
            lambda store, model: store.put(manifest(model), small_model(1).to_json()),
            "damaged, it is the manifest of model",
        ),
        (rewrite(files=[{"path": "../../escaped", "size": 1, "sha256": "0"}]), "impossible path '../../escaped'"),
        (
            lambda store, model: store.delete(model.key(model.networks[3].path)),
            "safetensors is missing; `cellsignal models publish tiny-0123456789ab --repair`",
        ),
        (damage_weights, "safetensors has other content than was written; `cellsignal models publish"),
        (lambda store, model: store.delete_prefix(f"models/{model.fingerprint}/"), "there is no such model"),
    ],
)
def test_rejects_a_damaged_champion_in_one_line(
    published: FinishedRun, model: ModelManifest, tmp_path: Path, spoil: Spoil, message: str
) -> None:
    store = ObjectStore(tmp_path / "store")
    store.put_many((key, published.store.get(key)) for key in published.store.list("models/"))
    promote(store, model.fingerprint, "x")
    spoil(store, model)
    before = everything(store)
    with pytest.raises(InputError, match=message) as raised:
        download_champion(store, tmp_path / "here")
    assert "\n" not in str(raised.value)
    assert everything(store) == before
    assert not (tmp_path / "escaped").exists()
