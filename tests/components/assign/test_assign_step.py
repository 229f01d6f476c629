import csv
import json

import numpy as np
import pytest

from components.assign.step import AssignConfig, main, run
from components.core.config import PackConfig, PriorConfig, ScreenConfig
from components.core.errors import InputError
from components.core.storage.arrays import LogitsDirectory, WellLogits, write_logits
from components.core.storage.manifest import Manifest, PlateRecord, Vocabulary, WellRecord

SIZE = 16
TREATMENTS = tuple(f"sirna_{7 * n % 101}" for n in range(4 * SIZE))
VOCABULARY = Vocabulary(treatments=TREATMENTS, positives=("pos_1", "pos_2"), negatives=("UNTREATED",))
# By experiment: role, and the rotation of the groups over its plates. No labelled experiment has rotation 3.
EXPERIMENTS = {
    "HUVEC-01": ("oof", 0), "HUVEC-02": ("oof", 1), "RPE-01": (None, 2),
    "HUVEC-03": ("unlabelled", 3), "HUVEC-04": ("holdout", 1),
}  # fmt: skip
CONFIG = AssignConfig(screen=ScreenConfig(), prior=PriorConfig())


def config(**prior) -> AssignConfig:
    return AssignConfig(screen=ScreenConfig(), prior=PriorConfig(**prior))


@pytest.fixture
def case(tmp_path):
    """Writes the manifests of a five-experiment screen and logits of its HUVEC wells; returns paths and the truth."""

    class Case:
        screen, holdout, logits = tmp_path / "screen.json", tmp_path / "holdout.json", tmp_path / "logits"
        truth: dict[str, str] = {}  # noqa: RUF012

        def write(self, shift=3.0, roles=("oof", "unlabelled", "holdout"), scattered=False):
            rng = np.random.default_rng(11)
            plates, truths = {"screen": [], "holdout": []}, {"oof": {}, "unlabelled": {}, "holdout": {}}
            for experiment, (role, turn) in EXPERIMENTS.items():
                sirnas = np.array(TREATMENTS)
                if scattered:
                    sirnas = rng.permutation(sirnas)
                for plate in range(4):
                    on_plate = rng.permutation(sirnas[((plate + turn) % 4) * SIZE :][:SIZE])
                    ids = [f"{experiment}_{plate + 1}_{'BCDE'[n // 4]}{n % 4 + 2:02d}" for n in range(SIZE)]
                    keep = slice(0, SIZE - 1) if (experiment, plate) == ("HUVEC-03", 2) else slice(None)
                    labelled = role in ("oof", None)
                    wells = [
                        WellRecord(
                            id_code=i, well=i[-3:], well_type="treatment", sirna=s if labelled else None, sites=()
                        )
                        for i, s in zip(ids[keep], on_plate[keep].tolist(), strict=True)
                    ]
                    control = f"{experiment}_{plate + 1}_O23"
                    wells.append(
                        WellRecord(id_code=control, well="O23", well_type="positive_control", sirna="pos_1", sites=())
                    )
                    plates["holdout" if role == "holdout" else "screen"].append(
                        PlateRecord(experiment=experiment, plate=plate + 1, cell_type=experiment.split("-")[0],
                                    labelled=labelled, prefix="p", histograms=(), wells=tuple(wells))
                    )  # fmt: skip
                    if role in roles:
                        truths[role].update(zip(ids[keep], on_plate[keep].tolist(), strict=True))
            for name, path in (("screen", self.screen), ("holdout", self.holdout)):
                manifest = Manifest(store="s3://x", channels=6, image_size=8, codec=PackConfig(), vocabulary=VOCABULARY,
                                    folds={"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 2}, plates=tuple(plates[name]))  # fmt: skip
                path.write_text(manifest.model_dump_json())
            index, wells = VOCABULARY.index(), {}
            bias = 0.8 * rng.standard_normal(len(VOCABULARY.classes))
            for role, known in truths.items():
                x = rng.standard_normal((len(known), len(VOCABULARY.classes))) + bias
                x[:, -3:] += 10  # controls win every row, and must never be an answer
                if known:
                    x[np.arange(len(known)), [index[s] for s in known.values()]] += shift
                wells[role] = WellLogits(tuple(known), (2 * x).astype(np.float32))
                self.truth.update(known)
            self.logits.mkdir(exist_ok=True)
            write_logits(self.logits, LogitsDirectory(wells, {"cell_type": "HUVEC", "folds": [], "history": []}))
            return self

        def run(self, settings, out=tmp_path / "out"):
            run(settings, self.screen, self.holdout, self.logits, out)
            tables = {}
            for role in ("oof", "unlabelled", "holdout"):
                with (out / f"{role}.csv").open(newline="") as file:
                    tables[role] = list(csv.DictReader(file))
            return tables, json.loads((out / "assign.json").read_text())

        def accuracy(self, rows, column):
            return np.mean([row[column] == self.truth[row["id_code"]] for row in rows])

    return Case()


def test_each_stage_is_more_accurate_in_every_role(case):
    tables, summary = case.write().run(CONFIG)
    for rows in tables.values():
        raw, group, assigned = (case.accuracy(rows, column) for column in ("raw_sirna", "group_sirna", "sirna"))
        assert raw < group < assigned
        assert assigned > 0.9
        assert {row["sirna"] for row in rows} <= set(TREATMENTS)
    assert len(tables["unlabelled"]) == 4 * SIZE - 1
    assert summary["prior_enabled"] is True
    assert set(summary["temperature"]) >= {"raw", "group"}
    assert summary["warnings"] == []


def test_infers_the_arrangement_of_every_experiment(case):
    _, summary = case.write().run(CONFIG)
    found = {entry["experiment"]: entry for entry in summary["experiments"]}
    assert {name: entry["groups"] for name, entry in found.items()} == {
        name: [(plate + turn) % 4 for plate in range(4)] for name, (role, turn) in EXPERIMENTS.items() if role
    }
    assert {name: entry["role"] for name, entry in found.items()} == {n: r for n, (r, _) in EXPERIMENTS.items() if r}
    assert all(entry["accepted"] and entry["margin"] > 5 for entry in found.values())


def test_a_plate_holds_each_sirna_once_and_confidences_are_probabilities(case):
    tables, _ = case.write(shift=1.5).run(CONFIG)
    for rows in tables.values():
        for plate in {row["id_code"].rsplit("_", 1)[0] for row in rows}:
            predicted = [row["sirna"] for row in rows if row["id_code"].startswith(plate)]
            assert len(set(predicted)) == len(predicted)
        for row in rows:
            for column in ("confidence", "raw_confidence", "group_confidence"):
                assert 0 <= float(row[column]) <= 1
            assert -1 <= float(row["margin"]) <= float(row["confidence"])
            assert row["top5"].split()[0] == row["raw_sirna"]
            assert len(set(row["top5"].split())) == 5


def test_predictions_without_the_prior_are_raw(case):
    tables, summary = case.write().run(config(enabled=False))
    assert summary["prior_enabled"] is False
    assert summary["experiments"] == []
    assert all(row["sirna"] == row["raw_sirna"] == row["group_sirna"] for rows in tables.values() for row in rows)


def test_an_unclear_arrangement_is_assigned_among_all_treatments(case):
    tables, summary = case.write().run(config(min_margin=1e6))
    assert {(entry["accepted"], entry["groups"]) for entry in summary["experiments"]} == {(False, None)}
    assert any("HUVEC-03 (unlabelled)" in warning for warning in summary["warnings"])
    rows = tables["unlabelled"]
    assert len({row["sirna"] for row in rows}) == len(rows)
    assert all(row["group_sirna"] == row["raw_sirna"] for row in rows)
    assert case.accuracy(rows, "sirna") > case.accuracy(rows, "raw_sirna")


def test_rejects_an_unclear_arrangement_under_refuse(case, tmp_path):
    case.write()
    with pytest.raises(InputError, match=r"experiment HUVEC-01 \(oof\).*leads by [0-9.]+ nats.*below 1e\+06") as caught:
        case.run(config(min_margin=1e6, on_low_margin="refuse"))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holdout.json", "logits", "screen.json"]


def test_warns_that_confidences_are_not_calibrated_without_out_of_fold_wells(case):
    tables, summary = case.write(roles=("unlabelled",)).run(CONFIG)
    assert tables["oof"] == tables["holdout"] == []
    assert case.accuracy(tables["unlabelled"], "sirna") > 0.9
    assert set(summary["temperature"].values()) == {1.0}
    assert any("not calibrated" in warning for warning in summary["warnings"])


def test_temperature_makes_raw_confidence_match_accuracy(case):
    tables, summary = case.write(shift=1.5).run(CONFIG)
    rows = tables["oof"]
    calibrated, before = (
        abs(np.mean([float(row[c]) for row in rows]) - case.accuracy(rows, "raw_sirna"))
        for c in ("raw_confidence", "raw_confidence_uncalibrated")
    )
    assert summary["temperature"]["raw"] != 1.0
    assert calibrated < max(before, 0.1)


def test_main_copies_meta(case, tmp_path):
    case.write()
    main(CONFIG.model_dump_json(), str(case.screen), str(case.holdout), str(case.logits), str(tmp_path / "out"))
    assert (tmp_path / "out" / "meta.json").read_bytes() == (case.logits / "meta.json").read_bytes()


def test_rejects_logits_of_another_screen(case):
    case.write()
    case.holdout.write_text(Manifest.read(case.holdout).model_copy(update={"plates": ()}).model_dump_json())
    with pytest.raises(InputError, match=r"holdout well HUVEC-04_1_B02 is no treatment well of .*holdout\.json"):
        case.run(CONFIG)


@pytest.mark.parametrize("shift", [1.5, 2.0])
def test_out_of_fold_labels_change_confidences_but_no_prediction(case, shift):
    # HUVEC-03 has a plate without one of its wells, where scalings could change an assignment; at these shifts a
    # temperature fitted on wrong labels is so large that no arrangement would lead by 5 nats.
    before, first = case.write(shift).run(CONFIG)
    rng = np.random.default_rng(3)
    manifest = Manifest.read(case.screen)
    plates = []
    for plate in manifest.plates:
        wells = [well for well in plate.wells if well.well_type == "treatment"]
        moved = dict(zip([w.id_code for w in wells], rng.permutation([w.sirna for w in wells]).tolist(), strict=True))
        if plate.experiment in ("HUVEC-01", "HUVEC-02"):
            wells = [w.model_copy(update={"sirna": moved.get(w.id_code, w.sirna)}) for w in plate.wells]
            plate = plate.model_copy(update={"wells": tuple(wells)})
        plates.append(plate)
    case.screen.write_text(manifest.model_copy(update={"plates": tuple(plates)}).model_dump_json())
    after, second = case.run(CONFIG)
    assert second["temperature"]["raw"] > 2 * first["temperature"]["raw"]
    for role, rows in before.items():
        for column in ("sirna", "group_sirna", "raw_sirna", "top5"):
            assert [row[column] for row in rows] == [row[column] for row in after[role]], (role, column)
    assert [row["confidence"] for row in before["unlabelled"]] != [row["confidence"] for row in after["unlabelled"]]


def test_an_experiment_with_an_unknown_plate_is_predicted_among_all_treatments_or_rejected(case):
    case.write()
    manifest = Manifest.read(case.screen)
    plates = tuple(
        plate.model_copy(update={"plate": 9}) if (plate.experiment, plate.plate) == ("HUVEC-03", 4) else plate
        for plate in manifest.plates
    )
    case.screen.write_text(manifest.model_copy(update={"plates": plates}).model_dump_json())
    tables, summary = case.run(CONFIG)
    assert len(tables["unlabelled"]) == 4 * SIZE - 1
    assert len({row["sirna"] for row in tables["unlabelled"]}) == 4 * SIZE - 1, "one to one over the whole experiment"
    (entry,) = [entry for entry in summary["experiments"] if entry["experiment"] == "HUVEC-03"]
    assert [entry[key] for key in ("accepted", "groups", "margin", "separation")] == [False, None, None, None]
    assert entry["problem"].startswith("experiment HUVEC-03 has a plate 9")
    (warning,) = [text for text in summary["warnings"] if "HUVEC-03" in text]
    assert warning.startswith("experiment HUVEC-03 has a plate 9, but labelled experiments have plates 1, 2, 3, 4")
    with pytest.raises(InputError, match="experiment HUVEC-03 has a plate 9"):
        case.run(config(on_low_margin="refuse"))
