from __future__ import annotations

from xml.etree import ElementTree

from components.core.evaluation.figures.plate_map import draw, plate_extent
from components.core.storage.manifest import PlateRecord, WellRecord
from tests.components.core.evaluation.predicted import predictions


def record(wells: dict[str, str]) -> PlateRecord:
    return PlateRecord(
        experiment="RPE-01",
        plate=2,
        cell_type="RPE",
        labelled=False,
        prefix="p",
        histograms=(),
        wells=tuple(
            WellRecord(id_code=well, well=well, well_type=kind, sirna=None, sites=()) for well, kind in wells.items()
        ),
    )


def test_wells_are_drawn_at_their_positions() -> None:
    plate = record({"B02": "treatment", "D05": "treatment", "O23": "positive_control", "C03": "treatment"})
    table = predictions([
        {"id_code": "B02", "sirna": "<a>", "confidence": 0.1, "truth": None},
        {"id_code": "D05", "sirna": "<a>", "confidence": 0.97, "truth": "c"},
        {"id_code": "C03", "sirna": "<a>", "confidence": 0.7, "truth": "<a>"},
    ])  # fmt: skip
    wells = {row.id_code: row for row in table.itertuples(index=False)}
    extent = plate_extent([plate])
    assert extent == ("B", "O", 2, 23)
    svg = ElementTree.fromstring(draw(plate, wells, extent))
    rects = {r.get("class"): (float(r.get("x")), float(r.get("y"))) for r in svg.iter("rect")}
    origin = rects["c0"]
    assert rects["c5"] == (origin[0] + 3 * 11, origin[1] + 2 * 11)
    assert rects["c3"] == (origin[0] + 11, origin[1] + 11)
    assert len(list(svg.iter("circle"))) == 1
    # Only the wrong prediction is crossed out, and its tooltip gives the truth.
    assert len(list(svg.iter("path"))) == 1
    assert [t.text for t in svg.iter("title")][1] == "D05 <a> 0.97, truly c"
    assert "3 wells, 1 with confidence below 0.6" in svg.get("aria-label")


def test_draws_a_well_without_a_prediction_empty() -> None:
    svg = ElementTree.fromstring(draw(record({"B02": "treatment"}), {}, ("B", "B", 2, 2)))
    assert [r.get("class") for r in svg.iter("rect")] == ["e"]
