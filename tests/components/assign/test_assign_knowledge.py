"""Labels that assign learns plate groups from, and its settings of the prior."""

import csv
import json
import zlib

import numpy as np
import pytest

from components.assign import step
from components.assign.step import AssignConfig
from components.core.config import PackConfig, PriorConfig, ScreenConfig
from components.core.errors import InputError
from components.core.storage.arrays import ROLES, LogitsDirectory, WellLogits, write_logits
from components.core.storage.manifest import Manifest, PlateRecord, Vocabulary, WellRecord

SIZE = 10
TREATMENTS = tuple(f"sirna_{n}" for n in range(4 * SIZE))
VOCABULARY = Vocabulary(treatments=TREATMENTS, positives=("pos",), negatives=("UNTREATED",))
FOLDS = {"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 2, "RPE-02": 0}
ROLE = {"HUVEC-01": "oof", "HUVEC-02": "oof", "HUVEC-03": "unlabelled", "HUVEC-04": "holdout"}
# The group on each plate: rotations of one another, of which the labelled ones show three.
HELD = {
    "HUVEC-01": (0, 1, 2, 3), "HUVEC-02": (1, 2, 3, 0), "RPE-01": (2, 3, 0, 1), "RPE-02": (0, 1, 2, 3),
    "HUVEC-03": (3, 0, 1, 2), "HUVEC-04": (1, 2, 3, 0),
}  # fmt: skip
# Any lead is accepted, so that labels cannot act through the calibration of the margin.
ACCEPTING = {"min_margin": 0.0, "min_separation": 0.0}


@pytest.fixture
def screen(tmp_path):
    """Writes a screen and logits of its HUVEC wells, and runs assign on them."""

    class Screen:
        truth: dict[str, str] = {}  # noqa: RUF012

        def write(self, held=HELD, claimed=None, absent=None, scattered=False):
            """`claimed`: arrangements according to the labels, if not `held`. `absent`: siRNAs that an experiment lacks."""
            index, self.truth = VOCABULARY.index(), {}
            plates: dict[str, list[PlateRecord]] = {"screen": [], "holdout": []}
            wells: dict[str, tuple[list[str], list[np.ndarray]]] = {role: ([], []) for role in ROLES}
            for experiment, arrangement in held.items():
                rng = np.random.default_rng(zlib.crc32(experiment.encode()))
                slots = rng.permutation(4 * SIZE) if scattered else np.arange(4 * SIZE)
                shown = (claimed or {}).get(experiment, arrangement)
                for plate in range(4):
                    records = []
                    for slot in range(SIZE):
                        true, label = (TREATMENTS[slots[g[plate] * SIZE + slot]] for g in (arrangement, shown))
                        x = rng.standard_normal(len(VOCABULARY.classes)).astype(np.float32)
                        if true in (absent or {}).get(experiment, ()):
                            continue
                        id_code = f"{experiment}_{plate + 1}_{slot}"
                        x[index[true]] += 3.0
                        self.truth[id_code] = true
                        if experiment in ROLE:
                            ids, logits = wells[ROLE[experiment]]
                            ids.append(id_code)
                            logits.append(x)
                        sirna = label if experiment in FOLDS else None
                        records.append(
                            WellRecord(id_code=id_code, well=str(slot), well_type="treatment", sirna=sirna, sites=())
                        )
                    plates["holdout" if ROLE.get(experiment) == "holdout" else "screen"].append(
                        PlateRecord(experiment=experiment, plate=plate + 1, cell_type=experiment.split("-")[0],
                                    labelled=experiment in FOLDS, prefix="p", histograms=(), wells=tuple(records))
                    )  # fmt: skip
            for name, of_name in plates.items():
                manifest = Manifest(store="s3://x", channels=6, image_size=8, codec=PackConfig(), folds=FOLDS,
                                    vocabulary=VOCABULARY, plates=tuple(of_name))  # fmt: skip
                (tmp_path / f"{name}.json").write_text(manifest.model_dump_json())
            (tmp_path / "logits").mkdir(exist_ok=True)
            of_roles = {role: WellLogits(tuple(ids), np.stack(logits)) for role, (ids, logits) in wells.items()}
            write_logits(
                tmp_path / "logits", LogitsDirectory(of_roles, {"cell_type": "HUVEC", "folds": [], "history": []})
            )
            return self

        def run(self, **prior):
            """Rows by id_code, and the summary."""
            config = AssignConfig(screen=ScreenConfig(), prior=PriorConfig(**prior))
            names = [tmp_path / name for name in ("screen.json", "holdout.json", "logits", "out")]
            step.run(config, *names)
            rows = {}
            for role in ROLES:
                with (tmp_path / "out" / f"{role}.csv").open(newline="") as file:
                    rows.update({row["id_code"]: row for row in csv.DictReader(file)})
            return rows, json.loads((tmp_path / "out" / "assign.json").read_text())

        def accuracy(self, rows, experiment, column="sirna"):
            of_experiment = [row for id_code, row in rows.items() if id_code.startswith(experiment)]
            assert of_experiment
            return np.mean([row[column] == self.truth[row["id_code"]] for row in of_experiment])

    return Screen()


def test_a_folds_own_labels_do_not_change_its_predictions(screen):
    """The other folds leave every cycle of groups open; the fold's own labels, true or not, would leave one."""
    alike = {"HUVEC-02": (0, 1, 2, 3), "RPE-01": (0, 1, 2, 3), "RPE-02": (0, 1, 2, 3)}
    held = {**HELD, **alike, "HUVEC-01": (1, 2, 3, 0)}
    true, _ = screen.write(held).run(**ACCEPTING)
    assert screen.accuracy(true, "HUVEC-01", "raw_sirna") < screen.accuracy(true, "HUVEC-01", "group_sirna")
    assert screen.accuracy(true, "HUVEC-01") > 0.9
    # A cycle without the wells' own arrangement.
    other, _ = screen.write(held, claimed={"HUVEC-01": (2, 0, 3, 1)}).run(**ACCEPTING)
    for column in ("raw_sirna", "group_sirna", "sirna"):
        assert {i: row[column] for i, row in other.items() if i.startswith("HUVEC-01")} == {
            i: row[column] for i, row in true.items() if i.startswith("HUVEC-01")
        }


def lacking(experiment):
    """One siRNA of each of two groups is in this experiment alone, so the others do not show their group."""
    return {other: {"sirna_0", f"sirna_{SIZE}"} for other in FOLDS if other != experiment}


def test_a_fold_without_groups_in_the_other_folds_is_predicted_without_the_prior(screen):
    rows, summary = screen.write(absent=lacking("HUVEC-01")).run(on_low_margin="all_classes")
    found = [warning for warning in summary["warnings"] if "predicted without the prior" in warning]
    assert len(found) == 1
    assert found[0].startswith(
        "out-of-fold wells of fold 0 are predicted without the prior: sirna_0 is on no labelled plate"
    )
    assert summary["prior_enabled"] is True
    assert {entry["experiment"] for entry in summary["experiments"]} == {"HUVEC-02", "HUVEC-03", "HUVEC-04"}
    own = [row for id_code, row in rows.items() if id_code.startswith("HUVEC-01")]
    assert all(row["sirna"] == row["group_sirna"] == row["raw_sirna"] for row in own)
    for experiment in ("HUVEC-02", "HUVEC-03", "HUVEC-04"):
        assert screen.accuracy(rows, experiment) > screen.accuracy(rows, experiment, "raw_sirna")


def test_rejects_a_fold_without_groups_in_the_other_folds_under_refuse(screen, tmp_path):
    screen.write(absent=lacking("HUVEC-01"))
    with pytest.raises(InputError, match="sirna_0 is on no labelled plate"):
        screen.run(on_low_margin="refuse")
    assert not (tmp_path / "out").exists()


def test_a_screen_without_plate_design_is_rejected_or_predicted_without_the_prior(screen, tmp_path):
    screen.write(scattered=True)
    with pytest.raises(InputError, match=r"no plate groups.*set prior\.enabled to false"):
        screen.run(on_low_margin="refuse")
    assert not (tmp_path / "out").exists()
    rows, summary = screen.run(on_low_margin="all_classes")
    assert summary["prior_enabled"] is False
    assert any("no plate groups" in warning for warning in summary["warnings"])
    assert all(row["sirna"] == row["raw_sirna"] for row in rows.values())


@pytest.mark.parametrize(("permutations", "found"), [("all", True), ("cyclic", False)])
def test_only_the_configured_permutations_are_considered(screen, permutations, found):
    """An unlabelled experiment that is no rotation of the labelled ones is predicted correctly among all permutations only."""
    held = {**HELD, "HUVEC-03": (1, 0, 3, 2)}
    rows, summary = screen.write(held).run(permutations=permutations, **ACCEPTING)
    groups = {entry["experiment"]: tuple(entry["groups"]) for entry in summary["experiments"]}
    assert (groups["HUVEC-03"] == held["HUVEC-03"]) == found
    assert (screen.accuracy(rows, "HUVEC-03") > 0.9) == found
    for rotated in ("HUVEC-01", "HUVEC-02", "HUVEC-04"):
        assert groups[rotated] == held[rotated]
