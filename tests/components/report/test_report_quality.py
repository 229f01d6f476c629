"""Quality control of new plates from packed sites to qc.csv: which well gets which values, and why to look at it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from components.core.config import CHANNELS
from components.core.errors import InputError
from components.core.evaluation.plate_quality import log_distance
from components.core.evaluation.quality import focus, nuclear_fraction, otsu_threshold, saturated
from components.core.screen.histograms import histogram
from components.report.quality import Quality, look_at, write_quality
from tests.components.core.evaluation.predicted import predictions
from tests.components.report.new_plates_run import NewPlates, make_new_plates

NONE = predictions([{}])[:0]


@pytest.fixture
def new(finished_run: Any, tmp_path: Path) -> NewPlates:
    return make_new_plates(finished_run, tmp_path)


def looked_at(new: NewPlates) -> Quality:
    return look_at(new.plates, new.reference, NONE, new.chunks)


def table_of(new: NewPlates, quality: Quality, folder: Path) -> list[dict[str, str]]:
    write_quality(folder / "qc.csv", new.plates, quality, NONE)
    with (folder / "qc.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_well_has_the_measures_of_its_own_sites(new: NewPlates) -> None:
    """Against one site after the other; threads and batches of them must not mix wells up."""
    quality, sites = looked_at(new), iter(new.pixels())
    for plate in new.plates.plates:
        threshold = otsu_threshold(np.array(plate.histograms[0]))
        for well in plate.wells:
            own = [next(sites) for _ in well.sites]
            found = quality.wells[well.id_code]
            assert found.focus_C == pytest.approx(np.min([focus(site) for site in own], axis=0))
            assert found.noisiest_C == pytest.approx(np.max([focus(site) for site in own], axis=0))
            assert found.saturated_C == pytest.approx(np.max([saturated(histogram(site)) for site in own], axis=0))
            shares = [nuclear_fraction(histogram(site)[0], threshold) for site in own]
            assert found.nuclei == pytest.approx(np.mean(shares))
    assert next(sites, None) is None


def test_exactly_the_spoiled_wells_get_a_new_reason(new: NewPlates) -> None:
    before = looked_at(new).reasons
    pixels, number = new.pixels(), 2 * sum(len(plate.wells) for plate in new.plates.plates[:5])
    at = {well: pixels[number + 2 * well] for well in (1, 4, 7, 9)}  # the first sites of wells of the sixth plate
    for channel in at[1]:
        channel[:] = cv2.GaussianBlur(channel, (0, 0), 3)
    at[4][2] = np.clip(at[4][2] * 40.0, 0, 255)
    at[7][:] = 0
    at[9][4] = np.random.default_rng(0).integers(3, 9, at[9][4].shape)
    ids = {well: new.replace_site(5, well, 0, site) for well, site in at.items()}
    after = looked_at(new).reasons
    assert "blurred: all channels" in after[ids[1]]
    assert "saturated: actin" in after[ids[4]]
    assert "constant: all channels" in after[ids[7]]
    assert "little but noise: mitochondria" in after[ids[9]]
    others = [id_code for id_code in before if id_code not in ids.values()]
    assert {i: after[i] for i in others} == {i: before[i] for i in others}


def test_drift_is_judged_within_the_cell_type_and_absent_where_the_model_has_none(new: NewPlates) -> None:
    of_rpe = [plate for plate in new.reference.plates if plate.cell_type == "RPE"]
    new.reference = new.reference.model_copy(update={"plates": tuple(of_rpe)})
    quality = looked_at(new)
    training = np.array([plate.histograms for plate in of_rpe]).sum(axis=0)
    for plate in quality.plates:
        if plate.plate.cell_type == "HUVEC":
            assert plate.drift_C is None
            assert plate.usual_C is None
            assert not any(plate.beyond_C)
        else:
            assert plate.drift_C == pytest.approx(log_distance(np.array(plate.plate.histograms), training))


def test_sharpness_is_relative_to_plates_of_the_cell_type_and_a_plate_alone_has_none(new: NewPlates) -> None:
    for plate in looked_at(new).plates:
        assert all(0.3 < value < 3 for value in plate.sharpness_C)
    plates = [next(p for p in new.plates.plates if p.cell_type == name) for name in ("HUVEC", "RPE")]
    new.plates = new.plates.model_copy(update={"plates": tuple(plates)})
    for plate in looked_at(new).plates:
        assert np.isnan(plate.sharpness_C).all()
        assert not plate.blurred


def test_a_blurred_plate_is_told_and_none_of_its_wells(new: NewPlates) -> None:
    pixels, first = new.pixels(), 2 * sum(len(plate.wells) for plate in new.plates.plates[:6])
    for well in range(len(new.plates.plates[6].wells)):
        for site in (0, 1):
            blurred = [cv2.GaussianBlur(channel, (0, 0), 2) for channel in pixels[first + 2 * well + site]]
            new.replace_site(6, well, site, np.array(blurred))
    quality = looked_at(new)
    assert [plate.blurred for plate in quality.plates] == [n == 6 for n in range(8)]
    ids = [well.id_code for well in new.plates.plates[6].wells]
    assert not [i for i in ids if any(reason.startswith("blurred") for reason in quality.reasons[i])]


def test_the_table_has_every_well_in_the_manifests_order_and_empty_cells_for_what_is_not(
    new: NewPlates, tmp_path: Path
) -> None:
    id_code = new.replace_site(0, 3, 1, np.full(new.pixels().shape[1:], 9, np.uint8))
    table = table_of(new, looked_at(new), tmp_path)
    assert [row["id_code"] for row in table] == [well.id_code for plate in new.plates.plates for well in plate.wells]
    assert {row["well_type"] for row in table} == {"treatment", "positive_control", "negative_control"}
    spoiled = next(row for row in table if row["id_code"] == id_code)
    assert spoiled["look_at"].startswith("constant: all channels")
    for row in table:
        assert row["confidence"] == ""
        for channel in CHANNELS:
            assert (row[f"focus_{channel}"] == "") is (row is spoiled)
            assert 0 <= float(row[f"saturated_{channel}"]) <= 1
        assert 0 <= float(row["nuclei_share"]) <= 1


def test_a_missing_site_is_named(new: NewPlates) -> None:
    plate = new.plates.plates[2]
    del new.chunks.objects[f"{plate.prefix}/{plate.wells[4].sites[0].key}"]
    with pytest.raises(InputError, match=rf"{plate.experiment}.*plate 3.*{plate.wells[4].well}"):
        looked_at(new)
