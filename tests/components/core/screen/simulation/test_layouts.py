"""Every layout of a simulated screen is read back: the wells and sites of its design, and the pixels that were rendered."""

from typing import get_args

import numpy as np
import pytest

from components.core.config import CompoundsConfig, ScreenConfig, SimulateConfig, SimulatedLayout
from components.core.screen.layouts import read_screen
from components.core.screen.planes import decode_plane
from components.core.screen.screen_source import source_of
from components.core.screen.simulation.layouts import LAYOUTS
from components.core.screen.simulation.plate_design import SimulationSettings, design_screen
from components.core.screen.simulation.rendering import render_site
from components.core.screen.simulation.writer import simulate
from components.core.screen.zarr_images import is_zarr, read_zarr_planes

CHANNELS = ("DNA", "ER", "AGP", "Mito", "RNA")
COMPOUNDS = CompoundsConfig(
    count=2, replicates=2, doses=(10.0, 0.5), plates=2, negative_wells=2, positive_wells=1
)  # fmt: skip


def settings_of(layout, **fields):
    return SimulationSettings(
        seed=3,
        screen=ScreenConfig(channels=CHANNELS, image_size=(24, 32), cell_types=("U2OS", "RPE")),
        simulate=SimulateConfig(
            layout=layout, bits=16, labelled={"U2OS": 1}, unlabelled={"RPE": 1}, positive_controls=1, cell_diameter=10.0,
            missing_sites=0.2, **fields,
        ),
    )  # fmt: skip


def decode(source, plane, out_HW):
    content = read_zarr_planes(source, [plane])[0] if is_zarr(plane.path) else source.read_many([plane.path])[0]
    decode_plane(content, plane.index, out_HW)
    return out_HW


@pytest.mark.parametrize("layout", get_args(SimulatedLayout))
@pytest.mark.parametrize(
    "design", [{"compounds": COMPOUNDS, "plate_format": 1536}, {"treatments_per_group": 2, "plate_format": 24}]
)
def test_a_screen_is_read_back_as_it_was_designed(layout, design, tmp_path):
    settings = settings_of(layout, **design)
    simulate(settings, tmp_path / "out")
    source = source_of(tmp_path / "out" / "screen")
    screen = read_screen(source, settings.screen)
    own = ("dose", "replicate") if settings.simulate.compounds else ()
    assert (screen.channels, screen.columns) == (CHANNELS, own)
    found = {(plate.experiment, plate.plate): plate for plate in screen.plates}
    designed = design_screen(settings)
    assert len(found) == len(screen.plates) == len(designed)
    for plate in designed:
        read = found[plate.experiment, plate.plate]
        assert (read.cell_type, read.labelled) == (plate.cell_type, plate.labelled)
        assert [(w.well, w.role, w.perturbation, tuple(s.site for s in w.sites), w.extra) for w in read.wells] == [
            (
                w.well,
                w.role,
                w.label if plate.labelled or w.role != "treatment" else None,
                w.sites,
                (f"{w.dose:g}" if w.dose else "", str(w.replicate)) if own else (),
            )
            for w in plate.wells
        ]
    for site in read.wells[-1].sites:
        pixels = render_site(settings, plate, plate.wells[-1], site.site)
        for (plane,), image_HW in zip(site.channels, pixels, strict=True):
            np.testing.assert_array_equal(decode(source, plane, np.empty_like(image_HW)), image_HW)


def test_there_is_a_writer_for_every_layout():
    assert set(LAYOUTS) == set(get_args(SimulatedLayout))
