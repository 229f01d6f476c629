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


def batches_of(images, domain: str, batch_size: int) -> list[list[int]]:
    """The wells of every batch, of all wells in any order."""
    wells = np.random.default_rng(4).permutation(images.table.wells)
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
def test_a_batch_is_of_one_domain_where_one_is_configured(images, domain, batch_size):
    of_W = domain_of_wells(images.table, domain)
    domains = [set(of_W[batch]) for batch in batches_of(images, domain, batch_size)]
    assert {len(found) for found in domains} == {1}
    if batch_size == 40:  # and is all of it, where a batch has room
        assert len(domains) == PASSES * len(np.unique(of_W))


@pytest.mark.parametrize("batch_size", [4, 40])
def test_batches_follow_the_plates_where_no_domain_is_configured(images, batch_size):
    seen = np.concatenate(batches_of(images, "none", batch_size))
    for part in np.array_split(seen, PASSES):
        assert (np.diff(images.table.plate_W[part]) >= 0).all()
