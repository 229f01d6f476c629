"""GPUs, pods and prices that a plan assumes: machines.yaml beside this file, and what --throughput puts in its place.

Apart from the run's configuration, so that no price or rate is part of any step's key: changing one makes nothing run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from components.core.config import Count, Fraction, FrozenModel, NonNegative, Positive
from components.core.config.file import parse, read_yaml
from components.core.errors import InputError

SHIPPED = Path(__file__).with_name("machines.yaml")
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Gpu(FrozenModel):
    """One kind of GPU, by its data sheet."""

    teraflops: Positive = Field(..., description="peak of dense bfloat16 tensor operations, 1e12 a second")
    gigabytes_per_s: Positive = Field(..., description="memory bandwidth, 1e9 bytes a second")
    memory_gb: Positive = Field(..., description="memory, 1e9 bytes")
    price_per_hour: NonNegative = Field(..., description="on demand, in prices.currency")


class MeasuredRate(FrozenModel):
    """Sites a second that somebody measured."""

    gpu: str = Field(..., description="one of gpus")
    backbone: str = Field(..., description="name of the configured backbone")
    image_size: Count = Field(..., description="side of the images, pixels")
    pass_: Literal["training", "forward"] = Field(
        ...,
        alias="pass",
        description="training: forward and backward of the student, its view included; forward: no gradients",
    )
    sites_per_s: Positive = Field(..., description="sites a second on one GPU")
    source: str = Field("", description="where and when, for people")


class Assumed(FrozenModel):
    """How rates follow from data sheets where none are measured."""

    compute_share: Share = Field(..., description="share of the peak operations that a dense layer reaches")
    memory_share: Share = Field(..., description="share of the memory bandwidth that a layer reaches")
    view_traffic: NonNegative = Field(
        ..., description="reads and writes of each image value that a training view makes"
    )
    factor: Annotated[float, Field(ge=1.0)] = Field(..., description="how far off the rates may be, either way")


class Cpu(FrozenModel):
    """Rates of CPU cores, measured, and of small steps."""

    source: str = Field(..., description="what was measured, and on what")
    image_size: Count = Field(..., description="side of the measured images; rates go by pixels")
    pack_sites_per_s: Positive = Field(..., description="sites that a core packs a second")
    read_sites_per_s: Positive = Field(..., description="packed sites that a core verifies and decodes a second")
    packed_share: dict[Literal["lz4", "zstd"], Share] = Field(
        ..., description="packed bytes a byte of pixels, by codec"
    )
    assign_s_per_1000_wells: NonNegative = Field(..., description="ensemble and assign, seconds for 1,000 wells")
    report_s: NonNegative = Field(..., description="report, seconds")


class GpuPod(FrozenModel):
    """What a pod with a GPU has beside it."""

    cores: Count
    memory_gib: Positive


class Pods(FrozenModel):
    """Pods of a cluster."""

    gpu_pod: GpuPod
    normalize_cores: Count = Field(..., description="cores of normalize's pod")
    cpu_pod_cores: Count = Field(..., description="cores of the other pods without a GPU")
    start_s: NonNegative = Field(..., description="seconds before a pod works")
    loader_threads: Count = Field(..., description="cores that read and decode sites for a training step")
    store_mb_per_s: Positive = Field(..., description="1e6 bytes a second that a pod gets from object storage")


class KnownNetwork(FrozenModel):
    """A network whose layers are not known here."""

    gmacs: Positive = Field(..., description="1e9 multiply-accumulates of a forward pass")
    image_size: Count = Field(..., description="side of the images that gmacs are of")
    parameters: Count = Field(..., description="trained numbers")
    embedding: Count = Field(2048, description="numbers of an embedding")


class Prices(FrozenModel):
    """What things cost."""

    currency: str
    note: str = Field("", description="whose prices these are, for people")
    spot_factor: Fraction = Field(..., description="a spot GPU's price as a share of the price on demand")
    cpu_core_hour: NonNegative
    storage_gb_month: NonNegative = Field(..., description="1e9 bytes kept for a month")
    put_per_1000: NonNegative = Field(..., description="1,000 writing requests")
    get_per_1000: NonNegative = Field(..., description="1,000 reading requests")


class Machines(FrozenModel):
    """Everything that a plan assumes beside the run's configuration and screen."""

    gpu: str = Field(..., description="the GPU that is planned for")
    gpus: dict[str, Gpu] = Field(..., min_length=1)
    measured: tuple[MeasuredRate, ...] = ()
    assumed: Assumed
    cpu: Cpu
    pods: Pods
    networks: dict[str, KnownNetwork] = Field(default_factory=dict, description="by backbone name")
    prices: Prices

    @model_validator(mode="after")
    def _known(self) -> Self:
        for number, rate in enumerate(self.measured):
            if rate.gpu not in self.gpus:
                raise ValueError(f"measured.{number}.gpu: there is no {rate.gpu!r}; known are {', '.join(self.gpus)}")
        if self.gpu not in self.gpus:
            raise ValueError(f"gpu: there is no {self.gpu!r}; known are {', '.join(self.gpus)}, or add it under gpus")
        return self


def read_machines(file: Path | None = None, gpu: str | None = None) -> Machines:
    """The shipped assumptions, with a file's fields in their place.

    Args:
        file: YAML with any of the fields; mappings are joined, lists replaced.
        gpu: the kind to plan for; None for the file's.

    Raises:
        InputError: no such file, an unknown field, a value out of its range, or an unknown GPU.
    """
    data = read_yaml(SHIPPED)
    source = str(SHIPPED.name)
    if file is not None:
        if not file.is_file():
            raise InputError(f"--throughput {file}: no such file")
        given = read_yaml(file)
        source = f"--throughput {file}"
        if not isinstance(given, Mapping):
            raise InputError(f"{source}: a mapping was expected, got {type(given).__name__}")
        data = _joined(data, given)
    machines = parse(Machines, data, source)
    if gpu is None:
        return machines
    gpu = next((name for name in machines.gpus if name.lower() == gpu.lower()), gpu)
    if gpu not in machines.gpus:
        raise InputError(
            f"--gpu {gpu}: unknown; known are {', '.join(machines.gpus)}, others go under gpus in a file for --throughput"
        )
    return machines.model_copy(update={"gpu": gpu})


def _joined(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _joined(base[key], value) for key, value in given.items() if _mappings(base.get(key), value)}
    return {**base, **given, **both}


def _mappings(*values: object) -> bool:
    return all(isinstance(value, Mapping) for value in values)
