"""The files of a simulated screen."""

import csv
import hashlib

import cv2
import numpy as np
import pytest

from components.core.config import ScreenConfig, SimulateConfig
from components.core.errors import InputError
from components.core.screen.simulation import writer
from components.core.screen.simulation.plate_design import SimulationSettings, design_screen
from components.core.screen.simulation.rendering import render_site
from components.core.screen.simulation.writer import simulate

SMALL = SimulationSettings(
    seed=7,
    screen=ScreenConfig(image_size=24),
    simulate=SimulateConfig(
        labelled={"RPE": 1}, unlabelled={"HUVEC": 1}, treatments_per_group=3, positive_controls=2, missing_wells=0.0,
        missing_sites=0.0, cell_diameter=10.0,
    ),
)  # fmt: skip


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "out"
    assert simulate(SMALL, folder)
    return folder


def test_files_and_tables_agree_and_the_truth_is_outside_the_screen(out):
    screen = out / "screen"
    expected = set()
    for split in ("train", "test"):
        for row in rows(screen / f"{split}.csv") + rows(screen / f"{split}_controls.csv"):
            assert row["id_code"] == f"{row['experiment']}_{row['plate']}_{row['well']}"
            for site in (1, 2):
                for channel in range(1, 7):
                    folder = screen / split / row["experiment"] / f"Plate{row['plate']}"
                    expected.add(folder / f"{row['well']}_s{site}_w{channel}.png")
    assert expected == set(screen.rglob("*.png"))
    assert len(expected) == 2 * 4 * (3 + 2 + 1) * 2 * 6
    assert "sirna" not in rows(screen / "test.csv")[0]
    truth = {row["id_code"]: row["sirna"] for row in rows(out / "truth.csv")}
    assert list(truth) == [row["id_code"] for row in rows(screen / "test.csv")]
    assert set(truth.values()) == {row["sirna"] for row in rows(screen / "train.csv")}


def test_images_are_the_rendered_sites(out):
    plate = design_screen(SMALL)[-1]
    well = plate.wells[2]
    path = out / "screen" / "train" / plate.experiment / f"Plate{plate.number}" / f"{well.well}_s2_w4.png"
    read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, render_site(SMALL, plate, well, 2)[3])


def in_processes(monkeypatch):
    monkeypatch.setattr(writer, "_PROCESS_SITES", 0)
    monkeypatch.setattr(writer, "cores", lambda: 2)


def test_the_files_do_not_depend_on_the_number_of_processes(out, tmp_path, monkeypatch):
    in_processes(monkeypatch)
    simulate(SMALL, tmp_path / "parallel")
    assert digest(tmp_path / "parallel") == digest(out)


def test_the_same_settings_write_nothing_and_others_are_refused(out):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not simulate(SMALL, out)
    of_later_steps = SMALL.model_copy(update={"screen": ScreenConfig(image_size=24, controls="training")})
    assert not simulate(of_later_steps, out)
    with pytest.raises(InputError, match=r"other settings \(seed\)"):
        simulate(SMALL.model_copy(update={"seed": 8}), out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("parallel", [False, True])
def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch, parallel):
    if parallel:
        in_processes(monkeypatch)

    def cancel(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(SMALL, tmp_path / "out", progress=cancel)
    assert list(tmp_path.iterdir()) == []


def test_rejects_a_cell_type_without_morphology(tmp_path):
    config = SMALL.model_copy(update={"simulate": SimulateConfig(labelled={"A549": 1}, unlabelled={})})
    with pytest.raises(InputError, match="'A549'; choose among HUVEC"):
        simulate(config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
