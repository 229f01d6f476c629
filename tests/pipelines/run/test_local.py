"""Whole runs through the command line: a training interrupted, resumed and repeated, and a prediction with its model."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from components.core.config import HeadConfig, RunConfig, parse
from components.core.errors import StepError
from components.core.learning.network import Classifier
from components.core.learning.weight_files import load_weights
from components.core.progress import EVENTS_VARIABLE
from components.core.registry.published_models import download_networks, find_model
from components.core.storage.finished import fetch_finished
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import RunRecord
from components.core.storage.runs import finished_folds, read_runs, read_tasks
from pipelines.dag import training_graph
from pipelines.run.display import TaskDisplay
from pipelines.run.folder import LocalRun, RunFolder, opened_folder
from pipelines.run.local import finish_hint, follow, run_key
from pipelines.store.tables import run_row
from pipelines.studies.study import Study
from tests.pipelines.tiny_run import (
    CONFIG,
    ROOT,
    Cellsignal,
    only_huvec,
    processes_naming,
    results,
    truth_of,
    write_truth,
)
from tests.tiny_screen import TinyScreen

COLUMNS = ["id_code", "sirna", "confidence", "margin", "raw_sirna", "raw_confidence", "top5"]
PREDICTIONS = {"predictions.csv": 6, "predictions_oof.csv": 12, "predictions_holdout.csv": 6}
HOLDOUT = "HUVEC-04"


def events(out: Path) -> list[dict[str, Any]]:
    file = out / "run" / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@dataclass(frozen=True)
class Run:
    """A run in a folder of its own, with a store of its own."""

    cellsignal: Cellsignal
    screen: Path
    arguments: tuple[str | Path, ...]

    @property
    def out(self) -> Path:
        return self.cellsignal.folder / "out"

    @property
    def store(self) -> Path:
        return self.cellsignal.folder / "store"


def prepare(folder: Path, *, integers: bool) -> Run:
    """A screen, its truth and a configuration in a new folder; labels as the release writes them, or as numbers."""
    folder.mkdir()
    imaged = ("HUVEC-01", "HUVEC-02", "HUVEC-03", HOLDOUT)
    screen = only_huvec(TinyScreen(folder / "screen", imaged, more=[HOLDOUT]))
    if integers:
        for name in ("train.csv", "train_controls.csv", "test_controls.csv"):
            path = screen.root / name
            path.write_text(path.read_text().replace("sirna_", ""))
    truth = write_truth(folder / "truth.csv", truth_of(screen))
    config = folder / "tiny.yaml"
    held_out = CONFIG.replace("image_size: 16", f"image_size: 16, holdout_experiments: [{HOLDOUT}]")
    config.write_text(f"{held_out}loader: {{node_cache: {json.dumps(str(folder / 'node'))}}}\n")
    options = {
        "config": config,
        "screen": screen.root,
        "truth": truth,
        "out": folder / "out",
        "store": folder / "store",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return Run(Cellsignal(folder), screen.root, ("run", *arguments))


@dataclass(frozen=True)
class Interrupted:
    """A run with Ctrl-C once a pretrain had finished, and the same command again."""

    run: Run
    code: int
    message: str
    left: list[str]
    results: list[str]
    finished: list[dict[str, Any]]
    again: Any


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    run = prepare(tmp_path_factory.mktemp("local") / "run", integers=True)
    process = run.cellsignal.start(*run.arguments)
    deadline = time.monotonic() + 600
    while not any(e["event"] == "finish" and e["step"] == "pretrain" for e in events(run.out)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    finished = [e for e in events(run.out) if e["event"] == "finish"]
    left = processes_naming(run.cellsignal.folder)
    code, message, so_far = process.returncode, errors, results(run.out)
    return Interrupted(run, code, message, left, so_far, finished, run.cellsignal(*run.arguments))


def test_ctrl_c_ends_with_one_line_no_result_and_no_process(interrupted: Interrupted):
    assert interrupted.code == 3
    assert interrupted.message == ("error: cancelled; run the same command again to resume from the finished steps\n")
    assert interrupted.left == []
    assert interrupted.results == []


def test_the_same_command_reuses_the_finished_steps(interrupted: Interrupted):
    again = interrupted.again
    assert (again.returncode, again.stderr) == (0, "")
    before = {e["fold"] for e in interrupted.finished if e["step"] == "pretrain"}
    # A fetched task has no epoch; each of the others has.
    worked = {e["fold"] for e in events(interrupted.run.out) if e["step"] == "pretrain" and e["event"] == "epoch"}
    # A task that was killed between storing its outputs and its last event is fetched as well.
    assert worked <= {0, 1} - before
    assert "0 plates packed, 8 reused" in "".join(
        e["message"] for e in events(interrupted.run.out) if e["event"] == "note"
    )
    assert processes_naming(interrupted.run.cellsignal.folder) == []


def test_every_file_of_the_contract_is_there_with_its_columns(interrupted: Interrupted):
    out = interrupted.run.out
    names = {"metrics.json", "report.html", "config.yaml", "lineage.json", *PREDICTIONS}
    assert set(results(out)) == names
    treatments = {row["sirna"] for row in table(interrupted.run.screen / "train.csv")}
    for name, wells in PREDICTIONS.items():
        rows = table(out / name)
        truth = [] if name == "predictions.csv" else ["true_sirna"]
        assert (out / name).read_text().splitlines()[0].split(",") == [*COLUMNS, *truth]
        assert len(rows) == wells
        for row in rows:
            # The labels of this screen are bare numbers, and so are the answers.
            assert {row["sirna"], row["raw_sirna"], *json.loads(row["top5"])} <= treatments
            assert all(0.0 <= float(row[field]) <= 1.0 for field in ("confidence", "raw_confidence"))
            assert -1.0 <= float(row["margin"]) <= 1.0
            assert json.loads(row["top5"])[0] == row["raw_sirna"]
    unlabelled = {row["id_code"] for row in table(interrupted.run.screen / "test.csv")}
    assert {row["id_code"] for row in table(out / "predictions.csv")} == unlabelled
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    store = f"store.bucket={interrupted.run.store.as_uri()}"
    assert RunConfig.load(str(out / "config.yaml")) == RunConfig.load(str(out.parent / "tiny.yaml"), [store])


def test_the_embeddings_of_all_folds_are_in_one_folder_and_in_the_lineage(interrupted: Interrupted):
    out = interrupted.run.out
    files = [f"embeddings/tiny/HUVEC/fold_{fold}.parquet" for fold in (0, 1)]
    assert sorted(p.relative_to(out).as_posix() for p in (out / "embeddings").rglob("*") if p.is_file()) == files
    assert json.loads((out / "lineage.json").read_text())["embeddings"] == files
    wells = pq.read_table(out / "embeddings" / "tiny").to_pylist()
    assert len(wells) == 2 * 4 * 2 * 5, "folds, experiments, plates, wells"
    for fold, validated in ((0, "HUVEC-01"), (1, "HUVEC-02")):
        role = {w["id_code"]: w["use"] for w in wells if w["fold"] == fold and w["role"] == "treatment"}
        assert {w for w, r in role.items() if r == "out_of_fold"} == {w for w in role if w.startswith(validated)}
    unlabelled = {row["id_code"] for row in table(interrupted.run.screen / "test.csv")}
    assert {w["id_code"] for w in wells if w["use"] == "unlabelled"} == unlabelled
    assert {w["sirna"] for w in wells if w["use"] == "unlabelled"} == {None}


def test_the_metrics_are_shares_of_correctly_predicted_wells(interrupted: Interrupted):
    out = interrupted.run.out
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["schema"] == 1
    assert {"out_of_fold", "unlabelled", "holdout", "folds", "throughput"} <= metrics.keys()
    labels = {
        "out_of_fold": (
            "predictions_oof.csv",
            {r["id_code"]: r["sirna"] for r in table(out.parent / "screen/train.csv")},
        ),
        "holdout": (
            "predictions_holdout.csv",
            {r["id_code"]: r["sirna"] for r in table(out.parent / "screen/train.csv")},
        ),
        "unlabelled": ("predictions.csv", {r["id_code"]: r["sirna"] for r in table(out.parent / "truth.csv")}),
    }
    for score, (name, truth) in labels.items():
        rows = table(out / name)
        for stage, column in (("raw", "raw_sirna"), ("assigned", "sirna")):
            right = sum(row[column] == truth[row["id_code"]] for row in rows) / len(rows)
            assert metrics[score][stage] == pytest.approx({"overall": right, "HUVEC": right}, abs=1e-6)
        assert set(metrics[score]) == {"raw", "group", "assigned"}
        assert all(0.0 <= value <= 1.0 for stage in metrics[score].values() for value in stage.values())
    assert [fold["fold"] for fold in metrics["folds"]] == [0, 1]
    assert all(value > 0 for name, value in metrics["throughput"].items() if not name.endswith("_data_wait"))
    assert all(0 <= value < 1 for name, value in metrics["throughput"].items() if name.endswith("_data_wait"))
    assert {f"{step}_data_wait" for step in ("pretrain", "finetune", "pseudo_label")} <= metrics["throughput"].keys()


def test_the_lineage_has_the_inputs_and_the_duration_of_each_task(interrupted: Interrupted):
    lineage = json.loads((interrupted.run.out / "lineage.json").read_text())
    assert {"code_version", "image_digests", "manifest_digest", "seeds", "started", "steps"} <= lineage.keys()
    expected = training_graph(RunConfig.load(str(interrupted.run.out.parent / "tiny.yaml"))).counts()
    counts = dict.fromkeys(expected, 0)
    for task in lineage["steps"]:
        counts[task["step"]] += 1
        assert task["seconds"] >= 0
    assert counts == expected


def test_the_output_ends_with_the_table_and_the_reports_path(interrupted: Interrupted):
    lines = interrupted.again.stdout.splitlines()
    assert lines[-1] == f"report: {(interrupted.run.out / 'report.html').resolve()}"
    assert any("out of fold" in line for line in lines[-12:])
    assert lines[0] == "[0/10 tasks] normalize: started"
    assert any(line.startswith("[10/10 tasks] report: done in ") for line in lines)
    progress = lines[: next(n for n, line in enumerate(lines) if line.startswith("Well top-1 accuracy, %"))]
    assert all(line.startswith(("[", "warning: HUVEC: ")) for line in progress), progress


def test_a_finished_run_becomes_a_model_whose_networks_load(interrupted: Interrupted):
    run = interrupted.run
    key = json.loads((run.out / "lineage.json").read_text())["run"]
    done = run.cellsignal("models", "promote", run.out, "--reason", "the first")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].endswith("is the champion, generation 1")
    registry, model = find_model(ObjectStore(run.store), "champion")
    metrics = json.loads((run.out / "metrics.json").read_text())
    assert (model.run, model.folds) == (key, {"HUVEC": (0, 1)})
    assert model.scores == {score: metrics[score] for score in ("out_of_fold", "unlabelled", "holdout")}
    assert model.temperatures == metrics["temperatures"]
    (backbone,) = model.run_config().backbones
    trained = {}
    for task in read_tasks(ObjectStore(run.store), key, "pseudo_label"):
        student = run.out.parent / f"student-{task.fold}"
        fetch_finished(ObjectStore(run.store), task.prefix, {"weights/tiny.student.safetensors": student})
        trained[task.fold] = student.read_bytes()
    files = {
        fold: download_networks(registry, model, fold, "HUVEC", run.out.parent / "model")["tiny"] for fold in (0, 1)
    }
    assert {fold: file.read_bytes() for fold, file in files.items()} == trained
    network = Classifier(backbone, HeadConfig(), len(model.vocabulary.classes), len(model.channels), 16)
    load_weights(network, files[0])


def test_new_plates_are_predicted_as_by_the_training_run(interrupted: Interrupted, tmp_path: Path) -> None:
    run, screen, truth = interrupted.run, tmp_path / "plates", tmp_path / "truth.csv"
    shutil.rmtree(run.out.parent / "node")  # a folder of the training's machine, which predictions must not create
    shutil.copytree(run.screen, screen)
    labels = {row["id_code"]: row["sirna"] for row in table(screen / "train.csv")}  # of other experiments, too
    write_truth(truth, labels)
    for name in ("train.csv", "train_controls.csv", "test_controls.csv"):  # no label is left that could be read
        head, *lines = [line.split(",") for line in (screen / name).read_text().splitlines()]
        rows = [[*line[:4], "hidden", *line[5:]] for line in lines]
        (screen / name).write_text("".join(",".join(row) + "\n" for row in [head, *rows]))
    out = tmp_path / "predicted"
    promoted = run.cellsignal("models", "promote", run.out, "--reason", "the first")
    assert (promoted.returncode, promoted.stderr) == (0, "")
    usual = ("predict", "--screen", screen, "--model", f"{run.store.as_uri()}/models/champion", "--truth", truth)
    done = run.cellsignal(*usual, "--experiments", f"HUVEC-03,{HOLDOUT}", "--out", out)
    assert done.returncode == 0, done.stderr
    assert not (run.out.parent / "node").exists()
    names = [
        "predictions.csv",
        "qc.csv",
        "metrics.json",
        "report.html",
        "config.yaml",
        "lineage.json",
        "embeddings",
        "run",
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)

    expected = table(run.out / "predictions.csv") + table(run.out / "predictions_holdout.csv")
    found = {row["id_code"]: row for row in table(out / "predictions.csv")}
    assert found.keys() == {row["id_code"] for row in expected}
    for row in expected:
        other = found[row["id_code"]]
        assert (other["sirna"], other["raw_sirna"], other["top5"]) == (row["sirna"], row["raw_sirna"], row["top5"])
        assert float(other["raw_confidence"]) == pytest.approx(float(row["raw_confidence"]), abs=1e-5)
        # Other batches round logits otherwise in the sixth digit, and balancing stops within prior.sinkhorn_tolerance.
        for column in ("confidence", "margin"):
            assert float(other[column]) == pytest.approx(float(row[column]), abs=5e-3)
    metrics, of_run = (json.loads((folder / "metrics.json").read_text()) for folder in (out, run.out))
    assert metrics["holdout"] == of_run["holdout"]
    assert metrics["wells"]["holdout"] == {"overall": 6, "HUVEC": 6}
    quality = table(out / "qc.csv")
    assert len(quality) == 2 * 2 * 5
    assert {row["id_code"] for row in quality if row["confidence"]} == found.keys()
    embeddings = sorted(out.glob("embeddings/*/HUVEC/*.parquet"))
    assert [path.name for path in embeddings] == ["fold_0.parquet", "fold_1.parquet"]
    assert all(len(pq.read_table(path)) == 20 for path in embeddings)
    lineage = json.loads((out / "lineage.json").read_text())
    assert (lineage["model"]["generation"], lineage["model"]["name"]) == (1, "tiny")
    assert {task["step"] for task in lineage["steps"]} == {"normalize", "infer", "ensemble", "assign", "report"}
    assert lineage["model"]["fingerprint"] in (out / "report.html").read_text()
    check_record(ObjectStore(run.store), lineage)

    refused, address = run.cellsignal.refused, f"{run.store.as_uri()}/runs/{lineage['run']}"
    what = (
        f"run {lineage['run']}: is a prediction by model {lineage['model']['fingerprint'][:12]}, which trains nothing"
    )
    started = [tmp_path / "next" if argument == run.out else argument for argument in run.arguments]
    assert f"--{what}" in refused("finish", "--run", address, "--quorum", "1")
    assert what in refused("models", "publish", address)
    assert f"init_from: {what}" in refused(*started, "--set", f"init_from={address}")
    message = f"{out}: the folder of a prediction, which trains nothing; give that of a training"
    assert f"--run {message}" in refused("finish", "--run", out, "--quorum", "1")
    assert f"init_from: {message}" in refused(*started, "--set", f"init_from={out}")
    line = refused(*usual, "--experiments", HOLDOUT, "--out", out)
    assert "holds a run with another experiments" in line


def check_record(store: ObjectStore, lineage: dict[str, Any]) -> None:
    """The prediction is a run of the store, which keeps its plates and logits until it is forgotten."""
    key = lineage["run"]
    record = RunRecord.model_validate_json(store.get(f"runs/{key}/run.json"))
    assert record.lineage["model"] == {**record.lineage["model"], "name": "tiny", "generation": 1}
    assert record.prediction is not None
    assert record.prediction.model == lineage["model"]["fingerprint"]
    assert record.prediction.folds == {"HUVEC": (0, 1)}
    reference, plates = (
        Manifest.model_validate_json(store.get(f"runs/{key}/{name}.json")) for name in ("screen", "holdout")
    )
    assert plates.digest() == lineage["manifest_digest"]
    finished = finished_folds(store, key, reference, plates)
    assert {cell_type: [each.fold for each in folds] for cell_type, folds in finished.items()} == {"HUVEC": [0, 1]}
    (run,) = [run for run in read_runs(store) if run.key == key]
    assert run.needs == {plate.prefix for plate in plates.plates} | {each.prefix for each in finished["HUVEC"]}
    summary = run_row(run)
    assert [summary[name] for name in ("kind", "model", "finished_folds", "folds", "plates")] == [
        "prediction", record.prediction.model, 2, 2, 4,
    ]  # fmt: skip


def test_finish_predicts_as_the_run_did_and_marks_a_missing_fold(interrupted: Interrupted):
    run = interrupted.run
    done = run.cellsignal("finish", "--run", run.out, "--quorum", 2, "--out", run.out.parent / "whole")
    assert (done.returncode, done.stderr) == (0, "")
    for name in PREDICTIONS:
        assert (run.out.parent / "whole" / name).read_bytes() == (run.out / name).read_bytes()
    files = json.loads((run.out / "lineage.json").read_text())["embeddings"]
    assert json.loads((run.out.parent / "whole" / "lineage.json").read_text())["embeddings"] == files

    key = json.loads((run.out / "lineage.json").read_text())["run"]
    store = ObjectStore(run.store)
    folder = f"runs/{key}/tasks/pseudo_label"
    assert store.list(f"{folder}/") == [f"{folder}/{fold}/HUVEC.json" for fold in (0, 1)]
    record = store.get(f"{folder}/1/HUVEC.json")
    store.delete(f"{folder}/1/HUVEC.json")
    line = run.cellsignal.refused("finish", "--run", run.out, "--quorum", 2)
    assert "HUVEC has fold 0" in line
    partial = run.cellsignal("finish", "--run", key, "--store", run.store, "--quorum", 1)
    assert (partial.returncode, partial.stderr) == (0, "")
    out = run.cellsignal.folder / "runs" / key
    assert json.loads((out / "metrics.json").read_text())["partial"]["missing"] == {"HUVEC": [1]}
    assert len(table(out / "predictions_oof.csv")) == 6
    store.put(f"{folder}/1/HUVEC.json", record)
    assert processes_naming(run.cellsignal.folder) == []


def test_a_failed_run_suggests_to_finish_without_the_missing_folds(tmp_path: Path):
    config = RunConfig.load("demo")
    folder = RunFolder(tmp_path / "my runs")
    folder.work.mkdir(parents=True)
    *finished, _ = [("pseudo_label", cell_type, fold) for cell_type in config.screen.cell_types for fold in (0, 1)]
    finished.append(("finetune", config.screen.cell_types[-1], 1))  # which lacks its second fold's end
    lines = [
        json.dumps({"event": "finish", "step": step, "cell_type": cell_type, "fold": fold, "seconds": 1})
        for step, cell_type, fold in finished
    ]
    folder.events.write_text("\n".join([*lines, json.dumps({"event": "new"}), "[]", '{"event": "fin']))
    assert finish_hint(config, folder).endswith(f"cellsignal finish --run '{folder.out}' --quorum 1")
    alone = RunConfig.load("demo", ["folds.train=[0]"])
    assert finish_hint(alone, folder) == ""  # no fold is missing
    folder.events.write_text("")
    assert finish_hint(config, folder) == ""


def test_a_killed_step_is_reported_by_name(tmp_path: Path):
    events = tmp_path / "events.jsonl"
    events.touch()
    program = (
        "import os, signal\nfrom components.core.progress import task\n"
        "with task('pretrain', fold=1, backbone='a'):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, EVENTS_VARIABLE: str(events), "PYTHONPATH": str(ROOT)}
    with (
        events.open() as lines,
        (tmp_path / "log.txt").open("ab") as log,
        TaskDisplay(RunConfig.load("demo"), {"simulate": 1}, Console(file=io.StringIO())) as display,
        pytest.raises(StepError, match=r"^pretrain fold 1 a was killed, perhaps for lack of memory"),
    ):
        follow(["-c", program], environment, lines, display, log)


def test_a_run_key_changes_with_everything_that_affects_results(tmp_path: Path):
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"one")
    config = RunConfig.load("demo", [f"backbones.0.weights={weights}"])
    key = run_key(config, "/screen", tmp_path / "out")
    assert key.startswith("demo-")
    elsewhere = RunConfig.load("demo", [f"backbones.0.weights={weights}", "local.threads=7", "cluster.queue=q"])
    assert key == run_key(config, "/screen", tmp_path / "out") == run_key(elsewhere, "/screen", tmp_path / "out")
    keys = {key, run_key(config, "/other", tmp_path / "out"), run_key(config, "/screen", tmp_path / "elsewhere")}
    keys.add(run_key(config.model_copy(update={"seed": 9}), "/screen", tmp_path / "out"))
    weights.write_bytes(b"two")
    keys.add(run_key(config, "/screen", tmp_path / "out"))
    assert len(keys) == 5


def test_interruption_label_encoding_and_a_screen_in_a_bucket_change_no_prediction(
    interrupted: Interrupted, tmp_path: Path, store: ObjectStore
):
    """The reference: tasks of the same settings without interruption, in one process, for string labels in a bucket."""
    root, work = prepare(tmp_path / "run", integers=False).screen, tmp_path / "study"
    store.put_many((p.relative_to(root).as_posix(), p.read_bytes()) for p in root.rglob("*") if p.is_file())
    work.mkdir()
    config = RunConfig.load(str(tmp_path / "run" / "tiny.yaml"), [f"store.bucket={(work / 'store').as_uri()}"])
    study = Study(work, 1, Console(file=io.StringIO()))
    tasks = study.add_training(config, store.uri(""), included=lambda _: True)
    (report,) = (task for task in tasks.values() if task.step == "report")
    report.arguments.update(truth=str(tmp_path / "run" / "truth.csv"))
    study.run(config)
    for name in PREDICTIONS:
        text = (report.path("results") / name).read_text()
        labels = 7 if name == "predictions.csv" else 8  # those with known truth have it, too
        assert text.count("sirna_") == labels * (len(text.splitlines()) - 1)
        assert text.replace("sirna_", "") == (interrupted.run.out / name).read_text()


def test_the_folder_of_a_finished_run_can_be_run_again(interrupted: Interrupted):
    folder = RunFolder(interrupted.run.out)
    before = results(folder.out)
    with opened_folder(folder.out, parse(LocalRun, json.loads(folder.run.read_text()), source="run.json")):
        assert results(folder.out) == before
