"""Full widths are built on torch's meta device: shapes and counts without 40 million numbers."""

import pytest
import torch
from torch import nn

from components.core.learning.xception import Xception
from tests.components.core.learning.tiny_networks import SMALL


def test_no_relu_after_the_last_batch_norm():
    torch.manual_seed(0)
    network = Xception(SMALL)
    assert isinstance(network.exit[-1], nn.BatchNorm2d)
    seen = []
    network.exit.register_forward_hook(lambda _m, _i, out: seen.append(out))
    embedding_BE = network(torch.randn(8, 6, 32, 32))
    assert (seen[0] < 0).float().mean() == pytest.approx(0.5, abs=0.15)
    assert (embedding_BE < 0).any()
    torch.testing.assert_close(embedding_BE, seen[0].flatten(2).mean(2))
