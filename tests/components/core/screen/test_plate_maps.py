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
from tests.components.core.screen.test_faults_of_layouts import grey, image

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


def read_screen_of(root: Path, text: str) -> Screen:
    (root / "map.csv").write_text(text)
    return read_screen(root, CONFIG)


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
        ",1,2,3\nA,DMSO,x,\nB,DMSO,y,\nC,,,\n",
        "P1\nRow,1,2\nA,DMSO,x\nB,DMSO,y\nP2\nRow,1,2\nA,DMSO,x\nB,DMSO,y\n",
        "Compound\n<>,1,2\nA,DMSO,x\nB,DMSO,y\nDose\n<>,1,2\nA,0,1\nB,1,2\n",
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
        ("Compound\n,1,2\nA,DMSO,x\nWell\n,1,2\nA,DMSO,x\n", "a block is titled 'Well'"),
        ("Compound\n,1,2\nA,DMSO,x\nwell\n,1,2\nA,DMSO,x\n", "a block is titled 'well'"),
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
    for label in (
        "non-treated",
        "Scramble",
        "siRNA scrambled",
        "NTC",
        "no drug",
        "DMSO 0.1% (v/v)",
        "DMSO 24h",
        "dmso 48 hours",
    ):
        assert is_negative(label), label
    for label in ("control of drug", "taxol in DMSO", "negamycin", "CDC42", "control", "EMPTY", "DMSO-β", "DMSO 低"):
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


@pytest.mark.parametrize("above", ["", "2021"])
def test_a_plate_that_the_map_has_in_two_experiments_needs_folders_that_say_which(tmp_path: Path, above: str):
    for well in ("B03", "B04"):
        image(tmp_path / above / "1" / f"{well}_s1_w1.tif")
    lines = [f"{batch},{plate},{well},{batch}x" for batch in "AB" for plate in (1, 2) for well in ("B03", "B04")]
    found = inspected(tmp_path, "\n".join(["batch,plate,well,compound", *lines, ""]))
    (wrong,) = (each for each in found.findings if each.wrong)
    assert wrong.places == ("plate 1: A, B",)
    # Halves of a plate may be of two experiments.
    halves = inspected(tmp_path, "batch,plate,well,compound\nA,1,B03,y\nB,1,B04,x\n")
    assert not halves.wrong, halves.findings


def test_a_vendor_is_no_experiment_and_a_kind_of_molecule_no_role(root: Path):
    text = rows("well,compound,source,type", "{w},{label},Sigma{c},{label}")
    found = inspected(
        root, text.replace("DMSO\n", "vehicle\n").replace("x\n", "small molecule\n").replace("y\n", "sirna\n")
    )
    assert found.screen is not None
    assert {plate.experiment for plate in found.screen.plates} == {"screen"}
    assert labels(found.screen) == {"P1": LABELS, "P2": LABELS}
    assert "source" in found.screen.columns
    roles = rows("well,compound,type", "{w},{label},trt").replace("DMSO,trt", "x,empty", 1)
    assert [well.well for well in read_screen_of(root, roles).plates[0].wells] == ["A02", "B01", "B02"]


def test_jumps_source_is_the_experiment(root: Path):
    screen = read_screen_of(root, rows("Metadata_Source,well,compound", "source_4,{w},{label}"))
    assert {plate.experiment for plate in screen.plates} == {"source_4"}


def test_a_drawn_map_of_the_inner_wells_and_an_imaged_blank_one(tmp_path: Path):
    for well in ("B02", "B03", "C02", "C03"):
        image(tmp_path / "P1" / f"{well}_s1.tif")
    (plate,) = read_screen_of(tmp_path, ";2;3;4\nB;DMSO;x;\nC;;y;\n").plates
    assert [(well.well, well.perturbation) for well in plate.wells] == [
        ("B02", "DMSO"),
        ("B03", "x"),
        ("C02", None),
        ("C03", "y"),
    ]
