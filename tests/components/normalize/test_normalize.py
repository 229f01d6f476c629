"""normalize from tables and PNGs to manifests: what the outputs hold, what a second run does, and the command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from components.core.config import FoldsConfig, PriorConfig, RunConfig
from components.core.errors import InputError
from components.core.prior.plate_groups import LabelledWell
from components.core.screen.packed import SiteReader
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import cluster_run_key
from components.core.storage.runs import fetch_run, lineage_of
from components.normalize.config import NormalizeConfig
from components.normalize.step import Summary, main, run
from tests.tiny_screen import CONFIG, LABELLED, SIZE, MemoryStore, TinyScreen, write_png


@pytest.fixture
def tiny(tmp_path: Path) -> TinyScreen:
    return TinyScreen(tmp_path / "screen")


def normalize(
    tiny: TinyScreen, store: MemoryStore, config: NormalizeConfig = CONFIG, out: str = "out"
) -> tuple[Summary, Manifest, Manifest, list[list[str]]]:
    folder = tiny.root.parent / out
    paths = folder / "screen.json", folder / "holdout.json", folder / "holdout_labels.csv"
    summary = run(config, tiny.root, store, *paths)
    assert sorted(folder.iterdir()) == sorted(paths), "nothing but the outputs"
    with paths[2].open(newline="") as file:
        return summary, Manifest.read(paths[0]), Manifest.read(paths[1]), list(csv.reader(file))


def stored_in(store: ObjectStore, config: NormalizeConfig = CONFIG) -> NormalizeConfig:
    bucket = store.uri("").rstrip("/")
    return config.model_copy(update={"store": config.store.model_copy(update={"bucket": bucket})})


@pytest.fixture
def folder_store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "store")


def holding_out(*experiments: str) -> NormalizeConfig:
    screen = CONFIG.screen.model_copy(update={"holdout_experiments": experiments})
    return CONFIG.model_copy(update={"screen": screen})


def test_the_manifest_describes_the_whole_screen(tiny: TinyScreen):
    store = MemoryStore()
    summary, screen, holdout, labels = normalize(tiny, store)
    assert (summary.packed, summary.reused) == (8, 0)
    assert summary.written <= len(store.puts)
    assert (screen.store, screen.channels, screen.image_size, screen.codec) == ("s3://memory", 6, SIZE, CONFIG.pack)
    assert len(screen.plates) == 8
    assert set(screen.folds) == set(LABELLED)
    assert set(screen.folds.values()) == {0, 1}
    assert screen.warnings == ()
    assert holdout.plates == ()
    assert labels == [["id_code", "sirna"]]
    hidden = {w.id_code for p in screen.plates for w in p.wells if w.sirna is None}
    assert hidden == {f"HUVEC-03_{plate}_{well}" for plate in (1, 2) for well in ("B03", "B04", "C02")}


def test_held_out_experiments_are_in_their_own_manifest_without_treatment_labels(tiny: TinyScreen):
    _, screen, holdout, labels = normalize(tiny, MemoryStore(), holding_out("HUVEC-02"))
    assert "HUVEC-02" not in screen.model_dump_json()
    assert {plate.experiment for plate in holdout.plates} == {"HUVEC-02"}
    assert not any(plate.labelled for plate in holdout.plates)
    assert holdout.vocabulary == screen.vocabulary
    assert holdout.folds == {}
    by_type = {(well.well_type, well.sirna is None) for plate in holdout.plates for well in plate.wells}
    assert by_type == {("treatment", True), ("positive_control", False), ("negative_control", False)}
    truth = {row["id_code"]: row["sirna"] for row in csv.DictReader((tiny.root / "train.csv").open())}
    wells = [w.id_code for p in holdout.plates for w in p.wells if w.well_type == "treatment"]
    assert labels == [["id_code", "sirna"], *([well, truth[well]] for well in wells)]


def test_the_same_screen_makes_the_same_manifest_and_packs_nothing(tiny: TinyScreen):
    store = MemoryStore()
    _, first, *_ = normalize(tiny, store)
    objects = dict(store.objects)
    store.puts.clear()
    summary, second, *_ = normalize(tiny, store, out="again")
    assert (summary.packed, summary.reused) == (0, 8)
    assert second.digest() == first.digest()
    pointers = {key: store.objects.pop(key) for key in store.puts}
    assert all(key.startswith("fingerprints/") for key in pointers)
    prefixes = sorted(plate.prefix for plate in first.plates)
    assert sorted(json.loads(pointer)["prefix"] for pointer in pointers.values()) == prefixes
    assert store.objects == objects


def test_a_new_experiment_packs_its_own_plates_only(tiny: TinyScreen):
    store = MemoryStore()
    smaller = {name: (tiny.root / name).read_text() for name in ("train.csv", "train_controls.csv")}
    for name in smaller:
        tiny.drop_wells(name, "RPE-01")
    _, before, *_ = normalize(tiny, store)
    for name, text in smaller.items():
        (tiny.root / name).write_text(text)
    summary, after, *_ = normalize(tiny, store, out="grown")
    assert (summary.packed, summary.reused) == (2, 6)
    assert before.folds.items() <= after.folds.items()
    assert set(before.plates) <= set(after.plates)


def test_wells_instead_of_experiments_are_dealt_to_folds(tiny: TinyScreen):
    store = MemoryStore()
    config = holding_out("HUVEC-02")
    _, by_experiment, *_ = normalize(tiny, store, config)
    deals = [
        normalize(tiny, store, config.model_copy(update={"folds": FoldsConfig(count=2, split="well", seed=seed)}), name)
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    ]
    (_, screen, holdout, _), (_, again, *_), (_, other, *_) = deals
    assert (by_experiment.split, screen.split, screen.folds) == ("experiment", "well", {})
    folds = {
        well.id_code: fold
        for plate in screen.plates
        if plate.labelled
        for well, fold in zip(plate.wells, plate.well_folds, strict=True)
    }
    assert {id_code for id_code, fold in folds.items() if fold < 0} == {
        f"{experiment}_{plate}_{well}"
        for experiment in ("HUVEC-01", "RPE-01")
        for plate in (1, 2)
        for well in ("B02", "C03")
    }
    assert sorted(fold for fold in folds.values() if fold >= 0) == [0] * 6 + [1] * 6
    assert all(plate.well_folds == () for plate in (*holdout.plates, *screen.plates) if not plate.labelled)
    assert again.digest() == screen.digest()
    assert len({screen.digest(), other.digest(), by_experiment.digest()}) == 3


def test_oddities_are_warnings_in_the_manifest_of_their_plates(tiny: TinyScreen, capsys: pytest.CaptureFixture[str]):
    tiny.drop_wells("train_controls.csv", "RPE-01_2")
    for channel in range(1, 7):
        tiny.image("HUVEC-02", 1, "B03", 2, channel).unlink()
    write_png(tiny.image("HUVEC-01", 1, "B03", 1, 2), np.zeros((SIZE, SIZE), np.uint8))
    _, screen, _, _ = normalize(tiny, MemoryStore())
    assert screen.warnings == (
        "no control wells on RPE-01 plate 2",
        "HUVEC-01 plate 1: B03_s1_w2.png (ER) is all black",
        "HUVEC-02 plate 1: site 2 is missing in well B03",
        "RPE-01 plate 2: images of wells that no table lists are left out, wells B02, C03",
    )
    assert capsys.readouterr().out.count("warning: ") == 4
    _, screen, holdout, _ = normalize(tiny, MemoryStore(), holding_out("HUVEC-01"), "other")
    assert len(screen.warnings) == 3
    assert holdout.warnings == ("HUVEC-01 plate 1: B03_s1_w2.png (ER) is all black",)


def test_the_real_store_gives_the_pixels_back(tiny: TinyScreen, store: ObjectStore, tmp_path: Path):
    config = stored_in(store)
    outputs = [str(tmp_path / name) for name in ("screen.json", "holdout.json", "labels.csv")]
    summary = main(config.model_dump_json(), str(tiny.root), *outputs)
    assert (summary.packed, summary.reused) == (8, 0)
    manifest = Manifest.read(tmp_path / "screen.json")
    assert manifest.store == f"s3://{store.bucket}/{store.prefix}"
    reader = SiteReader(store, manifest, verify=True)
    table = reader.table
    for site, pixels in enumerate(reader.read(range(table.sites))):
        well = table.well_S[site]
        plate = manifest.plates[table.plate_W[well]]
        expected = tiny.pixels(plate.experiment, plate.plate, str(table.well_W[well]), int(table.site_S[site]))
        assert np.array_equal(pixels, expected)
    assert main(config.model_dump_json(), str(tiny.root), *outputs).reused == 8


def test_the_command_line_exits_with_2_and_one_line(tiny: TinyScreen, tmp_path: Path):
    tiny.edit("train.csv", "HUVEC-02_1_B03,HUVEC-02,1", "HUVEC-02_1_B03,HUVEC-02,one")
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.model_dump_json())  # JSON is YAML
    options = {"config": config, "source": tiny.root, "set": f"store.bucket={tmp_path.as_uri()}"}
    options |= {name: tmp_path / f"{name}.out" for name in ("screen", "holdout", "holdout-labels")}
    command = [sys.executable, "-m", "components.normalize", *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "(HUVEC-02_1_B03): field plate is 'one'" in done.stderr
    assert not list(tmp_path.glob("*.out"))


def test_the_plate_design_is_checked_against_the_runs_configuration_before_an_image_is_read(
    tmp_path: Path, folder_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def refuse(wells: list[LabelledWell], treatments: tuple[str, ...], prior: PriorConfig) -> None:
        seen.append((wells, prior))
        raise InputError("no rotations")

    monkeypatch.setattr("components.normalize.step.check_design", refuse)
    without_images = TinyScreen(tmp_path / "screen", imaged=(), more=("HUVEC-04",))
    held_out = holding_out("HUVEC-04")
    whole = RunConfig(screen=held_out.screen, folds=CONFIG.folds, prior=PriorConfig(min_margin=7))
    section = stored_in(folder_store, held_out)
    outputs = [str(tmp_path / "out" / name) for name in ("a", "b", "c")]
    with pytest.raises(InputError, match="no rotations"):
        main(section.model_dump_json(), str(without_images.root), *outputs, whole_config=whole.model_dump_json())
    ((wells, prior),) = seen
    assert prior.min_margin == 7
    assert {well.experiment for well in wells} == set(LABELLED), "the held-out experiment's labels are not read"
    assert len(wells) == 3 * 2 * 3, "experiments, plates, treatment wells"
    assert not (tmp_path / "out").exists()


@pytest.fixture
def step(tmp_path: Path, folder_store: ObjectStore) -> Callable[..., Summary]:
    """The step with the configuration of a whole run; outputs are in `out`."""
    tiny, whole = TinyScreen(tmp_path / "screen"), RunConfig(screen=CONFIG.screen, folds=CONFIG.folds)
    outputs = [str(tmp_path / "out" / name) for name in ("screen.json", "holdout.json", "holdout_labels.csv")]
    section = stored_in(folder_store).model_dump_json()
    return partial(main, section, str(tiny.root), *outputs, whole_config=whole.model_dump_json())


def test_a_run_is_recorded_under_its_key(step: Callable[..., Summary], tmp_path: Path, folder_store: ObjectStore):
    step(lineage=json.dumps({"run": "tiny-1", "seeds": {"run": 0}}))
    (tmp_path / "copy").mkdir()
    record = fetch_run(folder_store, "tiny-1", tmp_path / "copy")
    assert RunConfig.model_validate(record.config) == RunConfig(screen=CONFIG.screen, folds=CONFIG.folds)
    assert record.lineage["seeds"] == {"run": 0}
    outputs = sorted((tmp_path / "out").iterdir())
    assert all((tmp_path / "copy" / path.name).read_bytes() == path.read_bytes() for path in outputs)
    manifests = [tmp_path / "out" / name for name in ("screen.json", "holdout.json")]
    assert [Manifest.read(path).run for path in manifests] == ["tiny-1", "tiny-1"]
    step()
    assert Manifest.read(manifests[0]).run == ""
    assert folder_store.list("runs/") == [
        f"runs/tiny-1/{name}" for name in sorted(["run.json", *(path.name for path in outputs)])
    ]


def test_on_a_cluster_the_key_is_derived_from_recipe_and_data(
    step: Callable[..., Summary], tmp_path: Path, folder_store: ObjectStore
):
    known, source = {"recipe": "1a2b", "code_version": "0.1.0"}, str(tmp_path / "screen")
    for fingerprint in ("one", "two", "one"):
        step(lineage=json.dumps(known), fingerprint=fingerprint)
        key = cluster_run_key(RunConfig().name, "1a2b", source, fingerprint)
        assert Manifest.read(tmp_path / "out" / "screen.json").run == key
        lineage = lineage_of(folder_store, key)
        assert lineage.pop("started") > "2026"
        assert lineage == {**known, "run": key, "screen": source, "data_fingerprint": fingerprint}
    assert len({key.split("/")[1] for key in folder_store.list("runs/")}) == 2
    assert lineage_of(folder_store, "another") == {}


@pytest.mark.parametrize("lineage", ["{", '{"run": "../up"}'])
def test_rejects_a_lineage_that_cannot_be_recorded(step: Callable[..., Summary], tmp_path: Path, lineage: str):
    with pytest.raises(InputError, match="lineage: JSON is expected, with `run` of letters"):
        step(lineage=lineage)
    assert not (tmp_path / "out").exists()
