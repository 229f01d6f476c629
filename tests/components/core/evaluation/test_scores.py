from __future__ import annotations

import numpy as np
import pytest

from components.core.evaluation.metrics import top1, top1_by_cell_type
from components.core.evaluation.scores import (
    Accuracy,
    balanced_accuracy,
    choose_examples,
    recall_by_perturbation,
    throughput,
    worst_perturbations,
)
from tests.components.core.evaluation.predicted import predictions


def test_throughput_is_weighted_by_time() -> None:
    slow = {"step": "finetune", "sites_per_s": 100.0, "seconds": 1.0}
    fast = {"step": "finetune", "sites_per_s": 200.0, "seconds": 3.0}
    speed = {"finetune_sites_per_s": 175.0}
    assert throughput([slow, fast]) == speed
    measured = [{**slow, "data_wait": 0.5, "peak_memory_gib": 2.0}, {**fast, "data_wait": 0.1, "peak_memory_gib": 1.5}]
    assert throughput(measured) == {**speed, "finetune_data_wait": 0.2, "finetune_peak_memory_gib": 2.0}


def test_wilson_interval_agrees_with_published_values() -> None:
    # Newcombe 1998, Stat. Med. 17:857, table I, method 3.
    assert Accuracy(81, 263).interval() == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Accuracy(0, 20).interval() == pytest.approx((0.0, 0.1611), abs=5e-5)


CONFUSED = [
    {"truth": "a", "perturbation": "b", "raw_perturbation": "b"},
    {"truth": "a", "perturbation": "b"},
    {"truth": "a", "perturbation": "c", "cell_type": "U2OS"},
    {"truth": "a", "cell_type": "U2OS"},
    {"truth": "b"},
    {"truth": "b", "perturbation": "b", "raw_perturbation": "b"},
    {"truth": "c", "perturbation": "c", "raw_perturbation": "c"},
    {"truth": None},
]


def test_confusions_are_worst_first_for_any_order_of_wells() -> None:
    table = predictions(CONFUSED)
    worst = worst_perturbations(table, 10)
    assert worst == [
        {"truth": "a", "assigned": 0.25, "raw": 0.75, "wells": 4, "by_cell_type": {"U2OS": (1, 2), "RPE": (0, 2)},
         "mistaken_for": [("b", 2), ("c", 1)], "precision": 0.5},
        {"truth": "b", "assigned": 0.5, "raw": 0.5, "wells": 2, "by_cell_type": {"RPE": (1, 2)},
         "mistaken_for": [("a", 1)], "precision": 1 / 3},
    ]  # fmt: skip
    assert worst_perturbations(table[::-1], 10) == worst
    assert worst_perturbations(table, 1) == worst[:1]
    assert [row["truth"] for row in worst_perturbations(table)] == ["a", "b", "c"]
    recall = recall_by_perturbation(table)
    assert recall["assigned"].to_dict() == {"a": 0.25, "b": 0.5, "c": 1.0}
    assert recall["precision"].to_dict() == {"a": 0.5, "b": 1 / 3, "c": 0.5}


def test_balanced_accuracy_counts_each_label_the_same() -> None:
    found = balanced_accuracy(predictions(CONFUSED))
    assert found["assigned"] == pytest.approx({"overall": 1.75 / 3, "RPE": 1.5 / 3, "U2OS": 0.5}, abs=1e-6)
    assert found["raw"]["overall"] == pytest.approx((0.75 + 0.5 + 1) / 3, abs=1e-6)
    assert balanced_accuracy(predictions([{"truth": None}])) == {}


def test_examples_alternate_over_cell_types_the_most_confident_first() -> None:
    rows = [{"confidence": p} for p in (0.99, 0.98, 0.97)] + [{"cell_type": "U2OS", "confidence": 0.4}]
    rows += [{"perturbation": "b", "confidence": p} for p in (0.3, 0.6)]
    score, chosen = choose_examples(predictions(rows), right=3, wrong=1)
    assert score == "out_of_fold"
    expected = [("RPE", 0.99), ("U2OS", 0.4), ("RPE", 0.98), ("RPE", 0.6)]
    assert list(zip(chosen["cell_type"], chosen["confidence"], strict=True)) == expected


def test_top1_by_cell_type_weighs_wells_not_cell_types():
    predicted, truth = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 0])
    assert top1_by_cell_type(predicted, truth, ["A", "A", "A", "B"]) == {"overall": 0.75, "A": 1.0, "B": 0.0}


def test_rejects_no_wells():
    with pytest.raises(ValueError, match="at least one"):
        top1(np.array([], dtype=np.intp), np.array([], dtype=np.intp))
