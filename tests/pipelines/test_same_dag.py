"""The DAG that worker processes run is the one that KFP gets: same steps, same settings, same feeding."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from components.core.config import RunConfig
from pipelines.studies.in_process.tasks import Output, Plan, Task, add_training
from pipelines.training import build_training

SHAPES = [(), ("mean_teacher.pseudo_labels=none",), ("mean_teacher.enabled=false",)]


def compiled(config: RunConfig, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tasks outside of the loop over folds, and inside."""
    file = folder / "training.yaml"
    compiler.Compiler().compile(build_training(config), str(file))
    spec = next(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    root = spec["root"]["dag"]["tasks"]
    (loop,) = (name for name, task in root.items() if "parameterIterator" in task)
    inside = spec["components"][root[loop]["componentRef"]["name"]]["dag"]["tasks"]
    return {name: task for name, task in root.items() if name != loop}, inside


def literals(task: dict[str, Any]) -> dict[str, Any]:
    given = task["inputs"].get("parameters", {})
    return {
        name: value["runtimeValue"]["constant"]
        for name, value in given.items()
        if "constant" in value.get("runtimeValue", {})
    }


def step_of(name: str) -> str:
    return name.rstrip("-0123456789").replace("-", "_")


def key(step: str, given: dict[str, Any]) -> tuple[str, ...]:
    return (step, *(str(given.get(name)) for name in ("config", "cell_type", "backbone")))


@pytest.mark.parametrize("changes", SHAPES)
def test_steps_and_their_settings_agree(tmp_path, changes):
    config = RunConfig.load("growth", changes)
    outside, inside = compiled(config, tmp_path)
    expected = Counter(key(step_of(name), literals(task)) for name, task in inside.items())
    folds = len(config.folds.trained)
    expected = Counter({what: count * folds for what, count in expected.items()})
    expected += Counter(
        key(step_of(name), literals(task)) for name, task in outside.items() if step_of(name) != "report"
    )
    tasks = add_training(Plan("code"), config).tasks
    found = Counter(key(task.step, dict(task.literals)) for task in tasks if task.step != "simulate")
    assert found == expected


@pytest.mark.parametrize("changes", SHAPES)
def test_tasks_read_the_same_steps(tmp_path, changes):
    config = RunConfig.load("growth", changes)
    outside, inside = compiled(config, tmp_path)
    expected: dict[str, set[str]] = {}
    for name, task in {**inside, **outside}.items():
        for given in task["inputs"].get("artifacts", {}).values():
            if "taskOutputArtifact" in given:
                expected.setdefault(step_of(name), set()).add(step_of(given["taskOutputArtifact"]["producerTask"]))
            else:  # handed into the loop, from outside of it
                expected.setdefault(step_of(name), set()).add("normalize")
    last = "pseudo_label" if config.has_pseudo_labels else "infer"
    expected["ensemble"] = {"normalize", last}  # KFP collects it from the loop
    del expected["report"]
    found: dict[str, set[str]] = {}
    for task in add_training(Plan("code"), config).tasks:
        for need in task.needs:
            if need.step != "simulate":
                found.setdefault(task.step, set()).add(need.step)
    assert found == expected


def test_equal_tasks_of_two_configurations_are_one():
    plan = Plan("code")
    one = add_training(plan, RunConfig.load("growth"))
    two = add_training(plan, RunConfig.load("growth", ["predict.views=1"]))

    def of(run, *steps: str) -> set[str]:
        return {task.digest for task in run.tasks if task.step in steps}

    # Views matter to the step that predicts, and to what reads it.
    assert of(one, "simulate", "normalize", "pretrain", "finetune") == of(
        two, "simulate", "normalize", "pretrain", "finetune"
    )
    for step in ("pseudo_label", "ensemble", "assign"):
        assert not of(one, step) & of(two, step)
    other = add_training(Plan("other code"), RunConfig.load("growth"))
    assert not {task.digest for task in one.tasks} & {task.digest for task in other.tasks}


def test_every_task_comes_after_what_it_needs():
    plan = Plan("code")
    add_training(plan, RunConfig.load("growth"))
    seen: set[str] = set()
    for digest, task in plan.tasks.items():
        assert {need.digest for need in task.needs} <= seen
        seen.add(digest)
    assert isinstance(next(iter(plan.tasks.values())), Task)
    assert isinstance(add_training(plan, RunConfig.load("growth")).truth, Output)
