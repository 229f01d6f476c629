"""Pseudo-labels from the predictions of an earlier run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.core.errors import InputError
from components.core.prior.pseudo_labels import FusedLabels, PseudoLabels, read_fused_labels

TREATMENTS = ("a", "b", "c")
IDS = ["V-1_1_B02", "U-1_1_B02", "U-1_1_B03", "U-1_2_B02", "U-1_2_B03"]
UNLABELLED = np.array([False, True, True, True, True])
EXPERIMENTS = ["V-1", "U-1", "U-1", "U-1", "U-1"]
PLATES = [1, 1, 1, 2, 2]
ROWS = {"U-1_2_B03": "c,0.4", "U-1_1_B02": "b,0.9", "U-1_1_B03": "c,0.2", "U-1_2_B02": "a,1"}


def written(path: Path, rows: dict[str, str], header: str = "id_code,sirna,confidence") -> Path:
    path.write_text(header + "\n" + "".join(f"{i},{rest}\n" for i, rest in rows.items()))
    return path


def read(path: Path, source: str | None = None) -> FusedLabels:
    return read_fused_labels(path, IDS, UNLABELLED, EXPERIMENTS, PLATES, TREATMENTS, "sirna", source)


def own_labels() -> PseudoLabels:
    prob_WK = np.full((5, 3), 1 / 3, dtype=np.float32)
    return PseudoLabels(np.zeros(5, dtype=np.intp), prob_WK, np.full(5, 0.5), np.zeros((5, 3), dtype=np.float32), {})


def test_only_unlabelled_wells_get_the_earlier_predictions(tmp_path: Path):
    # Predictions of validation wells, which other folds trained on, are not even read.
    found = read(written(tmp_path / "p.csv", {**ROWS, "V-1_1_B02": "no siRNA,x", "other": "b,1"}))
    before = own_labels()
    after = found.over(before, 1.0)
    assert after.class_W.tolist() == [0, 1, 2, 0, 2]
    np.testing.assert_allclose(after.confidence_W, [0.5, 0.9, 0.2, 1.0, 0.4])
    np.testing.assert_array_equal(after.prob_WK[1:], np.eye(3)[[1, 2, 0, 2]])
    np.testing.assert_array_equal(after.prob_WK[0], before.prob_WK[0])
    assert before.class_W.tolist() == [0] * 5, "a copy"


def test_the_most_confident_of_each_plate_are_labelled(tmp_path: Path):
    after = read(written(tmp_path / "p.csv", ROWS)).over(own_labels(), 0.5)
    assert after.class_W.tolist() == [0, 1, -1, 0, -1]
    assert after.prob_WK.sum(axis=1).tolist() == pytest.approx([1, 1, 0, 1, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"U-1_1_B02": "d,0.9"}, r"line 3 \(U-1_1_B02\): field sirna is 'd'; it is not a treatment of this screen"),
        ({"U-1_1_B02": "b,1.5"}, r"line 3 \(U-1_1_B02\): field confidence is '1.5'; expected a number from 0 to 1"),
    ],
)
def test_rejects_a_wrong_row(tmp_path: Path, change: dict[str, str], message: str):
    with pytest.raises(InputError, match=message):
        read(written(tmp_path / "p.csv", {**ROWS, **change}))


def test_rejects_a_wrong_table(tmp_path: Path):
    path = written(tmp_path / "p.csv", {i: rest for i, rest in ROWS.items() if "_2_" in i})
    with pytest.raises(InputError, match=r"s3://b/p.csv: has no row for 2 unlabelled wells, first U-1_1_B02"):
        read(path, "s3://b/p.csv")
    with pytest.raises(InputError, match=r"p.csv line 1: column confidence is missing"):
        read(written(path, {}, "id_code,sirna"))
    text = written(path, ROWS).read_text()
    path.write_text(text + "U-1_2_B02,a,1\n")
    with pytest.raises(InputError, match=r"line 6 \(U-1_2_B02\): .* appears twice"):
        read(path)
