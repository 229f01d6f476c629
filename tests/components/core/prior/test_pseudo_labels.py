import numpy as np
import pytest

from components.core.config import PriorConfig
from components.core.prior.assignment import Temperatures, competitions, predict_wells
from components.core.prior.balancing import balanced
from components.core.prior.plate_groups import PlateGroups
from components.core.prior.pseudo_labels import select

SIZE = 15
GROUPS = PlateGroups(
    ("1", "2", "3", "4"),
    tuple(np.arange(g * SIZE, (g + 1) * SIZE) for g in range(4)),
    {"E-1": {"1": 0, "2": 1, "3": 2, "4": 3}, "E-2": {"1": 1, "2": 2, "3": 3, "4": 0}},
)
EXPERIMENTS = ["V-1"] * (4 * SIZE)
PLATES = np.repeat(["1", "2", "3", "4"], SIZE).tolist()
HELD = (3, 0, 1, 2)


def wells(seed: int, shift: float):
    rng = np.random.default_rng(seed)
    truth = np.concatenate([rng.permutation(GROUPS.members[group]) for group in HELD])
    logits = 2 * (rng.standard_normal((4 * SIZE, 4 * SIZE)) + 0.7 * rng.standard_normal(4 * SIZE))
    logits[np.arange(len(truth)), truth] += 2 * shift
    return logits, truth


def test_the_prior_raises_accuracy_and_keeps_plates_in_their_group():
    logits, truth = wells(0, 2.5)
    found = select(logits, EXPERIMENTS, PLATES, GROUPS, PriorConfig())
    assert tuple(found.arrangements["V-1"].groups.values()) == HELD
    assert (GROUPS.group_of_class()[found.class_W] == np.repeat(HELD, SIZE)).all()
    assert (found.class_W == truth).mean() > (logits.argmax(axis=1) == truth).mean() + 0.1
    assert ((found.confidence_W > 0) & (found.confidence_W <= 1)).all()


def test_an_unclear_arrangement_allows_all_treatments_if_final_predictions_are_refused():
    logits, _ = wells(2, 0.0)
    prior = PriorConfig(min_margin=1e6, on_low_margin="refuse")
    found = select(logits, EXPERIMENTS, PLATES, GROUPS, prior)
    assert len(set(GROUPS.group_of_class()[found.class_W[:SIZE]].tolist())) > 1


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1.0])
def test_the_most_confident_share_of_every_plate_is_labelled(fraction):
    logits, _ = wells(5, 3.0)
    everyone = select(logits, EXPERIMENTS, PLATES, GROUPS, PriorConfig())
    found = select(logits, EXPERIMENTS, PLATES, GROUPS, PriorConfig(), fraction=fraction)
    kept_W = found.class_W >= 0
    assert (found.class_W[kept_W] == everyone.class_W[kept_W]).all()
    for plate in ("1", "2", "3", "4"):
        of_plate = np.array(PLATES) == plate
        assert kept_W[of_plate].sum() == np.ceil(fraction * SIZE)
        if fraction < 1:
            assert found.confidence_W[of_plate & kept_W].min() >= found.confidence_W[of_plate & ~kept_W].max()
    assert (found.prob_WK[~kept_W] == 0).all()


def test_assigned_labels_do_not_repeat_on_a_plate_and_are_those_of_final_predictions():
    logits, _ = wells(8, 0.6)
    prior = PriorConfig(min_margin=0, min_separation=0)
    several = select(logits, EXPERIMENTS, PLATES, GROUPS, prior)
    found = select(logits, EXPERIMENTS, PLATES, GROUPS, prior, one_to_one=True)
    parts = competitions(EXPERIMENTS, PLATES, found.arrangements, GROUPS, prior)
    assert (found.class_W == predict_wells(logits, parts, Temperatures(), prior).perturbation_W).all()
    for part in parts:
        assert len(set(several.class_W[part.wells_w])) < SIZE
        assert len(set(found.class_W[part.wells_w])) == SIZE
    of_label = found.prob_WK[np.arange(len(logits)), found.class_W]
    np.testing.assert_allclose(found.confidence_W, of_label, rtol=1e-5)
    half = select(logits, EXPERIMENTS, PLATES, GROUPS, prior, fraction=0.5, one_to_one=True)
    for part in parts:
        kept_w = part.wells_w[half.class_W[part.wells_w] >= 0]
        assert len(kept_w) == 8
        assert (half.class_W[kept_w] == found.class_W[kept_w]).all()


@pytest.mark.parametrize("balancing", ["sinkhorn", "greedy"])
def test_soft_labels_are_balanced_probabilities_over_the_plates_group(balancing):
    logits, _ = wells(6, 2.0)
    found = select(logits, EXPERIMENTS, PLATES, GROUPS, PriorConfig(balancing=balancing, sinkhorn_sharpness=1))
    np.testing.assert_allclose(found.prob_WK.sum(1), 1.0, atol=1e-5)
    assert (found.prob_WK.argmax(1) == found.class_W).all()
    np.testing.assert_allclose(found.prob_WK.max(1), found.confidence_W, rtol=1e-5)
    inside = GROUPS.group_of_class()[None, :] == np.repeat(HELD, SIZE)[:, None]
    assert (found.prob_WK[~inside] == 0).all()
    if balancing == "sinkhorn":
        np.testing.assert_allclose(found.prob_WK.sum(0), 1.0, atol=1e-3)


def test_an_experiment_without_arrangement_is_labelled_among_all_treatments():
    logits, truth = wells(5, 5.0)
    odd = ["9" if plate == "4" else plate for plate in PLATES]
    fine = ["V-1"] * len(PLATES)
    for experiments, plates, problem in (
        (fine, odd, "experiment V-1 has a plate 9"),
        (fine, ["1"] * len(PLATES), "plate 1 has 60 treatment wells, but no plate group has more than 15"),
    ):
        found = select(logits, experiments, plates, GROUPS, PriorConfig(on_low_margin="refuse"))
        assert problem in found.arrangements["V-1"].problem
        assert not found.arrangements["V-1"].accepted(PriorConfig(min_margin=0, min_separation=0))
        assert (found.class_W == truth).mean() > 0.9
    both = select(
        np.concatenate([logits, logits]), [*fine, *["V-2"] * len(PLATES)], [*odd, *PLATES], GROUPS, PriorConfig()
    )
    assert not both.arrangements["V-2"].problem
    assert (GROUPS.group_of_class()[both.class_W[len(PLATES) :]] == np.repeat(HELD, SIZE)).all()


def test_labels_come_from_a_sharp_balance_and_probabilities_from_a_plain_one():
    logits, truth = wells(7, 1.2)
    sharp = select(logits, EXPERIMENTS, PLATES, GROUPS, PriorConfig(min_margin=0, min_separation=0))
    plain = select(
        logits, EXPERIMENTS, PLATES, GROUPS, PriorConfig(min_margin=0, min_separation=0, sinkhorn_sharpness=1)
    )
    np.testing.assert_allclose(sharp.prob_WK, plain.prob_WK, atol=1e-6)
    assert (sharp.class_W != plain.class_W).any()
    expected = sharp.prob_WK[np.arange(len(truth)), sharp.class_W]
    np.testing.assert_allclose(sharp.confidence_W, expected, rtol=1e-5)


def test_soft_labels_are_not_overconfident_if_logits_are_likelihoods():
    # Normal noise of unit variance and a shift d: the log-likelihood ratio of a class is d times its value.
    rng, shift, hits, plain, sharp = np.random.default_rng(11), 2.0, [], [], []
    prior = PriorConfig(min_margin=0, min_separation=0)
    for _ in range(8):
        truth = np.concatenate([rng.permutation(GROUPS.members[group]) for group in HELD])
        x = rng.standard_normal((4 * SIZE, 4 * SIZE))
        x[np.arange(len(truth)), truth] += shift
        found = select(shift * x, EXPERIMENTS, PLATES, GROUPS, prior)
        hits.append(found.prob_WK[np.arange(len(truth)), truth])
        plain.append((found.prob_WK.astype(np.float64) ** 2).sum(axis=1))
        plate_wk = shift * x[:SIZE][:, GROUPS.members[HELD[0]]]
        sharp.append(np.exp(2 * balanced(plate_wk, prior)).sum(axis=1))
    # If p is correct with probability p, the mean p of the true class equals the mean of sum p^2. The prior adds information
    # to a plain balance, so that it may be correct more often; the sharp balance is overconfident.
    assert np.mean(hits) - 0.15 < np.mean(plain) < np.mean(hits) + 0.01
    assert np.mean(sharp) > np.mean(hits) + 0.1
