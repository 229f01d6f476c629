"""BatchNorm statistics of a domain, against a plain computation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from components.core.config import BatchNormConfig
from components.core.errors import InputError
from components.core.learning.augmentation import dihedral
from components.core.learning.batch_norm import adapted, domain_of_wells, statistics_wells
from components.core.learning.images import Images
from components.core.learning.inference import well_logits
from components.core.screen.packed import TREATMENT
from tests.components.core.learning.tiny_networks import classifier, same, weights_of

K = 8


class Plain(nn.Module):
    """Two convolutions, each with BatchNorm: small enough to be written out again below."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(6, 5, 3), nn.Conv2d(5, 4, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(5), nn.BatchNorm2d(4)])
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.uniform_(norm.bias, -1.0, 1.0)

    def forward(self, x):
        return self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))


def from_scratch(network: Plain, domain, x):
    """The network's output where BatchNorm is recomputed on a domain, layer by layer, in float64."""
    domain, x = domain.double(), x.double()
    for convolution, norm in zip((network.first, network.second), network.norms, strict=True):
        weight, bias = convolution.weight.double(), convolution.bias.double()
        domain, x = F.conv2d(domain, weight, bias), F.conv2d(x, weight, bias)
        values_CN = domain.transpose(0, 1).flatten(1)
        mean_C = values_CN.sum(1) / values_CN.shape[1]
        variance_C = ((values_CN - mean_C[:, None]) ** 2).sum(1) / values_CN.shape[1]
        scale_C = norm.weight.double() / torch.sqrt(variance_C + norm.eps)

        def normalised(t, mean_C=mean_C, scale_C=scale_C, norm=norm):
            return (t - mean_C[:, None, None]) * scale_C[:, None, None] + norm.bias.double()[:, None, None]

        domain, x = normalised(domain), normalised(x)
        if convolution is network.first:
            domain, x = F.relu(domain), F.relu(x)
    return x


@pytest.fixture
def plain():
    torch.manual_seed(4)
    return Plain()


@pytest.fixture
def domain():
    torch.manual_seed(5)
    return 3.0 * torch.randn(64, 6, 9, 9) + torch.linspace(-2, 2, 6)[:, None, None]


def test_agrees_with_batch_norm_recomputed_from_scratch(plain, domain):
    x = torch.randn(7, 6, 9, 9)
    with adapted(plain, [(domain,)]):
        got = plain(x)
    torch.testing.assert_close(got.double(), from_scratch(plain, domain, x), atol=1e-4, rtol=1e-4)


def test_batches_of_unequal_size_are_joined_by_the_law_of_total_variance(plain, domain):
    x = torch.randn(7, 6, 9, 9)
    # The first layer's input does not depend on BatchNorm, so its statistics are exact however images are cut.
    whole, cut = Plain(), Plain()
    for network in (whole, cut):
        network.load_state_dict(plain.state_dict())
    sorted_images = domain[domain.mean((1, 2, 3)).argsort()]
    with adapted(whole, [(domain,)]), adapted(cut, [(part,) for part in sorted_images.split([3, 37, 24])]):
        for statistic in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(cut.norms[0], statistic), getattr(whole.norms[0], statistic))
    with adapted(plain, [(domain[k::4],) for k in range(4)]):
        got = plain(x)
    reference = from_scratch(plain, domain, x).detach()
    # Batches of 16 alike images: a tenth of the outputs' deviation bounds what the second layer misses.
    assert float((got - reference).detach().abs().mean()) < 0.1 * float(reference.std())


def test_the_network_is_unchanged_afterwards(plain, domain):
    plain.train()
    before, momentum = weights_of(plain), plain.norms[0].momentum
    with adapted(plain, [(domain,)]):
        assert not plain.training
        assert not torch.equal(plain.norms[0].running_mean, before["norms.0.running_mean"])
    assert same(weights_of(plain), before)
    assert plain.training
    assert plain.norms[0].momentum == momentum
    with pytest.raises(RuntimeError), adapted(plain, [(domain[:, :3],)]):
        pass
    assert same(weights_of(plain), before)


def pixels_of(images: Images, wells):
    ((_, x),) = images.batches([images.table.sites_of(np.asarray(wells)).astype(np.intp)])
    return x


@pytest.mark.parametrize("statistics", ["all", "controls"])
@pytest.mark.parametrize("domain", ["cell_type", "experiment", "plate"])
def test_wells_are_predicted_with_the_statistics_of_their_own_domain(images: Images, domain, statistics):
    network = classifier(K)
    table = images.table
    wells = np.array([31, 0, 12])
    adapting = replace(images, batch_norm=BatchNormConfig(domain=domain, statistics=statistics))
    got_WK = well_logits(network, adapting, wells, 2, 999, K)
    domain_W = domain_of_wells(table, domain)
    for row, well in enumerate(wells):
        sources = np.flatnonzero(domain_W == domain_W[well])
        if statistics == "controls":
            sources = sources[table.role_W[sources] != TREATMENT]
        x = pixels_of(images, [well])
        with adapted(network, [(pixels_of(images, sources),)]):
            expected = torch.stack([network(dihedral(x, view)) for view in range(2)]).mean((0, 1))
        np.testing.assert_allclose(got_WK[row], expected, atol=1e-4)


@pytest.mark.parametrize("wells", [1, 2, 3, 4])
def test_a_neck_uses_running_statistics_where_few_wells_have_the_domain(images: Images, wells):
    network = classifier(K, batch_norm=True)
    table = images.table
    assert (table.plate_W[:wells] == 0).all()
    plate_W = np.where(np.arange(table.wells) < wells, table.plate_W, np.maximum(table.plate_W, 1))
    few = replace(images, table=replace(table, plate_W=plate_W), batch_norm=BatchNormConfig(domain="plate"))
    plain = replace(few, batch_norm=BatchNormConfig(domain="none"))
    own = np.arange(wells)
    same_WK = well_logits(network, few, own, 1, 16, K) == well_logits(network, plain, own, 1, 16, K)
    assert same_WK.all() == (wells < 4)


def test_rejects_controls_statistics_for_a_domain_without_controls(images: Images):
    table = images.table
    bare = replace(table, role_W=np.where(table.plate_W == 1, TREATMENT, table.role_W))
    with pytest.raises(InputError, match=r"HUVEC-01 plate 2: no control wells .* use all, or a wider"):
        statistics_wells(bare, domain_of_wells(bare, "plate"), 1, "controls")
    assert len(statistics_wells(bare, domain_of_wells(bare, "experiment"), 0, "controls")) == 2
