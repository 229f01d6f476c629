"""The DAG as KFP compiles it: what feeds what, how often, and how large it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from components.core.config import RunConfig
from pipelines.dag import DagTask, TaskOutput, training_graph
from pipelines.kfp_pipeline import local_pipeline


class Compiled:
    """A compiled pipeline, read back from its YAML."""

    def __init__(self, file: Path) -> None:
        self.spec = next(yaml.load_all(file.read_text(encoding="utf-8"), yaml.CSafeLoader))
        self.root: dict[str, Any] = self.spec["root"]["dag"]["tasks"]
        (self.loop,) = (name for name, task in self.root.items() if "parameterIterator" in task)
        component = self.spec["components"][self.root[self.loop]["componentRef"]["name"]]["dag"]
        self.fold: dict[str, Any] = component["tasks"]
        self.tasks = {**self.fold, **{name: task for name, task in self.root.items() if name != self.loop}}
        self._leaving: dict[str, Any] = component["outputs"]["artifacts"]

    def source(self, task: str, name: str) -> tuple[str, str]:
        """The task and the output that an artifact input reads; of a loop's tasks, from outside of it, those of all folds."""
        read = self.tasks[task]["inputs"]["artifacts"][name]
        if "componentInputArtifact" in read:
            read = self.root[self.loop]["inputs"]["artifacts"][read["componentInputArtifact"]]
        output = read["taskOutputArtifact"]
        if output["producerTask"] != self.loop:
            return output["producerTask"], output["outputArtifactKey"]
        (selector,) = self._leaving[output["outputArtifactKey"]]["artifactSelectors"]
        return selector["producerSubtask"], selector["outputArtifactKey"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory):
    @cache
    def build(*changes: str) -> Compiled:
        file = tmp_path_factory.mktemp("pipeline") / "training.yaml"
        config = RunConfig.load("demo", changes)
        compiler.Compiler().compile(local_pipeline(config, training_graph(config), containers=True), str(file))
        return Compiled(file)

    return build


def constant(task: Mapping[str, Any], name: str) -> Any:
    return task["inputs"]["parameters"][name]["runtimeValue"]["constant"]


FIVE_FOLDS = ("folds.count=5", "folds.train=[1, 3, 4]", "local.parallel_folds=2")
ONE_BACKBONE = (
    "name=Screen_2.b",
    "local.parallel_folds=1",
    "backbones=[{name: only, stem: 8, entry: [16, 32], middle_blocks: 0, exit: [32, 32, 32]}]",
    "screen.cell_types=[HUVEC]",
    "screen.holdout_experiments=[]",
    "simulate.labelled={HUVEC: 3}",
    "simulate.unlabelled={HUVEC: 1}",
)
SHAPES = [(), ONE_BACKBONE, ("mean_teacher.enabled=false",), ("mean_teacher.pseudo_labels=none",)]


@pytest.mark.parametrize("changes", SHAPES)
def test_tasks_read_what_the_tasks_of_the_dag_read(compiled, changes):
    config = RunConfig.load("demo", changes)
    dag, names = compiled(*changes), dict[DagTask, str]()
    for task in training_graph(config).tasks:
        if task.fold in (None, config.folds.trained[0]):  # which stands for all in the loop
            number = sum(each.step == task.step for each in names)
            names[task] = task.step.replace("_", "-") + (f"-{number + 1}" if number else "")
    assert set(names.values()) == dag.tasks.keys()
    for task, compiled_name in names.items():
        assert (compiled_name in dag.fold) == (task.fold is not None)
        if task.on_gpu:
            labels = {"cell_type": task.cell_type, "backbone": task.backbone}
            assert all(constant(dag.tasks[compiled_name], name) == value for name, value in labels.items() if value)
        read = {}
        for name, value in task.inputs.items():
            keys = ("base", "second_base") if name == "bases" else (name,)
            for key, output in zip(keys, (value,) if isinstance(value, TaskOutput) else value, strict=False):
                read[key] = names[output.task], output.name
        listed = read.pop("uris", None)
        artifacts = dag.tasks[compiled_name]["inputs"].get("artifacts", {})
        assert {name: dag.source(compiled_name, name) for name in artifacts} == read
        assert (listed is not None) == (task.step == "report")
    answers = [re.search(r"(assign(-\d+)?)-Output", item).group(1) for item in constant(dag.root["report"], "uris")]  # type: ignore[union-attr]
    assert answers == [name for task, name in names.items() if task.step == "assign"]


def test_the_truth_reaches_the_report_alone(compiled):
    assert [name for name, task in compiled().tasks.items() if "truth" in json.dumps(task["inputs"])] == ["report"]


def test_one_loop_has_the_folds_to_train_side_by_side_as_configured(compiled):
    for changes, folds, parallel in ((FIVE_FOLDS, [1, 3, 4], 2), (ONE_BACKBONE, [0, 1], 1)):
        dag = compiled(*changes)
        jobs = dag.spec["root"]["inputDefinitions"]["parameters"]["jobs"]["defaultValue"]
        assert jobs == [{"fold": fold} for fold in folds]
        assert dag.root[dag.loop]["iteratorPolicy"]["parallelismLimit"] == parallel
        for name, task in dag.fold.items():
            fold = task["inputs"]["parameters"]["fold"]
            assert fold["parameterExpressionSelector"] == 'parseJson(string_value)["fold"]', name


def test_a_name_with_capitals_dots_and_underscores_compiles(compiled):
    assert compiled(*ONE_BACKBONE).spec["pipelineInfo"]["name"] == "cellsignal-screen-2-b"


def test_only_normalize_and_report_are_given_the_configuration(compiled):
    dag = compiled("head.margin=0.123")
    assert {name for name, task in dag.tasks.items() if "0.123" in json.dumps(task)} == {"normalize", "report"}
    assert "0.123" not in json.dumps(dag.spec["root"]["inputDefinitions"])
