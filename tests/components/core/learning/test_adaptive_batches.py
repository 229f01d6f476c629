"""Which wells share a batch where BatchNorm adapts to the batch (adaptive_logits)."""

import numpy as np
import pytest
import torch

from components.core.learning.batch_norm import domain_of_wells
from components.core.learning.inference import adaptive_logits
from tests.components.core.learning.recorded_passes import numbered, recorded
from tests.components.core.learning.tiny_networks import SLIM, classifier

K = 8
PASSES = 2


def batches_of(images, domain: str, batch_size: int, in_plate_order: bool = False) -> list[list[int]]:
    """The wells of every batch, of all wells in plate order or in any."""
    wells = np.random.default_rng(4).permutation(images.table.wells)
    if in_plate_order:
        wells = wells[np.argsort(images.table.plate_W[wells], kind="stable")]
    network = classifier(K, backbone=SLIM)
    passes = recorded(network)
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    adaptive_logits(network, numbered(images, domain), wells, PASSES, batch_size, K, generator, rng)
    assert all(one.training for one in passes), "each batch is normalised by itself"
    assert max(len(one.wells) for one in passes) <= batch_size
    seen = [well for one in passes for well in one.wells]
    for part in np.array_split(seen, PASSES):
        assert sorted(part) == list(range(images.table.wells)), "every well once a pass"
    return [one.wells for one in passes]


@pytest.mark.parametrize("domain", ["plate", "experiment", "cell_type"])
@pytest.mark.parametrize("batch_size", [4, 40])
def test_a_batch_holds_one_domain_if_one_is_configured(images, domain, batch_size):
    of_W = domain_of_wells(images.table, domain)
    domains = [set(of_W[batch]) for batch in batches_of(images, domain, batch_size)]
    assert {len(found) for found in domains} == {1}
    if batch_size == 40:  # and is all of it, where a batch has room
        assert len(domains) == PASSES * len(np.unique(of_W))


@pytest.mark.parametrize("batch_size", [4, 40])
def test_batches_follow_the_plates_without_a_domain(images, batch_size):
    seen = np.concatenate(batches_of(images, "none", batch_size))
    for part in np.array_split(seen, PASSES):
        assert (np.diff(images.table.plate_W[part]) >= 0).all()


@pytest.mark.parametrize("domain", ["experiment", "cell_type"])
def test_a_domain_of_several_plates_is_distributed_evenly_over_batches(images, domain):
    table = images.table
    for batch in batches_of(images, domain, 5, in_plate_order=True):
        of_domain = np.flatnonzero(domain_of_wells(table, domain) == domain_of_wells(table, domain)[batch[0]])
        for plate in np.unique(table.plate_W[of_domain]):
            share = (table.plate_W[of_domain] == plate).mean()
            assert abs((table.plate_W[batch] == plate).sum() - share * len(batch)) <= 1, "as training batches are drawn"
