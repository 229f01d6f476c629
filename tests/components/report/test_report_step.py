from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.manifest import Manifest
from components.core.storage.run_records import RunRecord
from components.report.step import main, run
from tests.components.report.page import Page

FILES = {
    "predictions.csv",
    "predictions_oof.csv",
    "predictions_holdout.csv",
    "metrics.json",
    "report.html",
    "config.yaml",
    "lineage.json",
}


@pytest.fixture(scope="module")
def report(finished_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    run(**finished_run.arguments(out))
    return out


@pytest.fixture
def changed(finished_run: Any, tmp_path: Path) -> Any:
    """Arguments of a run whose files a test may spoil."""
    folder = tmp_path / "in"
    shutil.copytree(finished_run.screen.parent, folder)
    arguments = finished_run.arguments(tmp_path / "out")
    for name in ("screen", "holdout", "holdout_labels", "truth"):
        arguments[name] = folder / arguments[name].name
    arguments["uris"] = [str(folder / Path(uri).name) for uri in arguments["uris"]]
    return arguments


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def edit(path: Path, row: int, field: str, value: str) -> None:
    table = rows(path)
    table[row][field] = value
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys())
        writer.writeheader()
        writer.writerows(table)


def test_the_directory_is_complete(report: Path) -> None:
    assert {path.name for path in report.iterdir()} == FILES
    assert list(report.parent.iterdir()) == [report]


def test_scores_agree_with_counting_in_the_tables(report: Path, finished_run: Any) -> None:
    metrics = json.loads((report / "metrics.json").read_text())
    for score, name in (("out_of_fold", "oof"), ("unlabelled", "unlabelled"), ("holdout", "holdout")):
        for stage, column in (("raw", "raw_sirna"), ("group", "group_sirna"), ("assigned", "sirna")):
            hits: dict[str, list[bool]] = {"overall": []}
            for uri in finished_run.uris:
                for row in rows(Path(uri) / f"{name}.csv"):
                    hit = row[column] == finished_run.labels[row["id_code"]]
                    hits["overall"].append(hit)
                    hits.setdefault(row["id_code"].split("-")[0], []).append(hit)
            expected = {part: sum(h) / len(h) for part, h in hits.items()}
            assert metrics[score][stage] == pytest.approx(expected, abs=1e-6)
            assert metrics["wells"][score] == {part: len(h) for part, h in hits.items()}
    assert metrics["schema"] == 1
    assert [fold["fold"] for fold in metrics["folds"]] == [0, 1]
    fitted = {"raw": 1.31, "group": 1.12, "balanced": 0.94}
    assert metrics["temperatures"] == dict.fromkeys(("HUVEC", "RPE", "HEPG2", "U2OS"), fitted)


def test_a_fold_counts_its_own_experiments_only(report: Path, finished_run: Any) -> None:
    metrics = json.loads((report / "metrics.json").read_text())
    folds = Manifest.read(finished_run.screen).folds
    for fold in metrics["folds"]:
        table = [
            row
            for uri in finished_run.uris
            for row in rows(Path(uri) / "oof.csv")
            if folds[row["id_code"].split("_")[0]] == fold["fold"]
        ]
        hits = [row["sirna"] == finished_run.labels[row["id_code"]] for row in table]
        assert fold["assigned"]["overall"] == pytest.approx(sum(hits) / len(hits), abs=1e-6)


def test_throughput_counts_the_epochs_of_pretraining_once(report: Path) -> None:
    # Two folds at 400 and 450 sites/s for equal times; every cell type repeats pretrain's records.
    assert json.loads((report / "metrics.json").read_text())["throughput"]["pretrain_sites_per_s"] == 425.0


def test_predictions_name_every_unlabelled_treatment_well_and_no_control(report: Path, finished_run: Any) -> None:
    expected = {
        w.id_code
        for p in Manifest.read(finished_run.screen).plates
        if not p.labelled
        for w in p.wells
        if w.well_type == "treatment"
    }
    table = rows(report / "predictions.csv")
    assert list(table[0]) == ["id_code", "sirna", "confidence", "margin", "raw_sirna", "raw_confidence", "top5"]
    assert len(table) == len(expected)
    assert {row["id_code"] for row in table} == expected


def test_truth_changes_scores_and_nothing_else(report: Path, finished_run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    metrics = run(**finished_run.arguments(out, truth=False))
    assert "unlabelled" not in metrics
    assert metrics["out_of_fold"] == json.loads((report / "metrics.json").read_text())["out_of_fold"]
    for name in ("predictions.csv", "predictions_oof.csv", "predictions_holdout.csv"):
        assert (out / name).read_bytes() == (report / name).read_bytes()
    assert "Unlabelled (transductive)" in (report / "report.html").read_text()
    assert "Unlabelled (transductive)" not in (out / "report.html").read_text()


def test_the_page_is_well_formed_and_fetches_nothing(report: Path) -> None:
    text = (report / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.fetched == []
    assert not re.search(r"@import|url\((?!#)", text)
    assert {anchor[1:] for anchor in page.anchors} <= set(page.ids)
    assert all(image.get("alt") or image.get("aria-label") for image in page.images)
    assert len(text) < 5_000_000


def test_the_page_shows_what_the_inputs_say(report: Path) -> None:
    text = (report / "report.html").read_text()
    assert "RPE-02 plate 3: no negative control" in text  # of the manifest
    assert "margin 2.3 is below 5.0" in text  # of assign
    assert "0.1.0+g3f2a91c" in text
    assert text.count("data:image/png;base64,") == 8
    metrics = json.loads((report / "metrics.json").read_text())
    assert f"<b>{100 * metrics['unlabelled']['assigned']['overall']:.1f} %</b>" in text


def test_lineage_and_config_come_back(report: Path, finished_run: Any) -> None:
    lineage = json.loads((report / "lineage.json").read_text())
    assert lineage["manifest_digest"] == Manifest.read(finished_run.screen).digest()
    assert lineage["steps"] == finished_run.lineage["steps"]
    assert RunConfig.load(str(report / "config.yaml")) == finished_run.config


@pytest.fixture(scope="module")
def troubled(finished_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over an earlier one, of a run with a fold missing, no images and a hostile warning."""
    folder = tmp_path_factory.mktemp("troubled")
    first = folder / "assign"
    shutil.copytree(finished_run.uris[0], first)
    lines = (first / "oof.csv").read_text().splitlines(keepends=True)
    (first / "oof.csv").write_text("".join(lines[:-48]))
    assign = json.loads((first / "assign.json").read_text())
    (first / "assign.json").write_text(json.dumps({**assign, "warnings": ["<script>alert(1)</script>"]}))
    out = folder / "out"
    out.mkdir()
    (out / "stale.txt").write_text("from before")
    arguments = finished_run.arguments(out)
    empty = type(finished_run.chunks)()
    run(**{**arguments, "uris": [str(first), *arguments["uris"][1:]], "store": empty})
    return out


def test_an_earlier_report_is_replaced(troubled: Path) -> None:
    assert {path.name for path in troubled.iterdir()} == FILES
    assert sorted(path.name for path in troubled.parent.iterdir()) == ["assign", "out"]


def test_names_in_the_input_cannot_break_out_of_the_page(troubled: Path) -> None:
    text = (troubled / "report.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_a_missing_fold_is_reported_not_refused(troubled: Path) -> None:
    assert "48 labelled wells of HUVEC have no out-of-fold prediction" in (troubled / "report.html").read_text()


def test_missing_plates_are_said_on_the_page(troubled: Path) -> None:
    assert re.search(r"The images could not be read: .* is missing", (troubled / "report.html").read_text())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sirna", "sirna_9999", "field sirna is 'sirna_9999'; it is not a treatment"),
        ("sirna", "NaN", "field sirna is 'NaN'; it is empty"),
        ("id_code", "HUVEC-99_1_B02", "field id_code is 'HUVEC-99_1_B02'; it is not a treatment well of an unlabelled"),
    ],
)
def test_rejects_a_bad_truth_and_writes_nothing(changed: Any, field: str, value: str, message: str) -> None:
    edit(changed["truth"], 0, field, value)
    with pytest.raises(InputError, match=rf"truth\.csv line 2 \(HUVEC-\w+\): {re.escape(message)}"):
        run(**changed)
    assert not changed["out"].exists()
    assert [path.name for path in changed["out"].parent.iterdir()] == ["in"]


def test_reports_all_faults_of_a_truth_at_once(changed: Any) -> None:
    labelled = rows(Path(changed["uris"][0]) / "oof.csv")[0]["id_code"]
    edit(changed["truth"], 3, "id_code", labelled)
    edit(changed["truth"], 7, "sirna", "")
    with pytest.raises(InputError, match=rf"2 faults: line 5 \({labelled}\): .* \| line 9 .* it is empty"):
        run(**changed)


def test_rejects_a_truth_without_its_column(changed: Any) -> None:
    changed["truth"].write_text("id_code,label\nA,B\n")
    with pytest.raises(InputError, match=r"truth\.csv line 1: column sirna is missing"):
        run(**changed)


def test_rejects_an_unlabelled_well_without_a_prediction(changed: Any) -> None:
    path = Path(changed["uris"][1]) / "unlabelled.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    gone = lines[-1].split(",")[0]
    with pytest.raises(InputError, match=f"1 wells of RPE have no row, first {gone}"):
        run(**changed)


def test_rejects_a_confidence_that_is_no_probability(changed: Any) -> None:
    edit(Path(changed["uris"][0]) / "holdout.csv", 4, "confidence", "nan")
    with pytest.raises(
        InputError, match=r"holdout\.csv line 6 \(\S+\): field confidence is 'nan'; expected a number from 0 to 1"
    ):
        run(**changed)


def test_rejects_a_cell_type_given_twice(changed: Any) -> None:
    with pytest.raises(InputError, match="two outputs of assign are of HUVEC"):
        run(**{**changed, "uris": [*changed["uris"], changed["uris"][0]]})


def test_kfp_words_and_another_order_of_cell_types_make_the_same_report(
    report: Path, finished_run: Any, tmp_path: Path, store: Any
) -> None:
    """`main` takes strings, and finds the plates in the manifest's own store."""
    store.put_many(finished_run.chunks.objects.items())
    manifests = {}
    for name in ("screen", "holdout"):
        manifest = Manifest.read(getattr(finished_run, name)).model_copy(update={"store": store.uri("")})
        manifests[name] = tmp_path / f"{name}.json"
        manifests[name].write_text(manifest.model_dump_json())
    main(
        config=finished_run.config.model_dump_json(),
        screen=str(manifests["screen"]),
        holdout=str(manifests["holdout"]),
        holdout_labels=str(finished_run.holdout_labels),
        truth=str(finished_run.truth),
        uris=finished_run.uris[::-1],
        lineage=json.dumps(finished_run.lineage),
        results=str(tmp_path / "out"),
    )
    assert store.list("runs/") == [], "a step by hand is no run"
    for name in FILES - {"report.html"}:
        assert (tmp_path / "out" / name).read_bytes() == (report / name).read_bytes(), name
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/png;base64,") == 8


def test_a_report_on_a_cluster_learns_key_and_start_from_the_runs_record(
    finished_run: Any, tmp_path: Path, store: Any
) -> None:
    manifests = {}
    for name in ("screen", "holdout"):
        found = Manifest.read(getattr(finished_run, name)).model_copy(
            update={"store": store.uri(""), "run": "synthetic-1"}
        )
        manifests[name] = tmp_path / f"{name}.json"
        manifests[name].write_text(found.model_dump_json())
    known = {
        "run": "synthetic-1",
        "screen": "s3://plates/one",
        "data_fingerprint": "f",
        "started": "2026-11-25T04:00:00",
    }
    record = RunRecord(key="synthetic-1", config={}, lineage=known)
    store.put("runs/synthetic-1/run.json", record.model_dump_json().encode())
    compiled = {"recipe": "1a2b", "code_version": "0.1.0", "warnings": ["compiled from a tree that is not committed"]}
    main(
        config=finished_run.config.model_dump_json(),
        screen=str(manifests["screen"]),
        holdout=str(manifests["holdout"]),
        holdout_labels=str(finished_run.holdout_labels),
        truth="",
        uris=finished_run.uris,
        lineage=json.dumps(compiled),
        results=str(tmp_path / "out"),
    )
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert lineage.items() >= {**compiled, **known}.items()
    for name in FILES:
        assert store.get(f"runs/synthetic-1/results/{name}") == (tmp_path / "out" / name).read_bytes(), name
    assert "compiled from a tree that is not committed" in (tmp_path / "out" / "report.html").read_text()


def test_bad_input_on_the_command_line_is_one_line_and_exit_2(changed: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(changed["config"].dump())
    edit(changed["truth"], 0, "sirna", "sirna_9999")
    flags = [
        f"--{name.replace('_', '-')}={changed[name]}"
        for name in ("screen", "holdout", "holdout_labels", "truth", "out")
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "components.report",
            f"--config={config}",
            *flags,
            *(f"--uri={uri}" for uri in changed["uris"]),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "truth.csv line 2 (" in done.stderr


def test_a_further_round_says_that_its_out_of_fold_scores_know_their_labels(finished_run: Any, tmp_path: Path) -> None:
    arguments = finished_run.arguments(tmp_path / "out")
    teacher = arguments["config"].mean_teacher.model_copy(update={"fused_labels": "first/predictions.csv"})
    metrics = run(**{**arguments, "config": arguments["config"].model_copy(update={"mean_teacher": teacher})})
    assert metrics["fused_labels"] == "first/predictions.csv"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "a further round on the predictions of first/predictions.csv" in page
    assert "are not independent of their own labels" in page


def test_the_run_that_pretraining_started_from_is_in_lineage_and_page(finished_run: Any, tmp_path: Path) -> None:
    arguments = finished_run.arguments(tmp_path / "out")
    run(**{**arguments, "config": arguments["config"].model_copy(update={"init_from": "s3://b/runs/old-1"})})
    assert json.loads((tmp_path / "out" / "lineage.json").read_text())["init_from"] == "s3://b/runs/old-1"
    assert (
        "<dt>pretrained from</dt><dd><code>s3://b/runs/old-1</code></dd>"
        in (tmp_path / "out" / "report.html").read_text()
    )


def test_a_run_that_started_at_random_says_nothing_of_another(report: Path) -> None:
    assert "init_from" not in json.loads((report / "lineage.json").read_text())
    assert "pretrained from" not in (report / "report.html").read_text()
