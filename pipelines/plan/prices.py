"""What a plan costs by a price table. Pure arithmetic; the prices are in machines.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.plan.machines import Machines
from pipelines.plan.transfers import Transfer


@dataclass(frozen=True)
class Cost:
    """Money, in prices.currency.

    Attributes:
        gpu: all GPU-hours on demand; pods give their GPU back when they end, so that their number makes no difference.
        gpu_spot: the same on spot GPUs, no work lost to a preemption.
        cpu: cores of the pods without a GPU; those beside a GPU are in its price.
        storage_month: what the run leaves in object storage, for a month.
        requests: puts and gets.
    """

    gpu: float
    gpu_spot: float
    cpu: float
    storage_month: float
    requests: float

    @property
    def total(self) -> float:
        """With GPUs on demand."""
        return self.gpu + self.cpu + self.storage_month + self.requests

    @property
    def total_spot(self) -> float:
        """With spot GPUs."""
        return self.total - self.gpu + self.gpu_spot


def cost_of(machines: Machines, gpu_hours: float, core_hours: float, traffic: Transfer) -> Cost:
    """Prices a plan.

    Args:
        machines: the GPU and the prices.
        gpu_hours: of all GPU pods, starting included.
        core_hours: of all pods without a GPU.
        traffic: of all tasks; what is written stays, but for checkpoints.
    """
    prices = machines.prices
    gpu = gpu_hours * machines.gpus[machines.gpu].price_per_hour
    return Cost(
        gpu=gpu,
        gpu_spot=gpu * prices.spot_factor,
        cpu=core_hours * prices.cpu_core_hour,
        storage_month=(traffic.written - traffic.deleted) / 1e9 * prices.storage_gb_month,
        requests=(traffic.puts * prices.put_per_1000 + traffic.gets * prices.get_per_1000) / 1000,
    )
