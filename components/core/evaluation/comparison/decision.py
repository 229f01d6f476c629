"""Whether a challenger is promoted, on whatever ground: the content of comparison.json. Pure data (pydantic)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from components.core.config import FrozenModel
from components.core.evaluation.comparison.comparing import Comparison

SCHEMA = 1
Outcome = Literal["compared", "first_model", "without_holdout", "same_model"]


class Decision(FrozenModel):
    """What was decided about a challenger.

    The outcomes: compared, by its rows; first_model, there is no champion to be worse than; without_holdout, no experiment is
    left that neither model ever saw; same_model, the challenger is the champion.
    """

    decision_schema: int = SCHEMA
    outcome: Outcome
    promote: bool
    reason: str = Field(description="one line, for people and for the champion's history")
    challenger: str = Field(description="as people are shown it, for example the first digits of its fingerprint")
    champion: str | None = Field(description="likewise; None where there is none")
    comparison: Comparison | None = Field(None, description="where they were compared")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.outcome == "compared") != (self.comparison is not None):
            raise ValueError(f"outcome {self.outcome} and a comparison {'missing' if not self.comparison else 'given'}")
        if (self.outcome == "first_model") != (self.champion is None):
            raise ValueError(f"outcome {self.outcome} and champion {self.champion}")
        if self.comparison and self.comparison.promote != self.promote:
            raise ValueError("the decision is not that of its comparison")
        return self


def compared(comparison: Comparison, challenger: str, champion: str) -> Decision:
    """As the comparison says."""
    return Decision(
        outcome="compared",
        promote=comparison.promote,
        reason=comparison.reason,
        challenger=challenger,
        champion=champion,
        comparison=comparison,
    )


def first_model(challenger: str) -> Decision:
    """There is no champion: the first model is promoted, whatever it can."""
    return Decision(
        outcome="first_model",
        promote=True,
        reason="the first model: there is no champion to compare with",
        challenger=challenger,
        champion=None,
    )


def without_holdout(why: str, allowed: bool, challenger: str, champion: str) -> Decision:
    """Nothing can be compared: promoted only where the user allowed that.

    Args:
        why: no experiment can be compared, for example "no experiment is held out".
        allowed: whether the user allowed promotion without a comparison.
        challenger: as people are shown it.
        champion: likewise.
    """
    so = (
        "promoted without a comparison, as was allowed"
        if allowed
        else "nothing shows that the challenger is not worse; hold experiments out (screen.holdout_experiments) that neither "
        "model saw, or allow promotion without a comparison"
    )
    return Decision(
        outcome="without_holdout", promote=allowed, reason=f"{why}; {so}", challenger=challenger, champion=champion
    )


def same_model(champion: str) -> Decision:
    """The challenger's fingerprint is the champion's: there is nothing to compare, nor to promote."""
    return Decision(
        outcome="same_model",
        promote=False,
        reason="the challenger is the champion: the same data, configuration and code",
        challenger=champion,
        champion=champion,
    )
