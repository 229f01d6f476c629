"""The DAG as KFP compiles it: what feeds what, how often, and how large it is."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from components.assign.step import AssignConfig
from components.core.config import RunConfig, parse
from components.core.learning.step_settings import InferSettings, MeanTeacherSettings, PretrainSettings
from components.normalize.config import NormalizeConfig
from pipelines.dag import prediction_graph, step_configs, training_graph
from pipelines.kfp_pipeline import local_pipeline

ARGO_LIMIT = 128 * 1024
PARSERS = {
    "normalize": NormalizeConfig,
    "pretrain": PretrainSettings,
    "finetune": MeanTeacherSettings,
    "pseudo_label": MeanTeacherSettings,
    "infer": InferSettings,
    "assign": AssignConfig,
    "report": RunConfig,
}


class Compiled:
    """A compiled pipeline, read back from its YAML."""

    def __init__(self, file: Path) -> None:
        self.size = file.stat().st_size
        self.spec = next(yaml.safe_load_all(file.read_text(encoding="utf-8")))
        self.root: dict[str, Any] = self.spec["root"]["dag"]["tasks"]
        loops = [name for name, task in self.root.items() if "parameterIterator" in task]
        assert len(loops) == 1, loops
        self.loop = loops[0]
        component = self.spec["components"][self.root[self.loop]["componentRef"]["name"]]["dag"]
        self.fold: dict[str, Any] = component["tasks"]
        self._leaving: dict[str, Any] = component["outputs"]["artifacts"]

    def collected(self, task: str, name: str) -> str:
        """The task inside the loop whose artifacts an input of a task outside of it collects."""
        output = self.root[task]["inputs"]["artifacts"][name]["taskOutputArtifact"]
        assert output["producerTask"] == self.loop
        (selector,) = self._leaving[output["outputArtifactKey"]]["artifactSelectors"]
        assert selector["outputArtifactKey"] == "logits"
        return str(selector["producerSubtask"])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory):
    @cache
    def build(*changes: str) -> Compiled:
        file = tmp_path_factory.mktemp("pipeline") / "training.yaml"
        config = RunConfig.load("demo", changes)
        compiler.Compiler().compile(local_pipeline(config, training_graph(config)), str(file))
        return Compiled(file)

    return build


def constant(task: Mapping[str, Any], name: str) -> Any:
    return task["inputs"]["parameters"][name]["runtimeValue"]["constant"]


def producer(task: Mapping[str, Any], name: str) -> str:
    return str(task["inputs"]["artifacts"][name]["taskOutputArtifact"]["producerTask"])


def by_step(names: Iterable[str]) -> Counter[str]:
    return Counter(re.sub(r"-\d+$", "", name).replace("-", "_") for name in names)


ONE_BACKBONE = (
    "backbones=[{name: only, stem: 8, entry: [16, 32], middle_blocks: 0, exit: [32, 32, 32]}]",
    "screen.cell_types=[HUVEC]",
    "screen.holdout_experiments=[]",
    "simulate.labelled={HUVEC: 3}",
    "simulate.unlabelled={HUVEC: 1}",
)


@pytest.mark.parametrize(("changes", "backbones", "cells"), [((), 2, 4), (ONE_BACKBONE, 1, 1)])
def test_one_loop_over_folds_and_each_step_as_often_as_the_design_says(compiled, changes, backbones, cells):
    dag = compiled(*changes)
    assert by_step(dag.fold) == {"pretrain": backbones, "finetune": cells, "pseudo_label": cells}
    outside = by_step(name for name in dag.root if name != dag.loop)
    assert outside == {"normalize": 1, "ensemble": cells, "assign": cells, "report": 1}


def test_each_cell_type_has_its_chain_from_both_backbones_to_its_names(compiled):
    dag = compiled()
    backbone = {name: constant(task, "backbone") for name, task in dag.fold.items() if name.startswith("pretrain")}
    assert sorted(backbone.values()) == ["xception_slim", "xception_small"]
    cells = []
    for assign, task in dag.root.items():
        if not assign.startswith("assign"):
            continue
        last = dag.collected(producer(task, "logits"), "logits")
        tuned = producer(dag.fold[last], "base")
        cells.append(constant(dag.fold[last], "cell_type"))
        assert constant(dag.fold[tuned], "cell_type") == cells[-1]
        fed = [backbone[producer(dag.fold[tuned], name)] for name in ("base", "second_base")]
        assert fed == ["xception_small", "xception_slim"]
    assert sorted(cells) == ["HEPG2", "HUVEC", "RPE", "U2OS"]


def test_a_single_backbone_leaves_the_second_out(compiled):
    dag = compiled(*ONE_BACKBONE)
    assert "second_base" not in dag.fold["finetune"]["inputs"]["artifacts"]
    assert producer(dag.fold["finetune"], "base") == "pretrain"


def test_every_task_of_a_fold_takes_the_loops_fold(compiled):
    dag = compiled("folds.count=3")
    for name, task in dag.fold.items():
        fold = task["inputs"]["parameters"]["fold"]
        assert fold["parameterExpressionSelector"] == 'parseJson(string_value)["fold"]', name
    assert dag.spec["root"]["inputDefinitions"]["parameters"]["jobs"]["defaultValue"] == [{"fold": f} for f in range(3)]


def test_the_report_reads_the_names_of_all_cell_types_and_the_held_out_labels_go_nowhere_else(compiled):
    dag = compiled()
    inputs = dag.root["report"]["inputs"]
    answers = {
        key: value["taskOutputParameter"]["producerTask"]
        for key, value in inputs["parameters"].items()
        if "taskOutputParameter" in value
    }
    assert sorted(answers.values()) == sorted(name for name in dag.root if name.startswith("assign"))
    listed = constant(dag.root["report"], "uris")
    assert [re.search(r"assign(-\d+)?-Output", item).group() for item in listed] == [  # type: ignore[union-attr]
        f"assign{suffix}-Output" for suffix in ("", "-2", "-3", "-4")
    ]
    readers = [
        name
        for name, task in {**dag.root, **dag.fold}.items()
        if "holdout_labels" in json.dumps(task["inputs"].get("artifacts", {})) or "truth" in json.dumps(task["inputs"])
    ]
    assert readers == ["report"]


def test_five_folds_of_two_backbones_and_four_cell_types_stay_below_the_limit(compiled):
    dag = compiled("folds.count=5")
    assert dag.size < ARGO_LIMIT
    # A fold more is an entry of a list, not a copy of its tasks.
    assert abs(dag.size - compiled("folds.count=3").size) < 200


def test_no_task_installs_anything_and_every_step_has_its_image(compiled):
    executors = compiled().spec["deploymentSpec"]["executors"]
    for name, executor in executors.items():
        container = executor["container"]
        assert "pip" not in " ".join(container["command"]), name
        trains = re.match(r"exec-(pretrain|finetune|pseudo-label|infer)", name)
        assert container["image"].startswith("cellsignal-gpu:" if trains else "cellsignal-cpu:"), name


def test_folds_run_side_by_side_as_configured(compiled):
    for parallel in (1, 2):
        dag = compiled(f"local.parallel_folds={parallel}")
        assert dag.root[dag.loop]["iteratorPolicy"]["parallelismLimit"] == parallel


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("folds.count=5",),
        ("folds.train=[1]",),
        ONE_BACKBONE,
        ("mean_teacher.enabled=false",),
        ("mean_teacher.pseudo_labels=none",),
    ],
)
def test_kfp_has_as_many_tasks_as_the_dag(compiled, changes):
    config, dag = RunConfig.load("demo", changes), compiled(*changes)
    expected = by_step(name for name in dag.root if name != dag.loop)
    for step, count in by_step(dag.fold).items():
        expected[step] += count * len(config.folds.trained)
    assert training_graph(config).counts() == expected


def test_a_name_with_capitals_dots_and_underscores_compiles(compiled):
    dag = compiled("name=Screen_2.b")
    assert dag.spec["pipelineInfo"]["name"] == "cellsignal-screen-2-b"


@pytest.mark.parametrize("step", PARSERS)
def test_a_steps_section_is_what_its_parser_takes_and_says_the_same_as_the_run(step: str):
    config = RunConfig.load("demo")
    read = parse(PARSERS[step], json.loads(step_configs(config)[step]), source=step)
    for field in type(read).model_fields:
        assert getattr(read, field) == getattr(config, field)


TRAIN = {"pretrain", "finetune", "pseudo_label", "infer"}


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ("screen.sites=1", {"normalize", "assign"} | TRAIN),
        ("pack.level=3", {"normalize"}),
        ("store.prefix=x", {"normalize"}),
        ("folds.count=3", {"normalize"}),
        ("pretrain.epochs=25", {"pretrain"}),
        ("mean_teacher.cycles=2", {"finetune", "pseudo_label"}),
        ("predict.views=1", TRAIN),
        ("head.margin=0.2", TRAIN),
        ("seed=2", TRAIN),
        ("batch_norm.domain=plate", TRAIN),
        ("prior.min_margin=1.0", {"assign"} | TRAIN),
        ("simulate.effect=0.5", set()),
        ("local.threads=1", set()),
        ("name=other", set()),
    ],
)
def test_a_change_reaches_the_steps_that_read_it_and_no_other(change: str, steps: set[str]):
    before, after = step_configs(RunConfig.load("demo")), step_configs(RunConfig.load("demo", [change]))
    # The report shows the whole configuration, so it sees every change.
    assert {step for step in before if before[step] != after[step]} == steps | {"report"}


@pytest.mark.parametrize(
    ("change", "steps", "bases"),
    [
        ("mean_teacher.enabled=false", {"pretrain": 2, "infer": 4}, {"pretrain", "pretrain-2"}),
        ("mean_teacher.pseudo_labels=none", {"pretrain": 2, "finetune": 4, "infer": 4}, {"finetune"}),
    ],
)
def test_training_that_ends_earlier_predicts_by_infer(compiled, change, steps, bases):
    dag = compiled(change)
    assert by_step(dag.fold) == steps
    last = [dag.collected(name, "logits") for name in dag.root if name.startswith("ensemble")]
    assert len(set(last)) == 4
    assert all(name.startswith("infer") for name in last)
    inputs = dag.fold["infer"]["inputs"]["artifacts"]
    assert {producer(dag.fold["infer"], name) for name in inputs if "base" in name} == bases


def test_only_the_folds_to_train_are_trained(compiled):
    dag = compiled("folds.count=5", "folds.train=[1, 3]")
    jobs = dag.spec["root"]["inputDefinitions"]["parameters"]["jobs"]["defaultValue"]
    assert jobs == [{"fold": 1}, {"fold": 3}]


FOLDS = {"HUVEC": [0, 1, 2], "RPE": [1]}


def test_new_plates_have_a_loop_of_each_cell_types_own_folds_and_no_training(tmp_path: Path):
    file = tmp_path / "prediction.yaml"
    compiler.Compiler().compile(
        local_pipeline(RunConfig.load("demo"), prediction_graph(FOLDS), predicts=True), str(file)
    )
    spec = next(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    root = spec["root"]["dag"]["tasks"]
    loops = {name: task for name, task in root.items() if "parameterIterator" in task}
    found = {}
    for task in loops.values():
        ((name, infer),) = spec["components"][task["componentRef"]["name"]]["dag"]["tasks"].items()
        assert name.startswith("infer")
        assert not {"base", "second_base"} & set(infer["inputs"]["artifacts"])
        found[constant(infer, "cell_type")] = yaml.safe_load(task["parameterIterator"]["items"]["raw"])
    assert found == {cell_type: [{"fold": fold} for fold in folds] for cell_type, folds in FOLDS.items()}
    outside = by_step(name for name in root if name not in loops)
    assert outside == {"normalize": 1, "ensemble": 2, "assign": 2, "report": 1}
    assert prediction_graph(FOLDS).counts() == {"normalize": 1, "infer": 4, "ensemble": 2, "assign": 2, "report": 1}
