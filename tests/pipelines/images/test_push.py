"""Pushing small images to a real registry (Debian's docker-registry on loopback)."""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from components.core.errors import InputError, StepError
from pipelines.images.build_and_push import push
from pipelines.images.code_version import code_commit, sources_digest, tag_of
from pipelines.images.record import read_images
from tests.container_engine import engine_or_skip

pytestmark = pytest.mark.docker
SMALL = {target: f"cellsignal-small-{target}:0" for target in ("cpu", "gpu")}


def quiet() -> Console:
    return Console(file=io.StringIO())


def build_small(name: str, sources: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for file, content in (
            ("Dockerfile", f"FROM scratch\nLABEL cellsignal.sources={sources}\nCOPY a /\n"),
            ("a", name),
        ):
            info = tarfile.TarInfo(file)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))
    packed.seek(0)
    engine_or_skip().images.build(fileobj=packed, custom_context=True, tag=name, rm=True)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Small images under the commit's tag, in place of cellsignal-cpu and cellsignal-gpu."""
    client = engine_or_skip()
    monkeypatch.setattr("pipelines.images.code_version.CURRENT", SMALL)
    names = [f"{name.split(':')[0]}:{tag_of(code_commit())}" for name in SMALL.values()]
    for name in names:
        build_small(name, sources_digest())
    yield names
    for image in client.images.list():
        if any("cellsignal-small-" in tag for tag in image.tags):
            client.images.remove(image.id, force=True)


@pytest.fixture(params=["open", "closed"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Open, or closed by a login; and HOST:PORT."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (Debian's package of that name)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    auth = f"auth: {{htpasswd: {{realm: lab, path: {tmp_path}/users}}}}\n" if request.param == "closed" else ""
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/data}}}}\n"
        f"http: {{addr: '{host}'}}\n{auth}"
    )
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", config], stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((host.split(":")[0], int(host.split(":")[1])), 1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.1)
        yield request.param, host
    finally:
        process.terminate()
        process.wait(20)


def test_the_record_has_the_digests_of_the_registry(small, registry, tmp_path: Path):
    kind, host = registry
    record = tmp_path / "images.json"
    if kind == "closed":
        with pytest.raises(InputError, match=rf"^{host}/lab/cellsignal-small-cpu:\S+: the registry refuses .*login"):
            push(f"{host}/lab", record, quiet())
        assert not record.exists()
        return
    push(f"{host}/lab", record, quiet())
    found = read_images(record)
    assert found.commit == code_commit()
    assert found.references.keys() == {"cpu", "gpu"}
    for target, reference in found.references.items():
        name, _, digest = reference.partition("@")
        assert name == f"{host}/lab/cellsignal-small-{target}"
        assert engine_or_skip().images.get_registry_data(f"{name}:{tag_of(code_commit())}").id == digest
        assert engine_or_skip().images.get_registry_data(reference).id == digest


def test_rejects_images_of_other_sources_and_missing_ones(small, tmp_path: Path):
    build_small(small[1], "0" * 16)
    with pytest.raises(InputError, match=r"cellsignal-small-gpu:\S+: contains other sources than this package"):
        push("127.0.0.1:1", tmp_path / "images.json", quiet())
    engine_or_skip().images.remove(small[0], force=True)
    with pytest.raises(InputError, match=r"cellsignal-small-cpu:\S+: there is no such image .*cellsignal images build"):
        push("127.0.0.1:1", tmp_path / "images.json", quiet())


def test_rejects_a_registry_that_does_not_answer_or_has_an_impossible_name(small, tmp_path: Path):
    record = tmp_path / "images.json"
    with pytest.raises(StepError, match=r"cannot be pushed .*check --registry and the network"):
        push("127.0.0.1:1", record, quiet())
    with pytest.raises(InputError, match="write HOST/PATH in lower case"):
        push("127.0.0.1:1/Lab", record, quiet())
    assert not record.exists()
