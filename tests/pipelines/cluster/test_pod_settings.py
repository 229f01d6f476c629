"""What a step requests by the configuration, and remarks on settings that do not fit together."""

from __future__ import annotations

import pytest

from components.core.config import RunConfig
from components.core.config.cluster import StepsConfig
from pipelines.cluster.checks import check_cluster, steps_of
from pipelines.cluster.pod_settings import cpu_quantity, memory_quantity, resources_of
from pipelines.dag import GPU_STEPS, STEPS


def asked(step: str, *changes: str):
    return resources_of(RunConfig.load("rxrx1", changes), step)


def test_every_step_has_default_resources_and_only_networks_get_gpus():
    assert set(STEPS) == StepsConfig.model_fields.keys()
    for step in STEPS:
        assert asked(step).gpus == (1 if step in GPU_STEPS else 0)
        assert (asked(step).queue is None) == (step not in GPU_STEPS)
    assert check_cluster(RunConfig.load("rxrx1")) == check_cluster(RunConfig.load("demo")) == []


def test_a_partly_configured_step_keeps_its_other_defaults():
    given = StepsConfig.model_validate({"pretrain": {"memory_gib": 64}})
    assert given.pretrain == StepsConfig().pretrain.model_copy(update={"memory_gib": 64.0})
    assert given.model_copy(update={"pretrain": StepsConfig().pretrain}) == StepsConfig()
    assert asked("finetune", "cluster.steps.pretrain.memory_gib=64").memory_gib == 32


def test_any_step_with_a_gpu_gets_the_settings_of_gpu_nodes():
    changes = ("cluster.steps.assign.gpus=1", "cluster.gpu_nodes={pool: gpu}", "cluster.cpu_nodes={pool: cpu}")
    assert dict(asked("assign", *changes).node_selector) == {"pool": "gpu"}
    assert [t.key for t in asked("assign", *changes).tolerations] == ["nvidia.com/gpu"]
    assert asked("assign", *changes).queue == "cellsignal"
    assert dict(asked("report", *changes).node_selector) == {"pool": "cpu"}
    assert dict(asked("report", *changes, "cluster.steps.report.node_selector={}").node_selector) == {}
    assert check_cluster(RunConfig.load("rxrx1", changes)) == [
        "cluster.steps.assign.gpus is 1, but this step computes on CPUs alone"
    ]


def test_spot_nodes_are_for_steps_with_gpus_unless_a_step_overrides_it():
    def spot(step: str, *changes: str) -> bool:
        return "cloud.google.com/gke-spot" in [t.key for t in asked(step, *changes).tolerations]

    assert not spot("pretrain")
    assert spot("pretrain", "cluster.spot=true")
    assert not spot("report", "cluster.spot=true")
    assert spot("report", "cluster.steps.report.spot=true")
    assert not spot("pretrain", "cluster.spot=true", "cluster.steps.pretrain.spot=false")


def test_threads_are_shared_among_the_processes_of_a_step():
    assert asked("pretrain").environment["OMP_NUM_THREADS"] == "8"
    assert asked("pretrain", "cluster.steps.pretrain.gpus=4").environment["OMP_NUM_THREADS"] == "2"
    assert asked("pretrain", "cluster.steps.pretrain.cpu=0.5").environment["OMP_NUM_THREADS"] == "1"


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
    found = check_cluster(RunConfig.load("rxrx1", changes))
    assert any(remark.startswith(remark_start) for remark in found), found


def test_a_configurations_steps_are_those_of_its_dag():
    def of(*changes: str) -> set[str]:
        return set(steps_of(RunConfig.load("demo", changes)))

    assert of() == set(STEPS) - {"infer"}
    assert of("mean_teacher.pseudo_labels=none") == set(STEPS) - {"pseudo_label"}
    assert of("mean_teacher.enabled=false") == set(STEPS) - {"pseudo_label", "finetune"}


def test_quantities():
    assert [cpu_quantity(cores) for cores in (8.0, 0.5, 12.5)] == ["8", "500m", "12500m"]
    assert [memory_quantity(gib) for gib in (32.0, 0.5, 1.5)] == ["32Gi", "512Mi", "1536Mi"]


def test_only_the_steps_that_run_are_checked():
    config = RunConfig.load("rxrx1", ["cluster.steps.pretrain.memory_gib=4"])
    assert any("pretrain" in remark for remark in check_cluster(config))
    assert check_cluster(config, ["normalize", "infer"]) == []
