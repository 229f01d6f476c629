"""An epoch of a pair: its batches and its loss."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax

from components.core.learning import mean_teacher
from components.core.learning.fold_data import FoldWells, fold_wells
from components.core.learning.images import Images
from components.core.learning.mean_teacher import (
    Pair,
    pseudo_label_loss,
)
from components.core.learning.schedules import CycleSchedule
from tests.components.core.learning.tiny_networks import (
    MEAN_TEACHER,
    classifier,
    train_epoch,
)

CONFIG = MEAN_TEACHER.mean_teacher
SCHEDULE = CycleSchedule.of(CONFIG, "HUVEC")
K = 8  # six treatments, a positive and a negative control


@pytest.fixture
def wells(images: Images) -> FoldWells:
    return fold_wells(images.table, 0, "all", "HUVEC")


def pair_of(seed: int = 0) -> Pair:
    return Pair.start("small", classifier(K, seed), keep_classifier=True)


def epoch(pair, images, wells, config=CONFIG, epoch=0, pseudo_W=None, seed=5):
    return train_epoch(pair, images, wells, config, CycleSchedule.of(config, "HUVEC"), epoch, pseudo_W, seed)


def labels(images, wells, value: int = 0) -> torch.Tensor:
    pseudo_W = torch.full((images.table.wells,), -1, dtype=torch.long)
    pseudo_W[torch.from_numpy(wells.hidden)] = value
    return pseudo_W


class Recorder:
    """A cache that notes the site batches it is asked for, and the images that read through it."""

    waited = 0.0

    def __init__(self, images: Images) -> None:
        self.batches_of_sites: list[np.ndarray] = []
        self._inner = images.loader
        self.images = replace(images, loader=self)

    def batches(self, orders):
        self.batches_of_sites += list(orders)
        return self._inner.batches(orders)


@pytest.mark.parametrize(("labelled", "unlabelled"), [(5, 3), (3, 30)])
def test_an_epoch_has_every_labelled_well_once_and_unlabelled_wells_in_rounds(images, wells, labelled, unlabelled):
    config = CONFIG.model_copy(update={"labelled_batch": labelled, "unlabelled_batch": unlabelled})
    recorder = Recorder(images)
    pair = pair_of()
    epoch(pair, recorder.images, wells, config)
    steps = max(1, round(len(wells.training) / labelled))
    assert pair.step == steps == len(recorder.batches_of_sites)
    seen = [images.table.well_S[sites] for sites in recorder.batches_of_sites]
    is_labelled_W = np.isin(np.arange(images.table.wells), wells.training)
    assert sorted(np.concatenate([w[is_labelled_W[w]] for w in seen])) == sorted(wells.training)
    for w in seen:  # labelled first
        count = int(is_labelled_W[w].sum())
        assert is_labelled_W[w[:count]].all()
        assert len(w) - count == unlabelled
    others = np.bincount(np.concatenate([w[~is_labelled_W[w]] for w in seen]), minlength=images.table.wells)
    rounds = others[wells.hidden]
    assert rounds.max() - rounds.min() <= 1
    assert rounds.sum() == steps * unlabelled == others.sum()


def test_the_pseudo_label_term_uses_the_given_classes_with_its_weight(images, wells, monkeypatch):
    """One step without augmentation: the loss by hand, from the three passes of an untouched copy."""
    config = CONFIG.model_copy(
        update={"labelled_batch": 100, "unlabelled_batch": 6, "ramp_epochs": 5.0, "consistency_weight": 40.0}
    )
    recorder = Recorder(images)
    pair = pair_of()
    student, teacher = deepcopy(pair.student).train(), deepcopy(pair.teacher).train()
    pseudo_W = labels(images, wells)
    pseudo_W[torch.from_numpy(wells.hidden)] = torch.arange(len(wells.hidden)) % 6
    # Symmetries are always on, so the views themselves are taken away.
    for name in ("normal_view", "easy_view", "hard_view"):
        monkeypatch.setattr(mean_teacher, name, lambda x, *_: x)
    measured = epoch(pair, recorder.images, wells, config, epoch=2, pseudo_W=pseudo_W)
    (sites,) = recorder.batches_of_sites
    ((_, x),) = images.batches([sites])
    well_B = images.table.well_S[sites]
    count = len(wells.training)
    with torch.no_grad():
        target_L = torch.from_numpy(images.table.class_W[well_B[:count]]).long()
        supervised = torch.nn.functional.cross_entropy(student(x[:count], target_L), target_L)
        easy_BK, teacher_BK = student(x), teacher(x)
    log_prob_BK = easy_BK.double().log_softmax(1).numpy()
    pseudo = -np.mean([log_prob_BK[b, pseudo_W[well_B[b]]] for b in range(count, len(x))])
    difference = softmax(easy_BK.double().numpy(), axis=1) - softmax(teacher_BK.double().numpy(), axis=1)
    strength = 40.0 * np.exp(-5 * (1 - 2 / 5) ** 2)
    expected = 0.7 * float(supervised) + 0.3 * pseudo + strength * (difference**2).mean()
    assert measured["loss"] == pytest.approx(expected, rel=1e-4)
    # The step itself: the first decay is min(1 - 1/2, 0.9) at the third epoch.
    for name, moved in pair.teacher.named_parameters():
        halfway = (teacher.state_dict()[name] + pair.student.state_dict()[name]) / 2
        torch.testing.assert_close(moved, halfway, atol=1e-6, rtol=1e-5)


def test_the_pseudo_label_loss_is_a_mean_over_all_wells_labelled_or_not():
    logits_BK = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    log_prob_BK = logits_BK.log_softmax(1)
    label_B = torch.tensor([0, -1, 2, 1, -1])
    expected = -(log_prob_BK[0, 0] + log_prob_BK[2, 2] + log_prob_BK[3, 1]) / 5
    torch.testing.assert_close(pseudo_label_loss(logits_BK, label_B), expected)
    soft_BK = torch.zeros(5, 3)
    soft_BK[[0, 2, 3], [0, 2, 1]] = 1.0
    torch.testing.assert_close(pseudo_label_loss(logits_BK, soft_BK), expected)
    soft_BK[4] = torch.tensor([0.5, 0.5, 0.0])
    torch.testing.assert_close(pseudo_label_loss(logits_BK, soft_BK), expected - (log_prob_BK[4, :2].sum() / 2) / 5)
    assert float(pseudo_label_loss(logits_BK, torch.full((5,), -1))) == 0.0
