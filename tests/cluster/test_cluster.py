"""Runs on a real cluster, undisturbed and disturbed: what stand-ins cannot show. See docs/cluster-test.md."""

from __future__ import annotations

import csv
import json
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.config import RunConfig
from components.core.storage.object_store import ObjectStore
from pipelines.cluster.jobs import ACCOUNT
from pipelines.dag import training_graph
from tests.cluster.conftest import NAME, POLL, Cluster, Following, upload
from tests.k8s.manifests import K8S
from tests.tiny_screen import TinyScreen

pytestmark = pytest.mark.cluster

LONG = ["pretrain.epochs=1000", "compute.checkpoint_seconds=5"]
"""Changes after which pretraining takes a minute or two, so that it can be disturbed."""
KILL = """
import os, signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
    except OSError:
        continue
    if b"python" in os.path.basename(words[0]) and b"components.kfp_task" in words:
        os.kill(int(pid), signal.SIGKILL)
        print(pid)
"""
"""Kills the process of a step in its container; Kubeflow's launcher around it lives on and reports the failure."""
SECOND_BACKBONE = (
    "backbones=[{name: tiny, stem: 4, second_stride: 2, entry: [4, 8], middle_blocks: 0, exit: [8, 8, 8]}, "
    + ("{name: other, stem: 4, second_stride: 2, entry: [4, 8], middle_blocks: 0, exit: [8, 8, 8]}]")
)


def sets(*changes: str) -> list[str]:
    """Changes of the configuration as options."""
    return [word for change in changes for word in ("--set", change)]


def started_at(pod: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"].replace("Z", "+00:00"))


def check_results(folder: Path) -> None:
    """A whole run's results: no fold is missing."""
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["out_of_fold"]["raw"]["overall"] <= 1
    assert "partial" not in metrics
    assert {"report.html", "predictions.csv", "lineage.json"} <= {path.name for path in folder.iterdir()}


def test_doctor_finds_nothing_missing(cluster: Cluster):
    options = ["--config", str(cluster.config), "--endpoint", cluster.endpoint, "--json"]
    options += ["--images", cluster.images] if cluster.pinned else []
    found = cluster.read(["doctor", *options])
    assert found["ok"], found
    levels = {each["subject"]: each["level"] for each in found["findings"]}
    assert (levels["Kubeflow Pipelines"], levels["object store"]) == ("ok", "ok")
    assert levels["service account"] == "ok", found


def test_the_server_accepts_the_manifests(cluster: Cluster):
    kueue = bool(cluster.kubectl("api-resources", "--api-group=kueue.x-k8s.io", "-o", "name"))
    overlay = "single-user" if cluster.namespace == "kubeflow" else "gpu" if kueue else "dev"
    if cluster.namespace not in ("kubeflow", "cellsignal") or (overlay == "single-user" and not kueue):
        pytest.skip(f"no overlay is for namespace {cluster.namespace}, with Kueue {kueue}")
    cluster.kubectl("apply", "--dry-run=server", "-k", K8S / "overlays" / overlay)
    name = ("configmap", "workflow-controller-configmap", "--namespace=kubeflow")
    if cluster.kubectl("get", *name, "--ignore-not-found", "-o", "name"):
        file = K8S / "retry-always" / "workflow-controller.patch.yaml"
        cluster.kubectl("patch", *name, "--dry-run=server", "--patch-file", file)


def test_an_account_that_follows_runs_may_read_pods_only(cluster: Cluster):
    account = f"--as=system:serviceaccount:{cluster.namespace}:cellsignal-follow"
    for verb, kind, answer in (("list", "pods", "yes"), ("get", "secrets", "no"), ("delete", "pods", "no")):
        assert cluster.kubectl("auth", "can-i", verb, kind, account, check=False).strip() == answer, (verb, kind)


def test_a_run_trains_and_reports(cluster: Cluster, trained: Path):
    check_results(trained)
    key = json.loads((trained / "lineage.json").read_text())["run"]
    state = cluster.read(["status", "--run", f"{cluster.store}/runs/{key}", "--json"])
    assert {state["state"], *(task["state"] for task in state["tasks"])} == {"finished"}
    assert all(task["node"] and task["pod"] for task in state["tasks"] if task["attempts"])
    assert key in {run["key"] for run in cluster.read(["runs", "--store", cluster.store, "--json"])["runs"]}


def test_retrain_promotes_the_finished_run_and_predict_uses_it(cluster: Cluster, screen: str, trained: Path):
    options = ("--screen", screen, "--allow-no-holdout", "--out", cluster.folder / "retrained")
    cluster.run(cluster.submission("retrain", *options))
    listed = cluster.read(["models", "list", "--store", cluster.store, "--json"])
    assert listed["champion"]["generation"] == 1
    out = cluster.folder / "predicted"
    model = ("--model", f"{cluster.store}/models/champion", "--experiments", "HUVEC-03")
    cluster.run(cluster.submission("predict", "--screen", screen, *model, "--wait", "--out", out))
    with (out / "predictions.csv").open() as file:
        wells = [row["id_code"] for row in csv.DictReader(file)]
    assert len(wells) == 6
    assert all(well.startswith("HUVEC-03_") for well in wells)


def test_a_run_with_one_task_for_the_backbones_of_a_fold(cluster: Cluster, screen: str):
    out = cluster.folder / "grouped"
    changes = sets("cluster.group=fold", "seed=10", SECOND_BACKBONE)
    cluster.run(cluster.submission("submit", "--screen", screen, "--wait", "--out", out, *changes))
    check_results(out)


def test_bad_input_ends_a_run_with_one_line(cluster: Cluster, tiny: TinyScreen, tmp_path: Path):
    spoiled = shutil.copytree(tiny.root, tmp_path / "screen")
    image = tiny.image("HUVEC-02", 1, "B04", 1, 5).relative_to(tiny.root)
    (spoiled / image).write_bytes((spoiled / image).read_bytes()[:100])
    address = f"{cluster.store}/spoiled"
    upload(spoiled, address)
    output = cluster.run(cluster.submission("submit", "--screen", address, "--wait"), expected=2)
    (line,) = (each for each in output.splitlines() if each.startswith("error: "))
    assert f"{address}/{image.as_posix()}: channel 5 (mitochondria) of well B04, site 1" in line


@pytest.mark.parametrize("fault", ["deleted pod", "killed process"])
def test_a_disturbed_run_succeeds(cluster: Cluster, screen: str, fault: str):
    """Argo retries the task, or `--wait` submits the run again: which of the two depends on the installation."""
    seed = {"deleted pod": 11, "killed process": 12}[fault]
    out = cluster.folder / fault.replace(" ", "-")
    command = cluster.submission("submit", "--screen", screen, "--wait", "--out", out, *sets(f"seed={seed}", *LONG))
    following = Following(cluster, command)
    pod = following.working_pod("pretrain")
    if fault == "deleted pod":
        cluster.kubectl("delete", "pod", pod, "--wait=false")
    else:
        assert cluster.kubectl("exec", pod, "-c", "main", "--", "python3", "-c", KILL), (
            "no process of the step was found"
        )
    following.end()
    check_results(out)
    state = following.status()
    assert {state["state"], *(task["state"] for task in state["tasks"])} == {"finished"}
    assert max(task["attempts"] for task in state["tasks"]) >= 2, "the disturbed task was repeated"


def test_a_run_that_ran_out_of_memory_resumes_with_more(cluster: Cluster, screen: str):
    """The cluster section decides no result, so the second submission is the same run: what has finished is not repeated."""
    out = cluster.folder / "out-of-memory"
    command = cluster.submission("submit", "--screen", screen, "--wait", "--out", out, *sets("seed=13"))
    starved = sets("cluster.steps.pretrain.memory_gib=0.25", "cluster.steps.pretrain.retries=1")
    output = cluster.run([*command, *starved, "--resubmit", "0"], expected=3)
    (line,) = (each for each in output.splitlines() if each.startswith("error: "))
    assert "pretrain" in line
    assert "memory" in line
    again = Following(cluster, command)
    again.end()
    check_results(out)
    run_id = again.run_ids()[0]
    assert cluster.pods(run_id, "pretrain")
    if cluster.pinned:
        assert cluster.pods(run_id, "normalize") == [], "Kubeflow's cache has it"


def test_kueue_admits_pods_in_their_order(cluster: Cluster, screen: str):
    if not cluster.queue:
        pytest.skip("CELLSIGNAL_CLUSTER_QUEUE is not set: the name of a LocalQueue in the namespace")
    local = json.loads(cluster.kubectl("get", "localqueues.kueue.x-k8s.io", cluster.queue, "-o", "json"))
    queue = json.loads(
        cluster.kubectl("get", "clusterqueues.kueue.x-k8s.io", local["spec"]["clusterQueue"], "-o", "json")
    )
    resources = [r for group in queue["spec"]["resourceGroups"] for f in group["flavors"] for r in f["resources"]]
    quota = sum(int(each["nominalQuota"]) for each in resources if each["name"] == cluster.gpu)
    if not 1 <= quota <= 3:
        pytest.skip(
            f"the quota of {cluster.gpu} in {cluster.queue} must be 1 to 3, since the run has four pods; it is {quota}"
        )
    changes = [SECOND_BACKBONE, "seed=14", f"cluster.queue={cluster.queue}", f"cluster.gpu_resource={cluster.gpu}"]
    command = cluster.submission(
        "submit", "--screen", screen, "--wait", *sets(*changes, "cluster.steps.pretrain.gpus=1", *LONG)
    )
    following, gated = Following(cluster, command), set()
    while following.process.poll() is None:
        pods = cluster.pods(following.run_ids()[0], "pretrain") if following.run_ids() else []
        waiting = [pod for pod in pods if pod["spec"].get("schedulingGates")]
        admitted = [pod for pod in pods if pod not in waiting]
        at_work = [pod for pod in admitted if pod["status"]["phase"] in ("Pending", "Running")]
        assert len(at_work) <= quota
        gated |= {pod["metadata"]["name"] for pod in waiting}
        for later in admitted:
            assert not [each for each in waiting if (started_at(later) - started_at(each)).total_seconds() >= 2]
        time.sleep(POLL)
    following.end()
    assert gated, "no pod had to wait"


def test_plain_jobs_form_a_chain(cluster: Cluster, screen: str, tmp_path: Path):
    jobs = tmp_path / "jobs"
    images = ["--images", cluster.images]
    cluster.run(["jobs", "--config", str(cluster.config), "--screen", screen, "--out", str(jobs), *images])
    cluster.kubectl("get", "serviceaccount", ACCOUNT)
    steps = dict.fromkeys(
        task.step.replace("_", "-") for task in training_graph(RunConfig.load(str(cluster.config))).tasks
    )
    try:
        for name in ("config", *steps):
            file = jobs / f"{name}.yaml"
            cluster.kubectl("apply", "-f", file)
            for document in yaml.safe_load_all(file.read_text()):
                if document["kind"] == "Job":
                    job = f"job/{document['metadata']['name']}"
                    cluster.kubectl("wait", "--for=condition=complete", "--timeout=15m", job)
    finally:
        cluster.kubectl("delete", "-f", jobs, "--ignore-not-found", "--wait=false", check=False)
    written = ObjectStore(cluster.store).list(f"by-hand/{NAME}/report/results/")
    assert {"metrics.json", "report.html"} <= {key.rsplit("/", 1)[1] for key in written}
