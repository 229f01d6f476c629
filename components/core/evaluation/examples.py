"""Which wells a report shows as pictures: surest right and surest wrong names. Pure; no image is read here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from components.core.evaluation.named_wells import NamedWell, Score, scored


def choose_examples(
    wells: Mapping[Score, Sequence[NamedWell]], right: int = 3, wrong: int = 5
) -> tuple[Score | None, list[NamedWell]]:
    """Wells worth looking at, of one score: unlabelled where its truth is known, else out of fold, else holdout.

    Surest first, in turn over cell types, so that one easy cell type does not take all places. Wrong names that the
    model was sure of teach more than unsure ones: they point at siRNAs with one phenotype, or at a swapped plate.

    Returns:
        The score the wells come from (None where no truth is known) and the wells, right ones first.
    """
    for score in ("unlabelled", "out_of_fold", "holdout"):
        known = scored(wells.get(score, ()))
        if known:
            correct = [w for w in known if w.correct_at("assigned")]
            incorrect = [w for w in known if not w.correct_at("assigned")]
            return score, _in_turn(correct, right) + _in_turn(incorrect, wrong)
    return None, []


def _in_turn(wells: Sequence[NamedWell], limit: int) -> list[NamedWell]:
    """The surest wells, the best of each cell type before the second best of any."""
    place: dict[str, int] = {}
    ranked = []
    for well in sorted(wells, key=lambda w: (-w.confidence, w.id_code)):
        place[well.cell_type] = place.get(well.cell_type, 0) + 1
        ranked.append((place[well.cell_type], well))
    ranked.sort(key=lambda pair: pair[0])  # stable: equal places stay in order of confidence
    return [well for _, well in ranked[:limit]]
