"""The DAG of a plan is the one that KFP gets, report included."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from components.core.config import RunConfig
from pipelines.plan.dag import GPU_STEPS, planned_tasks
from pipelines.run.display import task_counts
from tests.pipelines.test_same_dag import SHAPES, compiled, step_of


@pytest.mark.parametrize("changes", SHAPES)
def test_steps_and_what_they_wait_for_are_those_of_kfp(tmp_path: Path, changes: tuple[str, ...]):
    config = RunConfig.load("growth", changes)
    outside, inside = compiled(config, tmp_path)
    tasks = planned_tasks(config)
    counts = Counter(task.step for task in tasks)
    assert counts == Counter({step: count for step, count in task_counts(config).items() if count})
    folds = len(config.folds.trained)
    assert counts == Counter(map(step_of, outside)) + Counter({step_of(n): 0 for n in inside}) + Counter(
        {step: folds * count for step, count in Counter(map(step_of, inside)).items()}
    )
    waits: dict[str, set[str]] = {}
    for name, task in {**inside, **outside}.items():
        producers = set(task.get("dependentTasks", []))
        waits.setdefault(step_of(name), set()).update(step_of(p) for p in producers if p in inside or p in outside)
        if name in inside:
            waits[step_of(name)].add("normalize")  # handed into the loop, which waits for it
    waits["ensemble"].add("pseudo_label" if config.has_pseudo_labels else "infer")  # KFP collects it from the loop
    found: dict[str, set[str]] = {}
    for task in tasks:
        found.setdefault(task.step, set()).update(tasks[need].step for need in task.needs)
    assert found == waits


def test_chains_stay_within_their_fold_and_cell_type():
    tasks = planned_tasks(RunConfig.load("rxrx1"))
    for task in tasks:
        assert all(need < task.number for need in task.needs)
        for need in (tasks[n] for n in task.needs):
            if task.step in GPU_STEPS and need.step in GPU_STEPS:
                assert need.fold == task.fold
                assert need.cell_type in (None, task.cell_type)
            if task.step in ("ensemble", "assign") and need.step != "normalize":
                assert need.cell_type == task.cell_type
    assert len({task.name for task in tasks}) == len(tasks) == 60


def test_only_trained_folds_are_planned():
    tasks = planned_tasks(RunConfig.load("rxrx1", ["folds.train=[1, 3]"]))
    assert {task.fold for task in tasks if task.on_gpu} == {1, 3}
