"""Supervised training: what it learns and keeps, and the images and labels that reach the network."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from components.core.config import AugmentConfig, ComputeConfig, PretrainConfig
from components.core.errors import InputError
from components.core.learning import supervised
from components.core.learning.batch_norm import domain_of_wells
from components.core.learning.checkpoints import Checkpoints
from components.core.learning.images import Images
from components.core.learning.inference import well_logits
from components.core.learning.schedules import one_cycle_rate
from components.core.learning.supervised import SupervisedTraining
from components.core.storage.object_store import ObjectStore
from tests.components.core.learning.recorded_passes import leave_views_out, mark_views, numbered, recorded
from tests.components.core.learning.tiny_networks import (
    EMPTY,
    SLIM,
    answering,
    classifier,
    data_of,
    pixels_of,
    reading,
    same,
    weights_of,
)

CONFIG = PretrainConfig(epochs=3, batch_size=8, learning_rates=(3e-3,), milestones=())
K = 3


@pytest.fixture
def toy(images: Images) -> Images:
    """Three classes, each of which brightens a channel of its own."""
    class_W = (np.arange(images.table.wells) % K).astype(np.int32)

    def brightened(sites):
        pixels_BCHW = pixels_of(images, sites) // 2
        pixels_BCHW[np.arange(len(sites)), class_W[images.table.well_S[sites]]] += 110
        return pixels_BCHW

    return reading(replace(images, table=replace(images.table, class_W=class_W)), brightened)


def train(images, config=CONFIG, wells=None, validation=EMPTY, score=lambda _: 0.0, report=lambda *_: None):
    network = classifier(K)
    data = data_of(images, np.arange(images.table.wells) if wells is None else wells, validation, score, K)
    training = SupervisedTraining(network, data, config, 1, ComputeConfig())
    training.run(lambda _: report(network))
    return network, training.history


def test_the_loss_falls_and_unseen_wells_are_classified(toy):
    config = CONFIG.model_copy(update={"epochs": 12})
    seen, unseen = np.arange(30), np.arange(30, 40)
    network, history = train(toy, config, seen)
    losses = [record["loss"] for record in history]
    assert losses[-1] < 0.3 * losses[0]
    assert (well_logits(network, toy, unseen, 1, 16, K).argmax(1) == toy.table.class_W[unseen]).mean() >= 0.9


@pytest.mark.parametrize("wells", [1, 3])
def test_batch_norm_of_embeddings_trains_on_a_batch_of_one_image(toy, wells):
    network = classifier(K, batch_norm=True)
    config = CONFIG.model_copy(update={"epochs": 1, "batch_size": 2})
    SupervisedTraining(network, data_of(toy, np.arange(wells), classes=K), config, 1, ComputeConfig()).run()
    assert all(tensor.isfinite().all() for tensor in network.parameters())


def test_the_network_ends_at_its_best_validated_epoch(toy):
    """Scores are scripted; the kept weights are those of the epoch that got the best, the first of two equal ones."""
    states, script = [], iter([0.2, 0.7, 0.7, 0.1])
    wells = np.array([1, 2, 3])

    def score(logits_WK):
        assert logits_WK.shape == (3, K)
        return next(script)

    config = CONFIG.model_copy(update={"epochs": 4})
    network, history = train(
        toy, config, np.arange(20), wells, score, report=lambda network: states.append(weights_of(network))
    )
    assert [record["accuracy"] for record in history] == [0.2, 0.7, 0.7, 0.1]
    assert [same(weights_of(network), state) for state in states] == [False, True, False, False]


def test_the_schedule_and_warm_up_reach_the_optimiser(toy, monkeypatch):
    rates = []
    step = torch.optim.Adam.step

    def noted(self, *args, **kwargs):
        rates.append((self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    config = PretrainConfig(
        epochs=3, batch_size=20, learning_rates=(1e-2, 1e-3), milestones=(2,), warmup_steps=4, weight_decay=0.01
    )
    train(toy, config)  # two steps an epoch
    assert [rate for rate, _ in rates] == pytest.approx([0.25e-2, 0.5e-2, 0.75e-2, 1e-2, 1e-3, 1e-3])
    assert {decay for _, decay in rates} == {0.01}


def test_one_cycle_of_adamw_reaches_the_optimiser(toy, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def noted(self, *args, **kwargs):
        seen.append((self.param_groups[0]["lr"], self.param_groups[0]["decoupled_weight_decay"]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    config = PretrainConfig(
        epochs=5, batch_size=20, optimiser="adamw", schedule="one_cycle", learning_rates=(1e-2,), milestones=()
    )
    train(toy, config)  # two steps an epoch
    assert [rate for rate, _ in seen] == pytest.approx([one_cycle_rate(k / 10, 1e-2) for k in range(10)])
    assert {decoupled for _, decoupled in seen} == {True}


def test_labels_are_smoothed(toy):
    """A network that answers the same for every image has a loss that depends on the smoothing alone."""
    network = answering(classifier(K, kind="softmax"), torch.tensor([0.5, 0.3, 0.2]).log())
    config = CONFIG.model_copy(
        update={"epochs": 1, "batch_size": 40, "learning_rates": (1e-30,), "label_smoothing": 0.3}
    )
    training = SupervisedTraining(network, data_of(toy, np.array([0, 3, 6]), classes=K), config, 1, ComputeConfig())
    training.run()
    expected = 0.7 * -np.log(0.5) + 0.3 * -np.log([0.5, 0.3, 0.2]).mean()
    assert training.history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def diverging(monkeypatch, at: int, what: str):
    """Makes the loss of a step, or what it leaves in the weights, not finite."""
    step, steps = torch.optim.Adam.step, []

    def broken(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == at and what == "loss":
            self.param_groups[0]["lr"] = 1e30
        step(self, *args, **kwargs)
        if len(steps) == at and what == "weights":
            self.param_groups[0]["params"][0].data[:1] = torch.inf

    monkeypatch.setattr(torch.optim.Adam, "step", broken)
    return steps


@pytest.mark.parametrize(("what", "at", "message"), [
    ("loss", 1, r"epoch 1 of 3: the loss of step 2 of 5 is not finite; lower pretrain\.learning_rates$"),
    ("loss", 7, r"epoch 2 of 3: the loss of step 3 of 5 is not finite; lower pretrain\.learning_rates$"),
    ("weights", 10, r"epoch 2 of 3: a weight of the network is not finite"),
])  # fmt: skip
def test_a_loss_or_weight_that_is_not_finite_ends_its_epoch(toy, monkeypatch, what, at, message):
    steps, epochs = diverging(monkeypatch, at, what), []
    with pytest.raises(InputError, match=message):
        train(toy, report=epochs.append, validation=np.arange(2))
    assert len(epochs) == (at - 1) // 5
    assert len(steps) == 5 * (len(epochs) + 1)


def test_weights_that_are_not_finite_are_not_saved(toy, monkeypatch, tmp_path):
    """A checkpoint is due after every step; the last one is from before the step."""
    diverging(monkeypatch, 7, "weights")
    store = ObjectStore(tmp_path)
    checkpoints = Checkpoints(store, "newest.pt", 0.0)
    data = data_of(toy, np.arange(toy.table.wells), classes=K)
    training = SupervisedTraining(classifier(K), data, CONFIG, 1, ComputeConfig())
    with pytest.raises(InputError, match="epoch 2 of 3"):
        training.run(checkpoints=checkpoints)
    checkpoints.close()
    saved = Checkpoints(store, "newest.pt").resume()
    assert (saved["step"], saved["epoch"]) == (6, 1)
    assert all(tensor.isfinite().all() for tensor in saved["network"].values())


PASSES_CONFIG = PretrainConfig(epochs=2, batch_size=4, learning_rates=(1e-3,), milestones=())


@pytest.fixture
def labelled(images: Images) -> Images:
    """Every well has a class."""
    class_W = (np.arange(images.table.wells) * 3 % 8).astype(np.int32)
    return replace(images, table=replace(images.table, class_W=class_W))


def passes_of(images, wells, config=PASSES_CONFIG):
    """Epoch by epoch."""
    network = classifier(8, backbone=SLIM)
    passes, epochs = recorded(network), []

    def report(_record):
        epochs.append(passes[:])
        passes.clear()

    SupervisedTraining(network, data_of(images, wells, classes=8), config, 1, ComputeConfig()).run(report)
    assert len(epochs) == 2
    assert all(one.training for of_epoch in epochs for one in of_epoch)
    return epochs


def test_the_normal_view_of_every_well_comes_with_its_class(labelled, monkeypatch):
    plain = numbered(labelled)
    mark_views(monkeypatch, supervised, plain)
    wells = np.arange(0, labelled.table.wells, 2)
    for of_epoch in passes_of(plain, wells):
        assert sorted(well for one in of_epoch for well in one.wells) == wells.tolist()
        for one in of_epoch:
            assert one.views == {"normal_view"}
            assert one.target_B == labelled.table.class_W[one.wells].tolist()


@pytest.mark.parametrize("domain", ["plate", "cell_type"])
def test_every_batch_holds_one_domain_if_configured(labelled, domain, monkeypatch):
    leave_views_out(monkeypatch, supervised)
    of_W = domain_of_wells(labelled.table, domain)
    for of_epoch in passes_of(numbered(labelled, domain), np.arange(labelled.table.wells)):
        assert sorted(well for one in of_epoch for well in one.wells) == list(range(labelled.table.wells))
        for one in of_epoch:
            assert len(set(of_W[one.wells])) == 1


def test_several_domains_of_a_step_are_normalised_separately(labelled, monkeypatch):
    leave_views_out(monkeypatch, supervised)
    plate_W = labelled.table.plate_W
    for of_epoch in passes_of(numbered(labelled, "plate", domains_per_step=3), np.arange(labelled.table.wells)):
        assert {well for one in of_epoch for well in one.wells} == set(range(labelled.table.wells))
        for one in of_epoch:
            plates = plate_W[one.wells].reshape(one.domains, -1)
            assert one.domains == 3
            assert (plates == plates[:, :1]).all()
            assert len(set(plates[:, 0])) == 3


def test_cutmix_mixes_labelled_images_of_a_domain_and_their_classes(labelled, monkeypatch):
    """In every step; the network gets the classes of both images, which count by their pixels."""
    leave_views_out(monkeypatch, supervised)
    plates = numbered(replace(labelled, augment=AugmentConfig(cutmix=1.0)), "plate", domains_per_step=3)
    wells, plate_W, class_W = np.arange(0, labelled.table.wells, 2), plates.table.plate_W, plates.table.class_W
    logits_K = torch.linspace(-1, 2, 8)
    network = answering(classifier(8, backbone=SLIM, kind="softmax"), logits_K)
    mixed, losses = [], []

    def check(_network, args):
        well_BN = args[0][:, 0].flatten(1).numpy().round().astype(int) - 1
        losses.append(float(-logits_K.log_softmax(0)[class_W[well_BN]].mean()))
        for image, classes in zip(well_BN, args[1].view(2, -1).T.tolist(), strict=True):
            found = np.unique(image)
            assert set(found) <= set(wells)
            assert set(class_W[found]) <= set(classes)
            assert len(set(plate_W[found])) == 1
            mixed.append(len(found))

    network.register_forward_pre_hook(check)
    config = PASSES_CONFIG.model_copy(update={"learning_rates": (1e-30,), "epochs": 1})
    training = SupervisedTraining(network, data_of(plates, wells, classes=8), config, 1, ComputeConfig())
    training.run()
    assert set(mixed) == {1, 2}
    assert training.history[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_classes_are_balanced_if_configured(labelled, monkeypatch):
    leave_views_out(monkeypatch, supervised)
    class_W = np.where(np.arange(labelled.table.wells) < 4, 1, 0).astype(np.int32)
    rare = replace(labelled, table=replace(labelled.table, class_W=class_W))
    config = PASSES_CONFIG.model_copy(update={"class_balance": 1.0})
    for of_epoch in passes_of(numbered(rare), np.arange(rare.table.wells), config):
        targets = [target for one in of_epoch for target in one.target_B]
        assert len(targets) == rare.table.wells
        assert abs(sum(targets) - len(targets) / 2) <= 1
