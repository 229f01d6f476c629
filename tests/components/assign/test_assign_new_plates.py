"""assign on new plates: with the design and the temperatures of a model instead of labelled wells."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.assign.step import AssignConfig, run
from components.core.config import PackConfig, PriorConfig, ScreenConfig
from components.core.errors import InputError
from components.core.registry.new_plates import design_of
from components.core.storage.arrays import LogitsDirectory, WellLogits, write_logits
from components.core.storage.manifest import Manifest, PlateRecord, ReferenceModel, Vocabulary, WellRecord

SIZE = 12
TREATMENTS = tuple(f"sirna_{n}" for n in range(4 * SIZE))
VOCABULARY = Vocabulary(treatments=TREATMENTS, positives=("pos",), negatives=("UNTREATED",))
TURNS = {"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 2, "HUVEC-03": 3}
TABLES = ("oof", "unlabelled", "holdout")


def plates(experiment: str, labelled: bool, numbers: tuple[int, ...] = (1, 2, 3, 4)) -> list[PlateRecord]:
    """Plates of one experiment; its turn is the group of its first plate."""
    found = []
    for p, number in enumerate(numbers):
        sirnas = TREATMENTS[((p + TURNS[experiment]) % 4) * SIZE :][:SIZE]
        wells = tuple(
            WellRecord(
                id_code=f"{experiment}_{number}_B{n + 2:02d}", well=f"B{n + 2:02d}", well_type="treatment",
                sirna=sirna if labelled else None, sites=(),
            )
            for n, sirna in enumerate(sirnas)
        )  # fmt: skip
        found.append(
            PlateRecord(
                experiment=experiment, plate=number, cell_type=experiment.split("-")[0], labelled=labelled, prefix="p",
                histograms=(), wells=wells,
            )
        )  # fmt: skip
    return found


def manifest(of: list[PlateRecord], **more: Any) -> Manifest:
    return Manifest(
        store="s3://x", channels=6, image_size=8, codec=PackConfig(), vocabulary=VOCABULARY, plates=tuple(of),
        **{"folds": {}, **more},
    )  # fmt: skip


SCREEN = manifest(
    [plate for name in ("HUVEC-01", "HUVEC-02", "RPE-01") for plate in plates(name, True)]
    + plates("HUVEC-03", labelled=False),
    folds={"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 2},
)


class Case:
    """The same logits, assigned as a training run does and as a prediction does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(5)
        index = VOCABULARY.index()
        truth = {
            f"{experiment}_{p + 1}_B{n + 2:02d}": TREATMENTS[((p + turn) % 4) * SIZE + n]
            for experiment, turn in TURNS.items()
            for p in range(4)
            for n in range(SIZE)
        }
        self.logits = {}
        for id_code, sirna in truth.items():
            x = rng.standard_normal(len(VOCABULARY.classes)).astype(np.float32)
            x[index[sirna]] += 2.5
            self.logits[id_code] = x

    def assign(
        self, screen: Manifest, holdout: Manifest, cell_type: str = "HUVEC", **prior: Any
    ) -> tuple[dict[str, list[dict[str, str]]], dict[str, Any]]:
        """The tables by role, and assign.json."""
        roles: dict[str, list[str]] = {role: [] for role in TABLES}
        for records, default in ((screen, "unlabelled"), (holdout, "holdout")):
            for plate in records.plates:
                if plate.cell_type == cell_type:
                    roles["oof" if plate.labelled else default] += [well.id_code for well in plate.wells]
        wells = {
            role: WellLogits(
                tuple(ids),
                np.array([self.logits[i] for i in ids], np.float32).reshape(len(ids), len(VOCABULARY.classes)),
            )
            for role, ids in roles.items()
        }
        paths = [self.folder / name for name in ("screen.json", "holdout.json", "logits", "out")]
        for path, records in zip(paths, (screen, holdout), strict=False):
            path.write_text(records.model_dump_json())
        paths[2].mkdir(exist_ok=True)
        write_logits(paths[2], LogitsDirectory(wells, {"cell_type": cell_type, "folds": [], "history": []}))
        run(AssignConfig(screen=ScreenConfig(), prior=PriorConfig(**prior)), *paths)
        tables = {}
        for role in TABLES:
            with (paths[3] / f"{role}.csv").open(newline="") as file:
                tables[role] = list(csv.DictReader(file))
        return tables, json.loads((paths[3] / "assign.json").read_text())


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def reference(temperatures: dict[str, dict[str, float]], with_design: bool = True) -> Manifest:
    """The reference that a model of SCREEN holds."""
    model = ReferenceModel(
        fingerprint="0" * 64,
        address="s3://x/models/0",
        design=design_of(SCREEN, PriorConfig()) if with_design else None,
        temperatures=temperatures,
    )
    bare = [plate.model_copy(update={"wells": ()}) for plate in SCREEN.plates]
    return manifest(bare, model=model)


def test_new_plates_get_exactly_the_predictions_of_the_training_run(case: Case) -> None:
    tables, summary = case.assign(SCREEN, manifest([]))
    fitted = {"HUVEC": summary["temperature"]}
    assert len(set(summary["temperature"].values())) == 3
    predicted, again = case.assign(reference(fitted), manifest(plates("HUVEC-03", labelled=False)))
    assert predicted["holdout"] == tables["unlabelled"]
    assert predicted["oof"] == predicted["unlabelled"] == []
    assert again["temperature"] == summary["temperature"]
    assert again["warnings"] == []
    (of_training,) = (entry for entry in summary["experiments"] if entry["experiment"] == "HUVEC-03")
    assert again["experiments"] == [{**of_training, "role": "holdout"}]


def test_each_temperature_changes_its_own_confidence(case: Case) -> None:
    usual = {"raw": 1.0, "group": 1.0, "balanced": 1.0}
    new = manifest(plates("HUVEC-03", labelled=False))
    before = case.assign(reference({"HUVEC": usual}), new)[0]["holdout"]
    columns = {"raw": "raw_confidence", "group": "group_confidence", "balanced": "confidence"}
    for name, column in columns.items():
        after = case.assign(reference({"HUVEC": {**usual, name: 2.0}}), new)[0]["holdout"]
        changed = {key for one, other in zip(before, after, strict=True) for key in one if one[key] != other[key]}
        assert changed - {"margin"} == {column}


def test_a_cell_type_without_temperatures_is_uncalibrated(case: Case) -> None:
    _, summary = case.assign(
        reference({"RPE": {"raw": 2.0, "group": 2.0, "balanced": 2.0}}), manifest(plates("HUVEC-03", False))
    )
    (warning,) = summary["warnings"]
    assert warning.startswith("confidences are not calibrated: the model has no temperatures of cell type HUVEC")
    assert set(summary["temperature"].values()) == {1.0}


def test_a_model_without_design_predicts_without_the_prior(case: Case) -> None:
    known = {"HUVEC": {"raw": 1.3, "group": 1.1, "balanced": 0.7}}
    new = manifest(plates("HUVEC-03", labelled=False))
    tables, summary = case.assign(reference(known, with_design=False), new)
    assert summary["warnings"] == [
        "predicted without the prior: the model has no plate design; set prior.enabled to false"
    ]
    assert summary["prior_enabled"] is False
    assert all(row["sirna"] == row["raw_sirna"] == row["group_sirna"] for row in tables["holdout"])
    off, quiet = case.assign(reference(known), new, enabled=False)
    assert off["holdout"] == tables["holdout"]
    assert quiet["warnings"] == []
    with pytest.raises(InputError, match=r"the model has no plate design; set prior.enabled to false"):
        case.assign(reference(known, with_design=False), new, on_low_margin="refuse")


def test_unknown_plates_are_predicted_among_all_treatments(case: Case) -> None:
    """A screen of another plate design: its wells may hold any siRNA."""
    moved = [
        plate.model_copy(update={"plate": plate.plate + 6})
        for plate in plates("HUVEC-03", labelled=False, numbers=(1, 2))
    ]
    known = {"HUVEC": {"raw": 1.3, "group": 1.1, "balanced": 0.7}}
    _, summary = case.assign(reference(known), manifest(moved))
    (warning,) = summary["warnings"]
    assert "has a plate 7, but labelled experiments have plates 1, 2, 3, 4" in warning
    assert warning.endswith("its wells are predicted among all treatments")
