"""Bytes and requests of a plan against what the steps really write and ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from components.core.config import RunConfig
from components.core.learning.checkpoints import Checkpoints
from pipelines.plan.dag import PlannedTask, planned_tasks
from pipelines.plan.machines import read_machines
from pipelines.plan.screens import screen_wells
from pipelines.plan.site_passes import task_passes
from pipelines.plan.speeds import network_costs
from pipelines.plan.transfers import COPIES, MANIFEST_BYTES, Transfer, checkpoints, packing, sites_read, task_transfer
from tests.components.core.learning.tiny_networks import RUN
from tests.pipelines.plan.counted_run import CountedScreen

MACHINES = read_machines()
DEMO = RunConfig.load("demo").backbones[0]
NORMALIZE = PlannedTask(0, "normalize")


def test_packing_asks_as_often_as_normalize_does(tmp_path: Path):
    screen = CountedScreen(tmp_path, RUN)
    wells = screen_wells(RUN, screen.tables)
    planned = packing(RUN, wells, MACHINES)
    # Four puts of the run's record, which a step by hand does not make, and three files that are artifacts.
    assert planned.puts - 4 - 3 == screen.packing.written == len(screen.store.puts)


def test_metadata_of_a_packed_plate_takes_the_planned_bytes(tmp_path: Path):
    screen = CountedScreen(tmp_path, RUN)
    wells = screen_wells(RUN, screen.tables)
    documents = sum(len(body) for key, body in screen.store.objects.items() if key.endswith("zarr.json"))
    nothing = MACHINES.model_copy(
        update={"cpu": MACHINES.cpu.model_copy(update={"packed_share": {"lz4": 0.0, "zstd": 0.0}})}
    )
    manifests = COPIES * MANIFEST_BYTES * wells.sites * len(wells.fold_W)
    assert packing(RUN, wells, nothing).written - manifests == pytest.approx(documents, rel=0.02)


def test_weights_take_the_planned_bytes(tmp_path: Path):
    config = RUN.model_copy(update={"embeddings": RUN.embeddings.model_copy(update={"enabled": False})})
    screen = CountedScreen(tmp_path, config)
    wells = screen_wells(config, screen.tables)
    costs = network_costs(config, MACHINES, wells.classes)
    bases = [screen.pretrain(0, name) for name in costs]
    tuned = screen.finetune(0, "HUVEC", bases)

    def weights(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.glob("*.safetensors"))

    for name, base in zip(costs, bases, strict=True):
        task = PlannedTask(0, "pretrain", 0, None, name)
        written = task_transfer(config, wells, MACHINES, costs, task, []).written
        # Networks of a test are mostly names of their layers.
        assert written < COPIES * weights(base) < 4 * written
    finetune = task_transfer(config, wells, MACHINES, costs, PlannedTask(0, "finetune", 0, "HUVEC"), [])
    assert finetune.written == 2 * COPIES * sum(cost.weight_bytes for cost in costs.values())
    assert weights(tuned) * COPIES > finetune.written
    assert finetune.puts == COPIES * (2 * len(costs) + 2) + 1


def test_checkpoints_come_by_time_and_do_not_stay():
    config = RunConfig.load("rxrx1")
    costs = network_costs(config, MACHINES, 1139)
    pretrain = PlannedTask(0, "pretrain", 0, None, "xception")
    hour = checkpoints(config, costs, pretrain, 3600.0)
    assert hour.written == hour.deleted == 12 * 4 * costs["xception"].weight_bytes
    assert checkpoints(config, costs, pretrain, 299.0) == Transfer()
    seldom = RunConfig.load("rxrx1", ["compute.checkpoint_seconds=1800"])
    assert checkpoints(seldom, costs, pretrain, 3600.0).written * 6 == hour.written
    both = checkpoints(config, costs, PlannedTask(0, "finetune", 0, "RPE"), 3600.0)
    assert both.written == 12 * 4 * sum(cost.weight_bytes for cost in costs.values())
    assert checkpoints(config, costs, PlannedTask(0, "assign", None, "RPE"), 3600.0) == Transfer()


@pytest.mark.parametrize("step", ["pretrain", "finetune"])
def test_a_checkpoint_has_the_planned_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    """Tensors of a state as training saves it, against the plan's."""
    config = RUN.model_copy(update={"backbones": (DEMO,)})
    saved: list[float] = []

    def due(self: Checkpoints) -> bool:
        return True

    def save(self: Checkpoints, state: Mapping[str, Any]) -> None:
        saved.append(tensor_bytes(state))

    monkeypatch.setattr(Checkpoints, "due", due)
    monkeypatch.setattr(Checkpoints, "save", save)
    screen = CountedScreen(tmp_path, config)
    base = screen.pretrain(0, DEMO.name)
    if step == "finetune":
        saved.clear()
        screen.finetune(0, "HUVEC", [base])
    costs = network_costs(config, MACHINES, len(screen.screen.vocabulary.classes))
    task = PlannedTask(0, step, 0, *(("HUVEC", None) if step == "finetune" else (None, DEMO.name)))
    planned = checkpoints(config, costs, task, config.compute.checkpoint_seconds).written
    assert planned == pytest.approx(saved[-1], rel=0.05)


def tensor_bytes(value: Any) -> float:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(map(tensor_bytes, inner))


def usual(*changes: str) -> Transfer:
    config = RunConfig.load("rxrx1", changes)
    wells = screen_wells(config, None)
    found = Transfer()
    for task in planned_tasks(config):
        found += sites_read(config, wells, task, task_passes(config, wells, task))
    return found


def test_memory_for_sites_saves_reading_them_again():
    none, some, more, everything = (usual(f"loader.cache_gib={gib}").sites for gib in (0, 8, 64, 400))
    assert none > some > more > everything
    assert 0.75 < some / none < 0.95  # 5,461 of the 13,000 to 100,000 sites of a task
    config = RunConfig.load("rxrx1")
    wells = screen_wells(config, None)
    # With room for all of them each task reads each of its sites once at most.
    assert everything <= sum(len(wells.fold_W) * wells.sites for task in planned_tasks(config) if task.on_gpu)
    assert none == sum(p.sites for task in planned_tasks(config) for p in task_passes(config, wells, task))


def test_normalize_writes_the_packed_screen_once():
    config = RunConfig.load("rxrx1")
    wells = screen_wells(config, None)
    costs = network_costs(config, MACHINES, wells.classes)
    written = task_transfer(config, wells, MACHINES, costs, NORMALIZE, [])
    pixels = len(wells.fold_W) * wells.sites * 6 * 512**2
    assert 0.44 * pixels < written.written < 0.45 * pixels
    assert written.puts == pytest.approx(3.5 * len(wells.fold_W) * wells.sites, rel=0.02)
    zstd = RunConfig.load("rxrx1", ["pack.codec=zstd"])
    assert task_transfer(zstd, wells, MACHINES, costs, NORMALIZE, []).written < 0.72 * written.written
