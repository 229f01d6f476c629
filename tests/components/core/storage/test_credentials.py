"""Credentials from files and services, found by boto3's chain, each in a process of its own as in a pod."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from components.core.errors import InputError
from components.core.storage.s3 import S3Bucket, credential_variables
from tests.seaweedfs import S3Server

ROOT = Path(__file__).resolve().parents[4]
EVERY_CLIENT = """
import os, pickle, sys
from pathlib import Path
from components.core.storage.object_store import ObjectStore
assert "AWS_ACCESS_KEY_ID" not in os.environ
try:
    store = pickle.loads(pickle.dumps(ObjectStore(f"s3://cellsignal/{sys.argv[1]}")))
    store.check()
    store.put("a", b"1")
    assert store.get_many(["a", "a"]) == [b"1", b"1"]
    store.upload_file(Path(__file__ if "__file__" in globals() else "/etc/hostname"), "file")
    store.download_file("file", Path("back"))
    assert store.list("") == ["a", "file"]
    print("all well in", store._s3.region)
except ValueError as error:
    print(type(error).__name__, error)
"""


@contextmanager
def answering(answer: Callable[[str], str]) -> Iterator[str]:
    """A service on loopback; `answer` gets a request's body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            content = answer(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def elsewhere(s3_server: S3Server, tmp_path: Path) -> Callable[..., str]:
    """Uses the store in another process that has no keys, but the variables given (empty: not set); returns what it says."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    way = {k: v for k, v in s3_server.environment().items() if "KEY" not in k and "TOKEN" not in k}
    fixed = {"PYTHONPATH": str(ROOT), "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}

    def use(**variables: str) -> str:
        environment = {name: value for name, value in {**own, **way, **fixed, **variables}.items() if value}
        done = subprocess.run(
            [sys.executable, "-c", EVERY_CLIENT, tmp_path.name],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    return use


def test_a_credentials_file_serves_every_client(elsewhere: Callable[..., str], s3_server: S3Server, tmp_path: Path):
    file, known = tmp_path / "credentials", s3_server.environment()
    keys = (f"{name.lower()} = {known[name]}\n" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    file.write_text(f"[default]\n{''.join(keys)}")
    assert elsewhere(AWS_SHARED_CREDENTIALS_FILE=str(file)) == "all well in us-east-1"


STS = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult>
<Credentials><AccessKeyId>AKIDOFROLE</AccessKeyId><SecretAccessKey>secret-of-role</SecretAccessKey>
<SessionToken>session-of-role</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


def test_a_service_account_takes_its_role_by_token(elsewhere: Callable[..., str], tmp_path: Path):
    """IRSA. The store of the tests knows no roles, and refuses the keys of this one."""
    (tmp_path / "token").write_text("of-this-account")
    requests: list[str] = []
    with answering(lambda body: (requests.append(body), STS)[1]) as url:
        line = elsewhere(
            AWS_ROLE_ARN="arn:aws:iam::1:role/cellsignal",
            AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"),
            AWS_ENDPOINT_URL_STS=url,
        )
    assert requests
    assert all("WebIdentityToken=of-this-account" in body and "role%2Fcellsignal" in body for body in requests)
    assert " refused to list (" in line
    assert "correct AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE" in line


def test_missing_credentials_are_reported_in_one_line(elsewhere: Callable[..., str]):
    role = {"AWS_ROLE_ARN": "arn:aws:iam::1:role/r", "AWS_WEB_IDENTITY_TOKEN_FILE": "none"}
    for variables, reason in ((role, "No such file"), ({"AWS_SHARED_CREDENTIALS_FILE": "none"}, "there are none")):
        line = elsewhere(**variables)
        assert line.startswith(f"StoreAccessError object store: no credentials by {' and '.join(variables)} (")
        assert reason in line
        assert "\n" not in line


def test_the_chain_is_used_only_without_keys_and_if_a_variable_asks_for_it(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    role = {"AWS_ROLE_ARN": "r", "AWS_WEB_IDENTITY_TOKEN_FILE": "f"}
    assert credential_variables(role) == (*role,)
    for variables in ({}, {"AWS_ROLE_ARN": "r"}, {**role, "AWS_ACCESS_KEY_ID": "k"}):
        assert not credential_variables(variables)
        with monkeypatch.context() as given:
            for name, value in variables.items():
                given.setenv(name, value)
            with pytest.raises(InputError, match="is not set; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
                S3Bucket("lab")


def test_endpoint_and_region_have_boto3s_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text("[profile lab]\nendpoint_url = http://profile:1\nregion = eu-north-1\n")
    for variables, url, region in (
        ({"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}, None, "us-east-1"),
        ({"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_PROFILE": "lab"}, "http://profile:1", "eu-north-1"),
        ({"AWS_ENDPOINT_URL": "http://general:2"}, "http://general:2", "eu-north-1"),
        ({"AWS_ENDPOINT_URL_S3": "http://service:3"}, "http://service:3", "eu-north-1"),
    ):  # each beside those before it
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        bucket = S3Bucket("lab")
        assert (bucket.url, bucket.region) == (url, region)
    monkeypatch.setenv("AWS_PROFILE", "unknown")
    with pytest.raises(InputError, match=r"^object store: .*unknown.* could not be found; correct AWS_PROFILE"):
        S3Bucket("lab")
