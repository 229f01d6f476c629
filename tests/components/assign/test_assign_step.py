import json

import numpy as np
import pytest

from components.core.errors import InputError
from components.core.storage.arrays import read_logits
from components.core.storage.manifest import Manifest
from tests.components.assign.conftest import FOLDS, HELD, MISSING, ROLE, SIZE, TREATMENTS, of_experiment


def change_plates(case, change):
    """Rewrites the screen's manifest with each plate changed."""
    screen = Manifest.read(case.screen)
    changed = screen.model_copy(update={"plates": tuple(map(change, screen.plates))})
    case.write_manifests(changed, Manifest.read(case.holdout))


def test_each_stage_is_more_accurate_in_every_role(case):
    tables, summary = case.write().run()
    for table in tables.values():
        raw, group, assigned = (
            case.accuracy(table, column) for column in ("raw_perturbation", "group_perturbation", "perturbation")
        )
        assert raw < group < assigned
        assert assigned > 0.9
        assert set(table["perturbation"]) <= set(TREATMENTS)
    assert len(tables["unlabelled"]) == 4 * SIZE - 1
    assert summary["prior_enabled"] is True
    assert summary["warnings"] == []
    found = {entry["experiment"]: entry for entry in summary["experiments"]}
    assert {name: tuple(entry["groups"]) for name, entry in found.items()} == {name: HELD[name] for name in ROLE}
    assert {name: entry["role"] for name, entry in found.items()} == ROLE
    assert all(entry["accepted"] and entry["margin"] > 5 for entry in found.values())


def test_a_plate_holds_each_perturbation_once_and_confidences_are_probabilities(case):
    tables, summary = case.write(shift=1.5).run()
    for table in tables.values():
        assert (
            table.groupby(table["id_code"].str.rsplit("_", n=1).str[0])["perturbation"].agg(lambda s: s.is_unique)
        ).all()
        assert table[["confidence", "raw_confidence", "group_confidence"]].stack().between(0, 1).all()
        assert (table["margin"].between(-1, table["confidence"])).all()
        top5 = table["top5"].map(json.loads)
        assert (top5.str[0] == table["raw_perturbation"]).all()
        assert top5.map(lambda labels: len(set(labels))).eq(5).all()
    # Calibration: raw confidence comes close to accuracy.
    error = (
        tables["oof"].filter(like="raw_confidence").mean() - case.accuracy(tables["oof"], "raw_perturbation")
    ).abs()
    calibrated, before = error["raw_confidence"], error["raw_confidence_uncalibrated"]
    assert summary["temperature"]["raw"] != 1.0
    assert calibrated < max(before, 0.1)


def test_an_unclear_arrangement_is_assigned_among_all_treatments_or_rejected(case, tmp_path):
    case.write()
    with pytest.raises(
        InputError, match=r"experiment HUVEC-01 \(out of fold\).*leads by [0-9.]+ nats.*below 1e\+06"
    ) as caught:
        case.run(min_margin=1e6, on_low_margin="refuse")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holdout.json", "logits", "screen.json"]
    tables, summary = case.run(min_margin=1e6)
    assert {(entry["accepted"], entry["groups"]) for entry in summary["experiments"]} == {(False, None)}
    assert any("HUVEC-03 (unlabelled)" in warning for warning in summary["warnings"])
    (uncalibrated,) = [warning for warning in summary["warnings"] if "not calibrated" in warning]
    assert "(group)" in uncalibrated
    assert "no out-of-fold well with a plate group" in uncalibrated
    table = tables["unlabelled"]
    assert table["perturbation"].is_unique
    assert table["group_perturbation"].equals(table["raw_perturbation"])
    assert case.accuracy(table) > case.accuracy(table, "raw_perturbation")


def test_warns_that_confidences_are_not_calibrated_without_out_of_fold_wells(case):
    tables, summary = case.write(roles=("unlabelled",)).run()
    assert tables["oof"].empty
    assert case.accuracy(tables["unlabelled"]) > 0.9
    assert set(summary["temperature"].values()) == {1.0}
    (warning,) = [warning for warning in summary["warnings"] if "not calibrated" in warning]
    assert "(raw, group, balanced)" in warning


def test_rejects_logits_of_another_screen(case):
    case.write()
    case.holdout.write_text(Manifest.read(case.holdout).model_copy(update={"plates": ()}).model_dump_json())
    with pytest.raises(InputError, match=r"holdout well HUVEC-04_1_B02 is no treatment well of .*holdout\.json"):
        case.run()


@pytest.mark.parametrize("shift", [1.5, 2.0])
def test_out_of_fold_labels_change_confidences_but_no_prediction(case, shift):
    # HUVEC-03 has a plate without one of its wells, where scalings could change an assignment; at these shifts a
    # temperature fitted on wrong labels is so large that no arrangement would lead by 5 nats.
    before, first = case.write(shift=shift).run()
    rng = np.random.default_rng(3)

    def shuffled(plate):
        if plate.cell_type != "HUVEC" or not plate.labelled:
            return plate
        treated = [well for well in plate.wells if well.role == "treatment"]
        moved = dict(zip([w.id_code for w in treated], rng.permutation([w.perturbation for w in treated]), strict=True))
        wells = (
            well.model_copy(update={"perturbation": moved.get(well.id_code, well.perturbation)}) for well in plate.wells
        )
        return plate.model_copy(update={"wells": tuple(wells)})

    change_plates(case, shuffled)
    after, second = case.run()
    assert second["temperature"]["raw"] > 2 * first["temperature"]["raw"]
    columns = ["id_code", "perturbation", "group_perturbation", "raw_perturbation", "top5"]
    for role, table in before.items():
        assert table[columns].equals(after[role][columns]), role
    assert not before["unlabelled"]["confidence"].equals(after["unlabelled"]["confidence"])


def test_an_experiment_with_an_unknown_plate_is_predicted_among_all_treatments_or_rejected(case):
    case.write()
    fourth = ("HUVEC-03", "4")
    change_plates(case, lambda p: p.model_copy(update={"plate": "9"}) if (p.experiment, p.plate) == fourth else p)
    tables, summary = case.run()
    assert len(tables["unlabelled"]) == 4 * SIZE - 1
    assert tables["unlabelled"]["perturbation"].is_unique, "one to one over the whole experiment"
    (entry,) = [entry for entry in summary["experiments"] if entry["experiment"] == "HUVEC-03"]
    assert [entry[key] for key in ("accepted", "groups", "margin", "separation")] == [False, None, None, None]
    assert entry["problem"].startswith("experiment HUVEC-03 has a plate 9")
    (warning,) = [text for text in summary["warnings"] if "HUVEC-03" in text]
    assert warning.startswith("experiment HUVEC-03 has a plate 9, but labelled experiments have plates 1, 2, 3, 4")
    with pytest.raises(InputError, match="experiment HUVEC-03 has a plate 9"):
        case.run(on_low_margin="refuse")


def test_labels_of_other_wells_tell_an_experiments_arrangement_unless_it_is_held_out(case, monkeypatch):
    # Labels and logits contradict each other, which shows what was read.
    monkeypatch.setitem(ROLE, "HUVEC-02", "unlabelled")
    by_logits = (0, 1, 2, 3)
    case.write({**HELD, "HUVEC-02": by_logits}, claimed={"HUVEC-02": HELD["HUVEC-02"]})

    def groups(role):
        (found,) = [e for e in case.run()[1]["experiments"] if e["experiment"] == "HUVEC-02" and e["role"] == role]
        return tuple(found["groups"])

    assert groups("unlabelled") == HELD["HUVEC-02"]
    screen, found = Manifest.read(case.screen), read_logits(case.logits).wells["unlabelled"]
    case.write_manifests(screen, screen)
    case.write_logits({"oof": {}, "unlabelled": {}, "holdout": dict(zip(found.ids_W, found.logits_WK, strict=True))})
    assert groups("holdout") == by_logits


def test_an_arrangement_of_too_few_wells_is_unclear_and_their_predictions_stay_raw(case):
    kept = {TREATMENTS[0], TREATMENTS[SIZE]}
    tables, summary = case.write(absent={"HUVEC-03": set(TREATMENTS) - kept}, shift=9.0).run()
    (warning,) = summary["warnings"]
    assert warning.startswith(
        "experiment HUVEC-03 has 2 treatment wells, too few to tell which plate holds which group"
    )
    table = tables["unlabelled"]
    assert len(table) == 2
    assert table["perturbation"].equals(table["raw_perturbation"])
    assert table["confidence"].equals(table["raw_confidence"])
    with pytest.raises(InputError, match=r"too few.*set prior\.on_low_margin to all_classes"):
        case.run(on_low_margin="refuse")


def test_confidences_of_plates_with_few_wells_are_those_of_their_number_of_wells(case):
    """Fitted on such parts of out-of-fold plates: a bias that few wells do not show makes them less certain."""
    kept = {name for n, name in enumerate(TREATMENTS) if n % SIZE in (3, 7)}
    absent = {"HUVEC-03": set(TREATMENTS) - kept}
    for shift in (1.5, 2.5):
        tables, summary = case.write(absent=absent, shift=shift).run(**ACCEPTING)
        fitted = summary["temperature"]
        assert fitted["balanced_1"] > fitted["balanced_2"] > fitted["balanced"]
        assert tables["unlabelled"]["confidence"].mean() < tables["holdout"]["confidence"].mean()


# Any lead is accepted, so that labels cannot act through the calibration of the margin.
ACCEPTING = {"min_margin": 0.0, "min_separation": 0.0}


@pytest.mark.parametrize("more", [{}, {"HUVEC-01": (2,)}], ids=["one fold", "overlapping folds"])
def test_a_folds_own_labels_do_not_change_its_predictions(case, more):
    """The other folds leave every cycle of groups open; the fold's own labels, true or not, would leave one."""
    alike = {"HUVEC-02": (0, 1, 2, 3), "RPE-01": (0, 1, 2, 3), "RPE-02": (0, 1, 2, 3)}
    held = {**HELD, **alike, "HUVEC-01": (1, 2, 3, 0)}

    def predicted(**claimed):
        case.write(held, **claimed)
        overlapping = Manifest.read(case.screen).model_copy(update={"more_folds": more})
        case.write_manifests(overlapping, Manifest.read(case.holdout))
        return of_experiment(case.run(**ACCEPTING)[0], "HUVEC-01")

    true = predicted()
    assert case.accuracy(true, "raw_perturbation") < case.accuracy(true, "group_perturbation")
    assert case.accuracy(true) > 0.9
    # A cycle without the wells' own arrangement.
    other = predicted(claimed={"HUVEC-01": (2, 0, 3, 1)})
    columns = ["id_code", "raw_perturbation", "group_perturbation", "perturbation"]
    assert other[columns].equals(true[columns])


def test_a_fold_without_groups_in_the_other_folds_is_predicted_without_the_prior_or_rejected(case, tmp_path):
    # One perturbation of each of two groups is in this experiment alone, so the others do not show their group.
    case.write(absent={other: {TREATMENTS[0], TREATMENTS[SIZE]} for other in FOLDS if other != "HUVEC-01"})
    with pytest.raises(InputError, match="sirna_0 is on no labelled plate"):
        case.run(on_low_margin="refuse")
    assert not (tmp_path / "out").exists()
    tables, summary = case.run(on_low_margin="all_classes")
    (found,) = [warning for warning in summary["warnings"] if "predicted without the prior" in warning]
    assert found.startswith(
        "out-of-fold wells of fold 0 are predicted without the prior: sirna_0 is on no labelled plate"
    )
    assert summary["prior_enabled"] is True
    assert {entry["experiment"] for entry in summary["experiments"]} == {"HUVEC-02", "HUVEC-03", "HUVEC-04"}
    own = of_experiment(tables, "HUVEC-01")
    assert own["perturbation"].equals(own["raw_perturbation"])
    assert own["group_perturbation"].equals(own["raw_perturbation"])
    for experiment in ("HUVEC-02", "HUVEC-03", "HUVEC-04"):
        table = of_experiment(tables, experiment)
        assert case.accuracy(table) > case.accuracy(table, "raw_perturbation")


def test_a_screen_without_plate_design_is_rejected_or_predicted_without_the_prior(case, tmp_path):
    case.write(scattered=True)
    with pytest.raises(InputError, match=r"no plate groups.*set prior\.enabled to false"):
        case.run(on_low_margin="refuse")
    assert not (tmp_path / "out").exists()
    tables, summary = case.run(on_low_margin="all_classes")
    assert summary["prior_enabled"] is False
    assert any("no plate groups" in warning for warning in summary["warnings"])
    assert all(table["perturbation"].equals(table["raw_perturbation"]) for table in tables.values())


@pytest.mark.parametrize(("permutations", "found"), [("all", True), ("cyclic", False)])
def test_only_the_configured_permutations_are_considered(case, permutations, found):
    """An unlabelled experiment that is no rotation of the labelled ones is predicted correctly among all permutations only."""
    held = {**HELD, "HUVEC-03": (1, 0, 3, 2)}
    tables, summary = case.write(held, absent=MISSING).run(permutations=permutations, **ACCEPTING)
    groups = {entry["experiment"]: tuple(entry["groups"]) for entry in summary["experiments"]}
    assert (groups["HUVEC-03"] == held["HUVEC-03"]) == found
    assert (case.accuracy(of_experiment(tables, "HUVEC-03")) > 0.8) == found
    for rotated in ("HUVEC-01", "HUVEC-02", "HUVEC-04"):
        assert groups[rotated] == held[rotated]
