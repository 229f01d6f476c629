"""One row of a comparison: both models on the wells of a cell type, or of all. Pure data (pydantic)."""

from __future__ import annotations

from pydantic import Field

from components.core.config import Count, Fraction, FrozenModel


class Row(FrozenModel):
    """Well top-1 of both models as fractions, and by how much the challenger is better."""

    name: str = Field(description="overall, or a cell type")
    experiments: Count
    plates: Count
    wells: Count
    champion: Fraction
    challenger: Fraction
    difference: float = Field(description="challenger less champion")
    low: float | None = Field(description="of the difference's interval; None where a cell type has a single plate")
    high: float | None
    at_least_as_good: Fraction | None = Field(description="share of resamples in which the challenger is not worse")
    unknown_to_champion: int = Field(description="wells of siRNAs that the champion's vocabulary lacks")
