"""Records the wells and views of each forward pass, by constant images that carry their well's number. For tests.

B batch, C channel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from components.core.config import BatchNormConfig
from components.core.learning.images import Images, Standardiser
from tests.components.core.learning.tiny_networks import CPU, reading

VIEWS = ("none", "easy_view", "normal_view", "hard_view")
MARK = 1000
"""What a marked view adds to its images, times its place in VIEWS; more than any well's number."""


@dataclass(frozen=True)
class Pass:
    """One call of a network: the value of each image's channels, the targets, whether it was in train mode, and its domains."""

    x_BC: NDArray[np.float32]
    target_B: list[int] | None
    training: bool
    domains: int  # that BatchNorm normalises separately, one after the other

    @property
    def wells(self) -> list[int]:
        """Rows of the well table, if there is no jitter."""
        return [round(value) % MARK - 1 for value in self.x_BC[:, 0].tolist()]

    @property
    def views(self) -> set[str]:
        """The marked views of its images, if there is no jitter."""
        return {VIEWS[round(value) // MARK] for value in self.x_BC[:, 0].tolist()}


def numbered(
    images: Images, domain: str = "none", jitter: float = 0.0, domains_per_step: int = 1, per_image: bool = False
) -> Images:
    """Every pixel of well w is w + 1, which standardisation changes only by the factor of the jitter."""
    table = images.table
    assert table.wells < MARK
    plates = len(table.plate_name_P)
    return replace(
        reading(images, lambda sites: table.well_S[sites] + 1),
        standardise=Standardiser(torch.zeros(plates, 6), torch.ones(plates, 6), jitter, CPU, per_image=per_image),
        batch_norm=BatchNormConfig(domain=domain, domains_per_step=domains_per_step),
    )


def mark_views(monkeypatch: pytest.MonkeyPatch, module: ModuleType, images: Images) -> None:
    """Makes the module's views add their mark, and checks that they get the images' augmentation."""
    for number, name in enumerate(VIEWS):
        if not hasattr(module, name):
            continue

        def marked(x: torch.Tensor, config: Any, _generator: Any, mark: int = number * MARK) -> torch.Tensor:
            assert config is images.augment
            return x + mark

        monkeypatch.setattr(module, name, marked)


def leave_views_out(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """The module's views do nothing."""
    for name in VIEWS:
        if hasattr(module, name):
            monkeypatch.setattr(module, name, lambda x, *_: x)


def recorded(network: nn.Module) -> list[Pass]:
    """A list that records the network's passes from now on."""
    passes: list[Pass] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x_BCHW, target_B = (*args, *kwargs.values(), None)[:2]
        x_BC = x_BCHW.detach().amax((2, 3)).numpy()
        assert np.array_equal(x_BC, x_BCHW.detach().amin((2, 3)).numpy()), "constant images"
        domains = {getattr(layer, "domains", 1) for layer in module.modules() if isinstance(layer, _BatchNorm)}
        assert len(domains) == 1
        passes.append(Pass(x_BC, None if target_B is None else target_B.tolist(), module.training, domains.pop()))

    network.register_forward_pre_hook(note, with_kwargs=True)
    return passes
