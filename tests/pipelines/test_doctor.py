"""`cellsignal doctor`: what it finds, and that it leaves nothing behind."""

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
    (tmp_path / "store").mkdir()
    return RunConfig.load("demo", [f"store.bucket={(tmp_path / 'store').as_uri()}"])


def diagnose(config: RunConfig, endpoint: str | None = None) -> tuple[int, str]:
    shown = io.StringIO()
    code = doctor.run_doctor(config, endpoint, None, Console(file=shown, width=300))
    return code, shown.getvalue()


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
