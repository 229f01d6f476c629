"""BatchNorm by domain: the domains of wells, and statistics recomputed on a domain's images (AdaBN). torch only.

W wells, B batch, C channel of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from components.core.errors import InputError
from components.core.screen.packed import TREATMENT, SiteTable

BatchDomain = Literal["none", "cell_type", "experiment", "plate"]


def domain_of_wells(table: SiteTable, domain: BatchDomain) -> NDArray[np.intp]:
    """The index of every well's domain, shape (W,); all zero for `none`."""
    if domain == "none":
        return np.zeros(table.wells, dtype=np.intp)
    of_W = {"cell_type": table.cell_type_W, "experiment": table.experiment_W, "plate": table.plate_W}[domain]
    return of_W.astype(np.intp)


def statistics_wells(
    table: SiteTable, domain_W: NDArray[np.intp], which: int, statistics: Literal["all", "controls"]
) -> NDArray[np.intp]:
    """The wells from whose images the statistics of domain `which` are computed, rows of the well table; no label is used.

    Raises:
        InputError: the domain has no controls, but its statistics need them.
    """
    chosen_W = domain_W == which
    if statistics == "controls":
        controls_W = chosen_W & (table.role_W != TREATMENT)
        if not controls_W.any():
            plate = table.plate_W[np.flatnonzero(chosen_W)[0]]
            experiment = table.experiments[table.experiment_P[plate]]
            raise InputError(
                f"{experiment} plate {table.plate_name_P[plate]}: no control wells for batch_norm.statistics controls; "
                "use all, or a wider batch_norm.domain"
            )
        chosen_W = controls_W
    return np.flatnonzero(chosen_W)


@dataclass(frozen=True)
class _Moments:
    """Mean of a layer's input over some batches, and the sum of squared deviations from it."""

    count: float
    mean_C: Tensor
    squares_C: Tensor

    def __add__(self, other: _Moments) -> _Moments:
        """The moments of both, by the law of total variance (Chan, Golub and LeVeque 1979)."""
        total = self.count + other.count
        apart_C = other.mean_C - self.mean_C
        mean_C = self.mean_C + apart_C * (other.count / total)
        squares_C = self.squares_C + other.squares_C + apart_C.square() * (self.count * other.count / total)
        return _Moments(total, mean_C, squares_C)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode is restored at the end."""
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(training)


@contextmanager
def adapted(network: nn.Module, batches: Iterable[tuple[Tensor | None, ...]]) -> Iterator[None]:
    """Evaluation mode with BatchNorm statistics of the network's inputs; mode and statistics are restored at the end.

    In one forward pass in train mode, batch by batch, a layer gets mean and population variance of its input over all
    batches. Within the pass a batch is normalised by its own statistics, so the result is exact for one batch, and else as
    close as batches are similar; callers distribute a domain's images evenly over few large batches. Exact statistics over
    many batches would take one pass per layer, 40 for Xception.

    Source: adaptive batch normalisation (Li et al. 2016, arXiv 1603.04779).
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    training = network.training
    momenta = [layer.momentum for layer in layers]
    kept = [{name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)} for layer in layers]
    try:
        with torch.no_grad():
            _measure(network, layers, batches)
        with evaluating(network):
            yield
    finally:
        network.train(training)
        for layer, momentum, buffers in zip(layers, momenta, kept, strict=True):
            layer.momentum = momentum
            for name, old in buffers.items():
                layer.get_buffer(name).copy_(old)


def _measure(network: nn.Module, layers: list[_BatchNorm], batches: Iterable[tuple[Tensor | None, ...]]) -> None:
    """Sets every layer's statistics to those of its input over the batches."""
    moments: dict[nn.Module, _Moments] = {}

    def add_batch(layer: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        assert isinstance(layer, _BatchNorm)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        count = inputs[0].numel() / inputs[0].shape[1]
        # With momentum 1 the running statistics are the batch's, the variance with Bessel's correction.
        variance_C = layer.running_var * ((count - 1) / count)
        batch = _Moments(count, layer.running_mean.double(), variance_C.double() * count)
        moments[layer] = moments[layer] + batch if layer in moments else batch

    hooks = [layer.register_forward_hook(add_batch) for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
    network.train()
    try:
        for inputs in batches:
            network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        measured = moments[layer]
        layer.get_buffer("running_mean").copy_(measured.mean_C)
        layer.get_buffer("running_var").copy_(measured.squares_C / measured.count)
