import numpy as np
import pytest
from scipy.special import softmax

from components.core.config import PriorConfig
from components.core.prior.assignment import assign_plate
from components.core.prior.balancing import balanced
from components.core.prior.competition import Competition
from components.core.prior.naming import Temperatures, name_wells

PRIOR = PriorConfig(sinkhorn_iterations=2000, sinkhorn_tolerance=1e-6, sinkhorn_sharpness=1.0)
PARTS = [
    Competition("E-1", 1, np.arange(6), np.arange(0, 12, 2)),
    Competition("E-1", 2, np.arange(6, 11), np.arange(1, 12, 2)),
]


@pytest.fixture
def logits():
    return 2 * np.random.default_rng(7).standard_normal((11, 12))


def test_every_stage_keeps_its_promise(logits):
    names = name_wells(logits, PARTS, Temperatures(), PRIOR)
    assert (names.raw_W == logits.argmax(axis=1)).all()
    assert (names.top_W5[:, 0] == names.raw_W).all()
    assert (np.diff(np.take_along_axis(logits, names.top_W5, axis=1), axis=1) <= 0).all()
    for part in PARTS:
        inside = logits[np.ix_(part.wells_w, part.classes_k)]
        assert (names.group_W[part.wells_w] == part.classes_k[inside.argmax(axis=1)]).all()
        np.testing.assert_allclose(names.group_confidence_W[part.wells_w], softmax(inside, axis=1).max(axis=1))
        assigned = names.sirna_W[part.wells_w]
        assert len(set(assigned.tolist())) == len(assigned)
        assert set(assigned.tolist()) <= set(part.classes_k.tolist())


def test_a_negative_margin_marks_the_wells_that_one_to_one_overruled(logits):
    names = name_wells(logits, PARTS[:1], Temperatures(), PRIOR)
    # Balanced by hand: repeated column and row normalisation of the six wells of the square plate.
    prob = softmax(logits[:6, ::2], axis=1)
    for _ in range(5000):
        prob /= prob.sum(axis=0)
        prob /= prob.sum(axis=1, keepdims=True)
    column = names.sirna_W[:6] // 2
    mine = prob[np.arange(6), column]
    others = np.where(np.eye(6, dtype=bool)[column], 0, prob).max(axis=1)
    np.testing.assert_allclose(names.confidence_W[:6], mine, atol=1e-4)
    np.testing.assert_allclose(names.margin_W[:6], mine - others, atol=1e-4)
    assert ((names.margin_W[:6] < 0) == (prob.argmax(axis=1) != column)).all()


def test_without_competitions_the_three_names_agree(logits):
    names = name_wells(logits, [], Temperatures(raw=2.0), PRIOR)
    assert (names.sirna_W == names.raw_W).all()
    assert (names.group_W == names.raw_W).all()
    np.testing.assert_allclose(names.confidence_W, softmax(logits / 2, axis=1).max(axis=1))
    np.testing.assert_allclose(names.raw_uncalibrated_W, softmax(logits, axis=1).max(axis=1))
    assert (names.margin_W >= 0).all()


def test_temperatures_change_confidences_but_no_name_on_a_square_plate(logits):
    cold = name_wells(logits, PARTS[:1], Temperatures(), PRIOR)
    warm = name_wells(logits, PARTS[:1], Temperatures(raw=3.0, group=3.0, balanced=2.0), PRIOR)
    assert (cold.sirna_W[:6] == warm.sirna_W[:6]).all()
    assert (cold.group_W == warm.group_W).all()
    assert warm.group_confidence_W[:6].mean() < cold.group_confidence_W[:6].mean()


def test_no_wells_give_no_names():
    assert name_wells(np.zeros((0, 12), np.float32), [], Temperatures(), PRIOR).top_W5.shape == (0, 5)


def test_names_on_a_plate_that_lacks_wells_are_of_the_plain_balance_whatever_its_sharpness():
    # Eight of twelve wells: sharp column scalings would give other names to many of them.
    logits = 2 * np.random.default_rng(3).standard_normal((40, 8, 12))
    part = Competition("E-1", 1, np.arange(8), np.arange(12))
    changed = 0
    for logits_WK in logits:
        by_sharpness = [
            name_wells(logits_WK, [part], Temperatures(), PRIOR.model_copy(update={"sinkhorn_sharpness": s})).sirna_W
            for s in (1.0, 4.0)
        ]
        assert (by_sharpness[0] == by_sharpness[1]).all()
        assert (by_sharpness[0] == assign_plate(balanced(part.log_prob(logits_WK), PRIOR, sharpness=1.0))).all()
        changed += (by_sharpness[0] != assign_plate(balanced(part.log_prob(logits_WK), PRIOR, sharpness=4.0))).any()
    assert changed > 4
