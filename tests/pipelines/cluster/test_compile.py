"""cellsignal compile: the pipeline for a cluster. After an intended change of the golden file's content:

python -m tests.pipelines.cluster.test_compile
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from components.core.config import RunConfig
from components.core.storage.run_records import RECIPE
from pipelines.cli import app, main
from pipelines.cluster import compile as compiling
from pipelines.cluster.checks import on_cluster
from pipelines.cluster.compile import TAGS, compiled, images_of, known_lineage
from pipelines.cluster.pod_settings import OPTIONAL_KEYS, REQUIRED_KEYS, resources_of
from pipelines.dag import prediction_graph, training_graph
from pipelines.images.record import write_images
from tests.k8s.manifests import built, one
from tests.k8s.pod_security import violations
from tests.pipelines.cluster.test_jobs import DIGEST, RECORD
from tests.pipelines.tiny_run import CONFIG

GOLDEN = Path(__file__).parent / "golden" / "pipeline.yaml"
LINEAGE = {"recipe": "0" * 64, "code_version": "golden", "warnings": []}
LIMIT = 60 * 1024
FOLDS = {"HUVEC": [0, 1, 2, 3, 4], "RPE": [0, 1, 2, 3, 4], "HEPG2": [0, 1, 2, 3, 4], "U2OS": [0, 2]}
SMALL = ("screen.cell_types=[HUVEC]", "screen.holdout_experiments=[]")
ALL_FIELDS = (
    "cluster.spot=true", "cluster.gpu_nodes={nvidia.com/gpu.product: NVIDIA-A100-SXM4-80GB}",
    "cluster.image_pull_secrets=[registry]", "loader.node_cache=/node-cache",
)  # fmt: skip


def golden_text() -> str:
    file = GOLDEN.with_name("tiny.yaml")
    config = on_cluster(RunConfig.load(str(file)))
    return compiled(config, training_graph(config), RECORD.references, LINEAGE)[0]


class Pipeline:
    """A compiled pipeline, read back: a training, or with `folds` a prediction."""

    def __init__(self, *changes: str, record: Any = RECORD, folds: Any = None) -> None:
        self.config = RunConfig.load("rxrx1", changes)
        graph = prediction_graph(folds) if folds else training_graph(self.config)
        self.text, _ = compiled(self.config, graph, record.references, LINEAGE)
        self.spec, self.platform = yaml.load_all(self.text, yaml.CSafeLoader)
        self.executors: dict[str, Any] = self.spec["deploymentSpec"]["executors"]
        self.kubernetes: dict[str, Any] = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        root = self.spec["root"]["dag"]["tasks"]
        self.loops = [task for task in root.values() if "parameterIterator" in task]
        self.tasks: dict[str, Any] = {name: task for name, task in root.items() if task not in self.loops}
        for loop in self.loops:
            self.tasks |= self.spec["components"][loop["componentRef"]["name"]]["dag"]["tasks"]

    def executor(self, task: str) -> str:
        """The name of a task's executor."""
        return str(self.spec["components"][self.tasks[task]["componentRef"]["name"]]["executorLabel"])


def step_of(name: str) -> str:
    return re.sub(r"-\d+$", "", name).replace("-", "_")


@cache
def training(*changes: str) -> Pipeline:
    return Pipeline(*changes)


@cache
def prediction(*changes: str) -> Pipeline:
    return Pipeline(*changes, folds=FOLDS)


def test_the_golden_file_wherever_it_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The same bytes each time; neither credentials nor this machine are in the file."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:8333")
    monkeypatch.chdir(tmp_path)
    assert golden_text() == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("pipeline", [training, prediction])
def test_tasks_of_a_step_share_one_component_which_runs_the_images_own_code(pipeline: Callable[..., Pipeline]):
    whole = pipeline(*ALL_FIELDS)
    assert {whole.executor(name) for name in whole.tasks} == whole.executors.keys() == whole.kubernetes.keys()
    assert {name: step_of(whole.executor(name)) for name in whole.tasks} == {
        name: f"exec_{step_of(name)}" for name in whole.tasks
    }
    assert len(whole.executors) == len({step_of(name) for name in whole.tasks})
    for name, executor in whole.executors.items():
        step, container = step_of(name).removeprefix("exec_"), executor["container"]
        assert container["args"] == ["--executor_input", "{{$}}", "--function_to_execute", step]
        module = f"components.{step}.component"
        assert container["command"] == ["python", "-m", "components.kfp_task", "--component", module]
    assert len(whole.text.encode()) < LIMIT


def test_each_cell_type_of_a_prediction_has_a_loop_over_its_own_folds_and_no_training():
    whole = prediction(*ALL_FIELDS)
    found = {}
    for loop in whole.loops:
        ((name, infer),) = whole.spec["components"][loop["componentRef"]["name"]]["dag"]["tasks"].items()
        assert step_of(name) == "infer"
        assert not {"base", "second_base"} & infer["inputs"]["artifacts"].keys()
        cell_type = infer["inputs"]["parameters"]["cell_type"]["runtimeValue"]["constant"]
        found[cell_type] = json.loads(loop["parameterIterator"]["items"]["raw"])
    assert found == {cell_type: [{"fold": fold} for fold in folds] for cell_type, folds in FOLDS.items()}
    assert {loop["iteratorPolicy"]["parallelismLimit"] for loop in whole.loops} == {whole.config.cluster.parallel_folds}


@pytest.mark.parametrize("pipeline", [training, prediction])
def test_every_task_gets_its_steps_pod_settings(pipeline: Callable[..., Pipeline]):
    """The golden file has every field."""
    whole = pipeline(*ALL_FIELDS)
    for name, task in whole.tasks.items():
        settings = resources_of(whole.config, step_of(name))
        executor = whole.executor(name)
        container, kubernetes = whole.executors[executor]["container"], whole.kubernetes[executor]
        assert container["resources"]["resourceCpuLimit"] == f"{settings.own.cpu:g}"
        assert ("accelerator" in container["resources"]) == (settings.own.gpus > 0)
        assert kubernetes["podMetadata"]["labels"] == {**settings.labels, **settings.queue_label}
        assert container["image"] == f"registry.example/cellsignal-{'gpu' if settings.own.gpus else 'cpu'}@{DIGEST}"
        assert violations(kfp_pod(container, kubernetes)) == []
        assert violations(kfp_pod(container, {**kubernetes, "securityContext": {}})) == ["main may run as root"]
        # Argo retries nothing after backoffMaxDuration has passed since the first attempt began, so it covers all attempts.
        policy, retries = task["retryPolicy"], settings.own.retries
        wait, longest = (int(policy[f"backoff{name}"].rstrip("s")) for name in ("Duration", "MaxDuration"))
        assert (policy["maxRetryCount"], wait, policy["backoffFactor"]) == (retries, 120, 1.0)
        assert longest > (retries + 1) * settings.timeout_s + retries * wait + 30 * 24 * 3600


def test_tasks_are_cached_only_with_pinned_images():
    def cached(whole: Pipeline) -> set[str]:
        return {name for name, task in whole.tasks.items() if task["cachingOptions"].get("enableCache")}

    whole, unpinned = training(*ALL_FIELDS), Pipeline(*SMALL, record=images_of(TAGS))
    assert cached(whole) == whole.tasks.keys() - {"report"}, "the truth that report reads may change under its name"
    assert cached(unpinned) == set()
    assert cached(training(*SMALL, "cluster.caching=false", "cluster.store_secret=null")) == set()
    assert unpinned.executors["exec-pretrain"]["container"]["image"] == "cellsignal-gpu:0.1.0"


def test_secrets_and_queues_have_the_names_in_the_manifests():
    whole, objects = training(*ALL_FIELDS), built("base")
    role = one(objects, "Role", whole.config.cluster.service_account)
    (readable,) = (rule["resourceNames"] for rule in role["rules"] if rule["resources"] == ["secrets"])
    queue = one(objects, "LocalQueue", whole.config.cluster.queue or "")["metadata"]["name"]
    for name, kubernetes in whole.kubernetes.items():
        required, optional = kubernetes["secretAsEnv"]
        assert [required["secretName"]] == [optional["secretName"]] == readable
        assert (required["optional"], optional["optional"]) == (False, True)
        for given, keys in ((required, REQUIRED_KEYS), (optional, OPTIONAL_KEYS)):
            assert [(k["secretKey"], k["envVar"]) for k in given["keyToEnv"]] == [(key, key) for key in keys]
        labels = kubernetes["podMetadata"]["labels"]
        on_gpu = "accelerator" in whole.executors[name]["container"]["resources"]
        assert labels.get("kueue.x-k8s.io/queue-name") == (queue if on_gpu else None)


def test_without_a_secret_pods_have_no_credentials_of_their_own():
    whole = training(*SMALL, "cluster.caching=false", "cluster.store_secret=null")
    assert whole.kubernetes.keys() == whole.executors.keys()
    assert not any("secretAsEnv" in kubernetes for kubernetes in whole.kubernetes.values())
    assert "AWS_" not in whole.text


def kfp_pod(container: dict[str, Any], kubernetes: dict[str, Any]) -> dict[str, Any]:
    """The pod that KFP 2.17 makes of a task, by its documentation of set_security_context.

    Its own containers beside the step (launcher, Argo's executor) come from its templates and are not in it.
    """
    given = kubernetes.get("securityContext", {})
    context = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
        **{key: given[key] for key in ("runAsUser", "runAsGroup", "runAsNonRoot") if key in given},
    }
    volumes = [{"name": m["volumeName"], "emptyDir": {}} for m in kubernetes["emptyDirMounts"]]
    others = kubernetes.keys() - {
        "securityContext", "emptyDirMounts", "secretAsEnv", "podMetadata", "activeDeadlineSeconds", "tolerations",
        "nodeSelector", "imagePullSecret", "fieldPathAsEnv",
    }  # fmt: skip
    assert not others, f"what do {others} mount?"
    return {
        "containers": [{"name": "main", "image": container["image"], "securityContext": context}],
        "volumes": volumes,
    }


def test_the_command_writes_the_file_and_warns(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_images(RECORD, tmp_path / "images.json")
    changes = ("--set", "cluster.spot=true", "--set", "screen.image_size=512", "--set", "backbones=[xception]")
    done = CliRunner().invoke(app, ["compile", "--config", str(config_file), *changes])
    assert done.exit_code == 0, done.output
    assert "warning: backbones.0.weights is null: xception starts from random weights" in done.output
    assert "warning: pretrain, finetune, pseudo_label may run on spot nodes" in done.output
    assert "pipeline.yaml: " in done.output
    assert re.search(r"\d+ tasks, about \d+ of 1048 kB in Argo", done.output), done.output
    spec, _ = yaml.load_all((tmp_path / "pipeline.yaml").read_text(), yaml.CSafeLoader)
    lineage = json.loads(spec["root"]["inputDefinitions"]["parameters"]["lineage"]["defaultValue"])
    assert lineage["image_digests"] == RECORD.references
    assert f"the images are built from commit {'0' * 40}" in lineage["warnings"][-1]
    assert all(f"warning: {warning}" in done.output for warning in lineage["warnings"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.json", "pipeline.yaml", "tiny.yaml"]


def test_uncommitted_changes_are_a_warning_in_the_lineage(monkeypatch):
    for version, warned in (("0.1.0 (commit 000000000000)", False), ("0.1.0 (commit 000000000000+changes)", True)):
        monkeypatch.setattr(compiling, "code_version", lambda version=version: version)
        found = known_lineage(RunConfig.load("demo"), RECORD)
        assert (found["code_version"], bool(found["warnings"])) == (version, warned)
        assert not warned or "uncommitted" in found["warnings"][0]


def test_a_recipe_depends_on_what_affects_results_and_a_predictions_on_model_and_request():
    def recipe(*changes: str, record: Any = RECORD, **decides: Any) -> str:
        return str(known_lineage(RunConfig.load("rxrx1", changes), record, decides)[RECIPE])

    elsewhere = ("cluster.steps.finetune.gpus=8", "cluster.parallel_folds=1", "local.threads=2")
    assert recipe() == recipe(*elsewhere)
    usual = {"model": "a" * 64, "experiments": [], "any_cell_type": False}
    assert recipe(**usual) == recipe(*elsewhere, **usual)
    tags = images_of(TAGS)
    trainings = [recipe(), recipe("seed=3"), recipe(record=tags)]
    predictions = [recipe(**usual), recipe("predict.views=1", **usual), recipe(record=tags, **usual)]
    predictions += [recipe(**{**usual, **other}) for other in ({"model": "b" * 64}, {"experiments": ["HUVEC-25"]})]
    assert len({*trainings, *predictions}) == 8


REFUSED = [
    (["--images", "broken.json"], "--images broken.json: not a record of images; `cellsignal images push` rewrites it; or give"),
    (["--images", "broken.json", "--out", "none/pipeline.yaml"], "--out none/pipeline.yaml: there is no folder none; create it"),
    (["--out", "pipeline.json"], "--out pipeline.json: Kubeflow requires a file name that ends in .yaml"),
    (["--set", "cluster.steps.pretrain.shm_gib=64"], "cluster.steps.pretrain.shm_gib: 64 GiB lie in the pod's memory"),
    (["--config", "rxrx1", "--set", "folds.count=30"], "cluster: a workflow of 310 tasks would need about 1,"),
    (["--set", "compute.processes=4"], "compute.processes is 4, but cluster.steps.pretrain.gpus 1"),
    (["--set", "loader.node_cache=cache"], "loader.node_cache: cache is mounted into pods as an empty folder; give an absolute"),
    (["--set", "backbones.0.weights=w.pt"], "backbones[0].weights: w.pt is a file of this machine; upload it"),
    (["--set", "init_from=folder.yaml"], "init_from: folder.yaml is a folder of this machine; give the run's key"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, monkeypatch, capsys, arguments, message: str):
    monkeypatch.chdir(tmp_path)
    write_images(RECORD, tmp_path / "images.json")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("sys.argv", ["cellsignal", "compile", "--config", "tiny.yaml", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert message in shown.err
    assert sorted(tmp_path.rglob("*")) == before


if __name__ == "__main__":
    GOLDEN.write_text(golden_text(), encoding="utf-8")
