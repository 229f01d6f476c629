"""With head.cell_types every pass of a network gets the cell types of its wells: in training, validation and prediction."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from components.core.config import ComputeConfig, PretrainConfig
from components.core.errors import InputError
from components.core.learning import inference, mean_teacher, supervised
from components.core.learning.fold_data import fold_wells
from components.core.learning.images import open_images
from components.core.learning.inference import adaptive_logits, well_outputs
from components.core.learning.mean_teacher import Pair, PairEpoch
from components.core.learning.network import Classifier
from components.core.learning.schedules import CycleSchedule
from components.core.learning.supervised import SupervisedTraining
from components.core.learning.team import Replica, Slots
from tests.components.core.learning.recorded_passes import leave_views_out, numbered
from tests.components.core.learning.tiny_networks import CPU, MEAN_TEACHER, RUN, SLIM, changed, data_of

K = 8
TAKES = changed(RUN, head={"cell_types": True})


@pytest.fixture
def images(screen, monkeypatch, request):
    """Constant images, whose pixels are their wells' numbers; in training without views."""
    for module in (supervised, mean_teacher, inference):
        leave_views_out(monkeypatch, module)
    store, manifest = screen
    return numbered(open_images(TAKES, manifest, store, CPU), request.param)


by_domain = pytest.mark.parametrize("images", ["none", "plate", "cell_type"], indirect=True)


class Watched(Classifier):
    """Notes the wells and cell types of its passes."""

    def __init__(self):
        super().__init__(SLIM, TAKES.head, K, 6, 16, 2)
        self.passes = []
        self.backbone.register_forward_pre_hook(lambda _, inputs: self.passes.append([inputs[0][:, 0, 0, 0].tolist()]))
        self.neck.register_forward_pre_hook(lambda _, inputs: self.passes[-1].append(inputs[1].tolist()))

    def check(self, table, wells):
        """The cell types are those of the wells, and these are all of `wells`."""
        seen = set()
        for pixels, type_BT in self.passes:
            own = [round(value) - 1 for value in pixels]
            assert type_BT == np.eye(2)[table.cell_type_W[own]].tolist()
            seen |= set(own)
        assert seen == set(wells.tolist())
        self.passes.clear()


@by_domain
def test_pretraining_and_its_validation(images):
    table = replace(images.table, class_W=(np.arange(images.table.wells) % K).astype(np.int32))
    images, wells, network = replace(images, table=table), np.arange(table.wells), Watched()
    config = PretrainConfig(epochs=1, batch_size=4, learning_rates=(1e-3,), milestones=())
    data = data_of(images, wells, wells, classes=K)
    training = SupervisedTraining(network, data, config, 1, ComputeConfig())
    training.run(lambda _: network.check(table, wells))
    data.validation.logits(network, images)
    network.check(table, wells)


@by_domain
def test_the_mean_teacher(images):
    pair = Pair("slim", Watched(), Watched())
    wells, config = fold_wells(images.table, 0, "all"), MEAN_TEACHER.mean_teacher
    slots, schedule = Slots(images.team, fills=True), CycleSchedule.of(config, "HUVEC")
    PairEpoch(pair, Replica(pair.student, slots), images, wells, config, schedule, 0, None, 5, slots).run()
    hidden = {well for pixels, _ in pair.teacher.passes for well in np.round(pixels).astype(int) - 1}
    assert not hidden.isdisjoint(wells.hidden)
    for network in (pair.student, pair.teacher):
        network.check(images.table, np.array(sorted(hidden)))


@by_domain
def test_predictions_embeddings_and_pseudo_labels(images):
    wells, network = np.random.default_rng(4).permutation(images.table.wells), Watched()
    well_outputs(network, images, wells, 2, 4, 16, K)
    # Four views of every site, and with a domain one more pass for its statistics.
    views = 4 if images.batch_norm.domain == "none" else 5
    assert sum(len(pixels) for pixels, _ in network.passes) == views * images.table.sites
    network.check(images.table, wells)
    adaptive_logits(network, images, wells, 1, 16, K, torch.Generator(), np.random.default_rng(0))
    network.check(images.table, wells)


def test_a_cell_type_that_the_networks_do_not_know_is_refused(screen):
    store, manifest = screen
    known = manifest.model_copy(update={"plates": tuple(p for p in manifest.plates if p.cell_type == "HUVEC")})
    message = r"cell type RPE: the networks take the cell type as input \(head\.cell_types\) and know only HUVEC; leave"
    with pytest.raises(InputError, match=message):
        open_images(TAKES, manifest, store, CPU, reference=known)
    # The same cell type has the same place, whatever other cell types a screen of new plates has.
    rpe = manifest.model_copy(update={"plates": tuple(p for p in manifest.plates if p.cell_type == "RPE")})
    of_new = open_images(TAKES, rpe, store, CPU, reference=manifest).cell_type_WT
    assert (of_new.argmax(1) == 1).all()
