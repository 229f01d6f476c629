"""Logits of wells: means over sites and views, and BatchNorm that adapts to a batch."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from components.core.learning.augmentation import dihedral
from components.core.learning.batch_norm import domain_of_wells
from components.core.learning.images import Images
from components.core.learning.inference import adaptive_logits, well_logits
from tests.components.core.learning.recorded_passes import numbered, recorded
from tests.components.core.learning.tiny_networks import SLIM, classifier, pixels_of, reading, same, weights_of

K = 9


@pytest.fixture
def network():
    """With running statistics that are not the initial ones."""
    network = classifier(K)
    network.train()
    for _ in range(3):
        network(2.0 * torch.randn(16, 6, 16, 16) + 1.0)
    return network


@pytest.mark.parametrize("views", [1, 2, 8])
def test_a_wells_logits_are_the_mean_over_its_sites_and_views(images: Images, network, views):
    wells = np.array([7, 0, 31, 12])
    got_WK = well_logits(network, images, wells, views, batch_size=3, classes=K)
    network.eval()
    for row, well in enumerate(wells):
        sites = [s for s in range(images.table.sites) if images.table.well_S[s] == well]
        assert len(sites) == 2
        passes = []
        for site in sites:
            ((_, x),) = images.batches([np.array([site])])
            passes += [network(dihedral(x, view))[0].detach().double().numpy() for view in range(views)]
        np.testing.assert_allclose(got_WK[row], np.mean(passes, axis=0), atol=1e-4)
    assert got_WK.dtype == np.float32


def test_wells_may_have_different_numbers_of_sites(images: Images, network):
    table = images.table
    # Well 0 loses its second site: it keeps site 0, and all others move up.
    first = table.first_site_W.copy()
    first[1:] -= 1
    kept = np.arange(table.sites) != 1
    cut = replace(table, first_site_W=first, well_S=table.well_S[kept], key_S=table.key_S[:1] + table.key_S[2:])
    fewer = reading(replace(images, table=cut), lambda sites: pixels_of(images, np.flatnonzero(kept)[sites]))
    ((_, x),) = images.batches([np.array([0])])
    one = well_logits(network, fewer, np.array([0, 1]), 1, 8, K)
    np.testing.assert_allclose(one[0], network.eval()(x)[0].detach(), atol=1e-4)
    np.testing.assert_allclose(one[1], well_logits(network, images, np.array([1]), 1, 8, K)[0], atol=1e-4)


@pytest.mark.parametrize("batch_size", [5, 1000])
def test_batching_and_order_do_not_change_a_wells_logits(images: Images, network, batch_size):
    wells = np.arange(images.table.wells)
    expected_WK = well_logits(network, images, wells, 2, 7, K)
    np.testing.assert_allclose(well_logits(network, images, wells, 2, batch_size, K), expected_WK, atol=1e-4)
    back_WK = well_logits(network, images, wells[::-1].copy(), 2, batch_size, K)
    np.testing.assert_allclose(back_WK[::-1], expected_WK, atol=1e-4)


def with_explicit_norm(module: nn.Module) -> nn.Module:
    """A copy whose BatchNorm is written out: every batch is normalised by its own mean and biased variance."""

    class ExplicitNorm(nn.Module):
        def __init__(self, norm: nn.BatchNorm2d) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x):
            mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            scale, shift = self.norm.weight[None, :, None, None], self.norm.bias[None, :, None, None]
            return (x - mean) / torch.sqrt(variance + self.norm.eps) * scale + shift

    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, ExplicitNorm(child))
    return module


def one_site_a_well(images: Images) -> Images:
    """Every well's first site stands for both, so that no draw of sites matters."""
    table = images.table
    return reading(images, lambda sites: pixels_of(images, table.first_site_W[table.well_S[sites]]))


def adapted(network, images, wells, passes=1, batch_size=16):
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    return adaptive_logits(network, images, wells, passes, batch_size, K, generator, rng)


def test_adaptive_logits_normalise_by_each_plates_own_batch(images: Images, network, monkeypatch):
    monkeypatch.setattr("components.core.learning.inference.easy_view", lambda x, *_: x)
    steady = one_site_a_well(images)
    wells = np.array([9, 3, 0, 7, 5, 4, 1, 8, 2, 6])  # plates 0 and 1 mixed
    got_WK = adapted(network, steady, wells, passes=3)
    plain = with_explicit_norm(network)
    for plate in (0, 1):
        own = np.flatnonzero(images.table.plate_W[wells] == plate)
        assert len(own) == 5
        ((_, x),) = steady.batches([images.table.first_site_W[wells[own]].astype(np.intp)])
        np.testing.assert_allclose(got_WK[own], plain(x).detach(), atol=2e-3)
    # Another plate's wells change nothing, unlike running statistics or a batch across plates.
    alone = np.array([0, 1, 2, 3, 4])
    alone_WK = adapted(network, steady, alone)
    assert np.abs(alone_WK - got_WK[[2, 6, 8, 1, 5]]).max() < 2e-3
    assert np.abs(alone_WK - well_logits(network, steady, alone, 1, 16, K)).max() > 0.1


@pytest.mark.parametrize("per_image", [False, True])
def test_adaptive_passes_have_jitter_only_if_images_do(images: Images, network, per_image, monkeypatch):
    monkeypatch.setattr("components.core.learning.inference.easy_view", lambda x, *_: x)
    passes = recorded(network)
    adapted(network, numbered(images, jitter=0.1, per_image=per_image), np.arange(10), passes=2)
    x_BC = np.concatenate([one.x_BC for one in passes])
    factor_BC = x_BC / (np.tile(np.arange(10), 2)[:, None] + 1.0)
    assert np.array_equal(factor_BC, np.ones_like(factor_BC)) == (not per_image)
    assert (np.abs(1.0 / factor_BC - 1.0) <= 0.1 + 1e-6).all()


def test_too_few_wells_for_statistics_of_their_own_use_running_statistics(images: Images, network, monkeypatch):
    monkeypatch.setattr("components.core.learning.inference.easy_view", lambda x, *_: x)
    steady, few, enough = one_site_a_well(images), np.array([0, 1, 2]), np.array([0, 1, 2, 3])
    running_WK = well_logits(network, steady, enough, 1, 16, K)
    np.testing.assert_allclose(adapted(network, steady, few), running_WK[:3], atol=2e-3)
    assert np.abs(adapted(network, steady, enough) - running_WK).max() > 0.1


@pytest.mark.parametrize("training", [True, False])
def test_prediction_leaves_running_statistics_and_mode(images: Images, network, training):
    network.train(training)
    before = weights_of(network)
    well_logits(network, images, np.arange(5), 1, 4, K)
    adapted(network, images, np.arange(images.table.wells), passes=2)
    assert network.training == training
    assert same(before, weights_of(network))


@pytest.mark.parametrize("domain", ["plate", "experiment", "cell_type"])
@pytest.mark.parametrize("batch_size", [4, 40])
def test_a_batch_holds_one_domain_if_one_is_configured(images, domain, batch_size):
    network = classifier(K, backbone=SLIM)
    passes = recorded(network)
    wells = np.random.default_rng(4).permutation(images.table.wells)
    adapted(network, numbered(images, domain), wells, passes=2, batch_size=batch_size)
    of_W = domain_of_wells(images.table, domain)
    assert all(one.training and len(set(of_W[one.wells])) == 1 for one in passes)
    assert max(len(one.wells) for one in passes) <= batch_size
    for part in np.array_split([well for one in passes for well in one.wells], 2):
        assert sorted(part) == list(range(images.table.wells)), "every well once a pass"
    if batch_size == 40:
        assert len(passes) == 2 * len(np.unique(of_W)), "a batch is all of its domain if it has room"
