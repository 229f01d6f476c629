import numpy as np
import pytest
from scipy.special import softmax

from components.core.config import PriorConfig
from components.core.prior.assignment import Competition, Temperatures, predict_wells
from components.core.prior.balancing import assign_plate, balanced

PRIOR = PriorConfig(sinkhorn_iterations=2000, sinkhorn_tolerance=1e-6, sinkhorn_sharpness=1.0)
PARTS = [
    Competition("E-1", 1, np.arange(6), np.arange(0, 12, 2)),
    Competition("E-1", 2, np.arange(6, 11), np.arange(1, 12, 2)),
]


@pytest.fixture
def logits():
    return 2 * np.random.default_rng(7).standard_normal((11, 12))


def test_each_stage_follows_its_definition(logits):
    found = predict_wells(logits, PARTS, Temperatures(), PRIOR)
    assert (found.raw_W == logits.argmax(axis=1)).all()
    assert (found.top_W5[:, 0] == found.raw_W).all()
    assert (np.diff(np.take_along_axis(logits, found.top_W5, axis=1), axis=1) <= 0).all()
    for part in PARTS:
        inside = logits[np.ix_(part.wells_w, part.classes_k)]
        assert (found.group_W[part.wells_w] == part.classes_k[inside.argmax(axis=1)]).all()
        np.testing.assert_allclose(found.group_confidence_W[part.wells_w], softmax(inside, axis=1).max(axis=1))
        assigned = found.perturbation_W[part.wells_w]
        assert len(set(assigned.tolist())) == len(assigned)
        assert set(assigned.tolist()) <= set(part.classes_k.tolist())


def test_a_negative_margin_marks_wells_overruled_by_the_assignment(logits):
    found = predict_wells(logits, PARTS[:1], Temperatures(), PRIOR)
    # Reference: repeated column and row normalisation of the six wells of the square plate.
    prob = softmax(logits[:6, ::2], axis=1)
    for _ in range(5000):
        prob /= prob.sum(axis=0)
        prob /= prob.sum(axis=1, keepdims=True)
    column = found.perturbation_W[:6] // 2
    mine = prob[np.arange(6), column]
    others = np.where(np.eye(6, dtype=bool)[column], 0, prob).max(axis=1)
    np.testing.assert_allclose(found.confidence_W[:6], mine, atol=1e-4)
    np.testing.assert_allclose(found.margin_W[:6], mine - others, atol=1e-4)
    assert ((found.margin_W[:6] < 0) == (prob.argmax(axis=1) != column)).all()


def test_a_plate_with_missing_wells_is_assigned_by_the_plain_balance():
    # Eight of twelve wells: sharp column scalings would change many predictions.
    logits = 2 * np.random.default_rng(3).standard_normal((40, 8, 12))
    part = Competition("E-1", 1, np.arange(8), np.arange(12))
    changed = 0
    for logits_WK in logits:
        by_sharpness = [
            predict_wells(
                logits_WK, [part], Temperatures(), PRIOR.model_copy(update={"sinkhorn_sharpness": s})
            ).perturbation_W
            for s in (1.0, 4.0)
        ]
        assert (by_sharpness[0] == by_sharpness[1]).all()
        assert (by_sharpness[0] == assign_plate(balanced(part.log_prob(logits_WK), PRIOR, sharpness=1.0))).all()
        changed += (by_sharpness[0] != assign_plate(balanced(part.log_prob(logits_WK), PRIOR, sharpness=4.0))).any()
    assert changed > 4
