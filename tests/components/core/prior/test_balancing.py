from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax, logsumexp

from components.core.config import PriorConfig
from components.core.prior.balancing import assign_plate, balanced, greedy_balance, sinkhorn, weights_over_wells

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 5.0]))


def biased_plate(rng, size: int):
    """Logits of a plate where some perturbations look like everything: a column bias over noise and the true diagonal."""
    logits = rng.standard_normal((size, size)) + rng.standard_normal(size)
    return 1.5 * (logits + 3.0 * np.eye(size))


def plain_log_domain(logits, sweeps: int):
    """Sinkhorn with each missing well as a row of its own."""
    wells, perturbations = logits.shape
    missing = np.zeros((max(0, perturbations - wells), perturbations))
    log_prob = log_softmax(np.concatenate([logits, missing]), axis=1)
    for _ in range(sweeps):
        log_prob = log_prob + np.log(max(1.0, wells / perturbations)) - logsumexp(log_prob, axis=0)
        log_prob = log_softmax(log_prob, axis=1)
    return log_prob


def column_error(prob):
    """Distance of columns from one well each, or W/K; with missing wells how far one exceeds it."""
    wells, perturbations = prob.shape
    error = prob.sum(axis=0) - max(1.0, wells / perturbations)
    return error.max() if wells < perturbations else np.abs(error).max()


@settings(max_examples=12, deadline=None)
@given(shapes)
def test_agrees_with_plain_sweeps_in_the_log_domain(case):
    wells, perturbations, seed, scale = case
    logits = scale * np.random.default_rng(seed).standard_normal((wells, perturbations))
    found = sinkhorn(logits, 5000, 1e-10)
    plain = plain_log_domain(logits, 1000)
    target = max(1.0, wells / perturbations)
    assume(found.error <= 1e-10 and np.abs(np.exp(plain).sum(axis=0) - target).max() < 1e-9)
    np.testing.assert_allclose(found.log_prob_WK, plain[:wells], atol=1e-5)


def test_agrees_with_the_assignment_on_sure_wells_if_plain_exponentials_vanish():
    logits = 400 * np.random.default_rng(3).standard_normal((40, 40))
    assert np.exp(log_softmax(logits, axis=1)).min() == 0
    found = sinkhorn(logits, 3000, 1e-4)
    assert found.error <= 1e-4
    sure = found.log_prob_WK.max(axis=1) > np.log(0.6)  # the others have two answers within a few nats
    assert sure.sum() >= 38
    assert (found.log_prob_WK.argmax(axis=1) == linear_sum_assignment(-logits)[1])[sure].all()


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from([1.0, 50.0, 400.0, 3000.0]), st.sampled_from([0, 1, 5, 200, 5000]))
def test_rows_sum_to_one_and_columns_hold_one_well_without_overflow(case, scale, sweeps):
    wells, perturbations, seed, _ = case
    rng = np.random.default_rng(seed)
    logits = scale * (rng.standard_normal((wells, perturbations)) + rng.standard_normal(perturbations))
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        found = sinkhorn(logits, sweeps, 1e-6)
    assert np.isfinite(found.log_prob_WK).all()
    assert found.iterations <= sweeps
    assert found.error <= 1e-6 or found.iterations == sweeps
    prob = np.exp(found.log_prob_WK)
    np.testing.assert_allclose(prob.sum(axis=1), 1.0, atol=1e-9)
    assert column_error(prob) <= found.error + 1e-9
    if wells >= perturbations:
        assert column_error(prob) == pytest.approx(found.error, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(15, 300), st.integers(15, 300), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 4.0, 30.0, 200.0]))
def test_plates_of_any_shape_are_balanced_within_the_default_limits(wells, perturbations, seed, scale):
    rng = np.random.default_rng(seed)
    logits = scale * (rng.standard_normal((wells, perturbations)) + rng.standard_normal(perturbations))
    prior = PriorConfig()
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        found = sinkhorn(logits, prior.sinkhorn_iterations, prior.sinkhorn_tolerance, prior.sinkhorn_sharpness)
    prob = np.exp(found.log_prob_WK)
    assert np.isfinite(found.log_prob_WK).all()
    np.testing.assert_allclose(prob.sum(axis=1), 1.0, atol=1e-5)
    assert column_error(prob) <= found.error + 1e-5 * max(1, wells / perturbations)
    before = column_error(np.exp(log_softmax(prior.sinkhorn_sharpness * logits, axis=1)))
    assert before <= 0 or column_error(prob) < before


def plain_search(prob, step: float, iterations: int):
    """Class weights by the greedy search, all predictions made anew: a step multiplies one weight by exp(-step)."""
    wells, perturbations = prob.shape
    even = np.full((max(0, perturbations - wells), perturbations), prob.sum() / prob.size)  # missing wells
    weight = 1 / np.concatenate([prob, even]).sum(axis=0)
    best, fewest = weight, np.inf
    for n in range(iterations + 1):
        count = np.bincount((prob * weight).argmax(axis=1), minlength=perturbations)
        if (count**2).sum() < fewest:
            best, fewest = weight, (count**2).sum()
        if count.max() <= np.ceil(wells / perturbations):
            break
        if n < iterations:
            lower = np.where(np.arange(perturbations) == count.argmax(), step / 2 ** (11 * n // iterations), 0.0)
            weight = weight * np.exp(-lower)
    return best


@settings(max_examples=25, deadline=None)
@given(shapes, st.sampled_from([0.1, 1.0]), st.sampled_from([1, 22, 300]))
def test_the_greedy_search_agrees_with_a_plain_one(case, step, iterations):
    wells, perturbations, seed, scale = case
    rng = np.random.default_rng(seed)
    logits = scale * (rng.standard_normal((wells, perturbations)) + rng.standard_normal(perturbations))
    found = greedy_balance(logits, step, iterations)
    np.testing.assert_allclose(found, np.log(plain_search(np.exp(logits), step, iterations)), atol=1e-9)


def test_the_greedy_search_predicts_more_wells_correctly_than_the_softmax_over_wells_it_begins_with():
    plates = [log_softmax(biased_plate(np.random.default_rng(seed), 60), axis=1) for seed in range(5)]
    right, spread = np.zeros(4), np.zeros(4)
    for log_prob in plates:
        weights = [0.0, weights_over_wells(log_prob), *(greedy_balance(log_prob, 1.0, n) for n in (30, 5000))]
        found = [(log_prob + weight).argmax(axis=1) for weight in weights]
        right += [(each == np.arange(60)).mean() / len(plates) for each in found]
        spread += [(np.bincount(each) ** 2).sum() / len(plates) for each in found]
    assert (np.diff(spread) < 0).all()
    assert right[0] < right[1] < right[3]
    assert spread[3] < 65  # 60 if every class is predicted once
    by_sinkhorn = np.mean(
        [(sinkhorn(each, 200, 1e-4, 4.0).log_prob_WK.argmax(axis=1) == np.arange(60)).mean() for each in plates]
    )
    assert abs(right[3] - by_sinkhorn) < 0.05


def test_one_well_keeps_its_predictions_and_a_bias_on_a_complete_plate_has_none():
    rng = np.random.default_rng(2)
    well = rng.standard_normal((1, 9))
    for weight in (weights_over_wells(well), greedy_balance(well, 1.0, 100)):
        assert (well + weight).argmax() == well.argmax()
    plate, bias = rng.standard_normal((9, 9)), 5 * rng.standard_normal(9)
    np.testing.assert_allclose(weights_over_wells(plate + bias), weights_over_wells(plate) - bias)
    np.testing.assert_allclose(plate + weights_over_wells(plate), log_softmax(plate, axis=0))


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 6), st.integers(0, 1), st.integers(0, 2**32 - 1)))
def test_assignment_agrees_with_trying_every_permutation(plate):
    wells, spare, seed = plate
    perturbations = wells + spare
    log_prob = np.random.default_rng(seed).standard_normal((wells, perturbations))
    every = np.array(list(permutations(range(perturbations), wells)))
    best = log_prob[np.arange(wells), every].sum(axis=1).max()
    assigned = assign_plate(log_prob)
    assert len(set(assigned.tolist())) == wells
    assert log_prob[np.arange(wells), assigned].sum() == pytest.approx(best)


def test_the_configuration_chooses_the_method():
    logits = biased_plate(np.random.default_rng(4), 40)
    greedy = balanced(logits, PriorConfig(balancing="greedy", greedy_step=0.5, greedy_iterations=2000))
    np.testing.assert_allclose(balanced(logits, PriorConfig()), sinkhorn(logits, 200, 1e-3, 4.0).log_prob_WK)
    np.testing.assert_allclose(np.exp(greedy).sum(axis=1), 1.0)
    weight = greedy_balance(log_softmax(logits, axis=1), 0.5, 2000)
    np.testing.assert_allclose(greedy, log_softmax(log_softmax(logits, axis=1) + weight, axis=1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rejects_values_that_are_not_finite(value):
    logits = np.array([[0.0, value]])
    for method in ("greedy", "sinkhorn"):
        with pytest.raises(ValueError, match="finite"):
            balanced(logits, PriorConfig(balancing=method))
    with pytest.raises(ValueError, match="finite"):
        assign_plate(logits)


def test_rejects_empty_input_and_more_wells_than_perturbations():
    with pytest.raises(ValueError, match="nothing to balance"):
        sinkhorn(np.zeros((0, 3)), 10, 1e-3)
    with pytest.raises(ValueError, match="3 wells cannot each hold a different one of 2 perturbations"):
        assign_plate(np.zeros((3, 2)))
