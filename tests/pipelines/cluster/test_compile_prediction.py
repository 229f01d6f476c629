"""The pipeline of a prediction for a cluster: a loop per cell type, and the pod settings of a training."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.config import RunConfig
from components.core.storage.run_records import RECIPE
from pipelines.cluster.checks import check_cluster
from pipelines.cluster.compile import compiled, known_lineage
from pipelines.cluster.pod_settings import OPTIONAL_KEYS, REQUIRED_KEYS, resources_of
from pipelines.dag import prediction_graph
from tests.k8s.pod_security import violations
from tests.pipelines.cluster.test_compile import ALL_FIELDS, LIMIT, LINEAGE, Pipeline, kfp_pod
from tests.pipelines.cluster.test_jobs import DIGEST, RECORD

FOLDS = {"HUVEC": [0, 1, 2, 3, 4], "RPE": [0, 1, 2, 3, 4], "HEPG2": [0, 1, 2, 3, 4], "U2OS": [0, 2]}
STEPS = ("normalize", "infer", "ensemble", "assign", "report")


class Prediction(Pipeline):
    """A compiled prediction, read back."""

    def __init__(self, *changes: str, config: str = "rxrx1", record: Any = RECORD) -> None:
        self.config = RunConfig.load(config, changes)
        self.text = compiled(self.config, record, LINEAGE, FOLDS)
        self.spec, self.platform = yaml.safe_load_all(self.text)
        self.executors: dict[str, Any] = self.spec["deploymentSpec"]["executors"]
        self.kubernetes: dict[str, Any] = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        root = self.spec["root"]["dag"]["tasks"]
        self.loops = [task for task in root.values() if "parameterIterator" in task]
        self.tasks = {name: task for name, task in root.items() if task not in self.loops}
        for loop in self.loops:
            self.tasks |= self.spec["components"][loop["componentRef"]["name"]]["dag"]["tasks"]

    def of(self, step: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        named = [name for name in self.executors if step_of(name.removeprefix("exec-")) == step]
        return [(self.executors[name]["container"], self.kubernetes[name]) for name in named]

    def retries(self, step: str) -> list[dict[str, Any]]:
        return [task["retryPolicy"] for name, task in self.tasks.items() if step_of(name) == step]


def step_of(name: str) -> str:
    return re.sub(r"-\d+$", "", name)


pipeline = cache(Prediction)


def test_each_cell_type_has_a_loop_of_its_own_folds():
    whole = pipeline()
    assert [json.loads(loop["parameterIterator"]["items"]["raw"]) for loop in whole.loops] == [
        [{"fold": fold} for fold in folds] for folds in FOLDS.values()
    ]
    assert {loop["iteratorPolicy"]["parallelismLimit"] for loop in whole.loops} == {whole.config.cluster.parallel_folds}
    assert {step: len(whole.of(step)) for step in STEPS} == {**prediction_graph(FOLDS).counts(), "infer": len(FOLDS)}


def test_the_largest_prediction_stays_below_the_limit_and_is_reproducible():
    whole = pipeline(*ALL_FIELDS)
    assert len(whole.text.encode()) < LIMIT
    assert whole.text == Prediction(*ALL_FIELDS).text
    constants = [
        (name, key)
        for name, task in whole.tasks.items()
        for key, value in task["inputs"].get("parameters", {}).items()
        if '{"' in str(value.get("runtimeValue", {}).get("constant", ""))
    ]
    # The configuration of a step that has several tasks is a parameter, and so in the file once.
    assert constants == [("normalize", "config"), ("normalize", "whole_config"), ("report", "config")]


@pytest.mark.parametrize("step", STEPS)
def test_every_task_requests_its_steps_resources(step: str):
    whole = pipeline(*ALL_FIELDS)
    asked = resources_of(whole.config, step)
    predicts = step == "infer"
    for container, kubernetes in whole.of(step):
        resources = container["resources"]
        assert resources["resourceCpuLimit"] == resources["resourceCpuRequest"] == f"{asked.cpu:g}"
        assert resources["resourceMemoryLimit"] == resources["resourceMemoryRequest"] == f"{asked.memory_gib:g}Gi"
        assert ("accelerator" in resources) is predicts
        assert int(kubernetes["activeDeadlineSeconds"]) == asked.timeout_s
        assert kubernetes["podMetadata"]["labels"] == asked.labels
        assert ("kueue.x-k8s.io/queue-name" in asked.labels) is predicts
        assert [t["key"] for t in kubernetes.get("tolerations", [])] == [t.key for t in asked.tolerations]
        assert kubernetes["imagePullSecret"][0]["secretName"] == "registry"
        mounts = {mount["mountPath"] for mount in kubernetes["emptyDirMounts"]}
        assert mounts == {"/tmp", *(["/dev/shm", "/node-cache"] if predicts else [])}
        assert container["image"] == f"registry.example/cellsignal-{'gpu' if predicts else 'cpu'}@{DIGEST}"
        assert violations(kfp_pod(container, kubernetes)) == []
    assert whole.retries(step)
    for policy in whole.retries(step):
        assert policy["maxRetryCount"] == asked.retries


def test_neither_secrets_nor_this_machine_are_in_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-not-to-be-seen")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-not-to-be-seen")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8333")
    monkeypatch.chdir(tmp_path)
    whole = Prediction()
    for kubernetes in whole.kubernetes.values():
        required, optional = kubernetes["secretAsEnv"]
        assert required["secretName"] == optional["secretName"] == whole.config.cluster.store_secret
        for given, keys in ((required, REQUIRED_KEYS), (optional, OPTIONAL_KEYS)):
            assert [(k["secretKey"], k["envVar"]) for k in given["keyToEnv"]] == [(key, key) for key in keys]
    here = (Path(__file__).parents[2], Path.home(), tmp_path)
    for known in ("not-to-be-seen", "127.0.0.1", *map(str, here)):
        assert known not in whole.text


def test_the_recipe_depends_on_the_model_and_the_request_only():
    def recipe(decides: dict[str, Any], *changes: str, record: Any = RECORD) -> str:
        return str(known_lineage(RunConfig.load("rxrx1", changes), record, decides)[RECIPE])

    usual = {"model": "a" * 64, "experiments": [], "any_cell_type": False}
    assert recipe(usual) == recipe(usual, "cluster.parallel_folds=1", "local.threads=2")
    others = [
        recipe({**usual, "model": "b" * 64}),
        recipe({**usual, "experiments": ["HUVEC-25"]}),
        recipe(usual, "predict.views=1"),
        recipe(usual, record=None),
    ]
    assert len({recipe(usual), *others}) == 5


def test_only_the_steps_of_a_prediction_are_checked():
    changes = ["cluster.steps.pretrain.memory_gib=4", "cluster.steps.pretrain.spot=true"]
    config = RunConfig.load("rxrx1", changes)
    assert any("pretrain" in remark for remark in check_cluster(config))
    assert check_cluster(config, STEPS) == []
    few = RunConfig.load("rxrx1", ["cluster.steps.infer.memory_gib=4"])
    assert any(remark.startswith("infer needs about") for remark in check_cluster(few, STEPS))
