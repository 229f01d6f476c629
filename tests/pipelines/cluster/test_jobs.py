"""Plain Jobs of the steps: their commands, resources and names."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.cli import app
from pipelines.cluster.checks import on_cluster
from pipelines.cluster.jobs import step_jobs
from pipelines.cluster.pod_settings import resources_of
from pipelines.images.record import ImageRecord, write_images
from tests.k8s.manifests import demo_jobs
from tests.k8s.pod_security import violations

DIGEST = "sha256:" + "5" * 64
RECORD = ImageRecord(
    schema=2,
    version="0.1.0",
    commit="0" * 40,
    references={target: f"registry.example/cellsignal-{target}@{DIGEST}" for target in ("cpu", "gpu")},
)
STEPS = ["simulate", "normalize", "pretrain", "finetune", "pseudo-label", "ensemble", "assign", "report"]


def parsed(container: dict[str, Any]) -> dict[str, Any]:
    """The container's arguments as the step's own command line parses them."""
    python, module, name = container["command"]
    assert (python, module) == ("python", "-m")
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(getattr(importlib.import_module(f"{name}.__main__"), name.removeprefix("components.")))
    return typer.main.get_command(app).make_context(name, list(container["args"])).params


def containers(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    jobs = [d for d in documents if d["kind"] == "Job"]
    return [container for job in jobs for container in job["spec"]["template"]["spec"]["containers"]]


@pytest.mark.parametrize("name", STEPS)
def test_the_steps_command_line_accepts_a_jobs_arguments(name: str):
    found = containers(demo_jobs()[name])
    assert len(found) == (2 if name == "pretrain" else 1)
    for container in found:
        arguments = parsed(container)
        values = [each for value in arguments.values() for each in (value if isinstance(value, list) else [value])]
        addresses = [value for value in values if "://" in str(value)]
        assert addresses
        assert all(address.startswith("s3://cellsignal/by-hand/demo/") for address in addresses)


def test_each_step_reads_what_earlier_steps_wrote():
    written: set[str] = set()
    assert set(demo_jobs()) == {"config", *STEPS}
    for step in STEPS:
        for container in containers(demo_jobs()[step]):
            flags = list(zip(container["args"][::2], container["args"][1::2], strict=True))
            outputs = {"--out", "--weights", "--embeddings"}
            outputs |= {"--screen", "--holdout", "--holdout-labels"} if step == "normalize" else set()
            outputs |= {"--logits"} if step == "pseudo-label" else set()
            for flag, value in flags:
                if value.startswith("s3://") and flag not in outputs:
                    assert value in written or value.removesuffix("/screen") in written, f"{step} {flag}"
            written |= {value for flag, value in flags if flag in outputs}


def test_resources_and_names_are_those_of_the_configuration():
    changes = [
        "cluster.steps.pretrain.gpus=2", "cluster.steps.pretrain.cpu=12.5", "cluster.queue=team", "cluster.spot=true",
        "cluster.gpu_nodes={nvidia.com/gpu.product: A100}", "cluster.store_secret=keys", "cluster.namespace=screens",
        "cluster.image_pull_secrets=[registry]", "loader.node_cache=/node-cache", "loader.node_cache_gib=100",
    ]  # fmt: skip
    files = step_jobs(on_cluster(RunConfig.load("rxrx1", changes)), RECORD.references)
    first, _ = files["pretrain"]
    pod = first["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == f"registry.example/cellsignal-gpu@{DIGEST}"
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"] == {
        "cpu": "12500m", "memory": "32Gi", "nvidia.com/gpu": "2", "ephemeral-storage": "126Gi"
    }  # fmt: skip
    assert first["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert first["metadata"]["namespace"] == "screens"
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "A100"}
    assert [t["key"] for t in pod["tolerations"]] == ["nvidia.com/gpu", "cloud.google.com/gke-spot"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    secrets = {v["valueFrom"]["secretKeyRef"]["name"] for v in container["env"] if "valueFrom" in v}
    assert secrets == {"keys"}
    mounts = {m["mountPath"] for m in container["volumeMounts"]}
    assert mounts == {"/tmp", "/dev/shm", "/node-cache", "/etc/cellsignal"}
    assert {"name": "OMP_NUM_THREADS", "value": "6"} in container["env"]
    assert violations(pod) == []
    (packing,) = files["normalize"]
    assert "nvidia.com/gpu" not in packing["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert "kueue.x-k8s.io/queue-name" not in packing["metadata"]["labels"]


def test_two_configurations_can_be_applied_side_by_side():
    """A Job cannot be changed, so that no object of one may have the name of another's."""
    names: list[str] = []
    for changes in ([], ["pretrain.epochs=3"]):
        files = step_jobs(on_cluster(RunConfig.load("demo", changes)), {})
        names += [document["metadata"]["name"] for documents in files.values() for document in documents]
        volumes = [volume for job in files["assign"] for volume in job["spec"]["template"]["spec"]["volumes"]]
        assert [each["configMap"]["name"] for each in volumes if "configMap" in each] == [
            files["config"][0]["metadata"]["name"]
        ]
    assert len(names) == len(set(names)) == 20
    assert max(map(len, names)) <= 63


def test_without_a_secret_pods_have_no_credentials_of_their_own():
    files = step_jobs(on_cluster(RunConfig.load("demo", ["cluster.store_secret=null"])), {})
    found = [container for documents in files.values() for container in containers(documents)]
    assert len(found) == 9
    assert {variable["name"] for container in found for variable in container["env"]} == {"OMP_NUM_THREADS"}


def test_the_command_writes_the_configuration_and_a_file_for_each_step(config_file: Path, tmp_path: Path):
    write_images(RECORD, tmp_path / "images.json")
    options = ["--config", config_file, "--out", tmp_path / "jobs", "--images", tmp_path / "images.json"]
    done = CliRunner().invoke(app, ["jobs", *map(str, options), "--set", "pretrain.epochs=3"])
    assert done.exit_code == 0, done.output
    (config_map,) = yaml.safe_load_all((tmp_path / "jobs" / "config.yaml").read_text())
    config = tmp_path / "read-back.yaml"
    config.write_text(config_map["data"]["run.yaml"])
    expected = RunConfig.load(str(config_file), ["pretrain.epochs=3", "store.bucket=cellsignal"])
    assert RunConfig.load(str(config)) == expected
    (job,) = yaml.safe_load_all((tmp_path / "jobs" / "normalize.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"][:2] == ["--config", "/etc/cellsignal/run.yaml"]
    assert {"name": "config", "configMap": {"name": config_map["metadata"]["name"]}} in pod["volumes"]
    assert container["image"].endswith(f"cellsignal-cpu@{DIGEST}")


def test_jobs_of_a_screen_in_a_bucket_simulate_none(config_file: Path, tmp_path: Path):
    options = ["--config", str(config_file), "--out", str(tmp_path / "jobs"), "--images", "tags"]
    done = CliRunner().invoke(app, ["jobs", *options, "--screen", "s3://lab/screen"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "jobs" / "simulate.yaml").exists()
    (container,) = containers(list(yaml.safe_load_all((tmp_path / "jobs" / "normalize.yaml").read_text())))
    assert parsed(container)["source"] == "s3://lab/screen"
    with pytest.raises(InputError, match="--screen /lab: is not an address in a bucket"):
        CliRunner().invoke(app, ["jobs", *options, "--screen", "/lab"], catch_exceptions=False)


def test_bad_input_fails_a_job_at_once_and_a_preempted_pod_does_not_count():
    (job,) = demo_jobs()["finetune"]
    fail, ignore = job["spec"]["podFailurePolicy"]["rules"]
    assert fail["onExitCodes"]["values"] == [2]
    assert fail["onExitCodes"]["containerName"] == job["spec"]["template"]["spec"]["containers"][0]["name"]
    assert ignore["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert job["spec"]["backoffLimit"] == resources_of(RunConfig.load("demo"), "finetune").own.retries
