"""A fingerprint changes with everything that determines a model, and its changes are named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.screen.screen_source import ScreenBucket, ScreenDirectory
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import TaskRecord
from pipelines.retrain.fingerprint import Fingerprint, changes, fingerprint_of
from tests.components.core.registry.finished_run import KEY, FinishedRun
from tests.tiny_screen import TinyScreen

IMAGES = {"cpu": "cellsignal-cpu@sha256:0", "gpu": "cellsignal-gpu@sha256:1"}
CONFIG = RunConfig.model_validate({"name": "tiny", "screen": {"cell_types": ["HUVEC", "RPE"], "image_size": 16}})


@pytest.fixture
def screen(tmp_path: Path) -> TinyScreen:
    return TinyScreen(tmp_path / "screen")


def of(screen: TinyScreen, config: RunConfig = CONFIG, images: dict[str, str] = IMAGES) -> Fingerprint:
    return fingerprint_of(ScreenDirectory(screen.root), config, images, ObjectStore(screen.root.parent / "store"))


def test_equal_inputs_have_equal_fingerprints_and_other_files_do_not_count(screen: TinyScreen) -> None:
    first = of(screen)
    assert Fingerprint.model_validate_json(first.model_dump_json()) == first
    (screen.root / "notes.txt").write_text("x")
    (screen.root / "predictions.csv").write_text("x")
    (screen.root / "train" / "Thumbs.db").write_text("x")
    elsewhere = CONFIG.model_copy(update={"local": CONFIG.local.model_copy(update={"parallel_folds": 1})})
    again = of(screen, elsewhere)
    assert (again.digest, changes(first, again)) == (first.digest, ())


def test_each_change_is_named(screen: TinyScreen) -> None:
    before = of(screen)
    image = screen.image("HUVEC-02", 1, "B03", 1, 1)
    data = image.read_bytes()
    image.write_bytes(data)  # the same content with another time
    os.utime(image, ns=(1, 1))
    assert changes(before, of(screen)) == ("experiments rewritten: HUVEC-02",)
    screen.image("RPE-01", 1, "B03", 1, 1).write_bytes(b"")
    assert changes(before, of(screen)) == ("experiments rewritten: HUVEC-02, RPE-01",)
    new = screen.root / "train" / "HUVEC-10" / "Plate1" / "B03_s1_w1.png"
    new.parent.mkdir(parents=True)
    for channel in range(1, 7):
        new.with_name(f"B03_s1_w{channel}.png").write_bytes(data)
    screen.edit("train.csv", "RPE-01_2_C02", "HUVEC-10_1_B03,HUVEC-10,1,B03,sirna_7\nRPE-01_2_C02")
    found = changes(before, of(screen, images={**IMAGES, "gpu": "cellsignal-gpu@sha256:2"}))
    assert found == (
        "experiments new: HUVEC-10",
        "experiments rewritten: HUVEC-02, RPE-01",
        "tables: train.csv",
        "images or libraries",
    )
    assert changes(of(screen), before)[0] == "experiments gone: HUVEC-10"


def test_configured_files_count_by_content(screen: TinyScreen, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"PK1")
    backbone = CONFIG.backbones[0].model_copy(update={"weights": str(weights)})
    config = CONFIG.model_copy(update={"backbones": (backbone,)})
    before = of(screen, config)
    weights.write_bytes(b"PK2")
    assert changes(before, of(screen, config)) == ("configuration: backbones[0].weights",)
    pretrain = config.pretrain.model_copy(update={"epochs": 7})
    other = config.model_copy(update={"pretrain": pretrain, "seed": 3})
    assert changes(of(screen, config), of(screen, other)) == ("configuration: pretrain.epochs, seed",)


def test_a_rewritten_object_of_a_screen_in_a_bucket_is_a_change(screen: TinyScreen, store: ObjectStore) -> None:
    files = [path for path in screen.root.rglob("*") if path.is_file()]
    store.put_many((path.relative_to(screen.root).as_posix(), path.read_bytes()) for path in files)

    def now() -> Fingerprint:
        return fingerprint_of(ScreenBucket(store), CONFIG, IMAGES, store)

    first = now()
    assert first.experiments.keys() == of(screen).experiments.keys()
    assert now().digest == first.digest
    store.put("train/RPE-01/Plate1/B03_s1_w1.png", b"other")
    assert changes(first, now()) == ("experiments rewritten: RPE-01",)


def test_rejects_a_folder_without_a_screen(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("id_code,well\n")
    for folder, message in ((tmp_path / "none", "no such directory"), (tmp_path, "column experiment is missing")):
        with pytest.raises(InputError, match=message):
            fingerprint_of(ScreenDirectory(folder), CONFIG, IMAGES, ObjectStore(tmp_path))


def test_configured_objects_count_by_content(screen: TinyScreen, store: ObjectStore) -> None:
    address = store.uri("labels.csv")
    labels = CONFIG.mean_teacher.model_copy(update={"fused_labels": address})
    config = CONFIG.model_copy(update={"mean_teacher": labels})

    def now() -> Fingerprint:
        return fingerprint_of(ScreenDirectory(screen.root), config, IMAGES, store)

    with pytest.raises(InputError, match=rf"mean_teacher.fused_labels: there is no object {address}; correct the addr"):
        now()
    store.put("labels.csv", b"one")
    store.put("labels.csv.old", b"zero")
    before = now()
    store.put("labels.csv.old", b"nothing")
    assert changes(before, now()) == ()
    store.put("labels.csv", b"two")
    assert changes(before, now()) == ("configuration: mean_teacher.fused_labels",)


def test_a_retrained_run_to_start_from_is_a_change(template: FinishedRun, tmp_path: Path) -> None:
    run = template.copy_to(ObjectStore(tmp_path))
    config = run.config.model_copy(update={"init_from": KEY})

    def now() -> Fingerprint:
        return fingerprint_of(ScreenDirectory(template.folder / "screen"), config, IMAGES, run.store)

    before = now()
    assert changes(before, now()) == ()
    path = f"runs/{KEY}/tasks/pretrain/0/{config.backbones[0].name}.json"
    record = TaskRecord.model_validate_json(run.store.get(path))
    run.store.put(path, record.model_copy(update={"prefix": f"{record.prefix}0"}).model_dump_json().encode())
    assert changes(before, now()) == ("configuration: init_from",)
    run.store.delete_prefix(f"runs/{KEY}/")
    with pytest.raises(InputError, match=f"init_from: run {KEY}: no such run"):
        now()
