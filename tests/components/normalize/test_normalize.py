"""normalize from tables and PNGs to manifests: the outputs, a second and a killed run, records, and bad screens."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from components.core.config import CHANNELS, EmbeddingsConfig, FoldsConfig, PriorConfig, RunConfig
from components.core.errors import InputError
from components.core.prior.plate_groups import WITHOUT_DESIGN, labelled_treatments
from components.core.screen.manifests import controls_warnings
from components.core.screen.packed import SiteReader
from components.core.screen.wells import Plate, Role, Well
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import cluster_run_key
from components.core.storage.runs import fetch_run, lineage_of
from components.normalize.step import Summary, main, run
from components.report.inputs import own_columns
from tests.tiny_screen import CONFIG, IMAGED, LABELLED, SIZE, MemoryStore, TinyScreen, write_png


def normalize(
    tiny: TinyScreen, store: MemoryStore, config: RunConfig = CONFIG, out: str = "out"
) -> tuple[Summary, Manifest, Manifest, list[list[str]]]:
    folder = tiny.root.parent / out
    paths = folder / "screen.json", folder / "holdout.json", folder / "holdout_labels.csv"
    summary = run(config, tiny.root, store, *paths)
    assert sorted(folder.iterdir()) == sorted(paths), "nothing but the outputs"
    with paths[2].open(newline="") as file:
        return summary, Manifest.read(paths[0]), Manifest.read(paths[1]), list(csv.reader(file))


def stored_in(store: ObjectStore, config: RunConfig = CONFIG) -> str:
    """The configuration with this store, as JSON."""
    own = config.store.model_copy(update={"bucket": store.uri("").rstrip("/")})
    return config.model_copy(update={"store": own}).model_dump_json()


def holding_out(*experiments: str) -> RunConfig:
    screen = CONFIG.screen.model_copy(update={"holdout_experiments": experiments})
    return CONFIG.model_copy(update={"screen": screen})


def test_the_manifest_describes_the_whole_screen_and_a_second_run_packs_nothing(tiny: TinyScreen):
    store = MemoryStore()
    summary, screen, holdout, labels = normalize(tiny, store)
    assert (summary.packed, summary.reused) == (8, 0)
    assert summary.written <= len(store.puts)
    assert (screen.store, screen.channels, screen.image_shape) == ("s3://memory", CHANNELS, (SIZE, SIZE))
    assert len(screen.plates) == 8
    assert set(screen.folds) == set(LABELLED)
    assert set(screen.folds.values()) == {0, 1}
    assert (screen.warnings, holdout.plates, labels) == ((), (), [["id_code", "sirna"]])
    hidden = {w.id_code for p in screen.plates for w in p.wells if w.perturbation is None}
    assert hidden == {f"HUVEC-03_{plate}_{well}" for plate in (1, 2) for well in ("B03", "B04", "C02")}
    objects = dict(store.objects)
    store.puts.clear()
    summary, again, *_ = normalize(tiny, store, out="again")
    assert (summary.packed, summary.reused) == (0, 8)
    assert again.digest() == screen.digest()
    pointers = {key: store.objects.pop(key) for key in store.puts}
    assert all(key.startswith("fingerprints/") for key in pointers)
    prefixes = sorted(plate.prefix for plate in screen.plates)
    assert sorted(json.loads(pointer)["prefix"] for pointer in pointers.values()) == prefixes
    assert store.objects == objects


def test_wells_instead_of_experiments_are_dealt_to_folds(tiny: TinyScreen):
    store, config = MemoryStore(), holding_out("HUVEC-02")
    deals = [
        normalize(tiny, store, config.model_copy(update={"folds": FoldsConfig(count=2, split="well", seed=seed)}), name)
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    ]  # fmt: skip
    (_, screen, holdout, _), (_, again, *_), (_, other, *_) = deals
    assert (screen.split, screen.folds) == ("well", {})
    plates = [plate for plate in screen.plates if plate.labelled]
    assert len(plates) == 4
    for plate in plates:
        dealt = [w.role for w, fold in zip(plate.wells, plate.well_folds, strict=True) if fold >= 0]
        assert dealt == ["treatment"] * 3
    assert sorted(fold for plate in plates for fold in plate.well_folds if fold >= 0) == [0] * 6 + [1] * 6
    assert all(plate.well_folds == () for plate in (*holdout.plates, *screen.plates) if not plate.labelled)
    assert again.digest() == screen.digest() != other.digest()


def test_a_single_experiment_has_folds_of_plates_and_no_plate_design_which_is_said(tiny: TinyScreen, capsys):
    for name in ("train", "train_controls"):
        for experiment in ("HUVEC-02", "RPE-01"):
            tiny.drop_wells(f"{name}.csv", experiment)
    text = (tiny.root / "train.csv").read_text()
    for other, label in (("sirna_100", "sirna_7"), ("sirna_11", "sirna_30"), ("sirna_9", "sirna_2")):
        text = text.replace(other, label)
    (tiny.root / "train.csv").write_text(text)
    config = CONFIG.model_copy(update={"screen": CONFIG.screen.model_copy(update={"cell_types": ("HUVEC",)})})
    _, screen, *_ = normalize(tiny, MemoryStore(), config)
    first, second = [set(plate.well_folds) - {-1} for plate in screen.plates if plate.labelled]
    assert sorted([*first, *second]) == [0, 1]
    said = "the screen has one labelled experiment that is not held out, HUVEC-01: folds hold out plates"
    assert any(warning.startswith(said) for warning in screen.warnings)
    assert screen.no_design.startswith("folds hold out plates")
    output = capsys.readouterr().out
    assert output.count(said) == output.count(f"{WITHOUT_DESIGN}: folds hold out plates") == 1


def test_held_out_experiments_are_in_their_own_manifest_without_treatment_labels(tiny: TinyScreen):
    _, screen, holdout, labels = normalize(tiny, MemoryStore(), holding_out("HUVEC-02"))
    assert "HUVEC-02" not in screen.model_dump_json(exclude={"config"})
    assert {plate.experiment for plate in holdout.plates} == {"HUVEC-02"}
    assert not any(plate.labelled for plate in holdout.plates)
    assert holdout.vocabulary == screen.vocabulary
    assert holdout.folds == {}
    by_type = {(well.role, well.perturbation is None) for plate in holdout.plates for well in plate.wells}
    assert by_type == {("treatment", True), ("positive_control", False), ("negative_control", False)}
    truth = {row["id_code"]: row["sirna"] for row in csv.DictReader((tiny.root / "train.csv").open())}
    wells = [w.id_code for p in holdout.plates for w in p.wells if w.role == "treatment"]
    assert labels == [["id_code", "sirna"], *([well, truth[well]] for well in wells)]


def test_own_columns_that_tell_held_out_labels_are_hidden_with_them_and_given_back_to_the_report(tiny: TinyScreen):
    path = tiny.root / "train.csv"
    header, *rows = path.read_text().splitlines()
    named = [f"{row},name of {row.rsplit(',', 1)[1]},{row.split(',')[3]}" for row in rows]
    path.write_text("\n".join([f"{header},compound_name,place", *named]) + "\n")
    _, screen, holdout, labels = normalize(tiny, MemoryStore(), holding_out("HUVEC-02"))
    assert screen.columns == holdout.columns == ("compound_name", "place")
    hidden = {w.id_code: w.extra for p in holdout.plates for w in p.wells if w.role == "treatment"}
    assert {extra[0] for extra in hidden.values()} == {""}
    assert all(extra[1] == id_code[-3:] for id_code, extra in hidden.items())
    assert any(w.extra[0].startswith("name of") for p in screen.plates for w in p.wells)
    assert labels[0] == ["id_code", "sirna", "compound_name"]
    own = own_columns(screen, holdout, hidden=tiny.root.parent / "out" / "holdout_labels.csv")
    for id_code, label, name in labels[1:]:
        assert name == f"name of {label}"
        assert tuple(own.loc[id_code]) == (name, id_code[-3:])


def test_plates_without_controls_are_a_warning_only_where_others_have_some() -> None:
    def plate(name: str, *roles: Role, holdout: bool = False) -> Plate:
        wells = tuple(Well(f"b_{name}_B{n:02d}", f"B{n:02d}", role, "x", ()) for n, role in enumerate(roles, 1))
        return Plate("b", name, "HeLa", True, holdout, wells)

    bare = [plate("1", "treatment"), plate("2", "treatment", holdout=True)]
    assert controls_warnings(bare, False) == controls_warnings(bare, True) == []
    plates = [*bare, plate("3", "treatment", "negative_control")]
    assert controls_warnings(plates, False) == ["no control wells on b plate 1"]
    assert controls_warnings(plates, True) == ["no control wells on b plate 2"]


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


def test_oddities_are_warnings_in_the_manifest_of_their_plates(tiny: TinyScreen, capsys: pytest.CaptureFixture[str]):
    tiny.drop_wells("train_controls.csv", "RPE-01_2")
    for channel in range(1, 7):
        tiny.image("HUVEC-02", 1, "B03", 2, channel).unlink()
    write_png(tiny.image("HUVEC-01", 1, "B03", 1, 2), np.zeros((SIZE, SIZE), np.uint8))
    _, screen, _, _ = normalize(tiny, MemoryStore())
    assert screen.warnings == (
        "no control wells on RPE-01 plate 2",
        "RPE-01 plate 2: images of wells that no table lists are left out, wells B02, C03",
        "sites that some wells of their plate lack: HUVEC-02 plate 1: site 2 is missing in well B03",
        "HUVEC-01 plate 1: B03_s1_w2.png (ER) is all black",
    )
    assert capsys.readouterr().out.count("warning: ") == 4
    _, screen, holdout, _ = normalize(tiny, MemoryStore(), holding_out("HUVEC-01"), "other")
    assert len(screen.warnings) == 3
    assert holdout.warnings == ("HUVEC-01 plate 1: B03_s1_w2.png (ER) is all black",)


def test_the_plate_design_is_checked_against_the_runs_configuration_before_an_image_is_read(
    tmp_path: Path, folder_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def refuse(plates: list[Plate], treatments: tuple[str, ...], prior: PriorConfig, split: str) -> None:
        seen.append((labelled_treatments(plates), prior))
        raise InputError("no rotations")

    monkeypatch.setattr("components.normalize.step.check_design", refuse)
    without_images = TinyScreen(tmp_path / "screen", imaged=(), more=("HUVEC-04",), named=True)
    held_out = holding_out("HUVEC-04").model_copy(update={"prior": PriorConfig(min_margin=7)})
    outputs = [str(tmp_path / "out" / name) for name in ("a", "b", "c")]
    config, source = stored_in(folder_store, held_out), str(without_images.root)
    with pytest.raises(InputError, match="no rotations"):
        main(config, source, *outputs)
    ((wells, prior),) = seen
    assert prior.min_margin == 7
    assert {well.experiment for well in wells} == set(LABELLED), "the held-out experiment's labels are not read"
    assert len(wells) == 3 * 2 * 3, "experiments, plates, treatment wells"
    assert not (tmp_path / "out").exists()


@pytest.fixture
def step(tiny: TinyScreen, tmp_path: Path, folder_store: ObjectStore) -> Callable[..., Summary]:
    """The step with the configuration of a whole run; outputs are in `out`."""
    outputs = [str(tmp_path / "out" / name) for name in ("screen.json", "holdout.json", "holdout_labels.csv")]
    return partial(main, stored_in(folder_store), str(tiny.root), *outputs)


def test_a_run_is_recorded_under_its_key(step: Callable[..., Summary], tmp_path: Path, folder_store: ObjectStore):
    step(lineage=json.dumps({"run": "tiny-1", "seeds": {"run": 0}}))
    (tmp_path / "copy").mkdir()
    record = fetch_run(folder_store, "tiny-1", tmp_path / "copy")
    config = RunConfig.model_validate_json(stored_in(folder_store))
    assert RunConfig.model_validate(record.config) == config
    assert record.lineage["seeds"] == {"run": 0}
    outputs = sorted((tmp_path / "out").iterdir())
    assert all((tmp_path / "copy" / path.name).read_bytes() == path.read_bytes() for path in outputs)
    manifests = [tmp_path / "out" / name for name in ("screen.json", "holdout.json")]
    assert [Manifest.read(path).run for path in manifests] == ["tiny-1", "tiny-1"]
    assert [Manifest.read(path).run_config() for path in manifests] == [config, config]
    step()
    assert Manifest.read(manifests[0]).run == ""
    names = sorted(["run.json", *(path.name for path in outputs)])
    assert folder_store.list("runs/") == [f"runs/tiny-1/{name}" for name in names]


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


def test_rejects_a_lineage_that_cannot_be_recorded(step: Callable[..., Summary], tmp_path: Path):
    for lineage in ("{", '{"run": "../up"}'):
        with pytest.raises(InputError, match="lineage: JSON is expected, with `run` of letters"):
            step(lineage=lineage)
    assert not (tmp_path / "out").exists()


class SlowStore(ObjectStore):
    """Writes chunks slowly, so that a test can kill its process among them."""

    def put(self, key: str, data: bytes) -> None:
        if "/c." in key:
            time.sleep(0.05)
        super().put(key, data)


def _normalize_slowly(root: Path, folder: Path, out: Path) -> None:
    run(CONFIG, root, SlowStore(folder), out / "screen.json", out / "holdout.json", out / "labels.csv")


def test_a_killed_run_resumes(tiny: TinyScreen, folder_store: ObjectStore, tmp_path: Path):
    """No incomplete plate is used, and no complete plate is packed twice."""
    store, finished = folder_store, 3
    process = multiprocessing.get_context("spawn").Process(
        target=_normalize_slowly, args=(tiny.root, store.root, tmp_path / "out")
    )
    process.start()

    def records() -> list[str]:
        return [key for key in store.list("plates/") if key.endswith("/plate.json")]

    deadline = time.monotonic() + 60
    while len(records()) < finished or not any("/c." in key for key in store.list("plates/")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(timeout=60)
    whole = records()
    assert finished <= len(whole) < 8, "killed among the plates"
    before = {key: ((store.root / key).stat().st_ino, store.get(key)) for key in whole}

    summary, manifest, *_ = normalize(tiny, store)
    assert (summary.packed, summary.reused) == (8 - len(whole), len(whole))
    assert {key: ((store.root / key).stat().st_ino, store.get(key)) for key in whole} == before
    assert len(SiteReader(store, manifest, verify=True).read(range(80))) == 80
    undisturbed = ObjectStore(tmp_path / "undisturbed")
    assert normalize(tiny, undisturbed, out="other")[1].digest() == manifest.digest()
    assert store.list("plates/") == undisturbed.list("plates/"), "the same keys, and none besides"


def rejected(tiny: TinyScreen, message: str, config: RunConfig = CONFIG) -> MemoryStore:
    """Runs normalize, expects the message on one line and no output; returns the store as it was left."""
    store = MemoryStore()
    with pytest.raises(InputError, match=message) as caught:
        normalize(tiny, store, config)
    assert "\n" not in str(caught.value)
    assert not (tiny.root.parent / "out").exists()
    return store


SCREENS: dict[str, tuple[Callable[[TinyScreen], object], str]] = {
    "no plate folder": (lambda tiny: shutil.rmtree(tiny.root / "train/RPE-01/Plate2"),
                        r"5 wells of 40 without images .* screen\.missing_images to drop: RPE-01_2_B0"),
    "one channel missing": (lambda tiny: tiny.image("RPE-01", 2, "C02", 1, 5).unlink(),
                            r"1 site without all of 6 channels: .* drop: RPE-01_2_C02 site 1 lacks mitochondria"),
    "many wells without images": (
        lambda tiny: [tiny.image("RPE-01", 2, w, s, c).unlink() for w in ("B04", "C02") for s in (1, 2) for c in range(1, 7)],
        r"2 wells of 40 without images .*: RPE-01_2_B04, RPE-01_2_C02"),
    "another number of channels": (lambda tiny: [path.unlink() for path in tiny.root.rglob("*_w6.png")],
                                   r"5 channels \(w1-w5\) were found in all wells, .* set screen\.channels"),
    "pictures of all channels": (lambda tiny: [
        path.rename(path.with_name(path.name.replace("_w1", ""))) if "_w1" in path.name else path.unlink()
        for path in sorted(tiny.root.rglob("*.png"))
    ], r"pictures WELL_sSITE, one a site, .* was looked for; set screen\.channels"),
}  # fmt: skip


@pytest.mark.parametrize("case", SCREENS)
def test_rejects_missing_images_before_any_plate_is_packed(tiny: TinyScreen, case: str):
    damage, message = SCREENS[case]
    damage(tiny)
    assert rejected(tiny, message).puts == []


def test_controls_that_are_left_out_for_missing_images_do_not_count_for_sphering(tiny: TinyScreen):
    """So that such a screen is refused here, and not after its training."""
    sphered = EmbeddingsConfig(sphering="controls", shrinkage=0.1)
    config = CONFIG.model_copy(update={"screen": IMAGED, "embeddings": sphered})
    for well in ("B02", "C03"):
        tiny.image("RPE-01", 2, well, 1, 3).unlink()
    assert rejected(tiny, r"no control wells on RPE-01 plate 2, which embeddings\.sphering", config).puts == []


@pytest.mark.parametrize(
    ("update", "folds", "message"),
    [
        ({"holdout_experiments": ("HUVEC-99",)}, 2, r"screen\.holdout_experiments: 'HUVEC-99' is not a labelled exp"),
        ({"holdout_experiments": ("RPE-01",)}, 3, r"folds\.count is 3, but the screen has 2 labelled experiments"),
    ],
)
def test_rejects_a_configuration_that_disagrees_with_the_screen(tiny: TinyScreen, update, folds, message):
    config = RunConfig(screen=CONFIG.screen.model_copy(update=update), folds=FoldsConfig(count=folds))
    assert rejected(tiny, message, config).puts == []


def test_rejects_a_bad_image_and_deletes_its_plate(tiny: TinyScreen):
    write_png(tiny.image("HUVEC-01", 2, "B04", 2, 3), np.zeros((32, 24), np.uint8))
    place = r"HUVEC-01/Plate2/B04_s2_w3\.png: channel 3 \(actin\) of well B04, site 2: "
    store = rejected(tiny, f"{place}.*expected 16x16 pixels, found 32x24")
    # Only the plate before it is in the store, for the next run.
    assert {key.split("-")[1] for key in store.objects if key.startswith("plates/")} == {"01_Plate1"}
    assert len([key for key in store.objects if key.startswith("copies/")]) == 1
