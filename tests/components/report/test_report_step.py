from __future__ import annotations

import json
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.evaluation.table import accuracy_table
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import RunRecord
from components.core.tables import read_table_file, unescaped
from components.report.step import main, publish, run
from tests.components.report.conftest import LINEAGE, SKILL, TEMPERATURE, SyntheticRun, make_run, treated
from tests.components.report.page import check_page
from tests.tiny_screen import MemoryStore

TABLES = {"predictions.csv", "predictions_oof.csv", "predictions_holdout.csv"}
FILES = {*TABLES, "metrics.json", "report.html", "config.yaml", "lineage.json"}
ROLES = {"out_of_fold": "oof", "unlabelled": "unlabelled", "holdout": "holdout"}
COLUMNS = {"raw": "raw_perturbation", "group": "group_perturbation", "assigned": "perturbation"}


def read_metrics(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((report / "metrics.json").read_text())
    return found


@pytest.fixture
def changed(finished_run: SyntheticRun, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a run whose files a test may change."""
    shutil.copytree(finished_run.folder, tmp_path / "in")
    copied = SyntheticRun(tmp_path / "in", finished_run.store, finished_run.labels)
    return copied.arguments(tmp_path / "out")


def test_scores_agree_with_counting(report: Path, finished_run: SyntheticRun) -> None:
    metrics = read_metrics(report)
    folds = Manifest.read(finished_run.folder / "screen.json").folds
    for score, role in ROLES.items():
        tables = {name: pd.read_csv(finished_run.folder / f"assign-{name}" / f"{role}.csv") for name in SKILL}
        tables = {"overall": pd.concat(tables.values()), **{name: t for name, t in tables.items() if len(t)}}
        assert metrics["wells"][score] == {name: len(table) for name, table in tables.items()}
        for stage, column in COLUMNS.items():
            hits = {name: t[column] == t["id_code"].map(finished_run.labels) for name, t in tables.items()}
            assert metrics[score][stage] == pytest.approx({name: hit.mean() for name, hit in hits.items()}, abs=1e-6)
            if score == "out_of_fold":
                fold_of = tables["overall"]["id_code"].str.split("_").str[0].map(folds)
                expected = hits["overall"].groupby(fold_of).mean().tolist()
                found = [fold[stage]["overall"] for fold in metrics["folds"]]
                assert found == pytest.approx(expected, abs=1e-6)
    assert metrics["schema"] == 1
    assert [fold["not_validated"] for fold in metrics["folds"]] == [[], ["U2OS"]]
    # Folds at 400 and 450 sites/s, for equally long; every cell type repeats pretrain's records.
    assert metrics["throughput"]["pretrain_sites_per_s"] == 425.0
    assert metrics["temperatures"] == dict.fromkeys(SKILL, TEMPERATURE)


def test_an_experiment_of_overlapping_folds_counts_in_each(report: Path, changed: dict[str, Any]) -> None:
    screen, before = Manifest.read(changed["screen"]), read_metrics(report)
    more = {name: (1,) for name, fold in screen.folds.items() if fold == 0}
    changed["screen"].write_text(screen.model_copy(update={"more_folds": more}).model_dump_json())
    first, second = run(**changed)["folds"]
    assert first == before["folds"][0]
    assert second["raw"] == before["out_of_fold"]["raw"]


def test_confidences_without_fitted_temperatures_are_not_called_calibrated(
    report: Path, changed: dict[str, Any], tmp_path: Path
) -> None:
    assert "Calibrated probability" in (report / "report.html").read_text()
    for path in (tmp_path / "in").glob("assign-*/assign.json"):
        found = json.loads(path.read_text())
        path.write_text(json.dumps({**found, "temperature": {**TEMPERATURE, "balanced": 1.0}}))
    run(**changed)
    assert "Calibrated probability" not in (tmp_path / "out" / "report.html").read_text()


def test_predictions_lineage_and_configuration_are_written(report: Path, finished_run: SyntheticRun) -> None:
    screen = Manifest.read(finished_run.folder / "screen.json")
    expected = [id_code for plate in screen.plates if not plate.labelled for id_code in treated(plate)]
    table = pd.read_csv(report / "predictions.csv")
    assert list(table) == ["id_code", "sirna", "confidence", "margin", "raw_sirna", "raw_confidence", "top5"]
    assert sorted(table["id_code"]) == sorted(expected), "every unlabelled treatment well, and no control"
    lineage = json.loads((report / "lineage.json").read_text())
    assert (lineage["manifest_digest"], lineage["steps"]) == (screen.digest(), LINEAGE["steps"])
    assert RunConfig.load(str(report / "config.yaml")) == finished_run.arguments(report)["config"]
    # Where the labels were known, or hidden by the product itself, the truth stands beside the prediction.
    for name in ("predictions_oof.csv", "predictions_holdout.csv"):
        known = pd.read_csv(report / name)
        assert list(known) == [*table, "true_sirna"]
        assert known["true_sirna"].tolist() == known["id_code"].map(finished_run.labels).tolist()


def test_truth_and_a_start_from_an_earlier_run_change_no_prediction_and_are_reported(
    report: Path, finished_run: SyntheticRun, tmp_path: Path
) -> None:
    arguments = {**finished_run.arguments(tmp_path / "out"), "truth": None}
    config = arguments["config"]
    teacher = config.mean_teacher.model_copy(update={"fused_labels": "first/predictions.csv"})
    arguments["config"] = config.model_copy(update={"mean_teacher": teacher, "init_from": "s3://b/runs/old-1"})
    metrics = run(**arguments)
    assert "unlabelled" not in metrics
    assert metrics["out_of_fold"] == read_metrics(report)["out_of_fold"]
    assert metrics["fused_labels"] == "first/predictions.csv"
    assert json.loads((tmp_path / "out" / "lineage.json").read_text())["init_from"] == "s3://b/runs/old-1"
    for name in TABLES:
        assert (tmp_path / "out" / name).read_bytes() == (report / name).read_bytes()
    page, other = ((folder / "report.html").read_text() for folder in (report, tmp_path / "out"))
    assert ("Unlabelled (transductive)" in page, "Unlabelled (transductive)" in other) == (True, False)
    for part in ("on the predictions of first/predictions.csv", "<dt>pretrained from</dt><dd><code>s3://b/runs/old-1<"):
        assert (part in page, part in other) == (False, True)


def test_the_page_shows_warnings_pictures_and_accuracy(report: Path, tmp_path: Path) -> None:
    text = (report / "report.html").read_text()
    check_page(text)
    assert "RPE-02 plate 3: no negative control" in text  # of the manifest
    assert "margin 2.3 is below 5.0" in text  # of assign
    assert "0.1.0+g3f2a91c" in text
    assert text.count("data:image/png;base64,") == 8
    accuracy = read_metrics(report)["unlabelled"]["assigned"]["overall"]
    assert f"<b>{100 * accuracy:.1f} %</b>" in text
    logged: dict[str, float] = {}
    publish(str(report), str(tmp_path / "kfp" / "page"), logged.__setitem__)
    assert (tmp_path / "kfp" / "page").read_text() == text
    assert logged["unlabelled_assigned"] == accuracy
    assert len(logged) == 9


def test_a_report_replaces_an_earlier_one_and_reports_what_is_missing(changed: dict[str, Any]) -> None:
    """A run with a fold missing, no images and a hostile warning."""
    first, out = Path(changed["uris"][0]), changed["out"]
    lines = (first / "oof.csv").read_text().splitlines(keepends=True)
    (first / "oof.csv").write_text("".join(lines[:-48]))
    assign = json.loads((first / "assign.json").read_text())
    (first / "assign.json").write_text(json.dumps({**assign, "warnings": ["<script>alert(1)</script>"]}))
    out.mkdir()
    (out / "stale.txt").write_text("from before")
    run(**{**changed, "store": MemoryStore()})
    assert {path.name for path in out.iterdir()} == FILES
    assert sorted(path.name for path in out.parent.iterdir()) == ["in", "out"]
    text = (out / "report.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert "48 labelled wells of HUVEC have no out-of-fold prediction" in text
    assert re.search(r"The images could not be read: .* is missing", text)


@pytest.mark.parametrize(
    ("name", "row", "column", "value", "message"),
    [
        ("truth", 0, "sirna", "sirna_99", r"truth\.csv line 2 \(HUVEC-\w+\): field sirna is 'sirna_99'; it is not a"),
        ("truth", 0, "sirna", "NaN", r"truth\.csv line 2 \(HUVEC-\w+\): field sirna is 'NaN'; it is empty"),
        ("truth", 0, "id_code", "HUVEC-99_1_B02", r"field id_code .* not a treatment well of an unlabelled"),
        ("assign-HUVEC/holdout", 4, "confidence", "nan", "line 6 .* field confidence is 'nan'; expected a number"),
        ("assign-RPE/unlabelled", -1, "", "", r"1 wells of RPE have no row, first RPE-03_4_\w+"),
    ],
)
def test_rejects_bad_tables_and_writes_nothing(
    changed: dict[str, Any], name: str, row: int, column: str, value: str, message: str
) -> None:
    path = changed["truth"].parent / f"{name}.csv"
    table = pd.read_csv(path, dtype=str)
    if column:
        table.loc[row, column] = value
    (table if column else table[:-1]).to_csv(path, index=False)
    with pytest.raises(InputError, match=message):
        run(**changed)
    assert [path.name for path in changed["out"].parent.iterdir()] == ["in"]


def test_main_writes_the_same_report_and_records_it_under_the_run(
    report: Path, finished_run: SyntheticRun, tmp_path: Path, store: ObjectStore
) -> None:
    """With plates from the manifest's own store, cell types in another order, and the lineage in the run's record."""
    store.put_many(finished_run.store.objects.items())
    arguments = finished_run.arguments(tmp_path / "out")
    for name in ("screen", "holdout"):
        manifest = Manifest.read(arguments[name]).model_copy(update={"store": store.uri(""), "run": "synthetic-1"})
        (tmp_path / f"{name}.json").write_text(manifest.model_dump_json())
    known = {
        "run": "synthetic-1", "screen": "s3://plates/one", "started": "2026-11-25T04:00:00", "recipe": "1a2b",
        "code_version": "0.1.0", "warnings": ["compiled from a tree that is not committed"],
    }  # fmt: skip
    record = RunRecord(key="synthetic-1", config={}, lineage=known)
    store.put("runs/synthetic-1/run.json", record.model_dump_json().encode())
    main(
        config=arguments["config"].model_dump_json(), screen=str(tmp_path / "screen.json"), holdout=str(tmp_path / "holdout.json"),
        holdout_labels=str(arguments["holdout_labels"]), truth=str(arguments["truth"]), uris=arguments["uris"][::-1],
        results=str(tmp_path / "out"),
    )  # fmt: skip
    for name in FILES - {"report.html", "lineage.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (report / name).read_bytes(), name
    assert json.loads((tmp_path / "out" / "lineage.json").read_text()).items() >= known.items()
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8
    assert "compiled from a tree that is not committed" in page
    for name in FILES:
        assert store.get(f"runs/synthetic-1/results/{name}") == (tmp_path / "out" / name).read_bytes(), name


def test_an_unlabelled_well_of_a_labelled_experiment_is_predicted_and_not_scored(
    finished_run: SyntheticRun, report: Path, tmp_path: Path
) -> None:
    """Its prediction is in predictions.csv, and its plate on a map; it is scored only if the truth has it."""
    arguments = finished_run.arguments(tmp_path / "report")
    screen = Manifest.read(arguments["screen"])
    plate = next(plate for plate in screen.plates if plate.labelled)
    id_code = treated(plate)[0]
    wells = tuple(w.model_copy(update={"perturbation": None}) if w.id_code == id_code else w for w in plate.wells)
    plates = (plate.model_copy(update={"wells": wells}) if each is plate else each for each in screen.plates)
    arguments["screen"] = tmp_path / "screen.json"
    arguments["screen"].write_text(screen.model_copy(update={"plates": tuple(plates)}).model_dump_json())
    assigned = tmp_path / f"assign-{plate.cell_type}"
    shutil.copytree(finished_run.folder / assigned.name, assigned)
    known, hidden = (pd.read_csv(assigned / f"{name}.csv") for name in ("oof", "unlabelled"))
    moved = known["id_code"] == id_code
    known[~moved].to_csv(assigned / "oof.csv", index=False)
    pd.concat([hidden, known[moved]]).to_csv(assigned / "unlabelled.csv", index=False)
    arguments["uris"] = [str(assigned) if uri.endswith(assigned.name) else uri for uri in arguments["uris"]]
    before, metrics = read_metrics(report), run(**arguments)
    assert metrics["wells"]["out_of_fold"]["overall"] == before["wells"]["out_of_fold"]["overall"] - 1
    assert metrics["unlabelled"] == before["unlabelled"]
    assert id_code in set(pd.read_csv(tmp_path / "report" / "predictions.csv")["id_code"])
    maps = (folder / "report.html" for folder in (report, tmp_path / "report"))
    before, after = (page.read_text().count('<svg class="plate" role="img"') for page in maps)
    assert after == before + 1
    arguments["truth"] = tmp_path / "truth.csv"
    text = (finished_run.folder / "truth.csv").read_text()
    arguments["truth"].write_text(f"{text}{id_code},{finished_run.labels[id_code]}\n")
    assert run(**arguments)["wells"]["unlabelled"]["overall"] == metrics["wells"]["unlabelled"]["overall"] + 1


def without_design(run_: SyntheticRun, out: Path) -> dict[str, Any]:
    """The arguments of a run on the same screen without a plate design: all stages are raw."""
    arguments = run_.arguments(out / "report")
    screen = Manifest.read(run_.folder / "screen.json").model_copy(update={"no_design": "barcodes"})
    arguments["screen"] = out / "screen.json"
    arguments["screen"].write_text(screen.model_dump_json())
    uris = []
    for cell_type in SKILL:
        folder = out / f"assign-{cell_type}"
        shutil.copytree(run_.folder / folder.name, folder)
        for role in ROLES.values():
            table = pd.read_csv(folder / f"{role}.csv")
            for stage in ("", "group_"):
                table[f"{stage}perturbation"], table[f"{stage}confidence"] = (
                    table["raw_perturbation"],
                    table["raw_confidence"],
                )
            table.to_csv(folder / f"{role}.csv", index=False)
        found = {**json.loads((folder / "assign.json").read_text()), "prior_enabled": False, "experiments": []}
        (folder / "assign.json").write_text(json.dumps({**found, "warnings": ["of all cell types"]}))
        uris.append(str(folder))
    return {**arguments, "uris": uris}


def test_a_report_without_plate_design_says_so_once_and_shows_one_stage(
    finished_run: SyntheticRun, tmp_path: Path
) -> None:
    arguments = without_design(finished_run, tmp_path)
    metrics = run(**arguments)
    assert metrics["plate_design"] is False
    page = (tmp_path / "report" / "report.html").read_text()
    check_page(page)
    text = page.split("<summary>Configuration")[0]
    assert text.count("plate design") == text.count("wells are predicted without a plate design: barcodes") == 1
    assert text.count("of all cell types") == 1
    shown = re.sub(r"<style>.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL)
    for word in ("assigned", "group", "arrangement", "one well of each", "stage"):
        assert word not in shown.lower(), word
    terminal = accuracy_table(metrics).markup
    assert "stage" not in terminal
    assert terminal.count("\n") == 4 + len(metrics["wells"]) - 1


LABELS = ("=1+1", "-cell", "+up", "@x", "plain")


def of_phenotypes(folder: Path) -> dict[str, Any]:
    """A run of one channel, no controls, no plate design, and five labels, one much commoner than the others."""
    (folder / "in").mkdir()
    run_ = make_run(folder / "in", ["H2B"], controls=False)
    arguments = without_design(run_, folder)
    for path in [*folder.rglob("*.json"), *folder.rglob("*.csv")]:
        text = path.read_text()
        text = re.sub(r"sirna_(\d+)(?=[\",\n])", lambda number: LABELS[min(int(number[1]) // 2, 4)], text)
        if path.name in ("screen.json", "holdout.json"):
            manifest = json.loads(text)
            manifest["vocabulary"]["treatments"] = sorted(LABELS)
            text = json.dumps(manifest)
        path.write_text(text.replace("id_code,sirna", "id_code,phenotype"))
    changes = {
        "pretrain": {"selection": "last"}, "mean_teacher": {"enabled": False}, "backbones": [{"name": "plain", "kind": "plain"}],
        "screen": {"perturbation_name": "phenotype", "image_size": 24},
    }  # fmt: skip
    return {**arguments, "config": RunConfig.model_validate({"name": "cells", **changes})}


def test_a_report_of_phenotypes_says_nothing_that_the_run_does_not_have(tmp_path: Path) -> None:
    arguments = of_phenotypes(tmp_path)
    metrics = run(**arguments)
    out = arguments["out"]
    page = (out / "report.html").read_text()
    check_page(page)
    shown = page.split("<summary>Configuration")[0].split("</style>", 1)[1]
    assert shown.count("data:image/png;base64,") == 8
    for absent in ("siRNA", "composite", "mean teacher", "Pretraining", "selected on them,", "</svg> control<"):
        assert absent not in shown, absent
    assert shown.count("no control wells") == 1
    for present in ("5 phenotypes", "nothing was selected on them", "Each phenotype", "precision"):
        assert present in shown, present
    # Spreadsheets execute none of the cells, and the table reads back as it was.
    text = (out / "predictions_oof.csv").read_text()
    assert not re.search(r"(?m)(^|,)[=+@-](?!\d)", text)
    table = unescaped(read_table_file(out / "predictions_oof.csv", ["id_code", "phenotype", "true_phenotype"]))
    assert set(table["true_phenotype"]) == set(LABELS)
    hits = table["phenotype"] == table["true_phenotype"]
    recall = hits.groupby(table["true_phenotype"]).mean()
    assert metrics["out_of_fold"]["raw"]["overall"] == pytest.approx(hits.mean(), abs=1e-6)
    balanced = metrics["balanced_accuracy"]["out_of_fold"]["raw"]["overall"]
    assert balanced == pytest.approx(recall.mean(), abs=1e-6)
    wells = table["true_phenotype"].value_counts()
    assert metrics["labels"]["out_of_fold"] == {"count": 5, "fewest": wells.min(), "most": wells.max()}
    assert shown.count(f"balanced accuracy {100 * balanced:.1f} %") == 1
    assert f"{100 * balanced:.1f}" in accuracy_table(metrics).markup
    for label, right in recall.items():
        row = re.search(rf'scope="row">{re.escape(escape(label))} \({wells[label]}\)</th>(.*)', shown)
        assert row is not None, label
        assert f' class="d" title="{escape(label)} predicted as {escape(label)}">{100 * right:.0f}</td>' in row[1]


def test_balanced_accuracy_is_not_shown_where_labels_are_equally_frequent(report: Path) -> None:
    metrics = read_metrics(report)
    assert set(metrics["balanced_accuracy"]) == set(ROLES)
    assert metrics["balanced_accuracy"]["unlabelled"]["raw"] == pytest.approx(metrics["unlabelled"]["raw"], abs=1e-6)
    assert "balanced accuracy" not in (report / "report.html").read_text()
    assert "balanced" not in accuracy_table(metrics).markup


def test_a_single_fold_without_truth_has_a_page_without_scores(changed: dict[str, Any]) -> None:
    """All labels are trained on: no labelled well is out of fold."""
    tables = [Path(uri) / f"{name}.csv" for uri in changed["uris"] for name in ("oof", "holdout")]
    for table in (*tables, changed["holdout_labels"]):
        table.write_text(table.read_text().partition("\n")[0] + "\n")
    holdout = Manifest.read(changed["holdout"]).model_copy(update={"plates": ()})
    changed["holdout"].write_text(holdout.model_dump_json())
    screen = Manifest.read(changed["screen"])
    by_none = screen.model_copy(update={"folds": dict.fromkeys(screen.folds, 1)})
    changed["screen"].write_text(by_none.model_dump_json())
    config = changed["config"]
    single = config.folds.model_copy(update={"count": 1})
    metrics = run(**{**changed, "truth": None, "config": config.model_copy(update={"folds": single})})
    assert not set(metrics) & set(ROLES)
    assert "|" not in accuracy_table(metrics).markup
    page = (changed["out"] / "report.html").read_text()
    check_page(page)
    assert "All labelled wells were trained on" in page
    assert "folds are missing" not in page
    assert list(pd.read_csv(changed["out"] / "predictions_oof.csv"))[-1] == "true_sirna"
