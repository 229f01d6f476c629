import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from components.core.config import PriorConfig
from components.core.evaluation.calibration import fit_temperature
from components.core.prior.assignment import Competition, Temperatures, predict_wells
from components.core.prior.balancing import assign_plate, balanced, without_bias

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


K = 277


def biased_plates(wells: int, bias: str, plates: int, shift: float):
    """Logits (W, K) of plates and their truth: normal noise, a bias that the wells share, a shift on the true class."""
    rng = np.random.default_rng([wells, plates])
    for _ in range(plates):
        bias_K = {
            "none": np.zeros(K),
            "normal": rng.standard_normal(K),
            "few": 3.0 * (rng.random(K) < 0.05),
            "skewed": -2 * rng.exponential(size=K),
        }[bias]
        truth_W = rng.permutation(K)[:wells]
        logits_WK = rng.standard_normal((wells, K)) + bias_K
        logits_WK[np.arange(wells), truth_W] += shift
        yield logits_WK, truth_W


@pytest.mark.parametrize("balancing", ["sinkhorn", "greedy"])
@pytest.mark.parametrize("bias", ["none", "normal", "few", "skewed"])
@pytest.mark.parametrize("wells", [1, 2, 5, 20, 100, 200, 276])
def test_plates_of_any_number_of_wells_are_assigned_at_least_as_well_as_without_a_balance(wells, bias, balancing):
    prior = PriorConfig(balancing=balancing)
    part = Competition("E-1", "1", np.arange(wells), np.arange(K))
    right, confidence, plates = np.zeros(4), 0.0, max(2, 120 // wells)
    for logits_WK, truth_W in biased_plates(wells, bias, plates, shift=5.0):
        found = predict_wells(logits_WK, [part], Temperatures(), prior)
        plain_W = assign_plate(log_softmax(logits_WK, axis=1))
        balanced_W = balanced(log_softmax(logits_WK, axis=1), prior).argmax(axis=1)
        every = found.perturbation_W, found.group_W, plain_W, balanced_W
        right += [(each == truth_W).mean() / plates for each in every]
        confidence += found.confidence_W.mean() / plates
    assigned, group, plain, spread = right
    assert assigned >= max(group, plain) - 0.005
    assert spread >= group - 0.01
    if wells >= 5:  # fewer show little of their bias
        assert assigned > 0.8
        assert abs(confidence - assigned) < 0.1


@pytest.mark.parametrize("balancing", ["sinkhorn", "greedy"])
@pytest.mark.parametrize("shift", [2.5, 3.0, 4.0, 5.0])
@pytest.mark.parametrize("wells", [20, 200, K])
def test_confidences_are_as_high_as_predictions_are_right_with_a_temperature_fitted_on_other_plates(
    wells, shift, balancing
):
    prior, plates = PriorConfig(balancing=balancing), max(6, 800 // wells)
    part = Competition("E-1", "1", np.arange(wells), np.arange(K))
    drawn = list(biased_plates(wells, "normal", 2 * plates, shift))
    assigned = [part.assigned(drawn[n][0], prior) for n in range(plates)]
    temperature = fit_temperature(
        [x for _, x in assigned], [drawn[n][1] for n in range(plates)], [a for a, _ in assigned]
    )
    right, confidence = [], []
    for n in range(plates, 2 * plates):
        found = predict_wells(drawn[n][0], [part], Temperatures(balanced=temperature), prior)
        right += list(found.perturbation_W == drawn[n][1])
        confidence += list(found.confidence_W)
    assert np.mean(confidence) == pytest.approx(np.mean(right), abs=0.03)


def test_thinned_plates_hold_the_same_wells_in_any_order_of_rows():
    ids = [f"E-1_1_A{n:02}" for n in range(12)]
    order = np.random.default_rng(0).permutation(12)
    part = Competition("E-1", "1", np.arange(12), np.arange(20))
    plain, shuffled = part.thinned(ids, 4, 3), part.thinned([ids[n] for n in order], 4, 3)
    assert [{ids[w] for w in each.wells_w} for each in plain] == [
        {ids[order[w]] for w in each.wells_w} for each in shuffled
    ]
    assert sorted(np.concatenate([each.wells_w for each in plain])) == list(range(12))


def test_a_sure_well_stays_sure_and_its_temperature_is_that_of_its_plates_number_of_wells():
    logits_WK = np.zeros((1, K))
    logits_WK[0, 5] = 12.0
    part = Competition("E-1", "1", np.arange(1), np.arange(K))
    assert predict_wells(logits_WK, [part], Temperatures(), PriorConfig()).confidence_W[0] > 0.99
    fitted = Temperatures(balanced=1.0, few={1: 4.0, 4: 2.0})
    assert [fitted.of_balanced(wells, K) for wells in (1, 4, K)] == pytest.approx([4.0, 2.0, 1.0])
    assert 2.0 < fitted.of_balanced(2, K) < 4.0
    assert 1.0 < fitted.of_balanced(100, K) < 2.0
    assert fitted.of_balanced(4, 4) == 1.0, "a complete plate"
    assert Temperatures.of_names(fitted.named()) == fitted


def test_what_all_wells_share_is_removed_and_a_complete_plate_is_returned_as_it_is():
    rng = np.random.default_rng(5)
    for wells in (3, 30, 200):
        (logits_WK, _), bias_K = next(biased_plates(wells, "none", 1, 0.0)), 3 * rng.standard_normal(K)
        left_WK = without_bias(logits_WK + bias_K) - logits_WK
        left_K = left_WK.mean(axis=0) - left_WK.mean()
        assert left_K.std() < 1.3 / np.sqrt(wells) < bias_K.std()
        np.testing.assert_allclose(without_bias(logits_WK), logits_WK, atol=1.0 / np.sqrt(wells))
    square_KK = rng.standard_normal((K, K)) + rng.standard_normal(K)
    assert (without_bias(square_KK) == square_KK).all()
