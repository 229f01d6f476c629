from __future__ import annotations

from components.core.evaluation.named_wells import NamedWell
from components.core.evaluation.quality.plate_confidence import PlateConfidence, confidence_by_plate


def well(experiment: str, plate: int, confidence: float, raw: float) -> NamedWell:
    return NamedWell("x", experiment, plate, "B02", "RPE", "a", confidence, 0.1, "a", raw, "a", raw, ("a",))


def test_each_plate_has_its_own_wells_alone() -> None:
    wells = [
        well("RPE-02", 1, 0.9, 0.5), well("RPE-01", 2, 0.2, 0.1), well("RPE-02", 1, 0.5, 0.4), well("RPE-01", 1, 0.6, 0.3),
        well("RPE-02", 1, 0.7, 0.1),
    ]  # fmt: skip
    assert confidence_by_plate(wells) == [
        PlateConfidence("RPE-01", 1, 1, 0.6, 0.3, 0.0),
        PlateConfidence("RPE-01", 2, 1, 0.2, 0.1, 1.0),
        PlateConfidence("RPE-02", 1, 3, 0.7, 0.4, 1 / 3),
    ]
    assert confidence_by_plate([]) == []
