"""Variables of the shell do not reach a folder store; an unusable one is reported at once for a bucket."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from components.core.storage.object_store import ObjectStore
from tests.pipelines.tiny_run import Cellsignal
from tests.seaweedfs import S3Server

DEAD = "http://127.0.0.1:9"
PROXIES = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), DEAD)
PROXIES |= {"NO_PROXY": "", "no_proxy": ""}
HOSTILE = {"AWS_ENDPOINT_URL": "nonsense", "AWS_ENDPOINT_URL_S3": DEAD, "AWS_PROFILE": "unknown", **PROXIES}
USE = """
import sys
from pathlib import Path
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import open_existing
store = ObjectStore(sys.argv[1])
store.check()
assert store.put_if_version("a", b"1") and store.put_if_version("a", b"2", store.get_versioned("a")[1])
store.upload_file(Path(sys.argv[2]), "b")
assert open_existing(sys.argv[1]).list() == ["a", "b"]
assert "boto3" not in sys.modules
"""


def test_a_folder_store_ignores_all_variables(tmp_path: Path) -> None:
    cellsignal = Cellsignal(tmp_path)
    store = tmp_path / "store"
    (tmp_path / "use.py").write_text(USE)
    done = cellsignal("use.py", store.as_uri(), "use.py", environment=HOSTILE, script=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = cellsignal("store", "gc", "--store", store, environment=HOSTILE)
    assert (done.returncode, done.stderr) == (0, "")


RUNS, RUN = ("runs",), ("run", "--config", "demo", "--out", "out")


@pytest.mark.parametrize(
    ("command", "variables", "message"),
    [
        (RUNS, {"AWS_PROFILE": "unknown"}, r"profile \(unknown\) could not be found; correct AWS_PROFILE"),
        (RUNS, {"AWS_ENDPOINT_URL_S3": DEAD}, r"no answer from http://127.0.0.1:9 .*correct AWS_ENDPOINT_URL_S3"),
        (RUNS, {"AWS_ENDPOINT_URL": "http://store.invalid", **PROXIES}, "correct HTTPS_PROXY and HTTP_PROXY"),
        (RUNS, {"AWS_ENDPOINT_URL": "http://store:port"}, r"'port'; write AWS_ENDPOINT_URL as http://HOST:PORT"),
        (RUN, {"AWS_ENDPOINT_URL_S3": "nonsense"}, "Invalid endpoint: nonsense; write AWS_ENDPOINT_URL_S3 as"),
    ],
)
def test_an_unusable_variable_of_a_bucket_is_reported_at_once(
    s3_server: S3Server, tmp_path: Path, command: tuple[str, ...], variables: dict[str, str], message: str
) -> None:
    begun = time.monotonic()
    environment = {**s3_server.environment(), **variables}
    line = Cellsignal(tmp_path).refused(*command, "--store", "s3://cellsignal/mine", environment=environment)
    assert re.search(message, line)
    assert time.monotonic() - begun < 30
    assert not any(tmp_path.iterdir())


def test_a_store_on_this_machine_is_reached_without_the_proxy(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)
    behind = ObjectStore(store.uri(""))
    behind.check()
    behind.put("a", b"1")
    behind.download_file("a", tmp_path / "a")
    assert behind.list() == ["a"]
