"""Properties of the DAG: order, fold isolation, what each step reads, and how often it runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.config import RunConfig
from pipelines.dag import OUTPUTS, DagTask, TaskGraph, TaskOutput, prediction_graph, training_graph

SHAPES = [(), ("mean_teacher.pseudo_labels=none",), ("mean_teacher.enabled=false",)]
shapes = pytest.mark.parametrize("changes", SHAPES)


def outputs(task: DagTask) -> list[tuple[str, TaskOutput]]:
    """Every input of a task by name; a list's items one by one."""
    lists = {name: value if isinstance(value, tuple) else (value,) for name, value in task.inputs.items()}
    return [(name, each) for name, values in lists.items() for each in values]


def ancestors(task: DagTask, graph: TaskGraph) -> set[DagTask]:
    """The tasks that a task's result depends on."""
    found = {graph.tasks[need] for need in task.needs}
    return found.union(*(ancestors(each, graph) for each in found))


def graph_of(changes: tuple[str, ...]) -> TaskGraph:
    return training_graph(RunConfig.load("rxrx1", changes))


@shapes
def test_every_input_is_produced_before_it_is_read(changes: tuple[str, ...]):
    graph = graph_of(changes)
    assert [task.number for task in graph.tasks] == list(range(len(graph.tasks)))
    for task in graph.tasks:
        for _, output in outputs(task):
            assert output.task.number < task.number
            assert output.name in OUTPUTS[output.task.step]


@shapes
def test_folds_meet_first_in_ensemble_and_cell_types_in_the_report(changes: tuple[str, ...]):
    graph = graph_of(changes)
    for task in graph.tasks:
        if task.cell_type is not None:
            assert {each.cell_type for each in ancestors(task, graph)} <= {None, task.cell_type}
        if task.fold is not None:
            assert {each.fold for each in ancestors(task, graph)} <= {None, task.fold}
            assert {each.step for each in ancestors(task, graph) if each.fold is None} == {"normalize"}


@shapes
def test_held_out_labels_reach_the_report_alone_and_held_out_images_no_training(changes: tuple[str, ...]):
    tasks = graph_of(changes).tasks
    readers = {task.step for task in tasks for _, each in outputs(task) if each.name == "holdout_labels"}
    assert readers == {"report"}
    for task in tasks:
        if task.step in ("pretrain", "finetune"):
            assert "holdout" not in {each.name for _, each in outputs(task)}


def test_fan_in_reads_every_fold_and_every_backbone_once():
    for task in graph_of(()).tasks:
        read = {name: [each.task for other, each in outputs(task) if other == name] for name in task.inputs}
        if task.step == "ensemble":
            assert [each.fold for each in read["logits"]] == [0, 1, 2, 3, 4]
            assert {each.cell_type for each in read["logits"]} == {task.cell_type}
        if task.step == "finetune":
            assert [each.backbone for each in read["bases"]] == ["xception", "xception_large"]
            assert {each.fold for each in read["bases"]} == {task.fold}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((), {"pretrain": 10, "finetune": 20, "pseudo_label": 20}),
        (("folds.train=[1, 3]",), {"pretrain": 4, "finetune": 8, "pseudo_label": 8}),
        (("mean_teacher.pseudo_labels=none",), {"pretrain": 10, "finetune": 20, "infer": 20}),
        (("mean_teacher.enabled=false", "backbones=[xception]"), {"pretrain": 5, "infer": 20}),
    ],
)
def test_counts(changes: tuple[str, ...], expected: dict[str, int]):
    graph = graph_of(changes)
    assert graph.counts() == {"normalize": 1, **expected, "ensemble": 4, "assign": 4, "report": 1}
    assert len({task.name for task in graph.tasks}) == len(graph.tasks)


FOLDS = st.dictionaries(
    st.sampled_from(["HUVEC", "RPE", "HEPG2", "U2OS"]),
    st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True),
    min_size=1,
)


@given(FOLDS)
def test_new_plates_are_predicted_by_exactly_the_models_folds(folds: dict[str, list[int]]):
    graph = prediction_graph(folds)
    infers = [task for task in graph.tasks if task.step == "infer"]
    assert {(task.cell_type, task.fold) for task in infers} == {(c, fold) for c in folds for fold in folds[c]}
    assert all(set(task.inputs) == {"screen", "holdout"} for task in infers)
    for task in graph.tasks:
        assert all(need < task.number for need in task.needs)
        if task.step == "ensemble":
            read = [each.task for name, each in outputs(task) if name == "logits"]
            assert read == [each for each in infers if each.cell_type == task.cell_type]
    (report,) = [task for task in graph.tasks if task.step == "report"]
    assert len(ancestors(report, graph)) == len(graph.tasks) - 1
