import numpy as np
import pytest

from components.core.config import PriorConfig
from components.core.evaluation.metrics import selection_accuracy, top1, top1_by_cell_type
from components.core.prior.plate_groups import PlateGroups

SIZE = 20
GROUPS = PlateGroups((1, 2), (np.arange(0, 2 * SIZE, 2), np.arange(1, 2 * SIZE, 2)), {"E-1": {1: 0, 2: 1}})


@pytest.fixture
def validation():
    rng = np.random.default_rng(2)
    truth = np.concatenate([rng.permutation(GROUPS.members[1]), rng.permutation(GROUPS.members[0])])
    logits = 1.5 * (rng.standard_normal((2 * SIZE, 2 * SIZE)) + rng.standard_normal(2 * SIZE))
    logits[np.arange(2 * SIZE), truth] += 3
    return logits, truth, ["V-1"] * (2 * SIZE), [1] * SIZE + [2] * SIZE


def test_each_use_of_the_plate_design_adds_accuracy(validation):
    raw, group, balanced = (
        selection_accuracy(kind, *validation, GROUPS, PriorConfig()) for kind in ("raw", "group", "balanced")
    )
    assert raw < group < balanced


def test_group_restriction_agrees_with_a_loop_over_wells(validation):
    logits, truth, _, _ = validation
    hits = [
        max((k for k in range(2 * SIZE) if k % 2 == true % 2), key=lambda k: row[k]) == true
        for row, true in zip(logits, truth, strict=True)
    ]
    assert selection_accuracy("group", *validation, GROUPS, PriorConfig()) == pytest.approx(np.mean(hits))


def test_without_groups_group_equals_raw(validation):
    raw = selection_accuracy("raw", *validation, None, PriorConfig())
    assert selection_accuracy("group", *validation, None, PriorConfig()) == raw
    assert 0 <= selection_accuracy("balanced", *validation, None, PriorConfig()) <= 1


def test_top1_by_cell_type_weighs_wells_not_cell_types():
    predicted, truth = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 0])
    assert top1_by_cell_type(predicted, truth, ["A", "A", "A", "B"]) == {"overall": 0.75, "A": 1.0, "B": 0.0}


def test_rejects_no_wells():
    with pytest.raises(ValueError, match="at least one"):
        top1(np.array([], dtype=np.intp), np.array([], dtype=np.intp))
