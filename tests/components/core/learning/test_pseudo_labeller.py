"""PseudoLabeller: the logits it uses, how refreshes blend, and the labels that training gets."""

import inspect
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from components.core.learning import pseudo_labeller as labelling
from components.core.learning.inference import adaptive_logits
from components.core.learning.mean_teacher import Pair
from components.core.learning.pseudo_labeller import PseudoLabeller
from components.core.learning.step_settings import MeanTeacherSettings
from components.core.learning.team import Team
from components.core.screen.packed import TREATMENT, SiteTable
from tests.components.core.learning.tiny_networks import RUN, changed
from tests.components.core.manifests import manifest, plate_record

TREATMENTS = tuple(f"sirna_{n}" for n in range(16))
WELLS = {f"B{n:02d}": ("treatment", None) for n in range(2, 6)}
CONTROLS = {"C02": ("positive_control", "pos"), "C03": ("negative_control", "neg")}
EXPERIMENTS = ("HUVEC-01", "HUVEC-02", "HUVEC-04")
SCREEN = manifest(
    [plate_record(name, plate, {**WELLS, **CONTROLS}) for name in EXPERIMENTS for plate in (1, 2, 3, 4)], TREATMENTS
)
TABLE = SiteTable.of(SCREEN)
EPOCHS = range(1, 6)
K, CLASSES = len(TREATMENTS), len(SCREEN.vocabulary.classes)
# Out of plate order, and of two experiments: a row must find its well again.
UNLABELLED = np.random.default_rng(0).permutation(
    np.flatnonzero((TABLE.experiment_W != EXPERIMENTS.index("HUVEC-02")) & (TABLE.role_W == TREATMENT))
)
IMAGES: Any = SimpleNamespace(table=TABLE, device=torch.device("cpu"), team=Team())
PAIRS: Any = [Pair(name, f"{name}.student", f"{name}.teacher") for name in ("a", "b")]  # type: ignore[arg-type]
"""Two backbones with their names in place of networks, for the stand-in below."""


def logits(seed: int) -> NDArray[np.float32]:
    """Random logits of every well; controls win every row."""
    found = np.random.default_rng(seed).standard_normal((TABLE.wells, CLASSES)).astype(np.float32)
    found[:, K:] += 20.0
    return found


class PreparedLogits:
    """Stands for `adaptive_logits`: four networks with other logits of every well at each refresh.

    Attributes:
        logits: by network, one array (W, K) a refresh.
        draws: a number of each call's generator of sites and of its generator of views.
    """

    def __init__(self, refreshes: int = 1) -> None:
        names = ("a.teacher", "b.teacher", "a.student", "b.student")
        self.logits = {name: [logits(10 * n + k) for k in range(refreshes)] for n, name in enumerate(names)}
        self.draws: list[tuple[int, int]] = []
        self._calls: Counter[str] = Counter()

    def __call__(self, *args: Any, **kwargs: Any) -> NDArray[np.float32]:
        arguments = inspect.signature(adaptive_logits).bind(*args, **kwargs).arguments
        network = arguments["network"]
        views = int(torch.randint(2**31, (1,), generator=arguments["generator"]))
        self.draws.append((int(arguments["rng"].integers(2**31)), views))
        self._calls[network] += 1
        return self.logits[network][self._calls[network] - 1][arguments["wells"]]


@pytest.fixture
def labeller(monkeypatch):
    """Makes a labeller of the unlabelled wells over two backbones with prepared logits, without plate groups."""

    def make(prepared: PreparedLogits, seed: int = 5, **changes: Any) -> PseudoLabeller:
        monkeypatch.setattr(labelling, "adaptive_logits", prepared)
        settings = changed(RUN, mean_teacher=changes).section(MeanTeacherSettings)
        return PseudoLabeller(PAIRS, IMAGES, UNLABELLED, SCREEN, None, settings, EPOCHS, seed)

    return make


def mean_of_teachers(prepared: PreparedLogits, refresh: int = 0) -> NDArray[np.float64]:
    """Of every well, over treatments, (W, K)."""
    both = [prepared.logits[name][refresh][:, :K].astype(np.float64) for name in ("a.teacher", "b.teacher")]
    return np.asarray(np.mean(both, axis=0))


def test_labels_come_from_the_mean_of_the_teachers_and_are_never_controls(labeller):
    prepared = PreparedLogits()
    label_W = labeller(prepared)(1).numpy()
    expected_W = mean_of_teachers(prepared).argmax(axis=1)
    assert (label_W[UNLABELLED] == expected_W[UNLABELLED]).all()
    for network in prepared.logits.values():
        alone_W = network[0][:, :K].argmax(axis=1)
        assert (alone_W[UNLABELLED] != expected_W[UNLABELLED]).any(), "the mean differs from every network alone"


def test_the_first_refresh_is_all_new_and_later_ones_blend_with_the_last_blend(labeller):
    prepared = PreparedLogits(refreshes=3)
    refresh = labeller(prepared, pseudo_label_blend=0.6)
    new = [mean_of_teachers(prepared, k) for k in range(3)]
    blended = [new[0], 0.6 * new[1] + 0.4 * new[0]]
    blended.append(0.6 * new[2] + 0.4 * blended[1])
    for k in range(3):
        label_W = refresh(k).numpy()
        np.testing.assert_allclose(refresh.last.logits_WK, blended[k][refresh.wells], rtol=1e-5, atol=1e-5)
        assert (label_W[UNLABELLED] == blended[k].argmax(axis=1)[UNLABELLED]).all()
    assert (label_W[UNLABELLED] != new[2].argmax(axis=1)[UNLABELLED]).any(), "the new logits alone give other labels"


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_each_refresh_labels_its_configured_fraction(labeller, kind):
    refresh = labeller(PreparedLogits(refreshes=4), confident_fractions=(0.25, 0.5), pseudo_labels=kind)
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


def test_the_share_of_labelled_wells_grows_by_epoch_between_refreshes_too(labeller):
    prepared = PreparedLogits(refreshes=2)
    refresh = labeller(prepared, confident_fractions=(0.4, 1.0), confident_by="epoch", pseudo_label_blend=0.5)
    found = [refresh(1), refresh.grown(2), refresh.grown(3), refresh(4), refresh.grown(5)]
    counts = [int((label_W >= 0).sum()) for label_W in found]
    assert counts == [math.ceil(share * len(UNLABELLED) - 1e-9) for share in (0.4, 0.55, 0.7, 0.85, 1.0)]
    for before, after in ((0, 1), (1, 2), (3, 4)):
        kept_W = found[before] >= 0
        assert (found[after][kept_W] == found[before][kept_W]).all(), "of the same logits"
    expected_W = (mean_of_teachers(prepared, 0) + mean_of_teachers(prepared, 1)).argmax(axis=1)
    assert (found[4].numpy()[UNLABELLED] == expected_W[UNLABELLED]).all(), "blended at a refresh alone"


def test_soft_labels_are_probabilities_of_treatments_and_hard_ones_their_most_probable(labeller):
    hard_W = labeller(PreparedLogits(), confident_fractions=(0.5,))(1).numpy()
    prepared = PreparedLogits()
    soft_WK = labeller(prepared, confident_fractions=(0.5,), pseudo_labels="soft")(1).numpy()
    labelled_W = hard_W >= 0
    assert labelled_W.sum() == len(UNLABELLED) / 2
    expected_WK = softmax(mean_of_teachers(prepared), axis=1)
    np.testing.assert_allclose(soft_WK[labelled_W, :K], expected_WK[labelled_W], rtol=1e-4)
    assert (soft_WK[labelled_W].argmax(axis=1) == hard_W[labelled_W]).all()
    assert (soft_WK[:, K:] == 0).all(), "controls"
    assert (soft_WK[~labelled_W] == 0).all()


def test_wells_are_in_plate_order_and_an_epochs_views_depend_on_seed_and_epoch_alone(labeller):
    draws = []
    for seed, epochs in ((5, (1, 4)), (5, (4,)), (6, (4,))):
        prepared = PreparedLogits(refreshes=2)
        refresh = labeller(prepared, seed=seed)
        for epoch in epochs:
            refresh(epoch)
        draws.append(prepared.draws)
    assert (np.diff(TABLE.plate_W[refresh.wells]) >= 0).all()
    assert sorted(refresh.wells) == sorted(UNLABELLED)
    assert draws[0][2:] == draws[1]
    assert len({*draws[0], *draws[2]}) == 6, "another epoch, backbone or seed sees other views"
