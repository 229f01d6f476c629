"""Seconds of site passes: from rates that were measured, else from a GPU's data sheet and the network's layers. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from components.core.config import CHANNELS, RunConfig
from components.core.errors import InputError
from pipelines.plan.machines import Assumed, Gpu, Machines, MeasuredRate
from pipelines.plan.network_cost import BACKWARD, Layer, NetworkCost, network_cost
from pipelines.plan.site_passes import Passes

MEASURED, SCALED, ASSUMED = "measured", "scaled", "assumed"
"""What seconds rest on; scaled ones were measured on another network, image size, screen or number of cores."""
FLOAT32, BFLOAT16 = 4, 2
"""Bytes of a number."""


@dataclass(frozen=True)
class Seconds:
    """How long, and on what that rests: MEASURED, SCALED or ASSUMED."""

    value: float
    basis: str


class Speed(Protocol):
    """Turns passes into seconds on one device, beside which nothing else runs."""

    @property
    def start_s(self) -> float:
        """What a task takes beside its passes, seconds."""

    def seconds(self, step: str, passes: Passes) -> Seconds:
        """Seconds of some passes of a step."""


def network_costs(config: RunConfig, machines: Machines, classes: int) -> dict[str, NetworkCost]:
    """Costs of the configured backbones by name.

    Raises:
        InputError: a network that is not known here.
    """
    costs = {}
    for backbone in config.backbones:
        known = machines.networks.get(backbone.name)
        if known is None:
            costs[backbone.name] = network_cost(backbone, config.screen.image_size, classes)
            continue
        scale = (config.screen.image_size / known.image_size) ** 2
        # One layer stands for all: its traffic is not known, so that only its arithmetic counts.
        whole = Layer(macs=round(known.gmacs * 1e9 * scale), parameters=known.parameters)
        pixels = len(CHANNELS) * config.screen.image_size**2
        costs[backbone.name] = NetworkCost((whole,), pixels, known.embedding)
    return costs


@dataclass(frozen=True)
class GpuSpeed:
    """A kind of GPU: rates measured on it where there are any, else assumed from its data sheet.

    A rate of another image size is scaled by pixels; a backbone without one takes that of another by multiply-accumulates.
    """

    name: str
    gpu: Gpu
    assumed: Assumed
    measured: tuple[MeasuredRate, ...]
    costs: Mapping[str, NetworkCost]
    image_size: int
    element: int
    """bytes of an activation"""
    start_s: float = 0.0
    """none: a pod's start is counted for every pod"""

    @classmethod
    def of(cls, machines: Machines, costs: Mapping[str, NetworkCost], config: RunConfig) -> GpuSpeed:
        """The planned GPU."""
        rates = tuple(rate for rate in machines.measured if rate.gpu == machines.gpu)
        gpu, size = machines.gpus[machines.gpu], config.screen.image_size
        return cls(machines.gpu, gpu, machines.assumed, rates, costs, size, element_bytes(config))

    def seconds(self, step: str, passes: Passes) -> Seconds:
        """See Speed; the step makes no difference."""
        student, forward = self.pass_seconds(passes.backbone, "training"), self.pass_seconds(passes.backbone, "forward")
        used = [of.basis for of, count in ((student, passes.student), (forward, passes.forward)) if count]
        return Seconds(passes.student * student.value + passes.forward * forward.value, weakest(used))

    def pass_seconds(self, backbone: str, kind: str) -> Seconds:
        """Seconds of one pass of one site."""
        known = [rate for rate in self.measured if rate.pass_ == kind and rate.backbone in self.costs]
        own = next((rate for rate in known if rate.backbone == backbone), None)
        rate = own or next(iter(known), None)
        if rate is None:
            cost = self.costs[backbone]
            return Seconds(
                roofline_seconds(cost, self.gpu, self.assumed, self.element, training=kind == "training"), ASSUMED
            )
        pixels = (self.image_size / rate.image_size) ** 2
        macs = self.costs[backbone].forward_macs / self.costs[rate.backbone].forward_macs
        exact = own is not None and rate.image_size == self.image_size
        return Seconds(pixels * macs / rate.sites_per_s, MEASURED if exact else SCALED)


def element_bytes(config: RunConfig) -> int:
    """Bytes of an activation on a GPU, all of which have bfloat16."""
    return FLOAT32 if config.compute.precision == "float32" else BFLOAT16


def roofline_seconds(cost: NetworkCost, gpu: Gpu, assumed: Assumed, element: int, *, training: bool) -> float:
    """Seconds of one site: each layer takes the longer of its arithmetic and its memory traffic.

    Source: the roofline model (Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785).
    """
    operations = gpu.teraflops * 1e12 * assumed.compute_share
    bandwidth = gpu.gigabytes_per_s * 1e9 * assumed.memory_share
    if element == FLOAT32:
        operations /= 2  # tensor cores take float32 as TF32, at half the rate of bfloat16
    rounds = 1 + BACKWARD if training else 1
    layers = sum(max(2.0 * layer.macs / operations, layer.moved * element / bandwidth) for layer in cost.layers)
    view = assumed.view_traffic * cost.pixels * FLOAT32 / bandwidth
    # Inference views are turned images: one more read and write.
    return rounds * layers + (view if training else view / max(1.0, assumed.view_traffic) * 2)


@dataclass(frozen=True)
class RunSpeed:
    """Rates that a finished run had: seconds a multiply-accumulate takes one of its processes.

    Attributes:
        source: the run, for people.
        training_s_per_mac: by step.
        forward_s_per_mac: of validation, refreshes and predictions.
        start_s: what a task takes beside them: imports, reading weights, writing results.
        costs: the planned networks.
        same: whether the plan has the run's networks and image size.
    """

    source: str
    training_s_per_mac: Mapping[str, float]
    forward_s_per_mac: float
    start_s: float
    costs: Mapping[str, NetworkCost]
    same: bool

    def seconds(self, step: str, passes: Passes) -> Seconds:
        """See Speed.

        Raises:
            InputError: the run had no such step, and none like it.
        """
        per_mac = self.forward_s_per_mac
        if passes.kind == "training":
            if step not in self.training_s_per_mac:
                raise InputError(f"--measured {self.source}: no rate of {step}, which that run did not have")
            per_mac = self.training_s_per_mac[step]
        return Seconds(per_mac * macs(passes, self.costs), MEASURED if self.same else SCALED)


def macs(passes: Passes, costs: Mapping[str, NetworkCost]) -> float:
    """Multiply-accumulates of some passes."""
    cost = costs[passes.backbone]
    return float(passes.student * cost.train_macs + passes.forward * cost.forward_macs)


def weakest(bases: list[str]) -> str:
    """What a sum rests on: the least certain of its parts."""
    order = [MEASURED, SCALED, ASSUMED]
    return max(bases, key=order.index, default=MEASURED)
