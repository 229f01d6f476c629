"""A server that speaks KFP's API, a tiny screen in a bucket, and submit in this process."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.core.config import RunConfig
from components.core.storage.object_store import ObjectStore
from components.core.storage.runs import record_results
from components.core.storage.task_status import TaskStatus
from pipelines.cluster.submit import SubmitRequest, submit
from tests.pipelines.cluster.kfp_server import KfpServer, serve
from tests.pipelines.tiny_run import only_huvec
from tests.seaweedfs import BUCKET, S3Server
from tests.tiny_screen import TinyScreen

METRICS = {"out_of_fold": {stage: {"overall": 0.5, "HUVEC": 0.5} for stage in ("raw", "group", "assigned")}}
LOGINS = (
    "KFP_TOKEN",
    "KFP_TOKEN_FILE",
    "KFP_COOKIE",
    "KFP_CA_CERT",
    "KF_PIPELINES_ENDPOINT",
    "KF_PIPELINES_SA_TOKEN_PATH",
)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login and no Kubernetes from the environment, an empty working directory, and no long waits."""
    for name in (*LOGINS, "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.chdir(tmp_path)
    be_quick(monkeypatch)


@pytest.fixture
def server() -> Iterator[KfpServer]:
    with serve(KfpServer()) as running:
        yield running


@pytest.fixture(scope="session")
def screen(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a screen in the tests' bucket; read only."""
    tiny = only_huvec(
        TinyScreen(tmp_path_factory.mktemp("screens") / "screen", imaged=("HUVEC-01", "HUVEC-02", "HUVEC-03"))
    )
    with pytest.MonkeyPatch.context() as patched:
        for name, value in s3_server.environment().items():
            patched.setenv(name, value)
        store = ObjectStore(f"s3://{BUCKET}/screen-{uuid.uuid4().hex}")
    files = [path for path in tiny.root.rglob("*") if path.is_file()]
    store.put_many((path.relative_to(tiny.root).as_posix(), path.read_bytes()) for path in files)
    return store.uri("")


def be_quick(patch: pytest.MonkeyPatch) -> None:
    """Follows runs without long waits."""
    times = {"follow.POLL": 0.01, "follow.OUTAGE": 20.0, "submit.SETTLE": 0.0, "submit.PAUSES": (0.0,)}
    for name, seconds in times.items():
        patch.setattr(f"pipelines.cluster.{name}", seconds)


def key_of(run: Mapping[str, Any]) -> str:
    """A run's key in the object store."""
    return str(run["display_name"]).split(" ")[0]


def report_task(store: ObjectStore, key: str, name: str = "a", **fields: Any) -> None:
    """Writes what an attempt at a task reports: by default that pretrain has failed."""
    now = datetime.now(UTC)
    content = {
        "step": "pretrain",
        "fold": 1,
        "backbone": "tiny",
        "state": "failed",
        "kind": "step",
        "node": "node-1",
        **fields,
    }
    status = TaskStatus.model_validate({"started": now, "updated": now, **content})
    store.put(f"runs/{key}/status/{status.task}/{name}.json", status.model_dump_json().encode())


@dataclass
class Submitting:
    """submit with its arguments."""

    server: KfpServer
    config: RunConfig
    screen: str
    store: ObjectStore

    def __call__(self, **more: Any) -> str:
        """Submits in this process; returns the console's text."""
        console = io.StringIO()
        start = {"endpoint": self.server.url, "screen": self.screen, "images": "tags", "resubmit": 0}
        request = SubmitRequest(**{**start, **more})
        self.shown = console
        submit(self.config, request, Console(file=console, width=300))
        return console.getvalue()

    def results_of(self, run: dict[str, Any]) -> None:
        """Writes what report leaves under the run's key."""
        folder = Path("report-output")
        folder.mkdir(exist_ok=True)
        lineage = {**json.loads(run["runtime_config"]["parameters"]["lineage"]), "run": key_of(run)}
        (folder / "metrics.json").write_text(json.dumps(METRICS))
        (folder / "lineage.json").write_text(json.dumps(lineage))
        (folder / "predictions.csv").write_text("id_code,sirna\n")
        (folder / "report.html").write_text("<html></html>")
        record_results(self.store, lineage["run"], folder)


def as_configuration(config: RunConfig, *_: Any) -> tuple[str, None]:
    """In place of the compiled pipeline, which takes seconds."""
    return config.dump(), None


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads configurations; tests that run the steps of a pipeline compile it."""
    monkeypatch.setattr("pipelines.cluster.submit.compiled", as_configuration)


@pytest.fixture
def submitting(server: KfpServer, config_file: Path, screen: str, store: ObjectStore) -> Submitting:
    config = RunConfig.load(
        str(config_file), [f"store.bucket={BUCKET}", f"store.prefix={store.prefix}", "embeddings.enabled=false"]
    )
    made = Submitting(server, config, screen, store)
    server.on_end = lambda run: made.results_of(run) if run["state"] == "SUCCEEDED" else None
    return made
