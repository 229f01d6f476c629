"""When pseudo-labels are refreshed, and which weights are kept."""

import numpy as np
import pytest
import torch

from components.core.errors import InputError
from components.core.learning.fold_data import FoldData, Validation, fold_wells
from components.core.learning.images import Images
from components.core.learning.mean_teacher import Pair
from components.core.learning.mean_teacher_run import MeanTeacherTraining
from components.core.learning.step_settings import MeanTeacherSettings
from tests.components.core.learning.tiny_networks import RUN, SLIM, SMALL, changed, classifier, same, weights_of

K = 8


class Scores:
    """Scripted accuracies in the order of the calls: each pair's student first, then the teachers."""

    def __init__(self, *values: float) -> None:
        self.left = list(values)
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, logits_WK) -> float:
        self.shapes.append(logits_WK.shape)
        return self.left.pop(0)


def pairs(*backbones):
    return [Pair.start(b.name, classifier(K, 1 + n, b), keep_classifier=True) for n, b in enumerate(backbones)]


def run(images: Images, own, score, epochs, refresh, validation=None, **changes):
    wells = fold_wells(images.table, 0, "all", "HUVEC")
    settings = changed(RUN, mean_teacher=changes).section(MeanTeacherSettings)
    measured = Validation(wells.validation if validation is None else validation, score, 16, K)
    data = FoldData(images, wells, None, measured)
    training = MeanTeacherTraining(own, data, settings, epochs, "HUVEC", 0, refresh, True)
    training.run()
    return training


class Labels:
    """A refresh that records its epochs and the pairs' weights at each."""

    def __init__(self, images: Images, own) -> None:
        self.epochs: list[int] = []
        self.states: dict[int, list] = {}
        self._images, self._pairs = images, own

    def __call__(self, epoch: int):
        self.epochs.append(epoch)
        self.states[epoch] = [(weights_of(p.student), weights_of(p.teacher)) for p in self._pairs]
        return torch.full((self._images.table.wells,), epoch % 6, dtype=torch.long)

    def grown(self, epoch: int):
        return torch.full((self._images.table.wells,), epoch + 2, dtype=torch.long)


def test_refreshes_follow_the_teachers_best_and_networks_end_at_theirs(images: Images):
    own = pairs(SMALL)
    labels = Labels(images, own)
    #              start     epoch 1   epoch 2   epoch 3
    score = Scores(0.1, 0.1, 0.2, 0.5, 0.9, 0.3, 0.3, 0.2)
    done = run(images, own, score, range(1, 4), labels)
    assert labels.epochs == done.refreshes == [1, 2], "at the start, and before the epoch after a best of the teachers"
    assert score.left == []
    assert set(score.shapes) == {(6, K)}
    assert (done.pseudo_W == 2).all()
    assert [record["accuracy"] for record in done.history] == [0.2, 0.9, 0.3]
    assert [record["teachers_accuracy"] for record in done.history] == [0.5, 0.3, 0.2]
    assert [record["epoch"] for record in done.history] == [2, 3, 4]
    assert same(weights_of(own[0].teacher), labels.states[2][0][1]), "the teacher of its best epoch"
    assert not same(weights_of(own[0].student), labels.states[2][0][0]), "the student was best an epoch later"


@pytest.mark.parametrize(("by", "last"), [("refresh", 1), ("epoch", 5)])
def test_labels_grow_before_epochs_without_a_refresh_if_configured(images: Images, by, last):
    own = pairs(SMALL)
    done = run(images, own, Scores(0.9, 0.9, *[0.1] * 6), range(1, 4), Labels(images, own), confident_by=by)
    assert done.refreshes == [1]
    assert (done.pseudo_W == last).all()


def test_the_start_counts_as_a_validated_epoch(images: Images):
    own = pairs(SMALL)
    before = weights_of(own[0].student), weights_of(own[0].teacher)
    run(images, own, Scores(0.9, 0.9, 0.1, 0.1, 0.2, 0.2), range(1, 3), Labels(images, own))
    assert same(weights_of(own[0].student), before[0])
    assert same(weights_of(own[0].teacher), before[1])


@pytest.mark.parametrize("selection", ["last", "group"])
def test_without_selection_or_validation_wells_labels_refresh_at_fixed_epochs(images: Images, selection):
    own = pairs(SMALL)
    labels = Labels(images, own)
    none = np.empty(0, dtype=np.intp) if selection == "group" else None
    scores = Scores(*[0.9] * 2, *[0.1] * 8)
    done = run(images, own, scores, range(1, 6), labels, validation=none, refresh_epochs=2, selection=selection)
    assert labels.epochs == done.refreshes == [1, 3, 5]
    assert {record["accuracy"] for record in done.history} == ({None} if selection == "group" else {0.9, 0.1})
    assert not same(weights_of(own[0].student), labels.states[5][0][0])


def test_a_pair_that_diverges_ends_the_training_in_its_epoch(images: Images):
    with pytest.raises(
        InputError, match=r"^epoch 1 of 3: the loss of step \d of \d+ .*lower mean_teacher.learning_rate"
    ):
        run(images, pairs(SMALL), Scores(0.1, 0.1), range(3), None, learning_rate=1e30)
    own = pairs(SMALL)
    # Statistics that no loss in training depends on.
    next(b for name, b in own[0].teacher.named_buffers() if name.endswith("running_var")).fill_(torch.inf)
    with pytest.raises(InputError, match=r"^epoch 1 of 3: a weight of teacher small is not finite"):
        run(images, own, Scores(0.1, 0.1), range(3), None)


def test_backbones_share_scores_and_labels_and_nothing_else(images: Images):
    both, alone = pairs(SMALL, SLIM), pairs(SMALL)
    scores = Scores(*[0.0] * 100)
    done = run(images, both, scores, range(2), Labels(images, both))
    run(images, alone, Scores(*[0.0] * 100), range(2), Labels(images, alone))
    assert [(r["backbone"], r["epoch"]) for r in done.history] == [("small", 1), ("slim", 1), ("small", 2), ("slim", 2)]
    assert len(scores.shapes) == 3 * 3, "two students and one mean of teachers, three times"
    assert same(weights_of(both[0].student), weights_of(alone[0].student))
