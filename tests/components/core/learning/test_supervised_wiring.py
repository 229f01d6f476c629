"""What supervised training gives to the network: views, jitter, domains, labels."""

import numpy as np
import pytest

from components.core.config import ComputeConfig, PretrainConfig
from components.core.learning import supervised
from components.core.learning.batch_norm import domain_of_wells
from components.core.learning.images import Images
from components.core.learning.supervised import SupervisedTraining
from tests.components.core.learning.recorded_passes import leave_views_out, mark_views, numbered, recorded
from tests.components.core.learning.tiny_networks import SLIM, classifier, data_of, with_classes

K = 8
EPOCHS = 2
CONFIG = PretrainConfig(epochs=EPOCHS, batch_size=4, learning_rates=(1e-3,), milestones=())


@pytest.fixture
def labelled(images: Images) -> Images:
    """Every well has a class."""
    return with_classes(images, (np.arange(images.table.wells) * 3 % K).astype(np.int32))


def passes_of(images, wells):
    """Epoch by epoch."""
    network = classifier(K, backbone=SLIM)
    passes, epochs = recorded(network), []

    def report(_record):
        epochs.append(passes[:])
        passes.clear()

    SupervisedTraining(network, data_of(images, wells, classes=K), CONFIG, 1, ComputeConfig()).run(report)
    assert len(epochs) == EPOCHS
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


def test_every_image_gets_its_own_jitter(labelled, monkeypatch):
    leave_views_out(monkeypatch, supervised)
    wells = np.arange(20)
    plain, jittered = (passes_of(numbered(labelled, jitter=jitter), wells) for jitter in (0.0, 0.1))
    factors = []
    for clean, noisy in zip(plain, jittered, strict=True):
        for before, after in zip(clean, noisy, strict=True):
            factors.append(after.x_BC / before.x_BC)
    factor_BC = np.concatenate(factors)
    assert (np.abs(1.0 / factor_BC - 1.0) <= 0.1 + 1e-6).all()
    assert (factor_BC != 1.0).all()
    assert len(np.unique(factor_BC.round(6))) > 0.9 * factor_BC.size, "of each image, channel and epoch"


@pytest.mark.parametrize("domain", ["plate", "experiment", "cell_type"])
def test_every_batch_holds_one_domain_if_configured(labelled, domain, monkeypatch):
    leave_views_out(monkeypatch, supervised)
    of_W = domain_of_wells(labelled.table, domain)
    for of_epoch in passes_of(numbered(labelled, domain), np.arange(labelled.table.wells)):
        assert sorted(well for one in of_epoch for well in one.wells) == list(range(labelled.table.wells))
        for one in of_epoch:
            assert len(set(of_W[one.wells])) == 1
