"""What a step requests by the configuration, and remarks on settings that do not fit together."""

from __future__ import annotations

import pytest

from components.core.config import RunConfig
from components.core.config.cluster import StepsConfig
from pipelines.cluster.checks import check_cluster
from pipelines.cluster.pod_settings import Resources, resources_of
from pipelines.dag import GPU_STEPS, STEPS, prediction_graph, training_graph


def resources(step: str, *changes: str) -> Resources:
    return resources_of(RunConfig.load("rxrx1", changes), step)


def remarks(config: RunConfig, resubmits: bool = False) -> list[str]:
    return check_cluster(config, training_graph(config), resubmits)


def test_every_step_has_default_resources_and_only_networks_get_gpus():
    assert set(STEPS) == StepsConfig.model_fields.keys()
    for step in STEPS:
        assert resources(step).own.gpus == (1 if step in GPU_STEPS else 0)
        assert bool(resources(step).queue_label) == (step in GPU_STEPS)
    assert remarks(RunConfig.load("rxrx1")) == remarks(RunConfig.load("demo")) == []


def test_any_step_with_a_gpu_gets_the_settings_of_gpu_nodes():
    changes = ("cluster.steps.assign.gpus=1", "cluster.gpu_nodes={pool: gpu}", "cluster.cpu_nodes={pool: cpu}")
    assign = resources("assign", *changes)
    assert assign.node_selector == {"pool": "gpu"}
    assert [toleration["key"] for toleration in assign.tolerations] == ["nvidia.com/gpu"]
    assert assign.queue_label == {"kueue.x-k8s.io/queue-name": "cellsignal"}
    assert resources("report", *changes).node_selector == {"pool": "cpu"}
    assert resources("report", *changes, "cluster.steps.report.node_selector={}").node_selector == {}
    assert remarks(RunConfig.load("rxrx1", changes)) == [
        "cluster.steps.assign.gpus is 1, but this step computes on CPUs alone"
    ]


@pytest.mark.parametrize(
    ("step", "changes", "spot"),
    [
        ("pretrain", (), False),
        ("pretrain", ("cluster.spot=true",), True),
        ("pretrain", ("cluster.spot=true", "cluster.steps.pretrain.spot=false"), False),
        ("report", ("cluster.spot=true",), False),
        ("report", ("cluster.steps.report.spot=true",), True),
    ],
)
def test_spot_nodes_are_for_steps_with_gpus_unless_a_step_overrides_it(step: str, changes: tuple[str, ...], spot: bool):
    keys = [toleration["key"] for toleration in resources(step, *changes).tolerations]
    assert ("cloud.google.com/gke-spot" in keys) == spot
    config = RunConfig.load("rxrx1", changes)
    assert any(f"{step}" in remark and "spot nodes" in remark for remark in remarks(config)) == spot
    assert remarks(config, resubmits=True) == []


def test_threads_are_shared_among_the_processes_of_a_step():
    assert resources("pretrain").environment["OMP_NUM_THREADS"] == "8"
    assert resources("pretrain", "cluster.steps.pretrain.gpus=4").environment["OMP_NUM_THREADS"] == "2"
    assert resources("pretrain", "cluster.steps.pretrain.cpu=0.5").environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("changes", "remark_start"),
    [
        (["cluster.steps.pretrain.gpus=4"], "pretrain needs about 5"),
        (["loader.cache_gib=40"], "pretrain needs about 4"),
        (["compute.processes=1", "cluster.steps.pretrain.gpus=2"], "cluster.steps.pretrain.gpus is 2, but compute"),
        (["cluster.steps.finetune.gpus=2", "cluster.steps.finetune.shm_gib=0"], "cluster.steps.finetune.shm_gib is 0, and NCCL"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together_get_a_remark(changes: list[str], remark_start: str):
    found = remarks(RunConfig.load("rxrx1", changes))
    assert any(remark.startswith(remark_start) for remark in found), found


def test_only_the_steps_that_run_are_checked():
    config = RunConfig.load("rxrx1", ["cluster.steps.pretrain.memory_gib=4"])
    assert any("pretrain" in remark for remark in remarks(config))
    assert check_cluster(config, prediction_graph({"HUVEC": [0]})) == []
