from __future__ import annotations

from components.core.evaluation.confusions import recall_counts, worst_sirnas
from components.core.evaluation.examples import choose_examples
from components.core.evaluation.named_wells import NamedWell


def well(truth: str | None, sirna: str, raw: str, cell_type: str = "RPE", confidence: float = 0.5) -> NamedWell:
    return NamedWell(
        f"{truth}{sirna}{cell_type}{confidence}",
        f"{cell_type}-01",
        1,
        "B02",
        cell_type,
        sirna,
        confidence,
        0.1,
        raw,
        0.5,
        raw,
        0.5,
        (raw,),
        truth=truth,
    )


WELLS = [
    well("a", "b", "b"),
    well("a", "b", "a"),
    well("a", "c", "a", "U2OS"),
    well("a", "a", "a", "U2OS"),
    well("b", "a", "a"),
    well("b", "b", "b"),
    well("c", "c", "c"),
    well(None, "a", "a"),
]


def test_worst_first_with_what_they_are_taken_for() -> None:
    worst = worst_sirnas(WELLS, ["U2OS", "RPE"], 10)
    assert [c.sirna for c in worst] == ["a", "b"]
    assert (worst[0].wells, worst[0].recall, worst[0].raw_recall) == (4, 0.25, 0.75)
    assert worst[0].taken_for == (("b", 2), ("c", 1))
    assert worst[0].by_cell_type == {"U2OS": (1, 2), "RPE": (0, 2)}
    assert [c.sirna for c in worst_sirnas(WELLS, ["RPE", "U2OS"], 1)] == ["a"]


def test_counts_sirnas_that_are_always_right() -> None:
    assert recall_counts(WELLS) == (1, 3)


def test_the_order_of_wells_does_not_matter() -> None:
    assert worst_sirnas(WELLS[::-1], ["U2OS", "RPE"], 10) == worst_sirnas(WELLS, ["U2OS", "RPE"], 10)


def test_examples_take_cell_types_in_turn_and_the_surest_first() -> None:
    wells = [well("a", "a", "a", "RPE", p) for p in (0.99, 0.98, 0.97)] + [well("a", "a", "a", "U2OS", 0.4)]
    wells += [well("a", "b", "b", "RPE", p) for p in (0.3, 0.6)]
    score, chosen = choose_examples({"unlabelled": [], "out_of_fold": wells}, right=3, wrong=1)
    assert score == "out_of_fold"
    assert [(w.cell_type, w.confidence) for w in chosen] == [("RPE", 0.99), ("U2OS", 0.4), ("RPE", 0.98), ("RPE", 0.6)]


def test_no_truth_gives_no_examples() -> None:
    assert choose_examples({"unlabelled": [well(None, "a", "a")]}) == (None, [])
