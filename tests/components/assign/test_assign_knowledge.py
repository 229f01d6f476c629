"""Labels that assign learns plate groups from, and its settings of the prior."""

import pytest

from components.core.errors import InputError
from tests.components.assign.conftest import FOLDS, HELD, MISSING, SIZE, TREATMENTS, of_experiment

# Any lead is accepted, so that labels cannot act through the calibration of the margin.
ACCEPTING = {"min_margin": 0.0, "min_separation": 0.0}


def test_a_folds_own_labels_do_not_change_its_predictions(case):
    """The other folds leave every cycle of groups open; the fold's own labels, true or not, would leave one."""
    alike = {"HUVEC-02": (0, 1, 2, 3), "RPE-01": (0, 1, 2, 3), "RPE-02": (0, 1, 2, 3)}
    held = {**HELD, **alike, "HUVEC-01": (1, 2, 3, 0)}
    true = of_experiment(case.write(held).run(**ACCEPTING)[0], "HUVEC-01")
    assert case.accuracy(true, "raw_sirna") < case.accuracy(true, "group_sirna")
    assert case.accuracy(true) > 0.9
    # A cycle without the wells' own arrangement.
    other = of_experiment(case.write(held, claimed={"HUVEC-01": (2, 0, 3, 1)}).run(**ACCEPTING)[0], "HUVEC-01")
    columns = ["id_code", "raw_sirna", "group_sirna", "sirna"]
    assert other[columns].equals(true[columns])


def lacking(experiment):
    """One siRNA of each of two groups is in this experiment alone, so the others do not show their group."""
    return {other: {TREATMENTS[0], TREATMENTS[SIZE]} for other in FOLDS if other != experiment}


def test_a_fold_without_groups_in_the_other_folds_is_predicted_without_the_prior_or_rejected(case, tmp_path):
    case.write(absent=lacking("HUVEC-01"))
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
    assert own["sirna"].equals(own["raw_sirna"])
    assert own["group_sirna"].equals(own["raw_sirna"])
    for experiment in ("HUVEC-02", "HUVEC-03", "HUVEC-04"):
        table = of_experiment(tables, experiment)
        assert case.accuracy(table) > case.accuracy(table, "raw_sirna")


def test_a_screen_without_plate_design_is_rejected_or_predicted_without_the_prior(case, tmp_path):
    case.write(scattered=True)
    with pytest.raises(InputError, match=r"no plate groups.*set prior\.enabled to false"):
        case.run(on_low_margin="refuse")
    assert not (tmp_path / "out").exists()
    tables, summary = case.run(on_low_margin="all_classes")
    assert summary["prior_enabled"] is False
    assert any("no plate groups" in warning for warning in summary["warnings"])
    assert all(table["sirna"].equals(table["raw_sirna"]) for table in tables.values())


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
