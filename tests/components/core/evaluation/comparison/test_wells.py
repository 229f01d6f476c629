"""The three tables of a comparison: wells are paired, wrong tables rejected."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest

from components.core.errors import InputError
from components.core.evaluation.comparison.wells import paired_wells
from components.core.evaluation.scores import saved
from components.core.tables import write_table
from tests.components.core.evaluation import predicted
from tests.components.core.manifests import manifest, plate_record

PERTURBATIONS = ("sirna_1", "sirna_2", "sirna_3")
EXPERIMENTS = ("HUVEC-05", "RPE-04")


KINDS = {**dict.fromkeys(("B02", "B03", "B04"), ("treatment", None)), "C02": ("positive_control", None)}
MANIFEST = manifest(
    [plate_record(name, number, KINDS) for name in ("HUVEC-05", "HUVEC-05_9", "RPE-04") for number in ("1", "P_2")],
    PERTURBATIONS,
)
WELLS = [well.id_code for each in MANIFEST.plates for well in each.wells if well.role == "treatment"]


def predictions(path: Path, perturbation: str, raw: str) -> None:
    """As the report writes them."""
    table = predicted.predictions(
        [{"id_code": i, "perturbation": perturbation, "raw_perturbation": raw} for i in WELLS]
    )
    write_table(path, saved(table, "sirna", pd.DataFrame()))


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.csv" for name in ("truth", "champion", "challenger")}
    with paths["truth"].open("w", newline="") as file:
        csv.writer(file).writerows([("id_code", "sirna"), *((i, PERTURBATIONS[n % 3]) for n, i in enumerate(WELLS))])
    predictions(paths["champion"], "sirna_1", "sirna_2")
    predictions(paths["challenger"], "sirna_3", "sirna_1")
    return paths


def read(tables: dict[str, Path], experiments=EXPERIMENTS, knows=PERTURBATIONS):
    return paired_wells(MANIFEST, **tables, experiments=experiments, champion_knows=knows, column="sirna")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def error(tables: dict[str, Path], *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        read(tables, *args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wells_are_paired_in_the_manifests_order(tables):
    wells = read(tables)
    assert list(wells["id_code"]) == [i for i in WELLS if "HUVEC-05_9" not in i]
    assert wells.iloc[1].to_dict() == {
        "id_code": "HUVEC-05_1_B03", "experiment": "HUVEC-05", "plate": "1", "cell_type": "HUVEC", "truth": "sirna_2",
        "champion_assigned": "sirna_1", "champion_raw": "sirna_2", "challenger_assigned": "sirna_3",
        "challenger_raw": "sirna_1", "champion_knows": True,
    }  # fmt: skip
    assert list(read(tables, knows=("sirna_1", "sirna_2"))["champion_knows"]) == [True, True, False] * 4
    only = read(tables, ["RPE-04"])
    pd.testing.assert_frame_equal(only, wells[wells["experiment"] == "RPE-04"].reset_index(drop=True))


def test_rows_may_come_in_any_order_and_wells_without_label_are_left_out(tables):
    expected = read(tables)
    for path in tables.values():
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *reversed(rows)]) + "\n")
    pd.testing.assert_frame_equal(read(tables), expected)
    edit(tables["truth"], "HUVEC-05_1_B03,sirna_2\n", "")
    assert list(read(tables)["id_code"]) == [i for i in expected["id_code"] if i != "HUVEC-05_1_B03"]


def test_rejects_predictions_that_lack_a_well(tables):
    for name in ("champion", "challenger"):
        text = tables[name].read_text()
        rows = [line for line in text.splitlines(True) if not line.startswith(("RPE-04_1_B03", "RPE-04_P_2_B02"))]
        tables[name].write_text("".join(rows))
        assert error(tables) == (
            f"{tables[name]}: no row for 2 of 12 held-out wells, first RPE-04_1_B03; give the {name}'s predictions of all of "
            "HUVEC-05, RPE-04"
        )
        assert len(read(tables, ["HUVEC-05"])) == 6
        tables[name].write_text(text)


def test_rejects_labels_in_another_encoding(tables):
    assert error(tables, knows=("1", "2", "3")).startswith(
        f"{tables['truth']}: the champion knows none of these labels, first sirna_1; give labels in the encoding of its screen"
    )


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("challenger", ",raw_sirna", ",raw", " line 1: column raw_sirna is missing"),
        ("truth", "HUVEC-05_1_B02,sirna_1", "HUVEC-05_1_B02,", " line 2 (HUVEC-05_1_B02): field sirna is ''"),
        ("champion", "HUVEC-05_1_B03,", "HUVEC-05_1_B02,", " line 3 (HUVEC-05_1_B02): field id_code is 'HUVEC-05_1_B02'"),
    ],
)  # fmt: skip
def test_rejects_a_malformed_table(tables, name, old, new, message):
    edit(tables[name], old, new)
    assert error(tables).startswith(f"{tables[name]}{message}")
