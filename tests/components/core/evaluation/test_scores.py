from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.evaluation.scores import (
    Accuracy,
    build_metrics,
    choose_examples,
    recall_by_sirna,
    score_table,
    throughput,
    worst_sirnas,
)
from tests.components.core.evaluation.predicted import predictions


def test_each_stage_counts_its_own_prediction() -> None:
    rows = [{"raw_sirna": "b", "group_sirna": "b"}, {"raw_sirna": "b"}, {}, {"cell_type": "U2OS", "sirna": "b"}]
    table = score_table(predictions(rows), ["U2OS", "RPE"])
    assert {stage: row["overall"].correct for stage, row in table.items()} == {"raw": 2, "group": 3, "assigned": 3}
    assert list(table["raw"]) == ["overall", "U2OS", "RPE"]
    assert table["assigned"]["U2OS"] == Accuracy(0, 1)


def test_wells_without_truth_do_not_count() -> None:
    table = score_table(predictions([{}, {"truth": None, "sirna": "b"}]), ["RPE"])
    assert table["assigned"]["overall"] == Accuracy(1, 1)
    assert score_table(predictions([{"truth": None}]), ["RPE"]) == {}


def test_metrics_omit_a_score_without_truth() -> None:
    table = predictions([{"fold": 1}, {"score": "unlabelled", "truth": None}])
    metrics = build_metrics(table, ["RPE"], [], {(0, "RPE"): False, (1, "RPE"): True})
    assert set(metrics) == {"schema", "out_of_fold", "folds", "throughput", "wells", "calibration"}
    assert metrics["folds"][0] == {"fold": 0, "not_validated": ["RPE"]}
    assert metrics["folds"][1]["assigned"] == {"overall": 1.0, "RPE": 1.0}
    assert metrics["calibration"]["out_of_fold"]["assigned_ece"] == pytest.approx(0.1)


def test_throughput_is_weighted_by_time() -> None:
    slow = {"step": "finetune", "sites_per_s": 100.0, "seconds": 1.0, "data_wait": 0.5, "peak_memory_gib": 2.0}
    fast = {"step": "finetune", "sites_per_s": 200.0, "seconds": 3.0, "data_wait": 0.1, "peak_memory_gib": 1.5}
    speed = {"finetune_sites_per_s": 175.0}
    assert throughput([slow, fast]) == {**speed, "finetune_data_wait": 0.2, "finetune_peak_memory_gib": 2.0}
    assert (
        throughput([{name: record[name] for name in ("step", "sites_per_s", "seconds")} for record in (slow, fast)])
        == speed
    )


def test_wilson_interval_agrees_with_published_values() -> None:
    # Newcombe 1998, Stat. Med. 17:857, table I, method 3.
    assert Accuracy(81, 263).interval() == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Accuracy(0, 20).interval() == pytest.approx((0.0, 0.1611), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_contains_the_value_and_is_symmetric(counts: tuple[int, int]) -> None:
    correct, wells = counts
    low, high = Accuracy(correct, wells).interval()
    assert 0 <= low <= correct / wells + 1e-12
    assert correct / wells - 1e-12 <= high <= 1
    assert Accuracy(wells - correct, wells).interval() == pytest.approx((1 - high, 1 - low))


CONFUSED = [
    {"truth": "a", "sirna": "b", "raw_sirna": "b"},
    {"truth": "a", "sirna": "b"},
    {"truth": "a", "sirna": "c", "cell_type": "U2OS"},
    {"truth": "a", "cell_type": "U2OS"},
    {"truth": "b"},
    {"truth": "b", "sirna": "b", "raw_sirna": "b"},
    {"truth": "c", "sirna": "c", "raw_sirna": "c"},
    {"truth": None},
]


def test_confusions_are_worst_first_for_any_order_of_wells() -> None:
    table = predictions(CONFUSED)
    worst = worst_sirnas(table, 10)
    assert worst == [
        {"truth": "a", "assigned": 0.25, "raw": 0.75, "wells": 4, "by_cell_type": {"U2OS": (1, 2), "RPE": (0, 2)},
         "mistaken_for": [("b", 2), ("c", 1)]},
        {"truth": "b", "assigned": 0.5, "raw": 0.5, "wells": 2, "by_cell_type": {"RPE": (1, 2)},
         "mistaken_for": [("a", 1)]},
    ]  # fmt: skip
    assert worst_sirnas(table[::-1], 10) == worst
    assert worst_sirnas(table, 1) == worst[:1]
    assert recall_by_sirna(table)["assigned"].to_dict() == {"a": 0.25, "b": 0.5, "c": 1.0}


def test_examples_alternate_over_cell_types_the_most_confident_first() -> None:
    rows = [{"confidence": p} for p in (0.99, 0.98, 0.97)] + [{"cell_type": "U2OS", "confidence": 0.4}]
    rows += [{"sirna": "b", "confidence": p} for p in (0.3, 0.6)]
    score, chosen = choose_examples(predictions(rows), right=3, wrong=1)
    assert score == "out_of_fold"
    expected = [("RPE", 0.99), ("U2OS", 0.4), ("RPE", 0.98), ("RPE", 0.6)]
    assert list(zip(chosen["cell_type"], chosen["confidence"], strict=True)) == expected
