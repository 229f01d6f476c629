"""The siRNAs that are recognised worst, and what they are taken for. Pure counting on wells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from components.core.evaluation.named_wells import NamedWell, by_cell_type, scored


@dataclass(frozen=True)
class Confusion:
    """One siRNA over all wells that truly hold it."""

    sirna: str
    wells: int
    recall: float
    """fraction named correctly after assignment"""
    raw_recall: float
    """fraction named correctly before the plate design was used"""
    by_cell_type: dict[str, tuple[int, int]]
    """(correct after assignment, wells) by cell type"""
    taken_for: tuple[tuple[str, int], ...]
    """wrong names after assignment, most frequent first, with their number of wells"""


def worst_sirnas(wells: Sequence[NamedWell], cell_types: Sequence[str], limit: int) -> list[Confusion]:
    """The `limit` siRNAs of lowest recall after assignment that were missed at least once, worst first.

    Ties go to the lower raw recall, then to the larger number of wells, then to the label, so that the order is stable.
    """
    by_sirna: dict[str, list[NamedWell]] = {}
    for well in scored(wells):
        assert well.truth is not None
        by_sirna.setdefault(well.truth, []).append(well)
    found = []
    for sirna, members in by_sirna.items():
        hits = sum(w.correct_at("assigned") for w in members)
        if hits == len(members):
            continue
        wrong = Counter(w.sirna for w in members if not w.correct_at("assigned"))
        found.append(
            Confusion(
                sirna=sirna,
                wells=len(members),
                recall=hits / len(members),
                raw_recall=sum(w.correct_at("raw") for w in members) / len(members),
                by_cell_type={
                    name: (sum(w.correct_at("assigned") for w in part), len(part))
                    for name, part in by_cell_type(members, cell_types).items()
                },
                taken_for=tuple(sorted(wrong.items(), key=lambda item: (-item[1], item[0]))),
            )
        )
    return sorted(found, key=lambda c: (c.recall, c.raw_recall, -c.wells, c.sirna))[:limit]


def recall_counts(wells: Sequence[NamedWell]) -> tuple[int, int]:
    """How many siRNAs were always named correctly, and how many were seen."""
    total: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for well in scored(wells):
        assert well.truth is not None
        total[well.truth] += 1
        hits[well.truth] += well.correct_at("assigned")
    return sum(hits[sirna] == count for sirna, count in total.items()), len(total)
