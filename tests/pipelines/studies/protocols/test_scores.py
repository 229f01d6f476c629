"""Raw top-1 against counting by hand, and wells that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from components.core.config import PackConfig
from components.core.errors import StepError
from components.core.storage.arrays import LogitsDirectory, WellLogits, write_logits
from components.core.storage.manifest import Manifest, PlateRecord, Vocabulary, WellRecord
from pipelines.studies.protocols.results import held_out_accuracy

LABELS = {"HUVEC-01": "abcd", "HUVEC-02": "abcd", "RPE-01": "ab"}
VOCABULARY = Vocabulary(treatments=("a", "b", "c", "d"), positives=("p",), negatives=("n",))


@pytest.fixture
def manifest() -> Manifest:
    plates = tuple(
        PlateRecord(
            experiment=experiment,
            plate=1,
            cell_type=experiment.split("-")[0],
            labelled=True,
            prefix="x",
            histograms=(),
            wells=tuple(
                WellRecord(id_code=f"{experiment}_1_{label}", well="B03", well_type="treatment", sirna=label, sites=())
                for label in labels
            ),
        )
        for experiment, labels in LABELS.items()
    )
    folds = {"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 0}
    return Manifest(store="s3://x", channels=6, image_size=8, codec=PackConfig(), vocabulary=VOCABULARY, folds=folds,
                    plates=plates)  # fmt: skip


def logits(folder, cell_type, named: dict[str, str]):
    """A folder of logits whose best treatment is the one named; controls are always better."""
    values_WK = np.zeros((len(named), 6), dtype=np.float32)
    for w, label in enumerate(named.values()):
        values_WK[w, VOCABULARY.treatments.index(label)] = 1.0
    values_WK[:, 4:] = 9.0
    nobody = WellLogits((), np.empty((0, 6), dtype=np.float32))
    wells = {"oof": WellLogits(tuple(named), values_WK), "unlabelled": nobody, "holdout": nobody}
    folder.mkdir()
    write_logits(folder, LogitsDirectory(wells, {"cell_type": cell_type, "folds": [], "history": []}))
    return folder


def test_overall_is_over_wells_and_not_over_cell_types(tmp_path, manifest):
    huvec = {f"HUVEC-01_1_{label}": named for label, named in zip("dcba", "dcca", strict=True)}
    rpe = {"RPE-01_1_b": "a", "RPE-01_1_a": "b"}
    found = held_out_accuracy(
        manifest,
        0,
        {"HUVEC": logits(tmp_path / "h", "HUVEC", huvec), "RPE": logits(tmp_path / "r", "RPE", rpe)},
    )
    assert found == {"overall": 0.5, "HUVEC": 0.75, "RPE": 0.0}


def test_wells_that_are_missing_or_of_another_fold_are_refused(tmp_path, manifest):
    huvec = {f"HUVEC-01_1_{label}": label for label in "abc"}
    with pytest.raises(StepError, match=r"infer predicted 3 wells, but fold 0 holds out 6 others"):
        held_out_accuracy(manifest, 0, {"HUVEC": logits(tmp_path / "h", "HUVEC", huvec)})
