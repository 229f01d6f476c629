"""Pseudo-labels under the prior's settings: the balancing and the arrangements that are configured, not their defaults."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from components.core.config import PriorConfig
from components.core.prior.balancing import greedy_balance
from components.core.prior.plate_groups import PlateGroups
from components.core.prior.pseudo_labels import select

SIZE = 8
GROUPS = PlateGroups(
    (1, 2, 3, 4),
    tuple(np.arange(g * SIZE, (g + 1) * SIZE) for g in range(4)),
    {"E-1": {1: 0, 2: 1, 3: 2, 4: 3}, "E-2": {1: 1, 2: 2, 3: 3, 4: 0}},
)
EXPERIMENTS = ["V-1"] * (4 * SIZE)
PLATES = np.repeat([1, 2, 3, 4], SIZE)


def wells(held: tuple[int, ...], shift: float):
    """Logits with a bias towards some classes, so that balancing has work; the truth."""
    rng = np.random.default_rng(3)
    truth = np.concatenate([rng.permutation(GROUPS.members[group]) for group in held])
    logits = rng.standard_normal((4 * SIZE, 4 * SIZE)) + 2.0 * rng.standard_normal(4 * SIZE)
    logits[np.arange(len(truth)), truth] += shift
    return logits.astype(np.float32), truth


def test_greedy_balancing_gives_the_probabilities_of_the_greedy_search():
    held = (3, 0, 1, 2)
    logits, _ = wells(held, 4.0)
    prior = PriorConfig(balancing="greedy", greedy_step=0.1, min_margin=0.0, min_separation=0.0)
    found = select(logits, EXPERIMENTS, PLATES.tolist(), GROUPS, prior)
    sinkhorn = select(logits, EXPERIMENTS, PLATES.tolist(), GROUPS, prior.model_copy(update={"balancing": "sinkhorn"}))
    for plate, group in zip((1, 2, 3, 4), held, strict=True):
        block = np.ix_(plate == PLATES, GROUPS.members[group])
        log_prob_wk = log_softmax(logits[block].astype(np.float64), axis=1)
        weight_k = greedy_balance(log_prob_wk, prior.greedy_step, prior.greedy_iterations)
        assert (weight_k < 0).any()
        expected_wk = softmax(log_prob_wk + weight_k, axis=1)
        np.testing.assert_allclose(found.prob_WK[block], expected_wk, atol=1e-5)
        np.testing.assert_allclose(found.confidence_W[plate == PLATES], expected_wk.max(axis=1), atol=1e-5)
        assert np.abs(sinkhorn.prob_WK[block] - expected_wk).max() > 0.01, "Sinkhorn gives others"


@pytest.mark.parametrize(("permutations", "right"), [("all", True), ("cyclic", False)])
def test_an_arrangement_that_is_no_rotation_is_found_among_all_permutations_only(permutations, right):
    held = (1, 0, 3, 2)
    logits, truth = wells(held, 12.0)
    prior = PriorConfig(permutations=permutations, min_margin=0.0, min_separation=0.0)
    found = select(logits, EXPERIMENTS, PLATES.tolist(), GROUPS, prior)
    assert (tuple(found.arrangements["V-1"].groups.values()) == held) == right
    assert ((found.class_W == truth).mean() > 0.9) == right
