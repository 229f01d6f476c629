"""Batches of several domains: BatchNorm normalises each domain by itself, in one pass of the network. torch only.

B batch, D domains of a batch. A batch holds its domains one after the other, with equally many images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _ByDomain(_BatchNorm):
    """BatchNorm in train mode with statistics of each domain; its class is that of any BatchNorm layer with this one before it.

    Attributes:
        domains: D of the batches to come.
    """

    domains: int = 1

    def forward(self, x: Tensor) -> Tensor:
        """Equals a call for each domain, except that running statistics follow the mean over the domains'."""
        if self.domains == 1 or not self.training:
            return super().forward(x)
        momentum, outputs = self.momentum, []
        for k, part in enumerate(x.chunk(self.domains)):
            # Together these D moving averages are r + momentum (mean over domains - r), whatever their order.
            if momentum is not None:
                self.momentum = momentum / (self.domains - (self.domains - 1 - k) * momentum)
            outputs.append(super().forward(part))
        self.momentum = momentum
        return torch.cat(outputs)


@contextmanager
def several_domains(network: nn.Module, domains: int) -> Iterator[None]:
    """Context in which the batches of a network in train mode have this number of domains."""
    if domains == 1:  # nothing is touched
        yield
        return
    layers = [_by_domain(module) for module in network.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.domains = domains
    try:
        yield
    finally:
        for layer in layers:
            layer.domains = 1


_CLASSES: dict[str, type[_ByDomain]] = {}
"""By the qualified name of the layer's own class."""


def _by_domain(layer: _BatchNorm) -> _ByDomain:
    """The layer with another class: its weights, their names and its further work, as timm's activation, stay."""
    kind = type(layer)
    if not isinstance(layer, _ByDomain):
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name not in _CLASSES:
            _CLASSES[name] = cast(type[_ByDomain], type(f"{kind.__name__}ByDomain", (_ByDomain, kind), {}))
        layer.__class__ = _CLASSES[name]
    return cast(_ByDomain, layer)
