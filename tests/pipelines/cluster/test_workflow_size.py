"""The estimated size of a workflow: agreement with a measured one, and what it depends on."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.cluster.compile import compiled
from pipelines.cluster.workflow_size import LIMIT, WorkflowSize, workflow_size
from pipelines.dag import prediction_graph, training_graph
from tests.pipelines.cluster.test_jobs import RECORD

MEASURED = Path(__file__).parent / "golden" / "measured.yaml.gz"
"""A pipeline of 60 tasks whose run was measured on Kubeflow Pipelines 2.17.0 with Argo 4.0.5, without a retry."""


def size(*changes: str) -> WorkflowSize:
    config = RunConfig.load("rxrx1", changes)
    return compiled(config, training_graph(config), RECORD.references, {})[1]


def test_agrees_with_a_measured_workflow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.cluster.workflow_size.RETRIES", 0)
    found = workflow_size(gzip.decompress(MEASURED.read_bytes()).decode())
    assert found.tasks == 60
    assert found.nodes == pytest.approx(382_684, rel=0.03)
    assert found.specification == pytest.approx(154_404, rel=0.03)


def test_a_task_takes_half_of_the_measured_bytes_in_the_file_and_two_thirds_in_argo():
    config = RunConfig.load("rxrx1")
    text, size = compiled(config, training_graph(config), RECORD.references, {})
    measured = gzip.decompress(MEASURED.read_bytes())
    assert len(text.encode()) < len(measured) / 2
    assert size.total < 0.75 * workflow_size(measured.decode()).total


def test_grows_with_tasks_and_retries():
    sizes = [size("folds.train=[0]"), size("folds.train=[0, 1]"), size()]
    assert [each.tasks for each in sizes] == [20, 30, 60]
    assert sizes[0].nodes < sizes[1].nodes < sizes[2].nodes
    assert sizes[0].specification == pytest.approx(sizes[2].specification, rel=0.01), "folds are a loop"
    steps = ("pretrain", "finetune", "pseudo_label")
    assert size(*(f"cluster.steps.{step}.retries=0" for step in steps)).nodes < 0.95 * sizes[2].nodes


def test_a_prediction_has_the_tasks_of_its_loops():
    graph = prediction_graph({"HUVEC": [0, 1, 2], "RPE": [1]})
    _, found = compiled(RunConfig.load("rxrx1"), graph, RECORD.references, {})
    assert found.tasks == len(graph.tasks) == 1 + 4 + 2 + 2 + 1


def test_ten_folds_of_two_backbones_and_six_cell_types_fit_and_a_larger_workflow_is_refused():
    cell_types = "screen.cell_types=[HUVEC, RPE, HEPG2, U2OS, A549, MCF7]"
    large = size("folds.count=10", cell_types)
    assert large.tasks == 154
    assert large.total < 0.9 * LIMIT
    with pytest.raises(
        InputError, match=r"a workflow of 294 tasks would need about 1,\d{3} kB in Argo.*cluster\.group fold"
    ):
        size("folds.count=20", cell_types)
