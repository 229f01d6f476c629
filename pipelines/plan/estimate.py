"""The whole plan of a run: seconds, traffic and schedule of every task, and what will not fit. Pure; printing is in output.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from components.core.config import RunConfig
from pipelines.plan.comparison import StepComparison, compare
from pipelines.plan.dag import PlannedTask, planned_tasks
from pipelines.plan.limits import warnings_of
from pipelines.plan.machines import Machines
from pipelines.plan.measured_run import MeasuredRun
from pipelines.plan.network_cost import NetworkCost
from pipelines.plan.prices import Cost, cost_of
from pipelines.plan.scheduling import Schedule, critical_path, enough_pods, schedule, ways_to_the_end
from pipelines.plan.screens import ScreenWells
from pipelines.plan.site_passes import Passes, processes, refreshes, task_passes
from pipelines.plan.speeds import ASSUMED, MEASURED, SCALED, GpuSpeed, Seconds, Speed, network_costs, weakest
from pipelines.plan.transfers import Transfer, checkpoints, packed_site_bytes, task_transfer

MEASURED_FACTOR = 1.25
"""How far off rates of a like run may be: the tasks of a demo run were within a quarter of their plan."""


@dataclass(frozen=True)
class TaskEstimate:
    """One task.

    Attributes:
        task: which.
        passes: its site passes.
        compute: seconds of them, or of CPU work.
        reading: seconds in which the sites that its memory lacks are fetched and decoded, beside computing; zero where
            the rates are of a run, which read too.
        start: seconds before it works.
        gpus: of its pod, which share its work.
        transfer: its traffic with object storage.
    """

    task: PlannedTask
    passes: tuple[Passes, ...]
    compute: Seconds
    reading: float
    start: float
    gpus: int
    transfer: Transfer

    @property
    def work(self) -> float:
        """Seconds of work: computing and reading go side by side, GPUs of a pod too."""
        return max(self.compute.value, self.reading) / max(1, self.gpus)

    @property
    def seconds(self) -> float:
        """Start and work."""
        return self.start + self.work


@dataclass(frozen=True)
class RunPlan:
    """What a run will take.

    Attributes:
        config: the run.
        wells: its screen.
        machines: GPU, pods and prices.
        costs: of its networks.
        speed: what turns its passes into seconds.
        rates: where those are from, for people.
        tasks: estimates, by number.
        compared: how well a finished run's rates describe it; empty without one.
    """

    config: RunConfig
    wells: ScreenWells
    machines: Machines
    costs: Mapping[str, NetworkCost]
    speed: Speed
    rates: str
    tasks: tuple[TaskEstimate, ...]
    compared: tuple[StepComparison, ...] = ()

    @cached_property
    def dag(self) -> list[PlannedTask]:
        """The tasks themselves."""
        return [estimate.task for estimate in self.tasks]

    @cached_property
    def seconds(self) -> list[float]:
        """Of each task."""
        return [estimate.seconds for estimate in self.tasks]

    def pass_seconds(self, backbone: str, kind: Literal["training", "forward"]) -> Seconds:
        """One pass of a site through a network, as in pretrain."""
        training = kind == "training"
        return self.speed.seconds("pretrain", Passes(kind, kind, backbone, int(training), int(not training), 1))

    def of(self, step: str) -> list[TaskEstimate]:
        """The tasks of a step."""
        return [estimate for estimate in self.tasks if estimate.task.step == step]

    @cached_property
    def gpu_seconds(self) -> float:
        """GPU-seconds of all pods."""
        return sum(estimate.seconds * estimate.gpus for estimate in self.tasks)

    @cached_property
    def core_seconds(self) -> float:
        """Of the cores of all pods without a GPU."""
        pods = self.machines.pods
        return sum(
            estimate.seconds * (pods.normalize_cores if estimate.task.step == "normalize" else pods.cpu_pod_cores)
            for estimate in self.tasks
            if not estimate.task.on_gpu
        )

    @cached_property
    def basis(self) -> str:
        """What the GPU-hours rest on: the least certain of their parts."""
        return weakest([estimate.compute.basis for estimate in self.tasks if estimate.task.on_gpu])

    @cached_property
    def factor(self) -> float:
        """How far off the GPU-hours may be, either way."""
        least = MEASURED_FACTOR if self.basis == MEASURED else max(MEASURED_FACTOR, self.machines.assumed.factor)
        ratios = [step.planned / step.taken for step in self.compared]
        return max([least, *ratios, *(1 / ratio for ratio in ratios)])

    @cached_property
    def transfer(self) -> Transfer:
        """Of all tasks."""
        return sum((estimate.transfer for estimate in self.tasks), Transfer())

    @cached_property
    def packed_bytes(self) -> float:
        """The packed screen, held-out experiments included."""
        return len(self.wells.fold_W) * self.wells.sites * packed_site_bytes(self.config, self.machines)

    @cached_property
    def critical_path(self) -> list[int]:
        """The chain of tasks that the run cannot be shorter than."""
        return critical_path(self.dag, self.seconds)

    @cached_property
    def shortest(self) -> float:
        """Seconds of the critical path."""
        return max(ways_to_the_end(self.dag, self.seconds))

    @cached_property
    def enough(self) -> int:
        """The number of GPUs beyond which more do not help."""
        return self.pod_gpus * enough_pods(self.dag, self.seconds)

    @property
    def pod_gpus(self) -> int:
        """GPUs of a pod."""
        return processes(self.config)

    def on(self, gpus: int) -> Schedule:
        """The schedule on a number of GPUs, at least those of a pod."""
        return schedule(self.dag, self.seconds, gpus // self.pod_gpus)

    @cached_property
    def cost(self) -> Cost:
        """By the price table."""
        return cost_of(self.machines, self.gpu_seconds / 3600, self.core_seconds / 3600, self.transfer)

    @cached_property
    def warnings(self) -> list[str]:
        """What will not fit, or wait."""
        computing = {estimate.task: estimate.compute.value for estimate in self.tasks}
        fetched = {estimate.task: (estimate.transfer, estimate.reading) for estimate in self.tasks}
        return warnings_of(self.config, self.wells, self.machines, self.costs, computing, fetched)

    def refresh_range(self) -> tuple[float, float, float]:
        """Refreshes of a pseudo_label task: fewest, expected and most, over fold and cell type."""
        found = [
            refreshes(self.config, estimate.task.cell_type or "", _validates(estimate.passes))
            for estimate in self.of("pseudo_label")
        ]
        if not found:
            return 0.0, 0.0, 0.0
        expected = sum(r.expected for r in found) / len(found)
        return float(min(r.least for r in found)), expected, float(max(r.most for r in found))


def make_plan(config: RunConfig, wells: ScreenWells, machines: Machines, run: MeasuredRun | None = None) -> RunPlan:
    """Plans a run.

    Args:
        config: the run.
        wells: its screen.
        machines: GPU, pods and prices.
        run: a finished run whose rates are taken; None for those of `machines`.

    Raises:
        InputError: a network without a rate, or a fold without wells to train on.
    """
    costs = network_costs(config, machines, wells.classes)
    speed: Speed
    if run is None:
        gpu = GpuSpeed.of(machines, costs, config)
        kinds = {gpu.pass_seconds(name, kind).basis for name in costs for kind in ("training", "forward")}
        speed, rates = gpu, f"one {machines.gpu}, {_told(kinds)}"
    else:
        own = run.speed(machines, costs, config)
        how = "measured" if own.same else "scaled by multiply-accumulates and pixels to these networks"
        speed, rates = own, f"the run in {run.folder}, {how}"
    estimates = []
    for task in planned_tasks(config):
        passes = tuple(task_passes(config, wells, task))
        transfer = task_transfer(config, wells, machines, costs, task, passes)
        if task.on_gpu:
            compute = [speed.seconds(task.step, p) for p in passes]
            computing = sum(seconds.value for seconds in compute)
            total = Seconds(computing, weakest([seconds.basis for seconds in compute if seconds.value]))
        else:
            total = _cpu_seconds(config, wells, machines, task, run)
        reading = 0.0 if run is not None or not task.on_gpu else _reading_seconds(config, machines, transfer)
        gpus = processes(config) if task.on_gpu else 0
        start = machines.pods.start_s + (speed.start_s if task.on_gpu else 0.0)
        estimate = TaskEstimate(task, passes, total, reading, start, gpus, transfer)
        saved = checkpoints(config, costs, task, estimate.work)
        estimates.append(replace(estimate, transfer=transfer + saved))
    compared = compare(run, machines) if run else []
    return RunPlan(config, wells, machines, costs, speed, rates, tuple(estimates), tuple(compared))


def _told(kinds: set[str]) -> str:
    """What a GPU's rates rest on, in words."""
    if kinds == {ASSUMED}:
        return "assumed from its data sheet, not measured"
    return " and ".join(kind for kind in (MEASURED, SCALED, ASSUMED) if kind in kinds)


def basis_of(found: Sequence[TaskEstimate]) -> str:
    """What the seconds of some tasks rest on."""
    return weakest([estimate.compute.basis for estimate in found])


def _cpu_seconds(
    config: RunConfig, wells: ScreenWells, machines: Machines, task: PlannedTask, run: MeasuredRun | None
) -> Seconds:
    """Seconds of a step without networks."""
    cpu = machines.cpu
    if run is not None and run.config.screen.image_size == config.screen.image_size:
        taken = run.cpu_seconds(task.step)
        if taken is not None:
            # Each of these steps works through wells, with all of its tasks together through each of them once.
            tasks = 1 if task.step in ("normalize", "report") else len(config.screen.cell_types)
            scale = len(wells.fold_W) / len(run.wells.fold_W)
            return Seconds(taken * scale / tasks, MEASURED)
    if task.step == "normalize":
        rate = cpu.pack_sites_per_s * machines.pods.normalize_cores * (cpu.image_size / config.screen.image_size) ** 2
        sites = len(wells.fold_W) * wells.sites
        writing = sites * packed_site_bytes(config, machines) / (machines.pods.store_mb_per_s * 1e6)
        return Seconds(max(sites / rate, writing), SCALED if sites / rate > writing else ASSUMED)
    if task.step == "report":
        return Seconds(cpu.report_s, ASSUMED)
    # ensemble is a mean of arrays, assign nearly all of it.
    share = 0.05 if task.step == "ensemble" else 0.95
    thousands = int(wells.of_type(task.cell_type or "").sum()) / 1000
    return Seconds(share * cpu.assign_s_per_1000_wells * thousands, ASSUMED)


def _reading_seconds(config: RunConfig, machines: Machines, transfer: Transfer) -> float:
    """Seconds in which a task's loader fetches and decodes its sites, whichever takes longer."""
    rate = machines.cpu.read_sites_per_s * machines.pods.loader_threads
    decoding = transfer.sites / rate * (config.screen.image_size / machines.cpu.image_size) ** 2
    fetching = transfer.sites * packed_site_bytes(config, machines) / (machines.pods.store_mb_per_s * 1e6)
    return max(decoding, fetching)


def _validates(passes: Sequence[Passes]) -> bool:
    return any(p.purpose == "validation" and p.forward for p in passes)
