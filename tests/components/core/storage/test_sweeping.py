"""Removing what no run needs from a real store, beside runs, other removals and kills."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from components.core.errors import InputError, StepError
from components.core.storage import sweeping
from components.core.storage.checkpoint_place import CheckpointPlace
from components.core.storage.claims import Claims
from components.core.storage.finished import fetch_finished, run_once
from components.core.storage.folder_store import FolderStore
from components.core.storage.garbage import Garbage
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_record import record_step
from components.core.storage.sweeping import Swept, garbage_of, sweep, take_stock
from components.normalize.step import main as normalize
from components.normalize.step import run as normalize_run
from tests.components.core.learning.tiny_networks import RUN
from tests.components.core.storage.aged_store import AgedStore
from tests.tiny_screen import CONFIG, TinyScreen

TWO_DAYS = timedelta(days=2)
FOREIGN = {
    "models/champion.json", "finished/elsewhere", "notes.txt", "runs/readme", "plates/by-hand/plate.json",
    "copies/2026-11-24.tar", f"copies/{1:064x}.json", f"copies/of-mine/{1:064x}.json", f"fingerprints/{1:064x}",
}  # fmt: skip


def pack(store: ObjectStore | FolderStore, folder: Path, source: Path, run: str = "") -> Manifest:
    """What normalize leaves, with a record where a run is named."""
    config = CONFIG.model_copy(update={"store": CONFIG.store.model_copy(update={"bucket": store.uri("")})})
    paths = [folder / name for name in ("s.json", "h.json", "l.csv")]
    record = {"whole_config": RUN.model_dump_json(), "lineage": json.dumps({"run": run})} if run else {}
    normalize(config.model_dump_json(), str(source), *map(str, paths), **record)
    return Manifest.read(paths[0])


def finish_step(
    store: ObjectStore | FolderStore,
    folder: Path,
    name: str,
    told: Callable[[str], None] = lambda _: None,
    text: str = "weights",
) -> bool:
    """A step that leaves a folder of one file; returns whether it was fetched."""

    def work(out: Mapping[str, Path]) -> None:
        out["weights"].mkdir()
        (out["weights"] / "w").write_text(text)

    return run_once(store, "pretrain", {"name": name}, {"weights": folder / name}, work, finished=told)


def collected(store: AgedStore) -> tuple[Claims, list[Garbage]]:
    claims = Claims(store)
    stock = take_stock(store)
    claims.refresh()
    return claims, garbage_of(store, claims, stock, TWO_DAYS)[0]


def collect(store: AgedStore) -> Swept:
    claims, garbage = collected(store)
    return sweep(store, garbage, claims, TWO_DAYS)


@pytest.fixture
def store(
    request: pytest.FixtureRequest, store: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> ObjectStore | FolderStore:
    """A bucket's prefix; a folder as well for tests `of_either_kind`."""
    return FolderStore(tmp_path_factory.mktemp("store")) if getattr(request, "param", "") == "folder" else store


of_either_kind = pytest.mark.parametrize("store", ["bucket", "folder"], indirect=True)


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyScreen(tmp_path_factory.mktemp("screen") / "screen").root


@pytest.fixture
def two(store: ObjectStore | FolderStore, screen: Path, tmp_path: Path) -> tuple[Manifest, set[str]]:
    """A run with a finished step, and plates, an output, a checkpoint and an attempt that are of no run."""
    manifest = pack(store, tmp_path, screen, run="mine-1")
    finish_step(store, tmp_path, "needed", lambda place: record_step(store, manifest, place, "pretrain", 0, None, "a"))
    needed = set(store.list())
    other = TinyScreen(tmp_path / "other", imaged=())
    for path in screen.rglob("*.png"):
        target = other.root / path.relative_to(screen)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    image = other.image("HUVEC-01", 1, "B03", 1, 1)
    image.write_bytes(other.image("HUVEC-01", 1, "B04", 1, 1).read_bytes())
    copies = {key: store.get(key) for key in needed if key.startswith("copies/")}
    pack(store, tmp_path, other.root)
    # The changed image is as large as the other, so what led to the run's plate leads to the later one now.
    (taken_over,) = [key for key, content in copies.items() if store.get(key) != content]
    needed.remove(taken_over)
    finish_step(store, tmp_path, "unneeded")
    kept = next(key for key in needed if key.endswith("done.json")).removesuffix("/done.json")
    for key in (
        f"{kept.replace('finished', 'checkpoints')}/state",
        f"checkpoints/pretrain/{7:064x}/state",
        f"{kept}/{3:032x}/weights/w",
        f"finished/pretrain/{5:064x}/{3:032x}/weights/w",
    ):
        store.put(key, b"1")
    for key in FOREIGN:
        store.put(key, b"not ours")
    return manifest, needed | FOREIGN


@of_either_kind
def test_what_the_run_names_and_what_is_not_ours_stays_and_nothing_else(store, two):
    manifest, stays = two
    aged = AgedStore(store)
    claims, garbage = collected(aged)
    assert {item.kind for item in garbage} == {
        "plate",
        "plate lead",
        "finished output",
        "unused attempt",
        "checkpoint",
    }
    told: list[Garbage] = []
    swept = sweep(aged, garbage, claims, TWO_DAYS, told.append)
    # Fingerprints of the other copy's unchanged plates lead to plates that the run needs.
    left = set(store.list())
    assert left >= stays
    assert {key.split("/")[0] for key in left - stays} == {"fingerprints"}
    leads = [key for key in left if key.startswith(("fingerprints/", "copies/")) and key not in FOREIGN]
    assert leads
    assert {json.loads(store.get(key))["prefix"] for key in leads} <= {plate.prefix for plate in manifest.plates}
    assert (told, swept.spared) == (garbage, [])
    assert swept.objects == sum(item.objects for item in garbage)
    assert swept.size == sum(item.size for item in garbage)
    assert collect(aged).objects == 0


def test_what_stays_can_be_used(store, two, screen, tmp_path):
    manifest, _ = two
    collect(AgedStore(store))
    summary = normalize_run(CONFIG, screen, store, *(tmp_path / name for name in "abc"))
    assert (summary.packed, summary.reused) == (0, len(manifest.plates))
    assert finish_step(store, tmp_path, "needed") is True
    assert finish_step(store, tmp_path, "unneeded") is False


def test_young_things_stay_but_for_checkpoints_of_a_finished_step(store, two):
    young = AgedStore(store, days=1)
    before = set(store.list())
    _, garbage = collected(young)
    assert [item.kind for item in garbage] == ["checkpoint"]
    collect(young)
    assert before - set(store.list()) == {f"{garbage[0].prefix}/state"}


def test_one_young_object_keeps_its_plate_and_its_output(store, two):
    _, stays = two
    aged = AgedStore(store)
    _, garbage = collected(aged)
    for kind in ("plate", "finished output"):
        prefix = next(item.prefix for item in garbage if item.kind == kind)
        aged.touch(store.list(f"{prefix}/")[-1])
        stays |= set(store.list(f"{prefix}/"))
    collect(aged)
    assert set(store.list()) >= stays


@of_either_kind
def test_a_removal_that_is_cut_short_leaves_nothing_whole_and_is_gone_on_with(store, two, monkeypatch):
    _, stays = two
    aged = AgedStore(store)
    prefixes = [item.prefix for item in collected(aged)[1] if item.record]
    for _ in range(50):
        aged.deletes = 1
        try:
            collect(aged)
        except StepError:
            left = set(store.list())
            assert left >= stays
            for prefix in prefixes:
                whole = {f"{prefix}/plate.json", f"{prefix}/done.json"} & left
                objects = {key for key in left if key.startswith(f"{prefix}/")}
                assert not whole or len(objects) >= 2
        else:
            break
    assert {key.split("/")[0] for key in set(store.list()) - stays} == {"fingerprints"}


def test_a_removal_that_is_cut_short_took_the_record_first(store, two):
    aged = AgedStore(store)
    (plate,) = [item for item in collected(aged)[1] if item.kind == "plate"]
    aged.deletes = 1
    with pytest.raises(StepError, match="killed"):
        collect(aged)
    left = store.list(f"{plate.prefix}/")
    assert len(left) == plate.objects - 1
    assert f"{plate.prefix}/plate.json" not in left


def test_what_a_run_records_while_the_user_thinks_is_spared(store, two, tmp_path):
    manifest, _ = two
    aged = AgedStore(store)
    claims, garbage = collected(aged)

    def record(place: str) -> None:
        record_step(store, manifest, place, "pretrain", 1, None, "a")

    assert finish_step(store, tmp_path, "unneeded", record) is True
    swept = sweep(aged, garbage, claims, TWO_DAYS)
    assert [item.kind for item in swept.spared] == ["finished output"]
    assert finish_step(store, tmp_path, "unneeded") is True


@of_either_kind
def test_a_plate_that_a_run_is_about_to_name_is_spared(store, two, tmp_path):
    """Packing found the plate in the store; the manifest that names it is not written yet."""
    aged = AgedStore(store)
    claims, garbage = collected(aged)
    time.sleep(1.1)  # a listing's times are whole seconds
    summary = normalize_run(CONFIG, tmp_path / "other", store, *(tmp_path / name for name in "abc"))
    assert summary.packed == 0
    swept = sweep(aged, garbage, claims, TWO_DAYS)
    assert "plate" in [item.kind for item in swept.spared]
    assert "plate" not in [item.kind for item in collected(aged)[1]]
    summary = normalize_run(CONFIG, tmp_path / "other", store, *(tmp_path / name for name in "abc"))
    assert summary.packed == 0


def test_what_leads_to_a_plate_that_is_spared_is_spared_too(store, two):
    aged = AgedStore(store)
    claims, garbage = collected(aged)
    (plate,) = [item for item in garbage if item.kind == "plate"]
    leads = [item.prefix for item in garbage if item.kind == "plate lead"]
    assert [key.split("/")[0] for key in leads] == ["copies"]
    aged.touch(f"{plate.prefix}/plate.json")
    assert [item.prefix for item in sweep(aged, garbage, claims, TWO_DAYS).spared] == [plate.prefix, *leads]
    assert store.exists(leads[0])
    aged.grow_old()
    collect(aged)
    assert not store.exists(leads[0])


@of_either_kind
def test_a_plate_goes_with_both_kinds_of_leads_to_it(store, two, tmp_path):
    summary = normalize_run(CONFIG, tmp_path / "other", store, *(tmp_path / name for name in "abc"))
    assert summary.packed == 0
    aged = AgedStore(store)
    garbage = collected(aged)[1]
    (plate,) = [item.prefix for item in garbage if item.kind == "plate"]
    leads = [item.prefix for item in garbage if item.kind == "plate lead"]
    assert sorted(key.split("/")[0] for key in leads) == ["copies", "fingerprints"]
    assert {json.loads(store.get(key))["prefix"] for key in leads} == {plate}
    collect(aged)
    assert not {plate, *leads} & {item for key in store.list() for item in (key, "/".join(key.split("/")[:2]))}


def test_two_removals_at_once_both_end(store, two):
    _, stays = two
    aged = AgedStore(store)
    first, second = collected(aged), collected(aged)
    for claims, garbage in (first, second):
        assert sweep(aged, garbage, claims, TWO_DAYS).spared == []
    assert set(store.list()) >= stays


@pytest.mark.parametrize("half", ["record", "files"])
def test_a_run_that_fetches_what_is_being_removed_works_again(store, two, tmp_path, monkeypatch, half):
    aged = AgedStore(store)
    (item,) = [item for item in collected(aged)[1] if item.kind == "finished output"]
    download = store.download_file

    def removed_meanwhile(key: str, path: Path) -> None:
        store.delete_many([f"{item.prefix}/done.json"] if half == "record" else store.list(f"{item.prefix}/"))
        download(key, path)

    monkeypatch.setattr(store, "download_file", removed_meanwhile)
    places: list[str] = []
    assert finish_step(store, tmp_path, "unneeded", places.append) is (half == "record")
    assert (tmp_path / "unneeded" / "w").read_text() == "weights"
    monkeypatch.undo()
    if half == "files":
        assert finish_step(store, tmp_path, "unneeded") is True
    else:
        with pytest.raises(InputError, match="the finished outputs are gone; run the same command again"):
            fetch_finished(store, places[0], {"weights": tmp_path / "again"})


def test_a_plate_that_is_packed_anew_while_it_is_removed_is_not_taken_for_whole(store, two, tmp_path, monkeypatch):
    aged = AgedStore(store)
    (item,) = [item for item in collected(aged)[1] if item.kind == "plate"]
    plate = store.get(f"{item.prefix}/plate.json")
    delete = aged.delete_many

    def with_a_packer(keys):
        delete(keys)
        if len(keys) > 1:
            store.put(f"{item.prefix}/plate.json", plate)

    monkeypatch.setattr(aged, "delete_many", with_a_packer)
    collect(aged)
    assert not store.exists(f"{item.prefix}/plate.json")
    monkeypatch.undo()
    summary = normalize_run(CONFIG, tmp_path / "other", store, *(tmp_path / name for name in "abc"))
    assert (summary.packed, summary.reused) == (1, 7)


def test_an_attempt_that_wins_meanwhile_stays(store, two):
    aged = AgedStore(store)
    claims, garbage = collected(aged)
    attempts = [item for item in garbage if item.kind == "unused attempt" and item.prefix.count("/") == 3]
    (attempt,) = attempts
    place, _, name = attempt.prefix.rpartition("/")
    store.put(f"{place}/done.json", json.dumps({"attempt": name, "outputs": {}}).encode())
    assert attempt in sweep(aged, attempts, claims, TWO_DAYS).spared


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_what_killed_writers_left_in_a_folder_goes_and_so_do_emptied_folders(store, two):
    manifest, _ = two
    (plate,) = [item.prefix for item in collected(AgedStore(store))[1] if item.kind == "plate"]
    stays = f"{manifest.plates[0].prefix}/.{1:032x}-7-1.partial"
    for key in (stays, f"{plate}/B/03/.{1:032x}-7-2.partial", f"notes/.{1:032x}-7-3.partial"):
        store.local_path(key).parent.mkdir(parents=True, exist_ok=True)
        store.local_path(key).write_bytes(b"half")
    collect(AgedStore(store, days=1))
    assert len(list(store.unfinished_uploads("plates/"))) == 2
    garbage = collected(AgedStore(store))[1]
    assert [(item.objects, item.size) for item in garbage if item.kind == "unfinished upload"] == [(1, 4)] * 2
    collect(AgedStore(store))
    assert [upload.key for upload in store.unfinished_uploads("")] == [f"notes/.{1:032x}-7-3.partial"]
    assert not store.local_path(plate).exists()
    assert {path.name for path in store.local_path("plates").iterdir()} == {
        "by-hand",
        *(plate.prefix.removeprefix("plates/") for plate in manifest.plates),
    }


def test_old_unfinished_uploads_are_given_up(store, two):
    client = store._control
    for key in (f"finished/pretrain/{1:064x}/{2:032x}/w", "elsewhere/b"):
        client.create_multipart_upload(Bucket=store.bucket, Key=f"{store.prefix}/{key}")
    collect(AgedStore(store, days=1))
    assert len(list(store.unfinished_uploads(""))) == 2
    collect(AgedStore(store))
    assert [upload.key for upload in store.unfinished_uploads("")] == ["elsewhere/b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("screen.json", b"{", "damaged, so what its run needs is not known; .* `cellsignal store forget mine-1`"),
        ("screen.json", b'{"manifest_schema": 99}', "of a newer version of cellsignal"),
        ("steps/pretrain/0/a.json", b"[]", "damaged"),
        ("folds/HUVEC/0.json", b"{}", "damaged"),
    ],
)
def test_a_record_that_nobody_understands_stops_everything(store, two, name, content, message):
    store.put(f"runs/mine-1/{name}", content)
    before = store.list()
    with pytest.raises(InputError, match=rf"runs/mine-1/{name}: {message}"):
        collect(AgedStore(store))
    assert store.list() == before


def test_a_run_without_its_last_record_keeps_what_the_others_name(store, two):
    store.delete("runs/mine-1/run.json")
    _, stays = two
    collect(AgedStore(store))
    assert set(store.list()) >= stays - {"runs/mine-1/run.json"}


@pytest.mark.parametrize("backbone", ["run", "screen", "holdout", "holdout_labels"])
def test_a_backbone_of_any_name_keeps_its_weights(store, two, tmp_path, backbone):
    manifest, _ = two
    finish_step(
        store, tmp_path, "unneeded", lambda place: record_step(store, manifest, place, "pretrain", 0, None, backbone)
    )
    assert "finished output" not in {item.kind for item in collected(AgedStore(store))[1]}


def test_records_are_read_once_and_listed_again(store, two, monkeypatch):
    aged = AgedStore(store)
    claims, garbage = collected(aged)
    monkeypatch.setattr(sweeping, "_ASK_AGAIN_SECONDS", 0.0)
    read: list[str] = []
    get_many = store.get_many
    monkeypatch.setattr(store, "get_many", lambda keys: read.extend(keys) or get_many(keys))
    sweep(aged, garbage, claims, TWO_DAYS)
    assert not [key for key in read if key.startswith("runs/")]


@of_either_kind
def test_a_checkpoint_stays_while_its_step_writes_and_goes_once_nobody_does(store, two, tmp_path):
    place = CheckpointPlace(store, "pretrain", f"{9:064x}")
    for content in (b"1", b"22"):
        (tmp_path / "state").write_bytes(content)
        place.write(tmp_path / "state")
    collect(AgedStore(store, days=1))
    assert place.read(tmp_path / "read")
    aged = AgedStore(store)
    aged.touch(f"checkpoints/pretrain/{9:064x}/latest.json")
    collect(aged)
    assert (place.read(tmp_path / "read"), (tmp_path / "read").read_bytes()) == (True, b"22")
    (item,) = [item for item in collected(AgedStore(store))[1] if item.prefix.endswith(f"{9:064x}")]
    assert (item.kind, item.objects) == ("checkpoint", 2)
    aged.grow_old()
    aged.deletes = 0
    with pytest.raises(StepError, match="killed"):
        collect(aged)
    collect(AgedStore(store))
    assert not place.read(tmp_path / "read")
    assert store.list("checkpoints/") == []


def test_listings_are_as_few_as_the_pages(store, two):
    begun = store.requests["lists"]
    take_stock(store)
    assert store.requests["lists"] - begun == 6  # a page of objects and one of uploads for each of three prefixes
