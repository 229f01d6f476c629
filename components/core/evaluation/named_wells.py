"""A well, what it was named at each stage, and what it truly is. Pure data; files are read in components/report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Stage = Literal["raw", "group", "assigned"]
Score = Literal["out_of_fold", "unlabelled", "holdout"]
STAGES: tuple[Stage, ...] = ("raw", "group", "assigned")
SCORES: tuple[Score, ...] = ("out_of_fold", "unlabelled", "holdout")


@dataclass(frozen=True, slots=True)
class NamedWell:
    """One treatment well. Labels are in the input's encoding; confidences are probabilities."""

    id_code: str
    experiment: str
    plate: int
    well: str
    cell_type: str
    sirna: str
    confidence: float
    margin: float
    raw_sirna: str
    raw_confidence: float
    group_sirna: str
    group_confidence: float
    top5: tuple[str, ...]
    fold: int | None = None
    truth: str | None = None
    raw_uncalibrated: float | None = None
    """Raw confidence at temperature 1, where assign wrote it."""

    def name_at(self, stage: Stage) -> str:
        """The siRNA named at a stage."""
        return {"raw": self.raw_sirna, "group": self.group_sirna, "assigned": self.sirna}[stage]

    def confidence_at(self, stage: Stage) -> float:
        """The calibrated probability of the siRNA named at a stage."""
        return {"raw": self.raw_confidence, "group": self.group_confidence, "assigned": self.confidence}[stage]

    def correct_at(self, stage: Stage) -> bool:
        """Whether the name at a stage is the truth; asks for a well whose truth is known."""
        assert self.truth is not None, f"{self.id_code} has no truth"
        return self.name_at(stage) == self.truth


def with_truth(wells: Iterable[NamedWell], truth: Mapping[str, str]) -> list[NamedWell]:
    """The wells with their true siRNA, looked up by id_code; wells that the truth does not name keep None."""
    return [replace(well, truth=truth.get(well.id_code)) for well in wells]


def scored(wells: Iterable[NamedWell]) -> list[NamedWell]:
    """The wells whose truth is known."""
    return [well for well in wells if well.truth is not None]


def by_cell_type(wells: Sequence[NamedWell], cell_types: Sequence[str]) -> dict[str, list[NamedWell]]:
    """The wells of each cell type that has any, in the order of `cell_types`."""
    groups: dict[str, list[NamedWell]] = {name: [] for name in cell_types}
    for well in wells:
        groups.setdefault(well.cell_type, []).append(well)
    return {name: members for name, members in groups.items() if members}
