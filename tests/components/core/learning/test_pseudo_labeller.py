"""PseudoLabeller: whose logits judge, how refreshes follow one another, and what training is handed."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from components.core.config import PriorConfig
from components.core.learning import pseudo_labeller as labelling
from components.core.learning.fold_data import groups_of_fold
from components.core.learning.pseudo_labeller import PseudoLabeller
from components.core.prior.plate_groups import PlateGroups
from tests.components.core.learning.small_design import (
    CLASSES,
    HELD,
    IMAGES,
    PAIRS,
    SCREEN,
    TABLE,
    TREATMENTS,
    TRUTH,
    Judge,
    logits,
    settings,
    wells_of,
)

K = len(TREATMENTS)
# Out of plate order, and of two experiments: a row must find its well again.
UNLABELLED = np.random.default_rng(0).permutation(wells_of("HUVEC-01", "HUVEC-04"))
OTHERS = np.setdiff1d(np.arange(TABLE.wells), UNLABELLED)


@pytest.fixture
def labeller(monkeypatch):
    """Makes a labeller of the unlabelled wells over two backbones whose networks a judge answers for."""

    def make(
        judge: Judge, groups: PlateGroups | None = None, prior: PriorConfig | None = None, seed: int = 5, **config: Any
    ) -> PseudoLabeller:
        monkeypatch.setattr(labelling, "adaptive_logits", judge)
        return PseudoLabeller(PAIRS, IMAGES, UNLABELLED, SCREEN, groups, settings(prior, **config), seed)

    return make


def everyone(refreshes: int = 1) -> Judge:
    """Four networks of different opinions at every refresh."""
    names = ("a_teacher", "b_teacher", "a_student", "b_student")
    return Judge(**{name: [logits(10 * n + k) for k in range(refreshes)] for n, name in enumerate(names)})


def mean_of_teachers(judge: Judge, refresh: int = 0) -> NDArray[np.float64]:
    """Of every well, over treatments, (W, K)."""
    both = [judge.logits[name][refresh][:, :K].astype(np.float64) for name in ("a.teacher", "b.teacher")]
    return np.asarray(np.mean(both, axis=0))


def test_the_mean_of_the_teachers_decides_and_controls_are_no_label(labeller):
    judge = everyone()
    label_W = labeller(judge)(1).numpy()
    expected_W = mean_of_teachers(judge).argmax(axis=1)
    assert (label_W[UNLABELLED] == expected_W[UNLABELLED]).all()
    for network in judge.logits.values():
        alone_W = network[0][:, :K].argmax(axis=1)
        assert (alone_W[UNLABELLED] != expected_W[UNLABELLED]).any(), "the mean differs from every network alone"


def test_wells_that_are_not_unlabelled_have_no_label(labeller):
    label_W = labeller(everyone())(1)
    assert label_W.shape == (TABLE.wells,)
    assert not label_W.is_floating_point()
    assert (label_W[OTHERS] == -1).all()
    soft_WK = labeller(everyone(), pseudo_labels="soft")(1)
    assert soft_WK.shape == (TABLE.wells, CLASSES)
    assert (soft_WK[OTHERS] == 0).all()


def test_the_first_refresh_is_all_new_and_later_ones_blend_with_the_last_blend(labeller):
    judge = everyone(refreshes=3)
    refresh = labeller(judge, pseudo_label_blend=0.6)
    new = [mean_of_teachers(judge, k) for k in range(3)]
    blended = [new[0], 0.6 * new[1] + 0.4 * new[0]]
    blended.append(0.6 * new[2] + 0.4 * blended[1])
    for k in range(3):
        label_W = refresh(k).numpy()
        np.testing.assert_allclose(refresh.last.logits_WK, blended[k][refresh.wells], rtol=1e-5, atol=1e-5)
        assert (label_W[UNLABELLED] == blended[k].argmax(axis=1)[UNLABELLED]).all()
    assert (label_W[UNLABELLED] != new[2].argmax(axis=1)[UNLABELLED]).any(), "the new logits alone say otherwise"


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_each_refresh_labels_its_configured_fraction(labeller, kind):
    refresh = labeller(everyone(refreshes=4), confident_fractions=(0.25, 0.5), pseudo_labels=kind)
    counts = []
    for epoch in range(4):
        pseudo = refresh(epoch).numpy()
        labelled_w = (pseudo >= 0 if kind == "hard" else pseudo.any(axis=1))[refresh.wells]
        confidence_w = refresh.last.confidence_W
        assert confidence_w[labelled_w].min() >= confidence_w[~labelled_w].max()
        if kind == "hard":
            assert (pseudo[refresh.wells[~labelled_w]] == -1).all()
        counts.append(int(labelled_w.sum()))
    assert counts == [len(UNLABELLED) // 4, *3 * [len(UNLABELLED) // 2]]


def test_soft_labels_are_probabilities_of_treatments_and_hard_ones_their_most_probable(labeller):
    hard_W = labeller(everyone(), confident_fractions=(0.5,))(1).numpy()
    judge = everyone()
    soft_WK = labeller(judge, confident_fractions=(0.5,), pseudo_labels="soft")(1).numpy()
    labelled_W = hard_W >= 0
    assert labelled_W.sum() == len(UNLABELLED) / 2
    expected_WK = softmax(mean_of_teachers(judge), axis=1)
    np.testing.assert_allclose(soft_WK[labelled_W, :K], expected_WK[labelled_W], rtol=1e-4)
    assert (soft_WK[labelled_W].argmax(axis=1) == hard_W[labelled_W]).all()
    assert (soft_WK[:, K:] == 0).all(), "controls"
    assert (soft_WK[~labelled_W] == 0).all()


@pytest.mark.parametrize(("permutations", "found"), [("all", True), ("cyclic", False)])
def test_uses_the_configured_permutations(labeller, permutations, found):
    """The unlabelled experiment is no rotation of the labelled ones, so that only all permutations hold it."""
    prior = PriorConfig(permutations=permutations, min_margin=0.0, min_separation=0.0)
    judge = Judge(a_teacher=[logits(1, shift=4.0)], b_teacher=[logits(2, shift=4.0)])
    refresh = labeller(judge, groups_of_fold(SCREEN, 0, prior), prior)
    label_W = refresh(1).numpy()
    wells = wells_of("HUVEC-04")
    truth = np.array([TRUTH[str(TABLE.id_code_W[well])] for well in wells])
    assert ((label_W[wells] == truth).mean() > 0.9) == found
    # Group 0 is on the first plate of the first labelled experiment: HUVEC-02 here, whose plate 1 holds group 1.
    named = {plate: (group + 1) % 4 for plate, group in refresh.last.arrangements["HUVEC-04"].groups.items()}
    assert (tuple(named[plate] for plate in (1, 2, 3, 4)) == HELD["HUVEC-04"]) == found


def test_wells_are_in_plate_order_and_an_epochs_views_depend_on_seed_and_epoch_alone(labeller):
    draws = []
    for seed, epochs in ((5, (1, 4)), (5, (4,)), (6, (4,))):
        judge = everyone(refreshes=2)
        refresh = labeller(judge, seed=seed)
        for epoch in epochs:
            refresh(epoch)
        draws.append(judge.draws)
    assert (np.diff(TABLE.plate_W[refresh.wells]) >= 0).all()
    assert sorted(refresh.wells) == sorted(UNLABELLED)
    assert draws[0][2:] == draws[1]
    assert len({*draws[0], *draws[2]}) == 6, "another epoch, backbone or seed sees other views"
