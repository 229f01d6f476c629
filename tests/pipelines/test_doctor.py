"""`cellsignal doctor`: what it finds, and that it leaves nothing behind."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import socket
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.core.config import RunConfig
from components.core.storage.object_store import ObjectStore
from pipelines import doctor
from tests.pipelines.cluster.kfp_server import Fault, KfpServer, serve
from tests.pipelines.images.registry_server import record_at

OPERATIONS = ["object store", "put, get", "multipart", "conditional put", "conditional replace", "list, delete"]
NO_TORCH = "raise ModuleNotFoundError(\"No module named 'torch'\")"


def torch_with(*gpus: list[Any]) -> str:
    """A program that answers as torch would."""
    return f"import json; print(json.dumps({{'torch': '2', 'cuda': '13', 'gpus': {list(gpus)!r}}}))"


def found(findings: Any) -> dict[str, tuple[str, str]]:
    return {each.subject: (each.level, each.message) for each in findings}


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunConfig:
    """A configuration with an empty store; without torch, which takes seconds to load."""
    monkeypatch.setattr(doctor, "_ASK_TORCH", NO_TORCH)
    monkeypatch.chdir(tmp_path)
    for name in ("KFP_TOKEN", "KFP_TOKEN_FILE", "KFP_COOKIE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", "nowhere")
    (tmp_path / "store").mkdir()
    return RunConfig.load("demo", [f"store.bucket={(tmp_path / 'store').as_uri()}"])


def diagnose(config: RunConfig, endpoint: str | None = None) -> tuple[int, str]:
    shown = io.StringIO()
    code = doctor.run_doctor(config, endpoint, None, Console(file=shown, width=300))
    return code, shown.getvalue()


def test_a_given_configuration_that_trains_xception_from_random_weights_is_warned_of(no_torch: RunConfig) -> None:
    config = RunConfig.load("rxrx1", [f"store.bucket={no_torch.store.bucket}"])
    for trains, level in ((True, ("warning",)), (False, ())):
        shown = io.StringIO()
        doctor.run_doctor(config, None, None, Console(file=shown, width=300), trains=trains, as_json=True)
        found = [each for each in json.loads(shown.getvalue())["findings"] if each["subject"] == "initial weights"]
        assert tuple(each["level"] for each in found) == level
        assert all("backbones.0.weights" in each["message"] for each in found)


def test_a_given_configuration_whose_files_are_missing_fails_as_its_run_would(no_torch: RunConfig) -> None:
    config = no_torch.changed(["backbones.0.weights=nofile.pt"], "--set")
    for trains, code in ((True, 2), (False, 0)):
        shown = io.StringIO()
        assert doctor.run_doctor(config, None, None, Console(file=shown, width=300), trains=trains) == code
        assert ("backbones[0].weights: there is no file nofile.pt" in shown.getvalue()) == trains


def test_a_good_store_passes_and_is_left_empty(either_store: ObjectStore) -> None:
    findings = found(doctor.check_store(either_store))
    assert list(findings) == OPERATIONS
    assert {level for level, _ in findings.values()} == {"ok"}
    assert list(either_store.list("")) == []


def test_a_missing_folder_is_tried_and_not_left_behind(no_torch: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "store").rmdir()
    code, shown = diagnose(no_torch)
    assert code == 0, shown
    levels = {line[8:30].strip(): line.split()[0] for line in shown.splitlines()}
    assert {levels[what] for what in (*OPERATIONS, "kfp", "python")} == {"ok"}
    assert list(tmp_path.iterdir()) == []


def test_finds_a_store_that_ignores_conditions_or_loses_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(tmp_path)
    monkeypatch.setattr(store, "put_if_version", lambda key, data, version="": store.put(key, data) or True)
    monkeypatch.setattr(store, "get_many", lambda keys: [b"other" for _ in keys])
    findings = found(doctor.check_store(store))
    assert {what: findings[what][0] for what in OPERATIONS} == {
        "object store": "ok", "put, get": "failed", "multipart": "ok", "conditional put": "failed",
        "conditional replace": "warning", "list, delete": "ok",
    }  # fmt: skip
    assert "use a store that honours If-None-Match" in findings["conditional put"][1]
    assert "models" in findings["conditional replace"][1]  # a run needs no champion
    assert list(store.list("")) == []


def test_no_writable_folder_is_one_finding_among_others(
    no_torch: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    code, shown = diagnose(no_torch)
    assert code == 2
    assert "failed  room                  no folder for temporary files is writable; mount one" in shown
    assert "failed  object store          No usable temporary directory" in shown
    assert shown.splitlines()[-1].startswith("2 failed")
    assert list((tmp_path / "store").iterdir()) == []


def test_wrong_credentials_and_a_missing_bucket_fail(
    no_torch: RunConfig, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, shown = diagnose(RunConfig.load("demo", ["store.bucket=s3://nowhere"]))
    assert code == 2
    assert "has no such bucket; create it" in shown
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-wrong")
    code, shown = diagnose(RunConfig.load("demo", ["store.bucket=cellsignal"]))
    assert code == 2
    assert "refused to list" in shown
    assert "s3cr3t-wrong" not in shown


def test_an_endpoint_has_a_version_and_a_namespace(no_torch: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(KfpServer(multi_user=True, token="s3cr3t")) as server:
        monkeypatch.setenv("KFP_TOKEN", "s3cr3t")
        _, shown = diagnose(no_torch, server.url)
        assert f"ok      Kubeflow Pipelines    2.17.0 at {server.url}, with the token in KFP_TOKEN" in shown
        assert "ok      namespace             cellsignal" in shown
        assert "s3cr3t" not in shown
        server.namespaces = ()
        code, shown = diagnose(no_torch, server.url)
        assert code == 2
        assert "correct cluster.namespace" in shown
        server.faults.append(Fault(500, body='{"message": "no database"}'))
        assert "no database; try again" in diagnose(no_torch, server.url)[1]


def test_missing_keys_of_the_store_are_one_finding_among_others(
    no_torch: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    code, shown = diagnose(RunConfig.load("demo", ["store.bucket=cellsignal"]))
    assert code == 2
    assert re.search(r"^failed  object store +.*AWS_ACCESS_KEY_ID is not set", shown, re.MULTILINE)
    assert "ok      kfp " in shown
    assert shown.splitlines()[-1].startswith("1 failed")


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A Kubernetes API on loopback, by the kubeconfig of the environment: the JSON, or the status, of paths in a namespace."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("/namespaces/")[2], 404)
            self.send_response(answer if isinstance(answer, int) else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps({} if isinstance(answer, int) else answer).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kubeconfig = {
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "ada", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "ada"}}],
        "current-context": "here",
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield answers
    server.shutdown()
    server.server_close()


def test_account_and_secret_of_the_pods_are_looked_for(kubernetes: dict[str, Any], tmp_path: Path) -> None:
    cluster = RunConfig.load("demo").cluster
    account, secret = "cellsignal/serviceaccounts/cellsignal-run", "cellsignal/secrets/cellsignal-store"
    kubernetes |= {account: {"metadata": {"name": "x"}}, secret: {"data": dict.fromkeys(doctor.REQUIRED_KEYS, "eA==")}}
    kubernetes["cellsignal/pods?limit=1"] = {"items": []}
    assert {level for level, _ in found(doctor.check_namespace(cluster)).values()} == {"ok"}
    kubernetes[secret] = {"data": {"AWS_ACCESS_KEY_ID": "eA=="}}
    kubernetes["cellsignal/pods?limit=1"] = 403
    del kubernetes[account]
    assert found(doctor.check_namespace(cluster)) == {
        "service account": (
            "failed",
            "namespace cellsignal has no cellsignal-run; create it (docs/cluster.md), or correct the section cluster",
        ),
        "secret": ("failed", "cellsignal-store in namespace cellsignal lacks AWS_SECRET_ACCESS_KEY; create it again"),
        "pods": (
            "warning",
            "those of namespace cellsignal cannot be read (403 Forbidden), so no message says why one does not start, or how it "
            "ended; bind the Role cellsignal-follow",
        ),
    }  # fmt: skip
    kubernetes[secret] = 403
    level, message = found(doctor.check_namespace(cluster))["secret"]
    assert level == "warning"
    assert message.startswith("not checked whether namespace cellsignal has cellsignal-store: 403")
    (tmp_path / "kubeconfig").unlink()
    level, message = found(doctor.check_namespace(cluster))["Kubernetes"]
    assert level == "warning"
    assert message.startswith("not checked whether namespace cellsignal has cellsignal-run, cellsignal-store: ")


def test_a_kubeflow_for_a_single_user_is_explained_once(no_torch: RunConfig, kubernetes: dict[str, Any]) -> None:
    with serve(KfpServer()) as server:
        shown = diagnose(no_torch, server.url)[1]
        assert (
            "warning namespace             a single user's Kubeflow: pods start in its own namespace; set cluster"
            in shown
        )
        assert "failed  secret                namespace cellsignal has no cellsignal-store" in shown
        shown = diagnose(no_torch.changed(["cluster.namespace=kubeflow"], "--set"), server.url)[1]
        assert (
            "ok      namespace             a single user's Kubeflow: pods start in its own namespace, kubeflow" in shown
        )


def test_room_and_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LITTLE_GIB", 10**9)
    assert found(doctor.check_room({"room": tmp_path / "not" / "yet"}))["room"][0] == "warning"
    monkeypatch.setattr(doctor, "NONE_GIB", 10**9)
    assert found(doctor.check_room({"room": tmp_path}))["room"][0] == "failed"
    assert "shm-size" in found(doctor.check_shared_memory(tmp_path))["/dev/shm"][1]
    assert found(doctor.check_shared_memory(tmp_path / "none"))["/dev/shm"][0] == "warning"


@pytest.mark.parametrize(
    ("code", "driver", "levels", "shown"),
    [
        ("import no_torch_here", "", {"torch": "failed"}, "No module named 'no_torch_here'"),
        (NO_TORCH, "550.1", {"torch": "warning", "GPU": "warning"}, "cellsignal[train]"),
        (torch_with(), "550.1", {"torch": "ok", "GPU": "failed"}, "driver for CUDA 13"),
        (torch_with(), "", {"torch": "ok", "GPU": "warning"}, "CPU"),
        (torch_with(["L4", 24e9]), "550.1", {"torch": "ok", "GPU": "ok"}, "1: L4 (22 GiB), driver 550.1"),
    ],
)
def test_torch_and_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, driver: str, levels: dict[str, str], shown: str
) -> None:
    file = tmp_path / "version"
    if driver:
        file.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Tue\n")
    monkeypatch.setattr(doctor, "DRIVER", file)
    monkeypatch.setattr(doctor, "_ASK_TORCH", code)
    findings = found(doctor.check_gpu())
    assert {what: level for what, (level, _) in findings.items()} == levels
    assert shown in " ".join(message for _, message in findings.values())


def test_images_are_looked_up_in_their_registry(registry: tuple[str, dict[str, int]], tmp_path: Path) -> None:
    host, statuses = registry
    record = record_at(host, tmp_path)
    for status, expected, part in (
        (200, "ok", "has sha256:"),
        (404, "failed", "cellsignal images push"),
        (401, "warning", "requires a login"),
    ):
        statuses |= {"cellsignal-cpu": 200, "cellsignal-gpu": status}
        findings = found(doctor.check_images(record))
        level, message = findings["gpu image"]
        assert (level, part in message) == (expected, True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        findings = found(doctor.check_images(record_at(f"127.0.0.1:{free.getsockname()[1]}", tmp_path)))
    level, message = findings["cpu image"]
    assert level == "warning"
    assert "cannot be reached from here" in message


def test_a_damaged_record_of_images_is_one_finding_among_others(no_torch: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "images.json").write_text(json.dumps({"schema": 1}))
    out = io.StringIO()
    assert doctor.run_doctor(no_torch, None, None, Console(file=out, width=80), as_json=True) == 2
    content = json.loads(out.getvalue())
    assert content["ok"] is False
    levels = {each["subject"]: each["level"] for each in content["findings"]}
    assert (levels["images"], levels["object store"]) == ("failed", "ok")
