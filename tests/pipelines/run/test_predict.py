"""`cellsignal predict` as a user starts it: the predictions of the training run itself, and bad input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.core.learning.weight_files import save_weights
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.publishing import publish
from components.core.storage.digests import digest_file
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import RunRecord
from components.core.storage.runs import fetch_results, finished_folds, read_runs
from pipelines.store.tables import run_row
from tests.components.core.registry.finished_run import KEY, FinishedRun
from tests.pipelines.tiny_run import CONFIG, Cellsignal, error_line, only_huvec
from tests.tiny_screen import LABELLED, UNLABELLED, TinyScreen

HOLDOUT = "HUVEC-04"
RESULTS = ("predictions.csv", "qc.csv", "metrics.json", "report.html", "config.yaml", "lineage.json")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def everything(store: ObjectStore) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list("")}


@pytest.fixture
def lab(tmp_path: Path) -> FinishedRun:
    """A run with random networks, in a store of its own."""
    (tmp_path / "store").mkdir()
    return FinishedRun(tmp_path, ObjectStore(tmp_path / "store"))


@pytest.fixture
def model(lab: FinishedRun) -> ModelManifest:
    return publish(lab.store, KEY).model


def address(lab: FinishedRun, name: str = "champion") -> str:
    return lab.store.uri(f"models/{name}")


def test_new_plates_are_predicted_as_by_the_training_run(cellsignal: Cellsignal, tmp_path: Path) -> None:
    screen = only_huvec(TinyScreen(tmp_path / "screen", imaged=(*LABELLED, *UNLABELLED, HOLDOUT), more=(HOLDOUT,)))
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG)
    store = f"store.bucket=file://{tmp_path / 'lab'}"
    (tmp_path / "lab").mkdir()
    held_out = f"screen.holdout_experiments=[{HOLDOUT}]"
    trained = cellsignal(
        "run", "--config", config, "--screen", screen.root, "--out", tmp_path / "run", "--set", store, "--set", held_out,
        "--set", f"loader.node_cache={tmp_path / 'node'}",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    shutil.rmtree(tmp_path / "node")  # a folder on the training's node, which predictions elsewhere must not create
    promoted = cellsignal("models", "promote", tmp_path / "run", "--reason", "the first")
    assert promoted.returncode == 0, promoted.stderr
    truth = tmp_path / "truth.csv"
    labels = rows(screen.root / "train.csv")  # of experiments that are not predicted, too
    truth.write_text("id_code,sirna\n" + "".join(f"{row['id_code']},{row['sirna']}\n" for row in labels))
    # No label is left that could be read.
    for table in ("train.csv", "train_controls.csv", "test_controls.csv"):
        whole = (screen.root / table).read_text()
        for sirna in ("sirna_7", "sirna_30", "sirna_2", "sirna_100", "sirna_11", "sirna_9", "sirna_5", "UNTREATED"):
            whole = whole.replace(f",{sirna}\n", ",hidden\n").replace(f",{sirna},", ",hidden,")
        (screen.root / table).write_text(whole)
    out = tmp_path / "predicted"
    arguments = ("predict", "--screen", screen.root, "--model", f"file://{tmp_path / 'lab'}/models/champion")
    done = cellsignal(*arguments, "--experiments", f"{UNLABELLED[0]},{HOLDOUT}", "--out", out, "--truth", truth)
    assert done.returncode == 0, done.stderr + (out / "run" / "log.txt").read_text()
    assert not (tmp_path / "node").exists()
    assert sorted(path.name for path in out.iterdir()) == sorted([*RESULTS, "embeddings", "run"])

    expected = rows(tmp_path / "run" / "predictions.csv") + rows(tmp_path / "run" / "predictions_holdout.csv")
    found = {row["id_code"]: row for row in rows(out / "predictions.csv")}
    assert found.keys() == {row["id_code"] for row in expected}
    for row in expected:
        other = found[row["id_code"]]
        assert (other["sirna"], other["raw_sirna"], other["top5"]) == (row["sirna"], row["raw_sirna"], row["top5"])
        assert float(other["raw_confidence"]) == pytest.approx(float(row["raw_confidence"]), abs=1e-5)
        # Other batches round logits otherwise in the sixth digit, and balancing stops within prior.sinkhorn_tolerance.
        for column in ("confidence", "margin"):
            assert float(other[column]) == pytest.approx(float(row[column]), abs=5e-3)
    metrics, of_run = (json.loads((folder / "metrics.json").read_text()) for folder in (out, tmp_path / "run"))
    assert metrics["holdout"] == of_run["holdout"]
    assert metrics["wells"]["holdout"] == {"overall": 6, "HUVEC": 6}

    quality = rows(out / "qc.csv")
    assert len(quality) == 2 * 2 * 5
    assert {row["id_code"] for row in quality if row["confidence"]} == found.keys()
    embeddings = sorted(out.glob("embeddings/*/HUVEC/*.parquet"))
    assert [path.name for path in embeddings] == ["fold_0.parquet", "fold_1.parquet"]
    assert all(len(pq.read_table(path)) == 20 for path in embeddings)
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["model"]["generation"] == 1
    assert lineage["model"]["name"] == "tiny"
    assert {task["step"] for task in lineage["steps"]} == {"normalize", "infer", "ensemble", "assign", "report"}
    page = (out / "report.html").read_text()
    assert lineage["model"]["fingerprint"] in page
    check_record(ObjectStore(tmp_path / "lab"), lineage, tmp_path)

    again = cellsignal(*arguments, "--experiments", f"{UNLABELLED[0]},{HOLDOUT}", "--out", out, "--truth", truth)
    assert again.returncode == 0, again.stderr
    assert {row["id_code"]: row for row in rows(out / "predictions.csv")} == found
    assert json.loads((out / "lineage.json").read_text())["run"] == lineage["run"]
    what = f"is a prediction by model {lineage['model']['fingerprint'][:12]}, which trains nothing; give the key of a training"
    run = f"file://{tmp_path / 'lab'}/runs/{lineage['run']}"
    assert f"--run {lineage['run']}: {what}" in cellsignal.refused("finish", "--run", run, "--quorum", "1")
    assert f"run {lineage['run']}: {what}" in cellsignal.refused("models", "publish", run)
    started = ("run", "--config", config, "--out", tmp_path / "next", "--set", store)
    assert f"init_from: run {lineage['run']}: {what}" in cellsignal.refused(*started, "--set", f"init_from={run}")
    message = f"{out}: the folder of a prediction, which trains nothing; give that of a training"
    assert f"--run {message}" in cellsignal.refused("finish", "--run", out, "--quorum", "1")
    assert f"init_from: {message}" in cellsignal.refused(*started, "--set", f"init_from={out}")
    line = cellsignal.refused(*arguments, "--experiments", HOLDOUT, "--out", out)
    assert "holds a run with another experiments" in line or "holds a run with another truth" in line


def check_record(store: ObjectStore, lineage: dict[str, Any], folder: Path) -> None:
    """The prediction is a run of the store, which keeps its plates and logits until it is forgotten."""
    key = lineage["run"]
    record = RunRecord.model_validate_json(store.get(f"runs/{key}/run.json"))
    assert record.lineage["model"] == {**record.lineage["model"], "name": "tiny", "generation": 1}
    assert record.prediction is not None
    assert record.prediction.model == lineage["model"]["fingerprint"]
    assert record.prediction.experiments == (UNLABELLED[0], HOLDOUT)
    assert record.prediction.folds == {"HUVEC": (0, 1)}
    reference, plates = (
        Manifest.model_validate_json(store.get(f"runs/{key}/{name}.json")) for name in ("screen", "holdout")
    )
    assert plates.digest() == lineage["manifest_digest"]
    finished = finished_folds(store, key, reference, plates)
    assert {cell_type: [each.fold for each in folds] for cell_type, folds in finished.items()} == {"HUVEC": [0, 1]}
    (folder / "fetched").mkdir()
    assert sorted(fetch_results(store, key, folder / "fetched")) == sorted(RESULTS)
    (run,) = [run for run in read_runs(store) if run.key == key]
    assert run.needs == {plate.prefix for plate in plates.plates} | {each.prefix for each in finished["HUVEC"]}
    summary = run_row(run)
    assert [summary[name] for name in ("kind", "model", "finished_folds", "folds", "plates")] == [
        "prediction", record.prediction.model, 2, 2, 4,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "MODELS/champion"], "no model has been promoted yet; promote one with `cellsignal models promote`"),
        (["--model", "MODELS/00000000"], "no such model below"),
        (["--experiments", "HUVEC-77"], "there is no experiment 'HUVEC-77'; there are HUVEC-01, HUVEC-02"),
        (["--set", "standardise.domain=global"], "--set standardise.domain=global: standardise.domain is part of the model"),
        (["--set", "predict.weights=teacher"], "predict.weights is part of the model"),
        (["--screen", "nowhere"], "--screen nowhere: no such folder"),
        (["--truth", "TRUTH"], "field id_code is 'HUVEC-03_1_B99'; it is not a treatment well of these plates: remove the row"),
    ],
)  # fmt: skip
def test_rejects_a_wrong_option_and_leaves_nothing(
    cellsignal: Cellsignal, lab: FinishedRun, model: ModelManifest, tmp_path: Path, more: list[str], message: str
) -> None:
    (tmp_path / "truth.csv").write_text("id_code,sirna\nHUVEC-03_1_B99,sirna_7\n")
    before = everything(lab.store)
    names = {"MODELS": lab.store.uri("models"), "TRUTH": str(tmp_path / "truth.csv")}
    for name, value in names.items():
        more = [word.replace(name, value) for word in more]
    usual = {"--screen": str(tmp_path / "screen"), "--model": address(lab, model.short), "--out": str(tmp_path / "out")}
    given = [word for name, value in usual.items() if name not in more for word in (name, value)]
    assert message in cellsignal.refused("predict", *given, *more)
    assert not (tmp_path / "out").exists()
    assert everything(lab.store) == before


def spoil_manifest(lab: FinishedRun, model: ModelManifest, **changes: Any) -> None:
    key = f"models/{model.fingerprint}/manifest.json"
    lab.store.put(key, json.dumps({**json.loads(lab.store.get(key)), **changes}).encode())


def other_architecture(lab: FinishedRun, model: ModelManifest, tmp_path: Path) -> None:
    """The network of another backbone, with a manifest that fits the file."""
    network = model.networks[0]
    save_weights(lab.network(1, 0, stem=8), tmp_path / "other.safetensors")
    lab.store.put(model.key(network.path), (tmp_path / "other.safetensors").read_bytes())
    changed = network.model_copy(
        update={
            "sha256": digest_file(tmp_path / "other.safetensors"),
            "size": (tmp_path / "other.safetensors").stat().st_size,
        }
    )
    networks = [json.loads(each.model_dump_json()) for each in (changed, *model.networks[1:])]
    spoil_manifest(lab, model, networks=networks)


SPOILED = {
    "a newer schema": (lambda lab, model, _: spoil_manifest(lab, model, schema_version=99), "schema 99, newer than"),
    "no manifest": (
        lambda lab, model, _: lab.store.put(f"models/{model.fingerprint}/manifest.json", b"{"), "damaged, not a model's manifest",
    ),
    "a missing network": (lambda lab, model, _: lab.store.delete(model.key(model.networks[0].path)), "is missing, so that model"),
    "a damaged network": (
        lambda lab, model, _: lab.store.put(model.key(model.networks[0].path), b"x"),
        "`cellsignal models publish tiny-0123456789ab --anew`",
    ),
    "another architecture": (other_architecture, "another architecture"),
    "other channels": (lambda lab, model, _: spoil_manifest(lab, model, channels=5), "channels"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_rejects_a_spoiled_model_and_leaves_nothing(
    cellsignal: Cellsignal, lab: FinishedRun, model: ModelManifest, tmp_path: Path, how: str
) -> None:
    spoil, message = SPOILED[how]
    spoil(lab, model, tmp_path)
    before = {key: data for key, data in everything(lab.store).items() if key.startswith(("models/", "runs/"))}
    line = cellsignal.refused(
        "predict", "--screen", tmp_path / "screen", "--model", address(lab, model.short), "--out", tmp_path / "out",
        "--experiments", "HUVEC-03",
    )  # fmt: skip
    assert message in line
    assert not (tmp_path / "out").exists()
    assert {key: data for key, data in everything(lab.store).items() if key.startswith(("models/", "runs/"))} == before


def test_rejects_a_damaged_record_of_the_champion(cellsignal: Cellsignal, lab: FinishedRun, tmp_path: Path) -> None:
    lab.store.put("models/champion.json", b"{}")
    done = cellsignal("predict", "--screen", tmp_path / "screen", "--model", address(lab), "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "damaged, not a champion's record" in error_line(done)
    assert not (tmp_path / "out").exists()
