"""An epoch of the mean teacher: batches, views, jitter, domains, losses, learning rates, decays."""

import math
from copy import deepcopy
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from components.core.config import AugmentConfig
from components.core.learning import mean_teacher
from components.core.learning.batch_norm import domain_of_wells
from components.core.learning.fold_data import FoldWells, fold_wells
from components.core.learning.images import Images
from components.core.learning.mean_teacher import Pair, PairEpoch, pseudo_label_loss
from components.core.learning.schedules import CycleSchedule
from components.core.learning.team import Replica, Slots
from tests.components.core.learning.recorded_passes import leave_views_out, mark_views, numbered, recorded
from tests.components.core.learning.tiny_networks import MEAN_TEACHER, SLIM, answering, classifier, weights_of

CONFIG = MEAN_TEACHER.mean_teacher.model_copy(update={"labelled_batch": 6, "unlabelled_batch": 5})
K = 8  # six treatments, a positive and a negative control
STEPS = 3  # of an epoch: 18 labelled wells


@pytest.fixture
def wells(images: Images) -> FoldWells:
    return fold_wells(images.table, 0, "all", "HUVEC")


def pair_of(step: int = 0, **head: Any) -> Pair:
    """Teacher and student far apart."""
    pair = Pair("slim", classifier(K, 1, SLIM, **head), classifier(K, 2, SLIM, **head), step)
    pair.teacher.requires_grad_(False)
    return pair


def epoch(pair, images, wells, config=CONFIG, epoch=0, pseudo_W=None):
    """An epoch in a single process; returns its measures."""
    slots = Slots(images.team, fills=config.mix == "natural")
    schedule = CycleSchedule.of(config, "HUVEC")
    replica = Replica(pair.student, slots)
    return PairEpoch(pair, replica, images, wells, config, schedule, epoch, pseudo_W, 5, slots).run()


def passes_of(images, wells):
    """Of one epoch: the student's supervised passes, its second ones, the teacher's."""
    pair = pair_of()
    student, teacher = recorded(pair.student), recorded(pair.teacher)
    epoch(pair, images, wells)
    assert all(one.training for one in [*student, *teacher]), "BatchNorm normalises each pass by its own input"
    return [one for one in student if one.target_B], [one for one in student if one.target_B is None], teacher


def test_each_pass_has_its_own_view_of_its_own_wells(images, wells, monkeypatch):
    plain = numbered(images)
    mark_views(monkeypatch, mean_teacher, plain)
    supervised, second, teacher = passes_of(plain, wells)
    assert len(supervised) == len(second) == len(teacher) == STEPS
    for labelled, every, taught in zip(supervised, second, teacher, strict=True):
        assert (labelled.views, every.views, taught.views) == ({"normal_view"}, {"easy_view"}, {"hard_view"})
        assert set(labelled.wells) <= set(wells.training)
        assert labelled.target_B == images.table.class_W[labelled.wells].tolist()
        assert every.wells == taught.wells, "the consistency compares the same wells"
        count = len(labelled.wells)
        assert every.wells[:count] == labelled.wells
        assert set(every.wells[count:]) <= set(wells.hidden)
        assert len(every.wells) == count + CONFIG.unlabelled_batch
    assert sorted(well for one in supervised for well in one.wells) == sorted(wells.training)


def test_each_pass_is_jittered_by_itself(images, wells, monkeypatch):
    leave_views_out(monkeypatch, mean_teacher)
    # The order of wells does not depend on the jitter, so the same epoch without it shows the images before jitter.
    plain = passes_of(numbered(images), wells)
    jittered = passes_of(numbered(images, jitter=0.1), wells)
    for clean, noisy in zip(plain, jittered, strict=True):
        for before, after in zip(clean, noisy, strict=True):
            factor_BC = after.x_BC / before.x_BC
            assert (np.abs(1.0 / factor_BC - 1.0) <= 0.1 + 1e-6).all()
            assert (factor_BC != 1.0).all()
            assert len(np.unique(factor_BC.round(6))) > 0.9 * factor_BC.size, "drawn for each image and channel"
    for labelled, every, taught in zip(*jittered, strict=True):
        count = len(labelled.x_BC)
        assert (labelled.x_BC != every.x_BC[:count]).all()
        assert (labelled.x_BC != taught.x_BC[:count]).all()
        assert (every.x_BC != taught.x_BC).all()


def test_cutmix_mixes_labelled_images_in_the_supervised_pass_alone(images, wells, monkeypatch):
    leave_views_out(monkeypatch, mean_teacher)
    logits_K = torch.linspace(-1, 2, K)
    student, teacher = (answering(classifier(K, seed, SLIM, kind="softmax"), logits_K) for seed in (1, 2))
    numbers, pair = numbered(replace(images, augment=AugmentConfig(cutmix=1.0))), Pair("slim", student, teacher)
    mixed, losses = {True: [], False: []}, []

    def check(_network, args):
        well_BN, target = args[0][:, 0].flatten(1).numpy().round().astype(int) - 1, args[1]
        found = [np.unique(image) for image in well_BN]
        mixed[target is not None] += [len(each) for each in found]
        if target is not None:
            losses.append(float(-logits_K.log_softmax(0)[images.table.class_W[well_BN]].mean()))
            for each, classes in zip(found, target.view(2, -1).T.tolist(), strict=True):
                assert set(each) <= set(wells.training)
                assert set(images.table.class_W[each]) <= set(classes)

    pair.student.register_forward_pre_hook(check)
    pair.teacher.register_forward_pre_hook(lambda _, args: check(_, (args[0], None)))
    config = CONFIG.model_copy(update={"learning_rate": 1e-30, "learning_rate_low": 1e-30})
    assert epoch(pair, numbers, wells, config)["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert set(mixed[True]) == {1, 2}
    assert set(mixed[False]) == {1}


def test_passes_share_an_images_jitter_if_configured(images, wells, monkeypatch):
    leave_views_out(monkeypatch, mean_teacher)
    plain = passes_of(numbered(images), wells)
    supervised, second, teacher = passes_of(numbered(images, jitter=0.1, per_image=True), wells)
    for labelled, every, taught, clean in zip(supervised, second, teacher, plain[1], strict=True):
        assert np.array_equal(every.x_BC, taught.x_BC)
        assert np.array_equal(every.x_BC[: len(labelled.x_BC)], labelled.x_BC)
        factor_BC = every.x_BC / clean.x_BC
        assert (np.abs(1.0 / factor_BC - 1.0) <= 0.1 + 1e-6).all()
        assert len(np.unique(factor_BC.round(6))) > 0.9 * factor_BC.size, "drawn for each image and channel"


@pytest.mark.parametrize("domain", ["plate", "experiment"])
def test_every_pass_holds_one_domain_if_batches_do(images, wells, domain, monkeypatch):
    leave_views_out(monkeypatch, mean_teacher)
    by_domain = numbered(images, domain)
    of_W = domain_of_wells(images.table, domain)
    supervised, second, teacher = passes_of(by_domain, wells)
    for one in [*supervised, *second, *teacher]:
        assert len(set(of_W[one.wells])) == 1
    # The parts of a batch are of different domains, and together they are all of its wells.
    seen = [well for one in second for well in one.wells]
    assert seen == [well for one in teacher for well in one.wells]
    assert sorted(well for well in seen if well in wells.training) == sorted(wells.training)
    assert {well for well in seen if well not in wells.training} <= set(wells.hidden)
    assert len(second) == len(teacher) == 2 * len(supervised)


def test_several_domains_of_a_step_are_normalised_separately(images, wells, monkeypatch):
    """In all passes of student and teacher; the parts of a batch may have different numbers of domains."""
    leave_views_out(monkeypatch, mean_teacher)
    plate_W = images.table.plate_W
    # Plates of two controls would be left out.
    wells = replace(wells, training=np.flatnonzero(plate_W < 4))
    supervised, second, teacher = passes_of(numbered(images, "plate", domains_per_step=3), wells)
    both = [len(set(plate_W[own])) for own in (wells.training, wells.hidden)]
    expected = [min(3, plates) for plates in both]
    assert [one.domains for one in supervised] == expected[:1] * len(supervised)
    assert [one.domains for one in second] == [one.domains for one in teacher] == expected * len(supervised)
    for one in [*supervised, *second, *teacher]:
        plates = plate_W[one.wells].reshape(one.domains, -1)
        assert (plates == plates[:, :1]).all()
    assert {well for one in supervised for well in one.wells} == set(wells.training)


def test_learning_rate_and_weight_decay_reach_the_optimiser(images, wells, monkeypatch):
    """Two cosine cycles of two epochs and a final epoch, three steps each."""
    taken = []
    step = torch.optim.SGD.step

    def noted(self, *args, **kwargs):
        taken.extend(dict(group, params=len(group["params"])) for group in self.param_groups)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    cycles = {"cycle_epochs": 2, "cycles": 2, "final_epochs": 1, "weight_decay": 0.0125}
    rates = {"learning_rate": 0.08, "learning_rate_low": 0.002, "final_learning_rate": 3e-4}
    config = CONFIG.model_copy(update={**cycles, **rates})
    pair = pair_of()
    for number in range(5):
        epoch(pair, images, wells, config, number)
    cycle = [0.002 + 0.078 * (1 + math.cos(math.pi * k / (2 * STEPS))) / 2 for k in range(2 * STEPS)]
    assert [float(group["lr"]) for group in taken] == pytest.approx(cycle + cycle + [3e-4] * STEPS)
    assert {group["weight_decay"] for group in taken} == {0.0125}
    assert {group["momentum"] for group in taken} == {0}
    assert {group["params"] for group in taken} == {len(list(pair.student.parameters()))}


@pytest.mark.parametrize(
    ("step", "number", "decay", "first"),
    [
        *((10_000, epoch, decay, 1) for epoch, decay in ((0, 0.5), (1, 0.9), (9, 0.9), (10, 0.99), (20, 0.999))),
        (48, 20, 49 / 50, 1),
        (48, 20, 48 / 49, 0),
        (0, 0, 0.5, 1),
        (0, 0, 0.0, 0),
        (1, 0, 0.5, 0),
    ],
)
def test_the_teachers_decay_grows_with_steps_and_epochs(images, wells, step, number, decay, first):
    """After one step the teacher is decay x what it was + (1 - decay) x what the student has become."""
    ema = {"ema_decays": (0.5, 0.9, 0.99, 0.999), "ema_epochs": (1, 10, 20), "ema_first_step": first}
    config = CONFIG.model_copy(update={"labelled_batch": 100, "learning_rate": 0.5, "cycle_epochs": 100, **ema})
    pair = pair_of(step)
    old, before = deepcopy(pair.teacher), weights_of(pair.student)
    epoch(pair, images, wells, config, number)
    assert pair.step == step + 1
    moved, student = dict(pair.teacher.named_parameters()), dict(pair.student.named_parameters())
    for name, was in old.named_parameters():
        assert not torch.equal(student[name], before[name])
        expected = decay * was.double() + (1.0 - decay) * student[name].detach().double()
        torch.testing.assert_close(moved[name].double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("labelled", "unlabelled"), [(5, 3), (3, 30)])
def test_an_epoch_has_every_labelled_well_once_and_unlabelled_wells_in_rounds(
    images, wells, labelled, unlabelled, monkeypatch
):
    leave_views_out(monkeypatch, mean_teacher)
    config = CONFIG.model_copy(update={"labelled_batch": labelled, "unlabelled_batch": unlabelled})
    pair = pair_of()
    passes = recorded(pair.teacher)
    epoch(pair, numbered(images), wells, config)
    steps = max(1, round(len(wells.training) / labelled))
    assert pair.step == steps == len(passes)
    for one in passes:  # labelled first
        assert set(one.wells[:-unlabelled]) <= set(wells.training)
        assert set(one.wells[-unlabelled:]) <= set(wells.hidden)
    times_W = np.bincount([well for one in passes for well in one.wells], minlength=images.table.wells)
    assert (times_W[wells.training] == 1).all()
    rounds = times_W[wells.hidden]
    assert rounds.max() - rounds.min() <= 1
    assert rounds.sum() == steps * unlabelled


def natural(images, wells, head=MappingProxyType({}), **changes):
    """Student's and teacher's passes of an epoch with shuffled wells, and what was measured."""
    config = CONFIG.model_copy(update={"mix": "natural", **changes})
    pair = pair_of(**head)
    student, teacher = recorded(pair.student), recorded(pair.teacher)
    measured = epoch(pair, images, wells, config)
    return student, teacher, measured


def test_a_natural_epoch_shuffles_all_wells_together(images, wells, monkeypatch):
    leave_views_out(monkeypatch, mean_teacher)
    student, teacher, _ = natural(numbered(images), wells, labelled_batch=4, unlabelled_batch=3)
    every = sorted([*wells.training, *wells.hidden])
    assert sorted(well for one in teacher for well in one.wells) == every
    assert {len(one.wells) for one in teacher} <= {6, 7, 8}
    supervised = [one for one in student if one.target_B is not None]
    assert sorted({well for one in supervised for well in one.wells}) == sorted(wells.training)
    for one in supervised:
        assert one.target_B == images.table.class_W[one.wells].tolist()
    counts = [sum(well in wells.training for well in one.wells) for one in teacher]
    for one, count in zip(teacher, counts, strict=True):
        assert set(one.wells[:count]) <= set(wells.training), "labelled first"
    assert len(set(counts)) > 1


def test_a_natural_batch_may_have_no_labelled_well(images, wells, monkeypatch):
    """Then its loss has no supervised term; a lone labelled image is repeated for BatchNorm."""
    leave_views_out(monkeypatch, mean_teacher)
    rare = replace(wells, training=wells.training[:1])
    student, teacher, measured = natural(numbered(images), rare, labelled_batch=1, unlabelled_batch=2)
    assert len(teacher) > 2
    (only,) = [one for one in student if one.target_B is not None]
    assert only.wells == [wells.training[0]] * 2
    assert math.isfinite(measured["loss"])
    student, teacher, measured = natural(
        numbered(images), rare, {"batch_norm": True}, labelled_batch=1, unlabelled_batch=2
    )
    assert [one.target_B for one in student] == [None] * len(teacher), "a neck would make two copies opposites"
    assert wells.training[0] in {well for one in teacher for well in one.wells}
    assert math.isfinite(measured["loss"])
    two = replace(wells, training=wells.training[:2], unlabelled=wells.unlabelled[:0], validation=wells.validation[:0])
    student, _, _ = natural(numbered(images), two, {"batch_norm": True}, labelled_batch=2, unlabelled_batch=1)
    assert sum(one.target_B is not None for one in student) == 1
    none = replace(wells, training=wells.training[:0])
    student, teacher, measured = natural(numbered(images), none, consistency_weight=0.0)
    assert [one.target_B for one in student] == [None] * len(teacher)
    assert measured["loss"] == 0.0


def test_natural_batches_hold_portions_of_domains_labelled_ones_first(images, monkeypatch):
    leave_views_out(monkeypatch, mean_teacher)
    plate_W = images.table.plate_W
    own, others = np.flatnonzero(plate_W < 4), np.flatnonzero((plate_W >= 4) & (plate_W < 7))
    wells = FoldWells(training=own, validation=others, unlabelled=np.empty(0, np.intp))
    by_plate = numbered(images, "plate", domains_per_step=2)
    student, teacher, _ = natural(by_plate, wells, labelled_batch=6, unlabelled_batch=6)
    taught = [one for one in student if one.target_B is None]
    assert [one.wells for one in taught] == [one.wells for one in teacher]
    for one in student:
        plates = plate_W[one.wells].reshape(one.domains, -1)
        assert (plates == plates[:, :1]).all(), "each portion of a plate"
        assert len({well in wells.training for well in one.wells}) == 1, "labelled and others apart"
    assert {well for one in teacher for well in one.wells} == {*wells.training, *wells.hidden}
    supervised = [one.wells for one in student if one.target_B is not None]
    assert supervised == [one.wells for one in teacher if one.wells[0] in wells.training]


def test_the_pseudo_label_term_uses_the_given_classes_with_its_weight(images, wells, monkeypatch):
    """One step without augmentation: the loss computed from the three passes of an untouched copy."""
    config = CONFIG.model_copy(
        update={"labelled_batch": 100, "unlabelled_batch": 6, "ramp_epochs": 5.0, "consistency_weight": 40.0}
    )
    read: list[np.ndarray] = []

    def batches(orders):
        read.extend(orders := list(orders))
        return images.loader.batches(orders)

    recording = replace(images, loader=SimpleNamespace(batches=batches, waited=0.0))
    pair = pair_of()
    student, teacher = deepcopy(pair.student).train(), deepcopy(pair.teacher).train()
    pseudo_W = torch.full((images.table.wells,), -1, dtype=torch.long)
    pseudo_W[torch.from_numpy(wells.hidden)] = torch.arange(len(wells.hidden)) % 6
    leave_views_out(monkeypatch, mean_teacher)
    measured = epoch(pair, recording, wells, config, epoch=2, pseudo_W=pseudo_W)
    (sites,) = read
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
