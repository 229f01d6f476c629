"""predict on a cluster, against a server that speaks KFP's API: submission, results, failures and bad input.

If a run succeeds, the steps of the uploaded pipeline run here, with the parameters of the run.
"""

from __future__ import annotations

import csv
import io
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from components.assign.step import main as assign
from components.core.config import RunConfig
from components.core.errors import InputError, StepError
from components.core.registry.champion import promote
from components.core.registry.model_manifest import ModelManifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import RECIPE, RunRecord, cluster_run_key
from components.core.storage.runs import read_runs
from components.ensemble.step import main as ensemble
from components.infer.step import main as infer
from components.normalize.step import main as normalize
from components.report.step import main as report
from pipelines.cli import app
from pipelines.cluster.compile import compiled
from pipelines.cluster.submit import SubmitRequest, submit
from pipelines.cluster.workflow_size import WorkflowSize
from pipelines.dag import TaskGraph
from pipelines.run.predict_request import PredictRequest
from tests.components.core.registry.finished_run import KEY, FinishedRun
from tests.pipelines.cluster.conftest import key_of, report_task
from tests.pipelines.cluster.kfp_server import KfpServer
from tests.seaweedfs import BUCKET, S3Server

NEW = ("HUVEC-03", "HUVEC-04")
"""An unlabelled experiment of the training run's screen, and a held-out one, whose labels are in train.csv."""


@dataclass(frozen=True)
class Lab:
    """A published model and its screen, in a folder and below a prefix of its own of the tests' bucket, as the model."""

    folder: Path
    model: ModelManifest
    store: ObjectStore
    screen: str

    @property
    def address(self) -> str:
        return self.store.uri(f"models/{self.model.fingerprint}")


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, published: FinishedRun, model: ModelManifest) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in s3_server.environment().items():
            patched.setenv(name, value)
        store, screen = (ObjectStore(f"s3://{BUCKET}/{name}-{uuid.uuid4().hex}") for name in ("lab", "screen"))
        published.copy_to(store)
        promote(store, model.fingerprint, "the first")
        folder = published.folder / "screen"
        files = [path for path in folder.rglob("*") if path.is_file()]
        screen.put_many((path.relative_to(folder).as_posix(), path.read_bytes()) for path in files)
        yield Lab(folder, model, store, screen.uri("").rstrip("/"))


@dataclass
class Predicting:
    """predict on a cluster with its arguments; new plates go to a store of the test's own."""

    server: KfpServer
    lab: Lab
    store: ObjectStore
    shown: io.StringIO = field(default_factory=io.StringIO)

    def request(self, **more: Any) -> PredictRequest:
        changes = [f"store.bucket={BUCKET}", f"store.prefix={self.store.prefix}", "name=tiny"]
        arguments = {"model": self.lab.address, "experiments": list(NEW), **more}
        return PredictRequest(**{**arguments, "changes": [*changes, *arguments.get("changes", ())]})

    def __call__(self, wanted: PredictRequest | None = None, **more: Any) -> str:
        self.shown = io.StringIO()
        start = {"endpoint": self.server.url, "screen": self.lab.screen, "images": "tags", "resubmit": 0}
        order = SubmitRequest(**{**start, **more})
        submit(wanted or self.request(), order, Console(file=self.shown, width=300))
        return self.shown.getvalue()

    def fail(self, run: dict[str, Any], kind: str, message: str) -> None:
        task = {"step": "infer", "fold": 1, "cell_type": "HUVEC", "backbone": None}
        report_task(self.store, key_of(run), kind=kind, message=message, **task)


@pytest.fixture
def predicting(server: KfpServer, lab: Lab, store: ObjectStore) -> Predicting:
    return Predicting(server, lab, store)


COMPILED: dict[Any, tuple[str, WorkflowSize, str]] = {}


@pytest.fixture
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles the pipeline once; for a test with another store, that store's prefix replaces the first one."""

    def once(config: RunConfig, graph: TaskGraph, *rest: Any) -> tuple[str, WorkflowSize]:
        key = (config.model_dump_json(exclude={"store"}), repr([task.name for task in graph.tasks]))
        if key not in COMPILED:
            COMPILED[key] = *compiled(config, graph, *rest), config.store.prefix
        text, size, prefix = COMPILED[key]
        return text.replace(prefix, config.store.prefix), size

    monkeypatch.setattr("pipelines.cluster.submit.compiled", once)


class Pods:
    """Runs the steps of a run's uploaded pipeline one after another, as its pods would."""

    def __init__(self, server: KfpServer, run: dict[str, Any], folder: Path) -> None:
        names = {each["pipeline_version_id"]: each["display_name"] for each in server.versions}
        content = server.uploaded[names[run["pipeline_version_reference"]["pipeline_version_id"]]]
        spec = next(yaml.safe_load_all(content))
        definitions = spec["root"]["inputDefinitions"]["parameters"]
        given = {name: each["defaultValue"] for name, each in definitions.items() if "defaultValue" in each}
        self.parameters = {**given, **run["runtime_config"]["parameters"]}
        self.folder = folder
        root = spec["root"]["dag"]["tasks"]
        self.tasks = {name: task for name, task in root.items() if "parameterIterator" not in task}
        loops = [task for task in root.values() if "parameterIterator" in task]
        self.loops = [(spec["components"][loop["componentRef"]["name"]]["dag"]["tasks"], loop) for loop in loops]
        self.name = spec["pipelineInfo"]["name"]

    def inputs(self, task: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in task["inputs"]["parameters"].items():
            if "runtimeValue" in value:
                found[name] = value["runtimeValue"].get("constant")
            elif "componentInputParameter" in value:
                parameter = value["componentInputParameter"].removeprefix("pipelinechannel--")
                found[name] = self.parameters.get(parameter)
        return found

    def normalize(self) -> dict[str, str]:
        files = {name: str(self.folder / name) for name in ("screen", "holdout", "holdout_labels")}
        normalize(**self.inputs(self.tasks["normalize"]), **files)
        return files

    def infer(self, folds: int = 99) -> dict[str, list[str]]:
        files = {name: str(self.folder / name) for name in ("screen", "holdout")}
        logits: dict[str, list[str]] = {}
        for tasks, loop in self.loops:
            ((_, task),) = tasks.items()
            for job in json.loads(loop["parameterIterator"]["items"]["raw"])[:folds]:
                given = {**self.inputs(task), "fold": job["fold"]}
                out = self.folder / given["cell_type"] / str(job["fold"])
                infer(**given, **files, bases=(), logits=str(out / "logits"), embeddings=str(out / "embeddings"))
                logits.setdefault(given["cell_type"], []).append(str(out / "logits"))
        return logits

    def whole(self) -> None:
        assert self.name == "cellsignal-tiny-predict"
        files, uris = self.normalize(), []
        for cell_type, logits in self.infer().items():
            averaged, predictions = (str(self.folder / cell_type / name) for name in ("averaged", "predictions"))
            ensemble(screen=files["screen"], logits=logits, averaged=averaged)
            assign(files["screen"], files["holdout"], logits=averaged, predictions=predictions)
            uris.append(predictions)
        given = {**self.inputs(self.tasks["report"]), "uris": uris}
        report(**given, **files, results=str(self.folder / "results"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("_compiled")
def test_new_plates_are_predicted_by_the_champion_and_the_results_fetched(
    predicting: Predicting, server: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, store = predicting.lab, predicting.store
    server.script = [["RUNNING", "SUCCEEDED"]]
    server.on_end = lambda run: Pods(server, run, tmp_path / "pods").whole()
    (tmp_path / "pods").mkdir()
    labels = [row for row in rows(lab.folder / "train.csv") if row["experiment"] == "HUVEC-04"]
    table = "id_code,sirna\n" + "".join(f"{row['id_code']},{row['sirna']}\n" for row in labels)
    store.put("truth.csv", table.encode())
    changes = [word for change in predicting.request().changes for word in ("--set", change)]
    command = [
        "predict", "--screen", lab.screen, "--model", lab.store.uri("models/champion"), "--experiments", ",".join(NEW),
        "--endpoint", server.url, "--images", "tags", "--wait", "--out", "results", "--truth", store.uri("truth.csv"), *changes,
    ]  # fmt: skip
    done = CliRunner().invoke(app, command, catch_exceptions=False)

    shown = done.output
    assert f"report: {Path('results/report.html').resolve()}" in shown
    assert "overall" in shown, "the accuracy by the truth"
    assert {path.name for path in Path("results").iterdir()} == {
        "predictions.csv", "qc.csv", "metrics.json", "report.html", "config.yaml", "lineage.json", "embeddings"
    }  # fmt: skip
    assert len(list(Path("results/embeddings").rglob("*.parquet"))) == 2 * len(lab.model.backbones)
    predicted = {row["id_code"].rpartition("_")[0].rpartition("_")[0] for row in rows(Path("results/predictions.csv"))}
    assert predicted == set(NEW)
    (run,) = server.runs
    lineage = json.loads(Path("results/lineage.json").read_text())
    assert "images are named by the tag" in Path("results/report.html").read_text()
    assert lineage["run"] == key_of(run)
    assert lineage["model"] == {
        "name": "tiny", "run": KEY, "code_version": lab.model.code_version, "generation": 1,
        "fingerprint": lab.model.fingerprint, "address": lab.address,
    }  # fmt: skip
    parameters = run["runtime_config"]["parameters"]
    assert parameters["model"] == lab.address, "even if another champion is promoted before the pods start"
    assert lineage["run"] == cluster_run_key(
        "tiny-predict", json.loads(parameters["lineage"])[RECIPE], lab.screen, parameters["fingerprint"]
    )
    assert json.loads(Path("results/metrics.json").read_text())["wells"]["holdout"]["overall"] == len(labels)

    record = RunRecord.model_validate_json(store.get(f"runs/{lineage['run']}/run.json"))
    assert record.prediction is not None
    assert record.prediction.model == lab.model.fingerprint
    (run,) = [run for run in read_runs(store) if run.key == lineage["run"]]
    assert len(run.needs) == 4 + 2
    again = predicting.request(model=lab.store.uri("models/champion"))
    predicting(again, wait=True, out=Path("results"), truth=store.uri("truth.csv"))  # the same run's folder is accepted


def test_names_are_those_of_a_prediction_and_the_same_content_is_followed(predicting: Predicting, server: KfpServer):
    server.script = [["RUNNING"]]
    shown = predicting()
    assert [each["display_name"] for each in server.pipelines] == ["cellsignal-tiny-predict"]
    (run,) = server.runs
    assert re.fullmatch(r"tiny-predict-[0-9a-f]{12}", key_of(run))
    assert "the same command with --wait" in shown
    assert run["runtime_config"]["parameters"]["experiments"] == json.dumps(list(NEW))
    assert run["runtime_config"]["parameters"]["any_cell_type"] is False
    same = predicting.request(experiments=[*reversed(NEW), NEW[0]], changes=["cluster.parallel_folds=1"])
    assert "in progress with the same content" in predicting(same)
    for other in ({"experiments": [NEW[0]]}, {"changes": ["predict.views=1"]}, {"any_cell_type": True}):
        predicting(predicting.request(**other))
    assert len({key_of(each) for each in server.runs}) == len(server.runs) == 4


@pytest.mark.usefixtures("_compiled")
def test_a_failed_prediction_reports_the_message_and_the_finished_folds(
    predicting: Predicting, server: KfpServer, tmp_path: Path
) -> None:
    def ended(run: dict[str, Any]) -> None:
        (tmp_path / "pods").mkdir()
        pods = Pods(server, run, tmp_path / "pods")
        pods.normalize()
        pods.infer(folds=1)
        predicting.fail(run, "step", "out of memory")

    server.script, server.on_end = [["FAILED"]], ended
    message = r"^infer fold 1 HUVEC failed: out of memory; no report: 1 of 2 folds have predicted, and the same command resumes"
    with pytest.raises(StepError, match=message):
        predicting(wait=True)
    assert not Path("runs").exists()


@pytest.mark.usefixtures("_compiled")
def test_bad_input_found_by_a_pod_is_recorded_under_the_runs_key(
    predicting: Predicting, server: KfpServer, tmp_path: Path
) -> None:
    """The first step fails before the run has a record; it computes the same key."""
    predicting()
    (run,) = server.runs
    pods = Pods(server, run, tmp_path)
    pods.parameters["model"] = predicting.lab.store.uri("models/" + "0" * 64)
    with pytest.raises(InputError, match="no such model below"):
        pods.normalize()
    (failure,) = predicting.store.list(f"runs/{key_of(run)}/status/normalize/")
    assert json.loads(predicting.store.get(failure))["kind"] == "input"


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"truth": "TRUTH"}, r"--truth s3://.*/truth\.csv line 2 \(HUVEC-01_1_Z99\): field id_code is .*; it is not a tr"),
    ({"model": "file:///data/models/champion"}, {}, r"--model file:///data/models/champion: is in a folder of this machine"),
    ({"changes": ["cluster.steps.infer.shm_gib=64"]}, {}, r"cluster\.steps\.infer\.shm_gib: 64 GiB lie in the pod's memory"),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "order", "message"), REFUSED)
def test_bad_input_is_one_line_before_anything_is_sent_or_written(
    predicting: Predicting, server: KfpServer, wanted: dict[str, Any], order: dict[str, Any], message: str
) -> None:
    if order.get("truth") == "TRUTH":
        predicting.store.put("truth.csv", b"id_code,sirna\nHUVEC-01_1_Z99,sirna_7\n")
        order = {"truth": predicting.store.uri("truth.csv")}
    before = predicting.store.list("")
    with pytest.raises(InputError, match=message):
        predicting(predicting.request(**wanted), **order)
    assert server.requests == []
    assert predicting.store.list("") == before


CLUSTER = ["--endpoint", "http://127.0.0.1:9"]
OTHER_PLACE = [
    ([*CLUSTER, "--runner", "docker"], "--runner applies to this machine; leave it out, or"),
    ([*CLUSTER, "--store", "here"], "--store applies to this machine"),
    (["--wait"], "--wait applies to a cluster; give --endpoint as well, or leave it out"),
    ([], "--out is missing: give the folder of the results"),
]


@pytest.mark.parametrize(("arguments", "message"), OTHER_PLACE)
def test_rejects_options_of_the_other_place(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["predict", "--screen", "s3://lab/plates", *arguments])
    assert isinstance(done.exception, InputError)
    assert str(done.exception).startswith(message)
