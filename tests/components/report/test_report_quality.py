"""Quality control of new plates, from packed sites to qc.csv and the plates' measures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from components.core.config import CHANNELS
from components.core.evaluation.plate_quality import plate_quality
from components.core.evaluation.quality import by_channel, focus, nuclear_fraction, otsu_threshold, saturated
from components.core.screen.histograms import histogram
from components.report.quality import QUALITY_COLUMNS, measure_wells
from tests.components.core.evaluation.predicted import predictions
from tests.components.report.conftest import SyntheticRun
from tests.components.report.new_plates_run import NewPlates, make_new_plates

NONE = predictions([{}])[:0]


@pytest.fixture
def new(finished_run: SyntheticRun, tmp_path: Path) -> NewPlates:
    return make_new_plates(finished_run, tmp_path)


def measured(new: NewPlates) -> pd.DataFrame:
    return measure_wells(new.plates, NONE, new.store).set_index("id_code", drop=False)


def test_each_well_has_the_measures_of_its_own_sites(new: NewPlates) -> None:
    """Threads and batches must not mix up wells."""
    table, sites = measured(new), iter(new.pixels())
    assert table["id_code"].tolist() == [well.id_code for plate in new.plates.plates for well in plate.wells]
    assert set(QUALITY_COLUMNS) <= set(table)
    for plate in new.plates.plates:
        threshold = otsu_threshold(np.array(plate.histograms[0]))
        for well in plate.wells:
            own = [next(sites) for _ in well.sites]
            found = table.loc[[well.id_code]]
            expected = {
                "focus": np.min([focus(site) for site in own], axis=0),
                "noisiest": np.max([focus(site) for site in own], axis=0),
                "saturated": np.max([saturated(histogram(site)) for site in own], axis=0),
            }
            for name, values in expected.items():
                assert by_channel(found, name, CHANNELS).iloc[0].tolist() == pytest.approx(values)
            shares = [nuclear_fraction(histogram(site)[0], threshold) for site in own]
            assert found["nuclei_share"].item() == pytest.approx(np.mean(shares))
            assert (found["well"].item(), found["well_type"].item()) == (well.well, well.well_type)
    assert next(sites, None) is None


def test_flags_exactly_the_spoiled_wells(new: NewPlates) -> None:
    before = measured(new)["look_at"]
    pixels, number = new.pixels(), 2 * sum(len(plate.wells) for plate in new.plates.plates[:5])
    at = {well: pixels[number + 2 * well] for well in (1, 4, 7, 9)}  # the first sites of wells of the sixth plate
    for channel in at[1]:
        channel[:] = cv2.GaussianBlur(channel, (0, 0), 3)
    at[4][2] = np.clip(at[4][2] * 40.0, 0, 255)
    at[7][:] = 0
    at[9][4] = np.random.default_rng(0).integers(3, 9, at[9][4].shape)
    ids = {well: new.replace_site(5, well, 0, site) for well, site in at.items()}
    table = measured(new)
    after = table["look_at"]
    assert "blurred: all channels" in after[ids[1]]
    assert "saturated: actin" in after[ids[4]]
    assert "constant: all channels" in after[ids[7]]
    assert "little but noise: mitochondria" in after[ids[9]]
    others = list(set(before.index) - set(ids.values()))
    assert after[others].tolist() == before[others].tolist()
    constant = by_channel(table, "focus", CHANNELS).isna().all(axis=1)
    assert constant[constant].index.tolist() == [ids[7]]


def test_a_blurred_plate_is_flagged_but_not_its_wells(new: NewPlates) -> None:
    pixels, first = new.pixels(), 2 * sum(len(plate.wells) for plate in new.plates.plates[:6])
    for well in range(len(new.plates.plates[6].wells)):
        for site in (0, 1):
            blurred = [cv2.GaussianBlur(channel, (0, 0), 2) for channel in pixels[first + 2 * well + site]]
            new.replace_site(6, well, site, np.array(blurred))
    wells = measured(new)
    plates = plate_quality(new.plates.plates, new.reference.plates, wells, NONE, CHANNELS)
    assert plates["blurred"].tolist() == [n == 6 for n in range(8)]
    ids = [well.id_code for well in new.plates.plates[6].wells]
    assert not wells.loc[ids, "look_at"].str.contains("blurred").any()
