"""report of new plates: tables and page agree with assign and the plates; inputs that do not match are rejected."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.evaluation.scores import UNSURE
from components.core.storage.object_store import ObjectStore
from components.report.step import main, run
from tests.components.report.new_plates_run import MODEL, NewPlates, make_new_plates
from tests.components.report.page import check_page

FILES = {"predictions.csv", "qc.csv", "metrics.json", "lineage.json", "config.yaml", "report.html"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def new(finished_run: Any, tmp_path: Path) -> NewPlates:
    return make_new_plates(finished_run, tmp_path)


@pytest.fixture
def report(new: NewPlates) -> Path:
    run(**new.arguments)
    return Path(new.arguments["out"])


def assigned(new: NewPlates) -> list[dict[str, str]]:
    """The rows of assign, cell type by cell type."""
    return [row for uri in new.arguments["uris"] for row in rows(Path(uri) / "holdout.csv")]


def test_predictions_are_those_of_assign(report: Path, new: NewPlates) -> None:
    assert {path.name for path in report.iterdir()} == FILES
    table = rows(report / "predictions.csv")
    columns = ["id_code", "sirna", "confidence", "margin", "raw_sirna", "raw_confidence", "top5"]
    assert list(table[0]) == columns
    assert {row["id_code"] for row in table} == set(new.labels)
    for row, expected in zip(table, assigned(new), strict=True):
        for column in ("id_code", "sirna", "raw_sirna", "top5"):
            assert row[column] == expected[column]
        for column in ("confidence", "margin", "raw_confidence"):
            assert float(row[column]) == pytest.approx(float(expected[column]), abs=1e-5)


def test_there_is_no_score_without_truth(report: Path) -> None:
    metrics, text = json.loads((report / "metrics.json").read_text()), (report / "report.html").read_text()
    assert "holdout" not in metrics
    assert "no truth was given" in text
    assert 'id="accuracy"' not in text
    assert "wrong prediction" not in text


def test_truth_adds_a_score_and_changes_no_prediction(report: Path, new: NewPlates, tmp_path: Path) -> None:
    new.truth(tmp_path / "truth.csv")
    out = new.arguments["out"] = tmp_path / "scored"
    metrics = run(**new.arguments)
    for stage, column in (("raw", "raw_sirna"), ("group", "group_sirna"), ("assigned", "sirna")):
        hits: dict[str, list[bool]] = {"overall": [], "HUVEC": [], "RPE": []}
        for row in assigned(new):
            hit = row[column] == new.labels[row["id_code"]]
            hits["overall"].append(hit)
            hits[row["id_code"].split("-")[0]].append(hit)
        assert metrics["holdout"][stage] == pytest.approx({p: sum(h) / len(h) for p, h in hits.items()}, abs=1e-6)
    for name in ("predictions.csv", "qc.csv", "config.yaml", "lineage.json"):
        assert (out / name).read_bytes() == (report / name).read_bytes()
    shown = f"<b>{100 * metrics['holdout']['assigned']['overall']:.1f} %</b>"
    assert shown in (out / "report.html").read_text()


def test_a_truth_of_some_wells_or_of_other_experiments_is_a_warning(new: NewPlates, tmp_path: Path) -> None:
    some = dict(list(new.labels.items())[:5])
    new.truth(tmp_path / "truth.csv", some)
    metrics = run(**new.arguments)
    assert metrics["wells"]["holdout"]["overall"] == 5
    page = new.arguments["out"] / "report.html"
    assert f"the truth has 5 of {len(new.labels)} wells; the score is of those" in page.read_text()
    new.truth(tmp_path / "truth.csv", {"U2OS-01_1_B02": "sirna_1", **some})
    assert run(**new.arguments) == metrics
    new.truth(tmp_path / "truth.csv", {"U2OS-01_1_B02": "sirna_1"})
    assert "holdout" not in run(**new.arguments)
    assert f"the truth has 0 of {len(new.labels)} wells; there is no score" in page.read_text()


def test_metrics_agree_with_the_tables(report: Path, new: NewPlates) -> None:
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["quality"]["unsure"] == sum(float(row["confidence"]) < UNSURE for row in assigned(new))
    assert metrics["quality"]["wells_to_look_at"] == sum(bool(row["look_at"]) for row in rows(report / "qc.csv"))
    assert metrics["temperatures"] == {
        name: {"raw": 1.31, "group": 1.12, "balanced": 0.94} for name in ("HUVEC", "RPE")
    }


def test_the_page_is_well_formed_and_fetches_nothing(report: Path, new: NewPlates) -> None:
    text = (report / "report.html").read_text()
    check_page(text)
    assert text.count('<svg class="plate" role="img"') == len(new.plates.plates)
    assert f"below {UNSURE}" in text
    assert "HUVEC-05 plate 2: no negative control" in text  # of the manifest
    assert MODEL.fingerprint in text
    assert "champion of generation 3" in text


def test_lineage_holds_the_model_and_the_plates(report: Path, new: NewPlates) -> None:
    lineage = json.loads((report / "lineage.json").read_text())
    address = {"fingerprint": MODEL.fingerprint, "address": MODEL.address}
    assert lineage["model"] == {"name": "lab", "run": "lab-1", "generation": 3, **address}
    assert lineage["manifest_digest"] == new.plates.digest()
    assert RunConfig.load(str(report / "config.yaml")) == new.arguments["config"]


def test_a_cell_type_without_an_output_of_assign_is_a_warning(new: NewPlates) -> None:
    del new.arguments["uris"][1]
    run(**new.arguments)
    out = new.arguments["out"]
    assert {row["id_code"].split("-")[0] for row in rows(out / "predictions.csv")} == {"HUVEC"}
    assert "no output of assign was given for RPE; it is not in the predictions" in (out / "report.html").read_text()
    # Its plates are measured nevertheless.
    assert {row["id_code"].split("-")[0] for row in rows(out / "qc.csv")} == {"HUVEC", "RPE"}


def test_main_writes_the_same_report_from_the_manifests_own_store(report: Path, new: NewPlates, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = ObjectStore(tmp_path / "store")
    for key, chunk in new.chunks.objects.items():
        store.put(key, chunk)
    new.plates = new.plates.model_copy(update={"store": store.uri("")})
    new.write()
    config = new.arguments["config"].model_dump_json()
    files = [str(new.arguments[name]) for name in ("screen", "holdout")]
    main(
        config, *files, str(new.arguments["holdout_labels"]), "", new.arguments["uris"], "{}", str(tmp_path / "strings")
    )
    for name in ("predictions.csv", "qc.csv", "metrics.json", "config.yaml"):
        assert (tmp_path / "strings" / name).read_bytes() == (report / name).read_bytes()


def foreign_well(new: NewPlates, folder: Path) -> None:
    new.truth(folder / "truth.csv", {"HUVEC-04_1_Z99": "sirna_1"})


def unknown_sirna(new: NewPlates, folder: Path) -> None:
    new.truth(folder / "truth.csv", {next(iter(new.labels)): "sirna_9999"})


def no_output(new: NewPlates, folder: Path) -> None:
    new.arguments["uris"] = []


def missing_output(new: NewPlates, folder: Path) -> None:
    (folder / "assign-RPE" / "assign.json").unlink()


def output_twice(new: NewPlates, folder: Path) -> None:
    new.arguments["uris"].append(new.arguments["uris"][0])


def missing_row(new: NewPlates, folder: Path) -> None:
    table = folder / "assign-HUVEC" / "holdout.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))


def other_plates(new: NewPlates, folder: Path) -> None:
    new.plates = new.plates.model_copy(update={"plates": new.plates.plates[1:]})
    new.write()


def missing_site(new: NewPlates, folder: Path) -> None:
    plate = new.plates.plates[3]
    del new.chunks.objects[f"{plate.prefix}/{plate.wells[2].sites[1].key}"]


BAD: dict[Callable[[NewPlates, Path], None], str] = {
    foreign_well: r"truth\.csv line 2 \(HUVEC-04_1_Z99\): field id_code .* not a treatment well of a held-out experiment",
    unknown_sirna: r"truth\.csv line 2 \(\S+\): field sirna is 'sirna_9999'; it is not a treatment",
    no_output: r"^--uri: no output of assign was given; give one a cell type",
    missing_output: r"assign-RPE/assign\.json: cannot be read .*; is this an output of assign\?",
    output_twice: r"^--uri: two outputs of assign are of HUVEC; give one a cell type",
    missing_row: r"assign-HUVEC/holdout\.csv: 1 wells of HUVEC have no row, first HUVEC-04_4_\w+; run assign again",
    other_plates: r"holdout\.csv: \d+ faults: line 2 \(\S+\): field id_code .* not a treatment well of this screen's holdout wells",
    missing_site: r"plate 4.*well \w+.*site 2",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_rejects_inputs_that_do_not_match(
    new: NewPlates, tmp_path: Path, spoil: Callable[[NewPlates, Path], None]
) -> None:
    spoil(new, tmp_path)
    with pytest.raises(InputError, match=BAD[spoil]):
        run(**new.arguments)
    assert not new.arguments["out"].exists()
