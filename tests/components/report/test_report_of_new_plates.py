"""report of new plates: tables and page agree with assign and the plates; inputs that do not match are rejected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.evaluation.scores import UNSURE
from components.core.storage.object_store import ObjectStore
from components.report.step import main, run
from tests.components.report.conftest import TEMPERATURE, SyntheticRun
from tests.components.report.new_plates_run import MODEL, NewPlates, make_new_plates
from tests.components.report.page import check_page
from tests.components.report.test_report_step import COLUMNS, read_metrics

FILES = {"predictions.csv", "qc.csv", "metrics.json", "lineage.json", "config.yaml", "report.html"}


@pytest.fixture
def new(finished_run: SyntheticRun, tmp_path: Path) -> NewPlates:
    """Inputs that a test may change."""
    return make_new_plates(finished_run, tmp_path)


@pytest.fixture(scope="module")
def finished(finished_run: SyntheticRun, tmp_path_factory: pytest.TempPathFactory) -> NewPlates:
    """Inputs, and their report."""
    made = make_new_plates(finished_run, tmp_path_factory.mktemp("new"))
    run(**made.arguments)
    return made


@pytest.fixture(scope="module")
def report(finished: NewPlates) -> Path:
    return Path(finished.arguments["out"])


def assigned(new: NewPlates) -> pd.DataFrame:
    """The rows of assign, cell type by cell type."""
    return pd.concat([pd.read_csv(Path(uri) / "holdout.csv") for uri in new.arguments["uris"]], ignore_index=True)


def test_predictions_are_those_of_assign(report: Path, finished: NewPlates) -> None:
    assert {path.name for path in report.iterdir()} == FILES
    table, expected = pd.read_csv(report / "predictions.csv"), assigned(finished)
    assert list(table) == ["id_code", "sirna", "confidence", "margin", "raw_sirna", "raw_confidence", "top5"]
    pd.testing.assert_frame_equal(table, expected[list(table)], atol=1e-5)
    assert set(table["id_code"]) == set(finished.labels)


def test_metrics_agree_with_the_tables(report: Path, finished: NewPlates) -> None:
    metrics = read_metrics(report)
    assert metrics["quality"]["unsure"] == (assigned(finished)["confidence"] < UNSURE).sum()
    assert metrics["quality"]["wells_to_look_at"] == pd.read_csv(report / "qc.csv")["look_at"].notna().sum()
    assert metrics["temperatures"] == {"HUVEC": TEMPERATURE, "RPE": TEMPERATURE}


def test_the_page_without_truth_has_no_score(report: Path, finished: NewPlates) -> None:
    text = (report / "report.html").read_text()
    check_page(text)
    assert text.count('<svg class="plate" role="img"') == len(finished.plates.plates)
    assert f"below {UNSURE}" in text
    assert "HUVEC-05 plate 2: no negative control" in text  # of the manifest
    assert MODEL.fingerprint in text
    assert "champion of generation 3" in text
    assert "no truth was given" in text
    assert "holdout" not in read_metrics(report)
    assert 'id="accuracy"' not in text
    assert "wrong prediction" not in text


def test_lineage_holds_the_model_and_the_plates(report: Path, finished: NewPlates) -> None:
    lineage = json.loads((report / "lineage.json").read_text())
    address = {"fingerprint": MODEL.fingerprint, "address": MODEL.address}
    assert lineage["model"] == {"name": "lab", "run": "lab-1", "generation": 3, **address}
    assert lineage["manifest_digest"] == finished.plates.digest()
    assert RunConfig.load(str(report / "config.yaml")) == finished.arguments["config"]


def test_truth_adds_a_score_and_changes_no_prediction(report: Path, new: NewPlates, tmp_path: Path) -> None:
    new.truth(tmp_path / "truth.csv")
    out = new.arguments["out"]
    metrics, table = run(**new.arguments), assigned(new)
    cell_type, truth = table["id_code"].str.split("-").str[0], table["id_code"].map(new.labels)
    for stage, column in COLUMNS.items():
        hits = table[column] == truth
        expected = {"overall": hits.mean(), **hits.groupby(cell_type).mean()}
        assert metrics["holdout"][stage] == pytest.approx(expected, abs=1e-6)
    for name in ("predictions.csv", "qc.csv", "config.yaml", "lineage.json"):
        assert (out / name).read_bytes() == (report / name).read_bytes()
    assert f"<b>{100 * metrics['holdout']['assigned']['overall']:.1f} %</b>" in (out / "report.html").read_text()


def test_a_truth_of_some_wells_or_of_other_experiments_is_a_warning(new: NewPlates, tmp_path: Path) -> None:
    page, path = new.arguments["out"] / "report.html", tmp_path / "truth.csv"
    new.truth(path, {"U2OS-01_1_B02": "sirna_1", **dict(list(new.labels.items())[:5])})
    assert run(**new.arguments)["wells"]["holdout"]["overall"] == 5
    assert f"the truth has 5 of {len(new.labels)} wells; the score is of those" in page.read_text()
    new.truth(path, {"U2OS-01_1_B02": "sirna_1"})
    assert "holdout" not in run(**new.arguments)
    assert f"the truth has 0 of {len(new.labels)} wells; there is no score" in page.read_text()


def test_a_cell_type_without_an_output_of_assign_is_a_warning(new: NewPlates) -> None:
    del new.arguments["uris"][1]
    run(**new.arguments)
    out = new.arguments["out"]
    assert set(pd.read_csv(out / "predictions.csv")["id_code"].str.split("-").str[0]) == {"HUVEC"}
    assert "no output of assign was given for RPE; it is not in the predictions" in (out / "report.html").read_text()
    # Its plates are measured nevertheless.
    assert set(pd.read_csv(out / "qc.csv")["experiment"]) == {"HUVEC-04", "RPE-03"}


def test_main_writes_the_same_report_from_the_manifests_own_store(report: Path, new: NewPlates, tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "store")
    store.put_many(new.store.objects.items())
    new.plates = new.plates.model_copy(update={"store": store.uri("")})
    new.write()
    (tmp_path / "labels.csv").write_text("id_code,sirna\n")
    files = [str(path) for path in (new.arguments["screen"], new.arguments["holdout"], tmp_path / "labels.csv")]
    config, out = new.arguments["config"].model_dump_json(), tmp_path / "strings"
    main(config, *files, "", new.arguments["uris"], "{}", str(out))
    for name in ("predictions.csv", "qc.csv", "metrics.json", "config.yaml"):
        assert (out / name).read_bytes() == (report / name).read_bytes()


def foreign_well(new: NewPlates, folder: Path) -> None:
    new.truth(folder / "truth.csv", {"HUVEC-04_1_Z99": "sirna_1"})


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
    del new.store.objects[f"{plate.prefix}/{plate.wells[2].sites[1].key}"]


BAD: dict[Callable[[NewPlates, Path], None], str] = {
    foreign_well: r"truth\.csv line 2 \(HUVEC-04_1_Z99\): field id_code .* not a treatment well of a held-out experiment",
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
