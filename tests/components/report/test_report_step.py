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
from tests.components.report.page import check_page

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
    """Arguments of a run whose files a test may change."""
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


def test_scores_agree_with_counting(report: Path, finished_run: Any) -> None:
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
    # Two folds at 400 and 450 sites/s, for equally long; every cell type repeats pretrain's records.
    assert json.loads((report / "metrics.json").read_text())["throughput"]["pretrain_sites_per_s"] == 425.0


def test_predictions_hold_every_unlabelled_treatment_well_and_no_control(report: Path, finished_run: Any) -> None:
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


def test_the_page_shows_warnings_pictures_and_accuracy(report: Path) -> None:
    text = (report / "report.html").read_text()
    assert "RPE-02 plate 3: no negative control" in text  # of the manifest
    assert "margin 2.3 is below 5.0" in text  # of assign
    assert "0.1.0+g3f2a91c" in text
    assert text.count("data:image/png;base64,") == 8
    metrics = json.loads((report / "metrics.json").read_text())
    assert f"<b>{100 * metrics['unlabelled']['assigned']['overall']:.1f} %</b>" in text


def test_lineage_and_config_are_written(report: Path, finished_run: Any) -> None:
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


def test_text_of_the_input_is_escaped_in_the_page(troubled: Path) -> None:
    text = (troubled / "report.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_a_missing_fold_is_a_warning(troubled: Path) -> None:
    assert "48 labelled wells of HUVEC have no out-of-fold prediction" in (troubled / "report.html").read_text()


def test_missing_images_are_mentioned_on_the_page(troubled: Path) -> None:
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


def test_the_command_prints_one_line_for_bad_input(changed: Any, tmp_path: Path) -> None:
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


def test_the_page_is_well_formed_and_fetches_nothing(report: Path) -> None:
    text = (report / "report.html").read_text()
    check_page(text)
    assert len(text) < 5_000_000


def test_main_writes_the_same_report_and_records_it_under_the_run(
    report: Path, finished_run: Any, tmp_path: Path, store: Any
) -> None:
    """With plates from the manifest's own store, cell types in another order, and key and start from the run's record."""
    store.put_many(finished_run.chunks.objects.items())
    for name in ("screen", "holdout"):
        manifest = Manifest.read(getattr(finished_run, name))
        manifest = manifest.model_copy(update={"store": store.uri(""), "run": "synthetic-1"})
        (tmp_path / f"{name}.json").write_text(manifest.model_dump_json())
    known = {
        "run": "synthetic-1",
        "screen": "s3://plates/one",
        "data_fingerprint": "f",
        "started": "2026-11-25T04:00:00",
    }
    record = RunRecord(key="synthetic-1", config={}, lineage=known)
    store.put("runs/synthetic-1/run.json", record.model_dump_json().encode())
    compiled = {"recipe": "1a2b", "code_version": "0.1.0", "warnings": ["compiled from a tree that is not committed"]}
    out = tmp_path / "out"
    main(
        config=finished_run.config.model_dump_json(),
        screen=str(tmp_path / "screen.json"),
        holdout=str(tmp_path / "holdout.json"),
        holdout_labels=str(finished_run.holdout_labels),
        truth=str(finished_run.truth),
        uris=finished_run.uris[::-1],
        lineage=json.dumps(compiled),
        results=str(out),
    )
    for name in FILES - {"report.html", "lineage.json"}:
        assert (out / name).read_bytes() == (report / name).read_bytes(), name
    assert json.loads((out / "lineage.json").read_text()).items() >= {**compiled, **known}.items()
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8
    assert "compiled from a tree that is not committed" in page
    for name in FILES:
        assert store.get(f"runs/synthetic-1/results/{name}") == (out / name).read_bytes(), name


def test_a_run_from_earlier_weights_or_predictions_reports_them(
    finished_run: Any, report: Path, tmp_path: Path
) -> None:
    arguments = finished_run.arguments(tmp_path / "out")
    config = arguments["config"]
    teacher = config.mean_teacher.model_copy(update={"fused_labels": "first/predictions.csv"})
    changed = config.model_copy(update={"mean_teacher": teacher, "init_from": "s3://b/runs/old-1"})
    metrics = run(**{**arguments, "config": changed})
    assert metrics["fused_labels"] == "first/predictions.csv"
    assert json.loads((tmp_path / "out" / "lineage.json").read_text())["init_from"] == "s3://b/runs/old-1"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "a further round on the predictions of first/predictions.csv" in page
    assert "<dt>pretrained from</dt><dd><code>s3://b/runs/old-1</code></dd>" in page
    assert "pretrained from" not in (report / "report.html").read_text()
