"""Rates, sizes and prices of a plan: rates.yaml, with the fields of a --throughput file over them.

They are separate from the run's configuration, so that no price or rate is part of a step's key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from components.core.config import Count, Fraction, FrozenModel, NonNegative, Positive, parse
from components.core.config.file import read_yaml
from components.core.errors import InputError
from components.core.learning.network_size import NetworkSize

SHIPPED = Path(__file__).with_name("rates.yaml")
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Basis = Literal["measured", "scaled", "assumed"]
BASES: tuple[Basis, ...] = ("measured", "scaled", "assumed")
"""Bases of a number, from the most to the least certain."""


def weakest(bases: Iterable[Basis]) -> Basis:
    """The least certain basis of a sum's parts."""
    return max(bases, key=BASES.index, default="measured")


class Gpu(FrozenModel):
    """One kind of GPU, by its data sheet."""

    gigabytes_per_s: Positive = Field(..., description="memory bandwidth, 1e9 bytes per second")
    memory_gb: Positive = Field(..., description="memory, 1e9 bytes")
    price_per_hour: NonNegative = Field(..., description="on demand, in prices.currency")


class MeasuredRate(FrozenModel):
    """Rates of one backbone on one kind of GPU."""

    gpu: str = Field(..., description="one of gpus")
    backbone: str = Field(..., description="name of the configured backbone")
    image_size: Count = Field(..., description="side of the images, pixels")
    gmacs: Positive = Field(..., description="1e9 multiply-accumulates of a forward pass of one site")
    training: Positive = Field(..., description="sites per second: view, forward and backward pass")
    forward: Positive = Field(..., description="sites per second without gradients")
    source: str = Field("", description="how and when it was measured")


class CpuRates(FrozenModel):
    """Rates of CPU cores and durations of the small steps."""

    source: str = Field(..., description="the measured sites and machine")
    image_size: Count = Field(..., description="side of the measured images; rates scale with pixels")
    pack_sites_per_s: Positive = Field(..., description="sites that a core packs per second")
    packed_share: dict[Literal["lz4", "zstd"], Share] = Field(..., description="packed bytes per byte of 8-bit pixels")
    packed_share_16_bit: dict[Literal["lz4", "zstd"], Share] = Field(..., description="the same of 16-bit pixels")
    assign_s_per_1000_wells: NonNegative = Field(..., description="ensemble and assign, seconds per 1,000 wells")
    report_s: NonNegative = Field(..., description="report, seconds")


class PodRates(FrozenModel):
    """Pods of a cluster."""

    start_s: NonNegative = Field(..., description="seconds until a pod works")
    store_mb_per_s: Positive = Field(..., description="1e6 bytes per second that a pod writes to object storage")


class Prices(FrozenModel):
    """Prices in one currency."""

    currency: str
    note: str = Field("", description="whose prices these are")
    spot_factor: Fraction = Field(..., description="a spot GPU's price as a share of the price on demand")
    cpu_core_hour: NonNegative
    storage_gb_month: NonNegative = Field(..., description="1e9 bytes kept for a month")


class Rates(FrozenModel):
    """Everything that a plan assumes besides the run's configuration and screen."""

    gpu: str = Field(..., description="the GPU that is planned for")
    gpus: dict[str, Gpu] = Field(..., min_length=1)
    measured: tuple[MeasuredRate, ...] = Field(..., min_length=1)
    cpu: CpuRates
    pods: PodRates
    prices: Prices

    @model_validator(mode="after")
    def _known_gpus(self) -> Self:
        for name in (self.gpu, *(rate.gpu for rate in self.measured)):
            if name not in self.gpus:
                raise ValueError(f"gpu {name}: unknown; known are {', '.join(self.gpus)}, or add it under gpus")
        return self

    def site_seconds(self, network: NetworkSize, image_size: int) -> tuple[float, float, Basis]:
        """Seconds of one pass of one site on the planned GPU, in training and without gradients, and their basis.

        The nearest measured rate is scaled by multiply-accumulates to the network and image size (`scaled`), and by memory
        bandwidth to the GPU if none was measured on it (`assumed`).
        """

        def distance(rate: MeasuredRate) -> tuple[bool, bool, bool]:
            return rate.gpu != self.gpu, rate.backbone != network.backbone, rate.image_size != image_size

        rate = min(self.measured, key=distance)
        factor, basis = network.macs / (rate.gmacs * 1e9), BASES[0]
        if any(distance(rate)) or abs(factor - 1) >= 0.01:
            basis = "scaled"
        if rate.gpu != self.gpu:
            factor *= self.gpus[rate.gpu].gigabytes_per_s / self.gpus[self.gpu].gigabytes_per_s
            basis = "assumed"
        return factor / rate.training, factor / rate.forward, basis


def read_rates(file: Path | None = None, gpu: str | None = None) -> Rates:
    """The shipped rates, with the fields of a YAML file over them (mappings merged, lists replaced); `gpu` is the GPU to plan for.

    Raises:
        InputError: no such file, an unknown field, a value out of range, or an unknown GPU.
    """
    data, source = read_yaml(SHIPPED), SHIPPED.name
    if file is not None:
        source = f"--throughput {file}"
        if not file.is_file():
            raise InputError(f"{source}: no such file")
        data = _merged(data, read_yaml(file))
    rates = parse(Rates, data, source)
    if gpu is None:
        return rates
    known = {name.lower(): name for name in rates.gpus}
    if gpu.lower() not in known:
        raise InputError(
            f"--gpu {gpu}: unknown; known are {', '.join(rates.gpus)}, others go under gpus in a file for --throughput"
        )
    return rates.model_copy(update={"gpu": known[gpu.lower()]})


def _merged(base: Any, changes: Any) -> Any:
    """Plain data with changes; mappings are merged, everything else is replaced."""
    if not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return changes
    return {**base, **{key: _merged(base.get(key), value) for key, value in changes.items()}}
