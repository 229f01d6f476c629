"""assign on new plates: with the design and the temperatures of a model instead of labelled wells."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from components.core.config import PriorConfig
from components.core.errors import InputError
from components.core.registry.new_plates import design_of
from components.core.storage.arrays import USES, read_logits
from components.core.storage.manifest import Manifest, ReferenceModel
from tests.components.assign.conftest import Case, manifest

FITTED = {"HUVEC": {"raw": 1.3, "group": 1.1, "balanced": 0.7}}


class NewPlates:
    """The unlabelled experiment of a case, predicted as new plates."""

    def __init__(self, case: Case) -> None:
        self.case = case.write()
        self.trained = Manifest.read(case.screen)
        self.plates = [plate for plate in self.trained.plates if plate.experiment == "HUVEC-03"]
        logits = read_logits(case.logits).wells["unlabelled"]
        self.logits = {id_code: logits.take([id_code])[0] for id_code in logits.ids_W}

    def assign(
        self, temperatures: dict[str, dict[str, float]] = FITTED, with_design: bool = True, **prior: Any
    ) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        """Predicts the plates by a model with these temperatures."""
        design = design_of(self.trained, PriorConfig()) if with_design else None
        model = ReferenceModel(
            fingerprint="0" * 64, address="s3://x/models/0", design=design, temperatures=temperatures
        )
        bare = [plate.model_copy(update={"wells": ()}) for plate in self.trained.plates]
        self.case.write_manifests(manifest(bare, model=model), manifest(self.plates))
        self.case.write_logits({role: self.logits if role == "holdout" else {} for role in USES})
        return self.case.run(**prior)


def test_new_plates_get_exactly_the_predictions_of_the_training_run(case: Case) -> None:
    new = NewPlates(case)
    tables, summary = case.run()
    fitted = summary["temperature"]
    assert {"raw", "group", "balanced", "balanced_1"} <= set(fitted)
    assert len(set(fitted.values())) == len(fitted)
    predicted, again = new.assign({"HUVEC": summary["temperature"]})
    pd.testing.assert_frame_equal(predicted["holdout"], tables["unlabelled"])
    assert predicted["oof"].empty
    assert predicted["unlabelled"].empty
    assert again["temperature"] == summary["temperature"]
    assert again["warnings"] == []
    (of_training,) = (entry for entry in summary["experiments"] if entry["experiment"] == "HUVEC-03")
    assert again["experiments"] == [{**of_training, "role": "holdout"}]
    (warning,) = new.assign(min_margin=1e6)[1]["warnings"]
    assert warning.startswith("experiment HUVEC-03 (new plates): ")


def test_each_temperature_changes_its_own_confidence_and_without_any_they_are_uncalibrated(case: Case) -> None:
    new, usual = NewPlates(case), {"raw": 1.0, "group": 1.0, "balanced": 1.0}
    before = new.assign({"HUVEC": usual})[0]["holdout"]
    columns = {"raw": "raw_confidence", "group": "group_confidence", "balanced": "confidence"}
    for name, column in columns.items():
        after = new.assign({"HUVEC": {**usual, name: 2.0}})[0]["holdout"]
        assert {each for each in before if not before[each].equals(after[each])} - {"margin"} == {column}
    _, summary = new.assign({"RPE": usual})
    (warning,) = summary["warnings"]
    assert warning.startswith("confidences are not calibrated: the model has no temperatures of cell type HUVEC")
    assert set(summary["temperature"].values()) == {1.0}
    (warning,) = new.assign({"HUVEC": {**usual, "raw": 2.0}})[1]["warnings"]
    assert warning.startswith(
        "confidences are not calibrated: the model's run fitted no temperature (balanced) of cell type HUVEC"
    )
    assert new.assign({"HUVEC": {**usual, "balanced": 2.0}})[1]["warnings"] == []


def test_a_model_without_design_predicts_without_the_prior(case: Case) -> None:
    new = NewPlates(case)
    tables, summary = new.assign(with_design=False)
    assert summary["warnings"] == []
    assert summary["prior_enabled"] is False
    assert tables["holdout"]["perturbation"].equals(tables["holdout"]["raw_perturbation"])
    off, quiet = new.assign(enabled=False)
    assert off["holdout"].equals(tables["holdout"])
    assert quiet["warnings"] == []
    with pytest.raises(InputError, match=r"the model has no plate design; set prior.enabled to false"):
        new.assign(with_design=False, on_low_margin="refuse")
