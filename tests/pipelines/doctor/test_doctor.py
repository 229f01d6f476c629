"""doctor: what it finds, and that it leaves nothing behind."""

from __future__ import annotations

import errno
import io
import json
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.core.config import RunConfig
from components.core.storage.object_store import ObjectStore
from pipelines.doctor import checks
from pipelines.doctor.checks import check_gpu, check_images, check_room, check_shared_memory
from pipelines.doctor.run import run_doctor
from pipelines.doctor.store_check import check_store
from tests.pipelines.cluster.kfp_server import Fault, KfpServer, serve
from tests.pipelines.images.registry_server import record_at
from tests.pipelines.tiny_run import Cellsignal

OPERATIONS = ["object store", "put, get", "multipart", "conditional put", "conditional replace", "list, delete"]


NO_TORCH = "raise ModuleNotFoundError(\"No module named 'torch'\")"


def torch_with(*gpus: list[Any]) -> str:
    """A program that answers as one with torch would."""
    return f"import json; print(json.dumps({{'torch': '2', 'cuda': '13', 'gpus': {list(gpus)!r}}}))"


def found(findings: Any) -> dict[str, tuple[str, str]]:
    return {each.subject: (each.level, each.message) for each in findings}


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("KFP_TOKEN", "KFP_TOKEN_FILE", "KFP_COOKIE"):
        monkeypatch.delenv(name, raising=False)


def diagnose(config: RunConfig, endpoint: str | None = None) -> tuple[int, str]:
    shown = io.StringIO()
    code = run_doctor(config, endpoint, None, Console(file=shown, width=300))
    return code, shown.getvalue()


def test_a_good_store_passes_and_is_left_empty(either_store: ObjectStore):
    findings = found(check_store(either_store))
    assert list(findings) == OPERATIONS
    assert {level for level, _ in findings.values()} == {"ok"}
    assert list(either_store.list("")) == []


def test_a_store_that_ignores_conditions_or_loses_bytes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = ObjectStore(tmp_path)
    monkeypatch.setattr(store, "put_if_absent", lambda key, data: store.put(key, data) or True)
    monkeypatch.setattr(store, "get_many", lambda keys: [b"other" for _ in keys])
    findings = found(check_store(store))
    assert findings["conditional put"][0] == findings["put, get"][0] == "failed"
    assert "use a store that honours If-None-Match" in findings["conditional put"][1]
    assert findings["multipart"][0] == "ok"
    assert list(store.list("")) == []


@pytest.mark.parametrize("replaced", [True, False])
def test_a_store_without_if_match_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool):
    store = ObjectStore(tmp_path)

    def put(key: str, data: bytes, _version: str) -> bool:
        if replaced:
            store.put(key, data)
        return replaced

    monkeypatch.setattr(store, "put_if_version", put)
    level, message = found(check_store(store))["conditional replace"]
    assert level == "warning"  # a run needs no champion
    assert "models" in message


def test_rejects_a_change_without_a_configuration(cellsignal: Cellsignal):
    assert "--set changes a configuration" in cellsignal.refused("doctor", "--set", "store.bucket=file:///tmp")


def test_no_writable_folder_is_a_finding_among_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(checks, "_ASK_TORCH", NO_TORCH)
    monkeypatch.setattr(tempfile, "gettempdir", none)
    (tmp_path / "store").mkdir()
    code, shown = diagnose(RunConfig.load("demo", [f"store.bucket=file://{tmp_path / 'store'}"]))
    assert code == 2
    assert "failed  room                  no folder for temporary files is writable; mount one" in shown
    assert "failed  object store          No usable temporary directory" in shown
    assert shown.splitlines()[-1].startswith("2 failed")
    assert list((tmp_path / "store").iterdir()) == []


def test_a_folder_that_is_not_there_is_tried_and_not_left_behind(cellsignal: Cellsignal, tmp_path: Path):
    (tmp_path / "data").mkdir()
    done = cellsignal("doctor", "--store", tmp_path / "data" / "store")
    assert done.returncode == 0, done.stdout
    levels = {line[8:30].strip(): line.split()[0] for line in done.stdout.splitlines()}
    assert {levels[what] for what in (*OPERATIONS, "kfp", "python", "torch")} == {"ok"}
    assert list((tmp_path / "data").iterdir()) == []


def test_wrong_credentials_and_a_missing_bucket_fail(store: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "_ASK_TORCH", "raise SystemExit(1)")
    nowhere = RunConfig.load("demo", ["store.bucket=s3://nowhere"])
    code, shown = diagnose(nowhere)
    assert code == 2
    assert "has no such bucket; create it" in shown
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-wrong")
    code, shown = diagnose(RunConfig.load("demo", ["store.bucket=cellsignal"]))
    assert code == 2
    assert "refused the credentials" in shown
    assert "s3cr3t-wrong" not in shown


def test_an_endpoint_has_a_version_and_a_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "_ASK_TORCH", "raise SystemExit(1)")
    (tmp_path / "store").mkdir()
    config = RunConfig.load("demo", [f"store.bucket=file://{tmp_path / 'store'}"])
    with serve(KfpServer(multi_user=True, token="s3cr3t")) as server:
        monkeypatch.setenv("KFP_TOKEN", "s3cr3t")
        _, shown = diagnose(config, server.url)
        assert f"ok      Kubeflow Pipelines    2.17.0 at {server.url}, with the token in KFP_TOKEN" in shown
        assert "ok      namespace             cellsignal" in shown
        assert "s3cr3t" not in shown
        server.namespaces = ()
        code, shown = diagnose(config, server.url)
        assert code == 2
        assert "correct cluster.namespace" in shown
        server.faults.append(Fault(500, body='{"message": "no database"}'))
        assert "(500, used the token in KFP_TOKEN): no database" in diagnose(config, server.url)[1]


def test_room_and_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "LITTLE_GIB", 10**9)
    assert found(check_room({"room": tmp_path / "not" / "yet"}))["room"][0] == "warning"
    monkeypatch.setattr(checks, "NONE_GIB", 10**9)
    assert found(check_room({"room": tmp_path}))["room"][0] == "failed"
    assert "shm-size" in found(check_shared_memory(tmp_path))["/dev/shm"][1]
    assert found(check_shared_memory(tmp_path / "none"))["/dev/shm"][0] == "warning"


@pytest.mark.parametrize(
    ("code", "driver", "levels", "shown"),
    [
        ("import no_torch_here", "", {"torch": "failed"}, "No module named 'no_torch_here'"),
        (NO_TORCH, "", {"torch": "warning"}, "cellsignal[train]"),
        (NO_TORCH, "550.1", {"torch": "warning", "GPU": "warning"}, "no torch"),
        (torch_with(), "550.1", {"torch": "ok", "GPU": "failed"}, "driver for CUDA 13"),
        (torch_with(), "", {"torch": "ok", "GPU": "warning"}, "CPU"),
        (torch_with(["L4", 24e9]), "550.1", {"torch": "ok", "GPU": "ok"}, "1: L4 (22 GiB), driver 550.1"),
    ],
)
def test_torch_and_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, driver: str, levels: dict[str, str], shown: str
):
    file = tmp_path / "version"
    if driver:
        file.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Tue\n")
    monkeypatch.setattr(checks, "DRIVER", file)
    monkeypatch.setattr(checks, "_ASK_TORCH", code)
    findings = found(check_gpu())
    assert {what: level for what, (level, _) in findings.items()} == levels
    assert shown in " ".join(message for _, message in findings.values())


def test_images_are_looked_up_in_their_registry(registry: tuple[str, dict[str, int]], tmp_path: Path):
    host, statuses = registry
    record = record_at(host, tmp_path)
    for status, level, message in (
        (200, "ok", "has sha256:"),
        (404, "failed", "cellsignal images push"),
        (401, "warning", "requires a login"),
    ):
        statuses |= {"cellsignal-cpu": 200, "cellsignal-gpu": status}
        finding = found(check_images(record))["gpu image, registry"]
        assert finding[0] == level
        assert message in finding[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        findings = found(check_images(record_at(f"127.0.0.1:{free.getsockname()[1]}", tmp_path)))
    assert findings["cpu image, registry"][0] == "warning"
    assert "cannot be reached from here" in findings["cpu image, registry"][1]


def test_an_engine_that_does_not_answer_is_a_warning(
    registry: tuple[str, dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    host, statuses = registry
    statuses |= {"cellsignal-cpu": 200, "cellsignal-gpu": 200}
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    level, message = found(check_images(record_at(host, tmp_path)))["cpu image, engine"]
    assert level == "warning"
    assert "none.sock: no answer" in message
    assert "start it (sudo systemctl start docker)" in message


def test_a_damaged_record_is_a_finding_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "_ASK_TORCH", "raise SystemExit(1)")
    (tmp_path / "store").mkdir()
    (tmp_path / "images.json").write_text(json.dumps({"schema": 1}))
    out = io.StringIO()
    config = RunConfig.load("demo", [f"store.bucket=file://{tmp_path / 'store'}"])
    assert run_doctor(config, None, None, Console(file=out, width=80), as_json=True) == 2
    content = json.loads(out.getvalue())
    assert content["ok"] is False
    levels = {each["subject"]: each["level"] for each in content["findings"]}
    assert (levels["images"], levels["object store"]) == ("failed", "ok")
