"""A server that speaks KFP's API, a tiny screen in a bucket, and submit in this process."""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.core.config import RunConfig
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import open_store
from components.core.storage.runs import record_results
from pipelines.cluster.compile import compiled
from pipelines.cluster.follow import Pace
from pipelines.cluster.submit import SubmitRequest, submit
from tests.pipelines.cluster.kfp_server import KfpServer, serve
from tests.pipelines.tiny_run import only_huvec
from tests.seaweedfs import BUCKET, S3Server
from tests.tiny_screen import TinyScreen

QUICK = Pace(poll=0.01, settle=0.0, outage=0.3, terminate=10.0)
COMPILED: dict[Any, str] = {}
METRICS = {
    stage: {group: {"overall": 0.5, "HUVEC": 0.5} for group in ("raw", "group", "assigned")}
    for stage in ("out_of_fold",)
}
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
    """No login from the environment, and an empty working directory."""
    for name in LOGINS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


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
        store = open_store(BUCKET, f"screen-{uuid.uuid4().hex}")
    files = [path for path in tiny.root.rglob("*") if path.is_file()]
    store.put_many((path.relative_to(tiny.root).as_posix(), path.read_bytes()) for path in files)
    return store.uri("")


@dataclass
class Submitting:
    """submit with its arguments."""

    server: KfpServer
    config: RunConfig
    screen: str
    store: ObjectStore

    def __call__(self, pace: Pace = QUICK, **more: Any) -> str:
        """Submits in this process; returns the console's text."""
        console = io.StringIO()
        request = SubmitRequest(**{"endpoint": self.server.url, "screen": self.screen, "images": "tags", **more})
        self.shown = console
        submit(self.config, request, Console(file=console, width=300), pace)
        return console.getvalue()

    def results_of(self, run: dict[str, Any]) -> None:
        """Writes what report leaves under the run's key."""
        folder = Path("report-output")
        folder.mkdir(exist_ok=True)
        lineage = {
            **json.loads(run["runtime_config"]["parameters"]["lineage"]),
            "run": run["display_name"].split(" ")[0],
        }
        for name, content in {
            "metrics.json": json.dumps(METRICS),
            "lineage.json": json.dumps(lineage),
            "predictions.csv": "id_code,sirna\n",
            "report.html": "<html></html>",
        }.items():
            (folder / name).write_text(content)
        record_results(self.store, lineage["run"], folder)


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles the real pipeline once per configuration; compiling takes most of a submission."""

    def once(config: RunConfig, record: Any, lineage: Any, folds: Any) -> str:
        key = (config.model_dump_json(exclude=None if folds else {"store"}), repr(record), repr(folds))
        if key not in COMPILED:
            COMPILED[key] = compiled(config, record, lineage, folds)
        return COMPILED[key]

    monkeypatch.setattr("pipelines.cluster.submit.compiled", once)


@pytest.fixture
def submitting(server: KfpServer, config_file: Path, screen: str, store: ObjectStore) -> Submitting:
    config = RunConfig.load(
        str(config_file), [f"store.bucket={BUCKET}", f"store.prefix={store.prefix}", "embeddings.enabled=false"]
    )
    made = Submitting(server, config, screen, store)
    server.on_end = lambda run: made.results_of(run) if run["state"] == "SUCCEEDED" else None
    return made


@pytest.fixture
def key() -> Callable[[str], str]:
    """Finds the run's key in the console's text."""
    return lambda shown: re.search(r"run (tiny-[0-9a-f]{12}) ", shown)[1]  # type: ignore[index]
