"""The tables of plates that are to be predicted: no label is needed, and none is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.errors import InputError
from components.core.screen.layouts import read_new_plates
from tests.tiny_screen import LABELLED, UNLABELLED, TinyScreen


@pytest.fixture
def screen(tmp_path: Path) -> TinyScreen:
    return TinyScreen(tmp_path / "screen", imaged=())


def without_column(path: Path, name: str) -> None:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    gone = rows[0].index(name)
    path.write_text("".join(",".join(row[:gone] + row[gone + 1 :]) + "\n" for row in rows))


def test_all_experiments_are_new_plates_whatever_half_they_are_in(screen: TinyScreen) -> None:
    plates = read_new_plates(screen.root)
    assert [plate.name for plate in plates] == [
        f"{e} plate {p}" for e in sorted((*LABELLED, *UNLABELLED)) for p in (1, 2)
    ]
    assert not any(plate.labelled or plate.holdout for plate in plates)
    assert {well.sirna for plate in plates for well in plate.wells} == {None}
    assert {plate.experiment: plate.folder.split("/")[0] for plate in plates} == {
        **dict.fromkeys(LABELLED, "train"), **dict.fromkeys(UNLABELLED, "test")
    }  # fmt: skip
    types = [well.well_type for well in plates[0].wells]
    assert sorted(types) == ["negative_control", "positive_control", "treatment", "treatment", "treatment"]


def test_labels_may_be_missing_or_nonsense(screen: TinyScreen) -> None:
    known = read_new_plates(screen.root)
    screen.edit("train.csv", "sirna_7", "never heard of")
    screen.edit("train_controls.csv", "sirna_5", "")
    assert read_new_plates(screen.root) == known
    for table in ("train.csv", "train_controls.csv", "test_controls.csv"):
        without_column(screen.root / table, "sirna")
    assert read_new_plates(screen.root) == known


def test_the_table_without_labels_is_enough(screen: TinyScreen) -> None:
    (screen.root / "train.csv").unlink()
    (screen.root / "train_controls.csv").unlink()
    plates = read_new_plates(screen.root)
    assert {plate.experiment for plate in plates} == set(UNLABELLED)
    (screen.root / "test_controls.csv").unlink()
    assert {well.well_type for plate in read_new_plates(screen.root) for well in plate.wells} == {"treatment"}
    (screen.root / "test.csv").unlink()
    with pytest.raises(InputError, match=r"screen/train\.csv: cannot be read"):
        read_new_plates(screen.root)


def test_the_other_releases_table_needs_no_labels_either(tmp_path: Path) -> None:
    rows = ["site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type"]
    for site in (1, 2):
        rows.append(f"HUVEC-09_1_B02_{site},HUVEC-09_1_B02,HUVEC,test,HUVEC-09,1,B02,{site},negative_control")
        rows.append(f"HUVEC-09_1_B03_{site},HUVEC-09_1_B03,HUVEC,train,HUVEC-09,1,B03,{site},treatment")
    (tmp_path / "metadata.csv").write_text(
        "\n".join(rows[:1] + [row.replace(",test,", ",train,") for row in rows[1:]]) + "\n"
    )
    (plate,) = read_new_plates(tmp_path)
    assert [(well.well, well.well_type, well.sirna) for well in plate.wells] == [
        ("B02", "negative_control", None),
        ("B03", "treatment", None),
    ]
    assert (plate.folder, plate.labelled) == ("images/HUVEC-09/Plate1", False)


def test_some_experiments_can_be_asked_for_and_must_be_there(screen: TinyScreen) -> None:
    plates = read_new_plates(screen.root, ["RPE-01", "HUVEC-03"])
    assert [plate.experiment for plate in plates] == ["HUVEC-03", "HUVEC-03", "RPE-01", "RPE-01"]
    with pytest.raises(
        InputError, match=r"there is no experiment 'HUVEC-3'; those there are HUVEC-01, HUVEC-02, HUVEC-03, RPE-01"
    ):
        read_new_plates(screen.root, ["HUVEC-3"])


def test_any_cell_type_is_read_for_the_model_says_which_it_knows(screen: TinyScreen) -> None:
    for table in ("test.csv", "test_controls.csv"):
        path = screen.root / table
        path.write_text(path.read_text().replace("HUVEC-03", "K562-03"))
    assert {plate.cell_type for plate in read_new_plates(screen.root)} == {"HUVEC", "RPE", "K562"}


def test_mistakes_in_the_tables_are_errors_as_ever(screen: TinyScreen) -> None:
    screen.edit("test.csv", "HUVEC-03_1_B03,HUVEC-03,1,B03", "HUVEC-03_1_B03,HUVEC-03,1,B99")
    with pytest.raises(InputError, match=r"test\.csv line 2 \(HUVEC-03_1_B03\): field well is 'B99'"):
        read_new_plates(screen.root)
