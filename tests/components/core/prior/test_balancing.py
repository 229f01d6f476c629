from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax, logsumexp

from components.core.config import PriorConfig
from components.core.prior.balancing import assign_plate, balanced, greedy_balance, sinkhorn

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


def test_greedy_search_reaches_a_similar_balance():
    log_prob = log_softmax(biased_plate(np.random.default_rng(1), 60), axis=1)
    greedy = (log_prob + greedy_balance(log_prob, 0.01, 20_000)).argmax(axis=1)
    by_sinkhorn = sinkhorn(log_prob, 200, 1e-4).log_prob_WK.argmax(axis=1)
    most = [np.bincount(found).max() for found in (greedy, by_sinkhorn, log_prob.argmax(axis=1))]
    correct = [(found == np.arange(60)).mean() for found in (greedy, by_sinkhorn, log_prob.argmax(axis=1))]
    assert max(most[:2]) < most[2]
    assert correct[0] > correct[2]
    assert correct[1] >= correct[0] - 0.05


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
    greedy = balanced(logits, PriorConfig(balancing="greedy", greedy_step=0.05, greedy_iterations=2000))
    np.testing.assert_allclose(balanced(logits, PriorConfig()), sinkhorn(logits, 200, 1e-3, 4.0).log_prob_WK)
    np.testing.assert_allclose(np.exp(greedy).sum(axis=1), 1.0)
    weight = greedy_balance(log_softmax(logits, axis=1), 0.05, 2000)
    assert (greedy.argmax(axis=1) == (log_softmax(logits, axis=1) + weight).argmax(axis=1)).all()


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
