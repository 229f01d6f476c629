"""A held-out well, what it is, and what both models name it. Pure data; files are read in reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ComparedStage = Literal["assigned", "raw"]
COMPARED_STAGES: tuple[ComparedStage, ...] = ("assigned", "raw")


@dataclass(frozen=True, slots=True)
class Names:
    """What one model names a well: by its networks alone, and after the plate design was used."""

    raw: str
    assigned: str

    def at(self, stage: ComparedStage) -> str:
        """The siRNA named at a stage."""
        return self.raw if stage == "raw" else self.assigned


@dataclass(frozen=True, slots=True)
class ComparedWell:
    """One treatment well of a held-out experiment. Labels are in the input's encoding.

    Attributes:
        truth: its siRNA.
        champion: its names by the champion.
        challenger: its names by the challenger.
        champion_knows: whether the champion's vocabulary has the truth; where not, it cannot but be wrong.
    """

    id_code: str
    experiment: str
    plate: int
    cell_type: str
    truth: str
    champion: Names
    challenger: Names
    champion_knows: bool = True
