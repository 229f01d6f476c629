"""Full widths are built on torch's meta device: shapes and counts without 40 million numbers."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from components.core.config import XCEPTION, XCEPTION_LARGE
from components.core.learning.xception import Xception
from tests.components.core.learning.tiny_networks import SMALL


@pytest.mark.parametrize(
    ("config", "stem", "entry"),
    [(XCEPTION, 32, (64, 128, 256, 728)), (XCEPTION_LARGE, 64, (128, 256, 384, 1024))],
    ids=["xception", "xception_large"],
)
def test_full_widths_layer_by_layer(config, stem, entry):
    with torch.device("meta"):
        network = Xception(config)
        maps = {}
        for name in ("stem", "entry", "middle", "exit"):
            getattr(network, name).register_forward_hook(
                lambda _m, _i, out, name=name: maps.update({name: tuple(out.shape[1:])})
            )
        embedding = network(torch.empty(2, 6, 512, 512))
    pointwise = [
        (m.in_channels, m.out_channels)
        for name, m in network.named_modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and "shortcut" not in name
    ]
    wide = entry[-1]
    expected = [pair for i, o in pairwise(entry) for pair in ((i, o), (o, o))] + [(wide, wide)] * 24
    assert pointwise == [*expected, (wide, wide), (wide, 1024), (1024, 1536), (1536, 2048)]
    assert network.stem[0].out_channels == stem
    # 512 halves in the stem, loses the unpadded 3x3's border, halves in three entry blocks and once at the exit.
    assert maps == {
        "stem": (entry[0], 254, 254),
        "entry": (wide, 32, 32),
        "middle": (wide, 32, 32),
        "exit": (2048, 16, 16),
    }
    assert network.embedding_size == 2048
    assert embedding.shape == (2, 2048)


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
