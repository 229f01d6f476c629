from pathlib import Path

import pandas as pd
import pytest

from components.core.errors import InputError
from components.core.label_tables import matched_labels, read_label_table


def written(path: Path, header: str) -> Path:
    path.write_text(f"{header}\n{','.join('x' for _ in header.split(','))}\n")
    return path


@pytest.mark.parametrize(
    ("header", "column"),
    [("id_code,compound,note", "compound"), ("sirna,id_code", "sirna"), ("id_code,sirna,perturbation", "perturbation")],
)
def test_the_labels_are_in_the_column_of_the_screens_word_or_a_known_one(tmp_path: Path, header: str, column: str):
    table, found = read_label_table(written(tmp_path / "t.csv", header), "compound")
    assert (found, table[found].tolist()) == (column, ["x"])


def test_predictions_of_a_screen_with_another_word_are_found_by_their_two_labels(tmp_path: Path):
    path = written(tmp_path / "p.csv", "id_code,guide,confidence,raw_guide,raw_confidence")
    assert read_label_table(path, "compound", raw=True)[1] == "guide"


@pytest.mark.parametrize(
    ("header", "raw", "missing"),
    [
        ("id_code,label", False, "compound"),
        ("id_code,compound", True, "raw_compound"),
        ("id_code,confidence,raw_confidence", True, "compound"),
    ],
)
def test_a_table_without_labels_is_refused(tmp_path: Path, header: str, raw: bool, missing: str):
    with pytest.raises(
        InputError, match=rf"t\.csv line 1: column {missing} is missing; the header must have id_code, compound"
    ):
        read_label_table(written(tmp_path / "t.csv", header), "compound", raw=raw)


STRINGS = ("sirna_2", "sirna_7", "sirna_30")
NUMBERS = ("2", "7", "30")


@pytest.mark.parametrize(
    ("written", "treatments", "read"),
    [
        (["2.0", "7.0", "30"], NUMBERS, list(NUMBERS)),
        (["002", "7.", "30"], NUMBERS, list(NUMBERS)),
        (["2", "7", "7.0"], STRINGS, ["sirna_2", "sirna_7", "sirna_7"]),
        (["sirna_2", "sirna_30"], NUMBERS, ["2", "30"]),
        (["sirna_2.0", "sirna_7"], STRINGS, ["sirna_2", "sirna_7"]),
    ],
)
def test_labels_written_in_another_way_are_matched_and_that_is_said(written, treatments, read):
    labels, remark = matched_labels(pd.Series(written), treatments)
    assert labels.tolist() == read
    odd = next(label for label in written if label not in treatments)
    assert f"{odd!r} as {read[written.index(odd)]!r}" in remark


@pytest.mark.parametrize(
    ("written", "treatments"),
    [
        (["sirna_2", "sirna_7"], STRINGS),  # as they are
        (["2", "8"], STRINGS),  # one is no treatment
        (["7.0"], ("7", "07")),  # either
        (["2", "DMSO"], STRINGS),
        (["a_2", "b_7"], NUMBERS),
        (["7"], ("sirna_7", "drug_2")),
        (["7"], ("sirna_7", "drug")),
        (["gene_7"], STRINGS),
        ([], STRINGS),
    ],
)
def test_labels_stay_as_they_are_where_another_reading_is_not_certain(written, treatments):
    labels, remark = matched_labels(pd.Series(written, dtype=str), treatments)
    assert (labels.tolist(), remark) == (written, "")
