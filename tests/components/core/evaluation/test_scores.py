from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.evaluation.named_wells import NamedWell
from components.core.evaluation.scores import Accuracy, build_metrics, score_table, throughput


def well(cell_type: str = "RPE", truth: str | None = "a", **changes: Any) -> NamedWell:
    values: dict[str, Any] = {
        "id_code": "x",
        "experiment": f"{cell_type}-01",
        "plate": 1,
        "well": "B02",
        "cell_type": cell_type,
        "sirna": "a",
        "confidence": 0.9,
        "margin": 0.5,
        "raw_sirna": "a",
        "raw_confidence": 0.8,
        "group_sirna": "a",
        "group_confidence": 0.85,
        "top5": ("a",),
        "truth": truth,
    }
    return NamedWell(**{**values, **changes})


def test_each_stage_reads_its_own_name() -> None:
    wells = [well(raw_sirna="b", group_sirna="b"), well(raw_sirna="b"), well(), well("U2OS", sirna="b")]
    table = score_table(wells, ["U2OS", "RPE"])
    assert {stage: row["overall"].correct for stage, row in table.items()} == {"raw": 2, "group": 3, "assigned": 3}
    assert list(table["raw"]) == ["overall", "U2OS", "RPE"]
    assert table["assigned"]["U2OS"] == Accuracy(0, 1)


def test_wells_without_truth_do_not_count() -> None:
    assert score_table([well(), well(truth=None, sirna="b")], ["RPE"])["assigned"]["overall"] == Accuracy(1, 1)
    assert score_table([well(truth=None)], ["RPE"]) == {}


def test_a_score_without_truth_is_left_out_of_the_metrics() -> None:
    metrics = build_metrics(
        {"out_of_fold": [well(fold=1)], "unlabelled": [well(truth=None)], "holdout": []},
        ["RPE"],
        [],
        {(0, "RPE"): False, (1, "RPE"): True},
    )
    assert set(metrics) == {"schema", "out_of_fold", "folds", "throughput", "wells", "calibration"}
    assert metrics["folds"][0] == {"fold": 0, "not_validated": ["RPE"]}
    assert metrics["folds"][1]["assigned"] == {"overall": 1.0, "RPE": 1.0}
    assert metrics["calibration"]["out_of_fold"]["assigned_ece"] == pytest.approx(0.1)


def test_throughput_weighs_by_time() -> None:
    history = [
        {"step": "pretrain", "sites_per_s": 100.0, "seconds": 1.0},
        {"step": "pretrain", "sites_per_s": 200.0, "seconds": 3.0},
    ]
    assert throughput(history) == {"pretrain_sites_per_s": 175.0}


def test_waits_weigh_by_time_and_the_largest_memory_counts() -> None:
    history = [
        {"step": "finetune", "sites_per_s": 10.0, "seconds": 1.0, "data_wait": 0.5, "peak_memory_gib": 2.0},
        {"step": "finetune", "sites_per_s": 10.0, "seconds": 3.0, "data_wait": 0.1, "peak_memory_gib": 1.5},
    ]
    assert throughput(history) == {
        "finetune_sites_per_s": 10.0,
        "finetune_data_wait": 0.2,
        "finetune_peak_memory_gib": 2.0,
    }


def test_wilson_interval_agrees_with_published_values() -> None:
    # Newcombe 1998, Stat. Med. 17:857, table I, method 3.
    assert Accuracy(81, 263).interval() == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Accuracy(0, 20).interval() == pytest.approx((0.0, 0.1611), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_value_and_mirrors(counts: tuple[int, int]) -> None:
    correct, wells = counts
    low, high = Accuracy(correct, wells).interval()
    assert 0 <= low <= correct / wells + 1e-12
    assert correct / wells - 1e-12 <= high <= 1
    assert Accuracy(wells - correct, wells).interval() == pytest.approx((1 - high, 1 - low))
