"""Bad input of submit and failing endpoints: one line with what to do, without secrets."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.cluster.endpoint import EndpointError, KfpEndpoint, Login
from tests.pipelines.cluster.conftest import Submitting
from tests.pipelines.cluster.kfp_server import LOGIN_PAGE, Fault, KfpServer
from tests.pipelines.images.registry_server import record_at

SECRET = "s3cr3t-t0ken"


def connect(server: KfpServer, **variables: str) -> KfpEndpoint:
    return KfpEndpoint(server.url, Login.from_environment(variables), "cellsignal")


FAULTS = [
    (Fault(401, body='{"error": "who", "code": 16, "message": "who"}'), r"not logged in \(401.*KFP_TOKEN"),
    (Fault(400, body='{"message": "Invalid input: bad account"}'), r"failed \(400, .*\): Invalid input: bad account"),
    (Fault(403, body="RBAC: denied", kind="text/plain"), r"forbidden \(403.*RBAC: denied.*cluster.namespace"),
    (Fault(404, body="<html>nginx</html>", kind="text/html"), r"not found \(404, used .*\); correct the address"),
    (Fault(500, body='{"message": "database is gone"}'), r"failed \(500, used .*\): database is gone; try again"),
    (Fault(0, times=9), r"no answer \(.*port-forward"),
    (Fault(200, body=LOGIN_PAGE, kind="text/html"), r"not JSON, perhaps a login page.*KFP_COOKIE"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_errors_of_an_endpoint(server: KfpServer, fault: Fault, message: str):
    server.faults.append(fault)
    with pytest.raises(EndpointError, match=message) as raised:
        connect(server, KFP_TOKEN=SECRET)
    assert SECRET not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_endpoint_that_does_not_answer_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.cluster.endpoint.TIMEOUTS", (0.2, 0.2))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(EndpointError, match=r"no answer \(.*timed out"):
            KfpEndpoint(f"http://127.0.0.1:{silent.getsockname()[1]}", Login(), "cellsignal")


def test_rejects_invalid_addresses():
    for url in ("kfp.example.org", "http://[::1"):
        with pytest.raises(InputError, match="write it as http"):
            KfpEndpoint(url, Login(), "cellsignal")
    with pytest.raises(InputError, match="must not contain a password") as raised:
        KfpEndpoint(f"https://ada:{SECRET}@kfp.example.org", Login(), "cellsignal")
    assert SECRET not in str(raised.value)


def test_secrets_quoted_by_the_server_are_concealed(server: KfpServer):
    server.faults.append(Fault(403, body=f"token {SECRET} of cookie sid=abc123 is unknown", kind="text/plain"))
    with pytest.raises(EndpointError, match=r"token \*\*\* of cookie sid=\*\*\* is unknown"):
        connect(server, KFP_TOKEN=SECRET, KFP_COOKIE="sid=abc123")


def test_a_token_file_is_read_for_every_request(server: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server.token = SECRET
    connect(server, KFP_TOKEN=SECRET)
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    endpoint = connect(server, KFP_TOKEN_FILE=str(file))
    server.token = "renewed"
    with pytest.raises(EndpointError, match="401"):
        endpoint.client.list_runs()
    file.write_text("renewed\n")
    endpoint.client.list_runs()
    monkeypatch.setattr("pipelines.cluster.endpoint.POD_TOKEN", file)
    connect(server)  # as in a pod


def test_a_cookie_reaches_the_server(server: KfpServer):
    server.cookie = "authservice_session=abc"
    assert connect(server, KFP_COOKIE="authservice_session=abc").version == "2.17.0"
    with pytest.raises(EndpointError, match="login page"):
        connect(server)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"KFP_TOKEN": f"{SECRET}\ntwice"}, "KFP_TOKEN has a line break"),
        ({"KFP_COOKIE": SECRET}, "KFP_COOKIE must be NAME=VALUE"),
        ({"KFP_TOKEN_FILE": "/nowhere/token"}, "KFP_TOKEN_FILE: /nowhere/token cannot be read"),
        ({"KFP_CA_CERT": "/nowhere/ca"}, "KFP_CA_CERT: /nowhere/ca cannot be read"),
        ({"KF_PIPELINES_SA_TOKEN_PATH": "/nowhere/sa"}, "KF_PIPELINES_SA_TOKEN_PATH: /nowhere/sa cannot be read"),
    ],
)
def test_rejects_invalid_logins(variables: dict[str, str], message: str):
    with pytest.raises(InputError, match=message) as raised:
        Login.from_environment(variables)
    assert SECRET not in str(raised.value)


OPTIONS = [
    ({"endpoint": "kfp.example.org", "screen": None}, "--endpoint kfp.example.org: write it as http"),  # at once
    ({"screen": None}, "--screen is missing, and a cluster does not simulate"),
    ({"screen": "."}, r"--screen \.: is not an address in a bucket, .* copy it there"),
    ({"screen": "gs://bucket/screen"}, "--screen gs://bucket/screen: is not an address in a bucket"),
    ({"truth": "truth.csv"}, "--truth truth.csv: is not an address in a bucket"),
    ({"truth": "BUCKET"}, r"--truth s3://cellsignal/.*/truth\.csv"),
    ({"resubmit": 1}, "--resubmit needs --wait"),
    ({"images": "nowhere.json"}, r"--images nowhere\.json: cannot be read.*images push.*--images tags"),
]


@pytest.mark.parametrize(("change", "message"), OPTIONS)
def test_rejects_bad_options(submitting: Submitting, server: KfpServer, store, change: dict[str, Any], message: str):
    if change.get("truth") == "BUCKET":
        store.put("truth.csv", b"id_code\n")
        change = {"truth": store.uri("truth.csv")}
    with pytest.raises(InputError, match=message):
        submitting(**change)
    assert server.requests == []


def test_rejects_an_image_that_its_registry_lacks(submitting: Submitting, server: KfpServer, registry, tmp_path: Path):
    """A pod would wait for it until the deadline."""
    host, statuses = registry
    statuses |= {"cellsignal-cpu": 200, "cellsignal-gpu": 404}
    record = str(record_at(host, tmp_path))
    with pytest.raises(InputError, match=r"cellsignal-gpu has no sha256:.*; push again with `cellsignal images push`"):
        submitting(images=record)
    assert server.requests == []
    statuses["cellsignal-gpu"] = 200
    submitting(images=record)
    assert len(server.runs) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("store.bucket=file:///data", "store.bucket: file:///data is a folder"),
        ("init_from=file:///data/runs/mine", "init_from: file:///data/runs/mine is a folder of this machine"),
        ("folds.count=9", "folds.count is 9"),
    ],
)
def test_rejects_configurations_that_only_work_on_this_machine(
    submitting: Submitting, server: KfpServer, config_file: Path, store, change: str, message: str
):
    submitting.config = RunConfig.load(str(config_file), [f"store.prefix={store.prefix}", change])
    with pytest.raises(InputError, match=message):
        submitting()
    assert server.requests == []
