"""check-screen: all that is wrong at once, a summary, and a configuration with which the same screen is accepted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from components.core.config import RunConfig, ScreenConfig
from components.core.errors import InputError
from components.core.screen.inspection import checked_screen, inspect_screen
from components.core.screen.screen_source import ScreenDirectory
from pipelines.checks import check_screen
from pipelines.cli import app
from tests.tiny_screen import SIZE, TinyScreen, write_png


def check(*arguments: object, code: int = 0) -> dict[str, object]:
    done = CliRunner().invoke(app, ["check-screen", *map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_a_good_screen_is_summed_up_and_its_configuration_accepts_it(tmp_path: Path):
    tiny = TinyScreen(tmp_path / "screen")
    config = tmp_path / "start.yaml"
    found = check(tiny.root, "--write-config", config)
    assert (found["layout"], found["errors"], found["warnings"]) == ("kaggle", [], [])
    summary = found["summary"]
    assert isinstance(summary, dict)
    expected = {"plates": 8, "wells": 40, "labels": 6, "unlabelled_wells": 6, "sites": 80, "plate_format": 12}
    assert {name: summary[name] for name in expected} == expected
    assert (summary["image_sizes"], summary["pixel_types"]) == ([[SIZE, SIZE]], ["uint8"])
    loaded = RunConfig.load(str(config))
    assert (loaded.screen.cell_types, loaded.screen.image_size) == (("HUVEC", "RPE"), SIZE)
    assert loaded.backbones == RunConfig.load("cpu-small").backbones, "small images: the preset for CPUs"
    assert check_screen(loaded, ScreenDirectory(tiny.root), None).plates
    assert inspect_screen(ScreenDirectory(tiny.root), loaded.screen).findings == ()


def test_everything_wrong_is_found_in_one_pass(tmp_path: Path):
    tiny = TinyScreen(tmp_path / "screen")
    tiny.edit("train.csv", "HUVEC-01_1_B03,HUVEC-01,1,B03", "HUVEC-01_1_B99,HUVEC-01,1,B99")
    tiny.edit("train_controls.csv", "sirna_5", "sirna_30")
    tiny.edit("test_controls.csv", "negative_control", "EMPTY")
    tiny.image("RPE-01", 1, "B03", 1, 2).unlink()
    for site in (1, 2):
        for channel in range(1, 7):
            tiny.image("HUVEC-02", 2, "C02", site, channel).unlink()
    tiny.image("HUVEC-01", 2, "B02", 1, 1).write_bytes(b"no image")
    cut = tiny.image("HUVEC-01", 2, "B02", 1, 2)
    cut.write_bytes(cut.read_bytes()[: cut.read_bytes().index(b"IDAT") + 2])
    write_png(tiny.image("HUVEC-02", 1, "B02", 1, 4), np.zeros((SIZE, SIZE + 1), np.uint8))
    write_png(tiny.image("HUVEC-03", 1, "B03", 1, 1), np.zeros((SIZE, SIZE), np.uint16))
    found = check(tiny.root, code=2)
    errors = found["errors"]
    assert isinstance(errors, list)
    texts = [f"{error['what']} {error['first']}" for error in errors]
    for part in (
        "well: expected a row",
        "a label has one role",
        "1 well of",
        "1 site without all of 6 channels",
        "images that cannot be read",
        "w2.png: channel 2 (ER) of well B02, site 1: the file is truncated",
        "another size than 16x16",
        "another bit depth than uint8",
    ):
        assert any(part in text for text in texts), part
    assert any("train.csv line 2 (HUVEC-01_1_B99)" in text for text in texts)
    (left_out,) = [each for each in found["warnings"] if "left out: neither" in each["what"]]  # type: ignore[attr-defined]
    assert left_out["count"] == 1


def test_looks_at_few_images_of_a_large_screen_and_fewer_in_a_bucket(tmp_path: Path, monkeypatch):
    tiny = TinyScreen(tmp_path / "screen", named=True, imaged=())
    read: list[str] = []

    class Source(ScreenDirectory):
        remote = False

        def read_many(self, paths):
            read.extend(path for path in paths if path.endswith(".png"))
            return super().read_many(paths)

        def address(self, path=""):
            return f"s3://lab/screen/{path}" if self.remote else super().address(path)

    for remote, sites in ((False, 8 * 8), (True, 8)):
        read.clear()
        Source.remote = remote
        checked_screen(Source(tiny.root), ScreenConfig())
        assert len(set(read)) == len(read) == sites * 6
        assert len({path.rpartition("/")[0] for path in read}) == 8, "of every plate"
    monkeypatch.setattr("components.core.screen.inspection.REMOTE_SITES", 2)
    read.clear()
    checked_screen(Source(tiny.root), ScreenConfig())
    assert {path.rpartition("/")[0] for path in read} == {"test/HUVEC-03/Plate1", "train/HUVEC-01/Plate1"}, "bounded"


def test_a_configuration_keeps_its_word_or_takes_the_tables(tmp_path: Path):
    table = "experiment,plate,well,site,role,{0},cell_type,path_a\n" + "".join(
        f"E,P,{well},1,{role},{label},HUVEC,a.png\n"
        for well, role, label in (
            ("A01", "treatment", "x"),
            ("A02", "treatment", "y"),
            ("A03", "negative_control", "z"),
        )
    )
    write_png(tmp_path / "a.png", np.zeros((SIZE, SIZE), np.uint8))
    for column, configured, expected in (
        ("perturbation", "siRNA", "perturbation"),
        ("compound", "siRNA", "compound"),
        ("compound", "drug", "drug"),
    ):
        (tmp_path / "samplesheet.csv").write_text(table.format(column))
        known = {"perturbation": column} if column != "perturbation" else {}
        form = ScreenConfig(perturbation_name=configured, table_columns=known)
        start = yaml.safe_load(inspect_screen(ScreenDirectory(tmp_path), form).config)
        assert start["screen"].get("perturbation_name", "siRNA") == expected
        assert ("perturbation_name" in start["screen"]) == (expected != "siRNA")


def sample_sheet(root: Path, wells: Mapping[str, str]) -> Path:
    """A screen of one image and a sample sheet with the label of each well of E; a well is `PLATE WELL`."""
    root.mkdir()
    rows = [f"E,{place.replace(' ', ',')},1,treatment,{label},HUVEC,a.png" for place, label in wells.items()]
    header = "experiment,plate,well,site,role,perturbation,cell_type,path_a"
    (root / "samplesheet.csv").write_text("\n".join([header, *rows, ""]))
    write_png(root / "a.png", np.zeros((SIZE, SIZE), np.uint8))
    return root


def doubts(*arguments: object) -> dict[str, list[str]]:
    """The places of what is doubtful, by the first words."""
    warnings: Any = check(*arguments)["warnings"]
    return {" ".join(each["what"].split()[:4]): each["first"] for each in warnings}


def test_written_folds_fit_few_wells_and_others_are_refused_as_by_a_run(tmp_path: Path):
    root = sample_sheet(tmp_path / "screen", {"P A01": "x", "P A02": "x", "P A03": "y"})
    config = tmp_path / "start.yaml"
    found = doubts(root, "--write-config", config)
    assert found == {"labels of a single": ["y"]}, "which no fold can score"
    loaded = RunConfig.load(str(config))
    assert loaded.folds.count == 3
    check_screen(loaded, ScreenDirectory(root), None)
    assert doubts(root, "--config", config, "--set", "folds.count=1") == {}, "scores nothing"
    (error,) = check(root, "--config", config, "--set", "folds.count=5", code=2)["errors"]  # type: ignore[misc]
    with pytest.raises(InputError) as refused:
        check_screen(loaded.changed(["folds.count=5"], "--set"), ScreenDirectory(root), None)
    assert error["what"] == str(refused.value)


def test_plates_of_one_label_are_doubtful_until_images_are_standardised_by_themselves(tmp_path: Path):
    wells = {f"{plate} A0{n}": plate for plate in ("P", "Q") for n in (1, 2)}
    root = sample_sheet(tmp_path / "screen", {**wells, "R A01": "P", "R A02": "Q"})
    config = tmp_path / "start.yaml"
    assert doubts(root, "--write-config", config) == {"plates of a single": ["E plate P", "E plate Q"]}
    assert RunConfig.load(str(config)).standardise.domain == "image"
    assert doubts(root, "--config", config) == {}


def test_what_is_no_screen_is_said_with_what_was_looked_for(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.md").write_text("x")
    (error,) = check(tmp_path / "a", code=2)["errors"]  # type: ignore[misc]
    assert "no screen in a known layout" in error["what"]
    assert "notes.md" in error["what"]
    done = CliRunner().invoke(app, ["check-screen", str(tmp_path / "b")])
    assert done.exit_code != 0


@pytest.mark.parametrize("as_json", [False, True])
def test_a_folder_of_tiffs_and_a_plate_map_become_a_configuration(tmp_path: Path, as_json: bool):
    root = tmp_path / "plates"
    rng = np.random.default_rng(0)
    for plate in ("P1", "P2"):
        (root / plate).mkdir(parents=True)
        for well in ("A1", "A2", "B1"):
            for site in (1, 2):
                for channel in (1, 2):
                    image = rng.integers(0, 4096, (12, 20)).astype(np.uint16)
                    cv2.imwrite(str(root / plate / f"{plate}_{well}_s{site}_w{channel}.tif"), image)
    (root / "layout.csv").write_text("Well;Compound;Conc\nA1;aspirin;1\nA2;ibuprofen;1\nB1;DMSO;0\n")
    config = tmp_path / "start.yaml"
    arguments = ["check-screen", str(root), "--write-config", str(config), *(["--json"] if as_json else [])]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    text = config.read_text()
    assert "layout: files" in text
    assert "perturbation_name: compound" in text
    assert "image_size: [12, 20]" in text
    assert "12-bit data" in done.output
    assert "DMSO is taken as negative control" in done.output
