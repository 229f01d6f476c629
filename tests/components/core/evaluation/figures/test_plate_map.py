from __future__ import annotations

from xml.etree import ElementTree

from components.core.evaluation.figures.plate_map import draw, plate_extent
from tests.components.core.evaluation.predicted import predictions
from tests.components.core.manifests import plate_record


def test_wells_are_drawn_at_their_positions() -> None:
    kinds = {"B02": "treatment", "D05": "treatment", "O23": "positive_control", "C03": "treatment", "C04": "treatment"}
    plate = plate_record("RPE-01", 2, {well: (kind, None) for well, kind in kinds.items()})
    rows = [("B02", 0.1, None), ("D05", 0.97, "c"), ("C03", 0.7, "<a>")]  # none of C04
    table = predictions(
        [
            {"id_code": f"RPE-01_2_{well}", "perturbation": "<a>", "confidence": p, "truth": truth}
            for well, p, truth in rows
        ]
    )
    wells = {row.id_code: row for row in table.itertuples(index=False)}
    extent = plate_extent([plate])
    assert extent == (1, 14, 2, 23)
    svg = ElementTree.fromstring(draw(plate, wells, extent))
    rects = {r.get("class"): (float(r.get("x")), float(r.get("y"))) for r in svg.iter("rect")}
    origin = rects["c0"]
    assert rects["c5"] == (origin[0] + 3 * 11, origin[1] + 2 * 11)
    assert rects["c3"] == (origin[0] + 11, origin[1] + 11)
    assert len(list(svg.iter("circle"))) == 1
    # Only the wrong prediction is crossed out, and its tooltip gives the truth.
    assert len(list(svg.iter("path"))) == 1
    assert [t.text for t in svg.iter("title")][1] == "D05 <a> 0.97, truly c"
    assert [r.get("class") for r in svg.iter("rect")].count("e") == 1, "a well without a prediction is empty"
    assert "3 wells, 1 with confidence below 0.6" in svg.get("aria-label")


def test_rows_beyond_z_follow_it() -> None:
    plate = plate_record("RPE-01", 2, dict.fromkeys(("Y47", "AB48"), ("negative_control", None)))
    extent = plate_extent([plate])
    svg = ElementTree.fromstring(draw(plate, {}, extent))
    first, last = ((float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle"))
    assert (last[0] - first[0], last[1] - first[1]) == (11, 3 * 11)
    assert [text.text for text in svg.iter("text")] == ["47", "48", "Y", "Z", "AA", "AB"]
