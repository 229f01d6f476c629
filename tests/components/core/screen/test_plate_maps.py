"""Plate maps as laboratories write them: read as they are meant, or refused with what is wrong in one line each."""

from __future__ import annotations

from pathlib import Path

import pytest
import tifffile

from components.core.config import ScreenConfig
from components.core.errors import InputError
from components.core.screen.inspection import Inspection, inspect_screen
from components.core.screen.layouts import read_screen
from components.core.screen.layouts.control_words import is_empty, is_like_control, is_negative
from components.core.screen.screen_source import ScreenDirectory
from components.core.screen.wells import Screen
from tests.components.core.screen.test_faults_of_layouts import grey

CONFIG = ScreenConfig(cell_types=("HeLa",))
WELLS = ("A01", "A02", "B01", "B02")
LABELS = {"A01": "DMSO", "A02": "x", "B01": "DMSO", "B02": "y"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two imaged plates of four wells, without a map."""
    for plate in ("P1", "P2"):
        for well in WELLS:
            path = tmp_path / plate / f"{well}_s1.tif"
            path.parent.mkdir(exist_ok=True)
            tifffile.imwrite(path, grey())
    return tmp_path


def labels(screen: Screen) -> dict[str, dict[str, str | None]]:
    return {plate.plate: {well.well: well.perturbation for well in plate.wells} for plate in screen.plates}


def inspected(root: Path, text: str) -> Inspection:
    (root / "map.csv").write_text(text)
    return inspect_screen(ScreenDirectory(root), CONFIG)


def rows(head: str, line: str, wells: tuple[str, ...] = WELLS) -> str:
    made = (line.format(w=well, row=well[0], c=int(well[1:]), label=LABELS[well]) for well in wells)
    return head + "\n" + "\n".join(made) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        rows("# of May\nwell,compound", "{w},{label}"),
        rows("well|compound", "{w}|{label}"),
        rows("Well Position,Gene Symbol,", "{row}-{c},{label},") + ",,\n,,\n",
        rows("Source Well,Destination Well,Sample Name", "C07,{row} {c},{label}"),
        rows("well,compound,site", "{w},{label},1\n{w},{label},2"),
        ",1,2\nA,DMSO,x\nB,DMSO,y\n",
        "Plate layout;;\n;01;02\nA;DMSO;x\nB;DMSO;y\n;;\n",
        "Compound,,\n,1,2\nA,DMSO,x\nB,DMSO,y\n,,\nDose,,\n,1,2\nA,0,1\nB,0,1\n",
        "P1\n,1,2\nA,DMSO,x\nB,DMSO,y\n\nP2\n,1,2\nA,DMSO,x\nB,DMSO,y\n",
        *(
            rows("plate,well,compound", f"{one},{{w}},{{label}}\n{two},{{w}},{{label}}")
            for one, two in (("1", "2"), ("1.0", "2.0"), ("Plate 01", "Plate 02"), ("p1", "p2"))
        ),
    ],
)
def test_maps_of_many_forms_are_the_same_screen(root: Path, text: str):
    found = inspected(root, text)
    assert not found.wrong, found.findings
    assert found.screen is not None
    assert labels(found.screen) == {"P1": LABELS, "P2": LABELS}
    assert found.screen.vocabulary.negatives == ("DMSO",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("PK\x03\x04", "Excel workbook"),
        ("well,compound\nA01,a\0b\n", "is not text"),
        (rows("well,compound,compound", "{w},{label},z"), "compound twice"),
        (rows("Plate,Target", "{w},{label}"), "has the columns Plate, Target"),
        (
            rows("plate,well,compound", "Q7,{w},{label}\nQ8,{w},{label}"),
            "of the plate map: Q7, Q8; of the images: P1, P2",
        ),
        (
            rows("plate,well,compound", "1,{w},{label}\n01,{w},{label}"),
            "of the plate map: 01, 1; of the images: P1, P2",
        ),
        (rows("plate,well,compound", "P1,{w},{label}"), "lacks 4 imaged wells.*: all 4 wells of P2"),
        (",1,2\nA,DMSO,x\n,1,2\nA,DMSO,x\n", "2 blocks of wells"),
    ],
)
def test_what_is_wrong_with_a_map_is_one_line(root: Path, text: str, words: str):
    found = [finding for finding in inspected(root, text).findings if finding.wrong]
    assert len(found) == 1, found
    with pytest.raises(InputError, match=words):
        read_screen(root, CONFIG)


def test_an_excel_workbook_is_named(root: Path):
    (root / "map.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"save map\.xlsx as CSV"):
        read_screen(root, CONFIG)


def test_rows_of_a_well_that_disagree_are_one_kind_of_fault(root: Path):
    found = inspected(root, rows("well,compound", "{w},{label}\n{w},{label}2"))
    (wrong,) = (finding for finding in found.findings if finding.wrong)
    assert len(wrong.places) == 4
    assert "map.csv line 3 (A01): field compound is 'DMSO2', not as in line 2" in wrong.places[0]


def test_a_source_well_beside_is_said_and_labels_of_two_spellings_too(root: Path):
    found = inspected(root, rows("Well,Dest Well,Compound", "{w},B02,{label}").replace("B01,B02,DMSO", "B01,B02,dmso"))
    texts = [str(finding) for finding in found.findings if not finding.wrong]
    assert any("Well is taken as the well of the images" in text for text in texts)
    assert any("'DMSO' and 'dmso'" in text for text in texts)


def test_labels_of_controls_and_empty_wells():
    for label in ("DMSO 0.1%", "Vehicle (DMSO)", "neg. control", "dmso 0,5 % v/v", "non-targeting siRNA", "DMSO_10uM"):
        assert is_negative(label), label
    for label in ("control of drug", "taxol in DMSO", "negamycin", "CDC42", "control", "EMPTY"):
        assert not is_negative(label), label
    assert is_empty("EMPTY")
    assert not is_empty("blankomycin")
    assert is_like_control("pos. control")
    assert not is_like_control("negamycin")


def test_empty_wells_are_left_out_and_labels_like_controls_are_named(root: Path):
    text = rows("well,compound", "{w},{label}").replace("A01,DMSO", "A01,EMPTY").replace("B01,DMSO", "B01,ctrl 2")
    found = inspected(root, text)
    assert found.screen is not None
    assert [well.well for well in found.screen.plates[0].wells] == ["A02", "B01", "B02"]
    texts = [str(finding) for finding in found.findings]
    assert any("EMPTY" in text for text in texts)
    assert any("screen.negative_controls" in text and "ctrl 2" in text for text in texts)


def test_dmso_in_jumps_samples_is_a_negative_control(root: Path):
    (root / "platemap").mkdir()
    (root / "platemap" / "M.txt").write_text(rows("well_position\tbroad_sample", "{w}\t{label}"))
    (root / "barcode_platemap.csv").write_text("Assay_Plate_Barcode,Plate_Map_Name\nP1,M\nP2,M\n")
    assert read_screen(root, CONFIG).vocabulary.negatives == ("DMSO",)
