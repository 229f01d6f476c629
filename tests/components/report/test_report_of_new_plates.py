"""report of new plates: tables and page agree with assign and the plates; inputs that do not match are rejected."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.core.config import CHANNELS, RunConfig
from components.core.errors import InputError
from components.core.evaluation.quality import (
    by_channel,
    focus,
    nuclear_fraction,
    otsu_threshold,
    reasons_to_look,
    saturated,
)
from components.core.evaluation.scores import UNSURE
from components.core.screen.histograms import histogram
from components.core.screen.packed import SiteReader
from components.core.storage.manifest import Manifest, PlateRecord, ReferenceModel
from components.report.quality import measure_wells, quality_columns
from components.report.step import run
from tests.components.core.evaluation.predicted import predictions
from tests.components.report.conftest import TEMPERATURE, SyntheticRun, treated
from tests.components.report.page import check_page
from tests.components.report.test_report_step import COLUMNS, read_metrics
from tests.tiny_screen import MemoryStore

FILES = {"predictions.csv", "qc.csv", "metrics.json", "lineage.json", "config.yaml", "report.html"}
MODEL = ReferenceModel(
    fingerprint="4c30" * 16, address="s3://cellsignal/models/" + "4c30" * 16, design=None, temperatures={}
)
NEW = {"HUVEC-04": "holdout", "RPE-03": "unlabelled"}
"""The new experiments, and their role in the synthetic run."""


@dataclass
class NewPlates:
    """The arguments of `report.step.run`, on disk, and their plates."""

    arguments: dict[str, Any]
    plates: Manifest
    labels: dict[str, str]
    store: MemoryStore

    def write(self) -> None:
        self.arguments["holdout"].write_text(self.plates.model_dump_json())

    def truth(self, labels: Mapping[str, str]) -> None:
        """Writes a table of labels and passes it to the report."""
        path = self.arguments["truth"] = self.arguments["screen"].parent / "truth.csv"
        path.write_text(
            "".join(f"{id_code},{perturbation}\n" for id_code, perturbation in {"id_code": "sirna", **labels}.items())
        )


def without_labels(plate: PlateRecord) -> PlateRecord:
    return plate.model_copy(
        update={"wells": tuple(well.model_copy(update={"perturbation": None}) for well in plate.wells)}
    )


def make_new_plates(finished: SyntheticRun, folder: Path) -> NewPlates:
    """Inputs of a prediction of one HUVEC and one RPE experiment: no label in their manifest, no well in the reference."""
    usual = finished.arguments(folder / "out")
    screen, holdout = Manifest.read(usual["screen"]), Manifest.read(usual["holdout"])
    shown = [plate for plate in (*holdout.plates, *screen.plates) if plate.experiment in NEW]
    of_plates = {"warnings": ("HUVEC-05 plate 2: no negative control",), "plates": tuple(map(without_labels, shown))}
    bare = tuple(plate.model_copy(update={"wells": ()}) for plate in screen.plates)
    reference = screen.model_copy(update={"folds": {}, "warnings": (), "model": MODEL, "plates": bare})
    (folder / "reference.json").write_text(reference.model_dump_json())
    uris = []
    for experiment, role in NEW.items():
        out = folder / f"assign-{experiment.split('-')[0]}"
        shutil.copytree(finished.folder / out.name, out)
        predicted = (out / f"{role}.csv").read_text()
        header = predicted.splitlines(keepends=True)[0]
        for name, content in (("oof", header), ("unlabelled", header), ("holdout", predicted)):
            (out / f"{name}.csv").write_text(content)
        uris.append(str(out))
    arguments = {
        "config": usual["config"], "screen": folder / "reference.json", "holdout": folder / "plates.json",
        "holdout_labels": None, "truth": None, "uris": uris, "out": folder / "out", "store": copy.deepcopy(finished.store),
        "lineage": {"code_version": "0.1.0", "model": {"name": "lab", "run": "lab-1", "generation": 3}},
    }  # fmt: skip
    labels = {id_code: finished.labels[id_code] for plate in shown for id_code in treated(plate)}
    made = NewPlates(arguments, screen.model_copy(update={"folds": {}, **of_plates}), labels, arguments["store"])
    made.write()
    return made


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


def test_predictions_and_metrics_are_those_of_assign(report: Path, finished: NewPlates) -> None:
    assert {path.name for path in report.iterdir()} == FILES
    table, expected = pd.read_csv(report / "predictions.csv"), assigned(finished)
    assert list(table) == ["id_code", "sirna", "confidence", "margin", "raw_sirna", "raw_confidence", "top5"]
    expected = expected.rename(columns={"perturbation": "sirna", "raw_perturbation": "raw_sirna"})
    pd.testing.assert_frame_equal(table, expected[list(table)], atol=1e-5)
    assert set(table["id_code"]) == set(finished.labels)
    metrics = read_metrics(report)
    assert metrics["quality"]["unsure"] == (expected["confidence"] < UNSURE).sum()
    assert metrics["quality"]["wells_to_look_at"] == pd.read_csv(report / "qc.csv")["look_at"].notna().sum()
    assert metrics["temperatures"] == {"HUVEC": TEMPERATURE, "RPE": TEMPERATURE}


def test_the_page_without_truth_has_no_score(report: Path, finished: NewPlates) -> None:
    text = (report / "report.html").read_text()
    check_page(text)
    assert text.count('<svg class="plate" role="img"') == len(finished.plates.plates)
    for part in (
        f"below {UNSURE}",
        "HUVEC-05 plate 2: no negative control",  # of the manifest
        MODEL.fingerprint,
        "champion of generation 3",
        "no truth was given",
    ):
        assert part in text
    assert "holdout" not in read_metrics(report)
    assert 'id="accuracy"' not in text
    assert "wrong prediction" not in text


def test_lineage_holds_the_model_and_the_plates(report: Path, finished: NewPlates) -> None:
    lineage = json.loads((report / "lineage.json").read_text())
    address = {"fingerprint": MODEL.fingerprint, "address": MODEL.address}
    assert lineage["model"] == {"name": "lab", "run": "lab-1", "generation": 3, **address}
    assert lineage["manifest_digest"] == finished.plates.digest()
    assert RunConfig.load(str(report / "config.yaml")) == finished.arguments["config"]


def test_truth_adds_a_score_and_changes_no_prediction(report: Path, new: NewPlates) -> None:
    new.truth(new.labels)
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


def test_a_partial_truth_or_a_cell_type_without_an_output_is_a_warning(new: NewPlates) -> None:
    out = new.arguments["out"]
    other = {"U2OS-01_1_B02": "sirna_1"}
    new.truth({**other, **dict(list(new.labels.items())[:5])})
    assert run(**new.arguments)["wells"]["holdout"]["overall"] == 5
    assert f"the truth has 5 of {len(new.labels)} wells; only those are scored" in (out / "report.html").read_text()
    new.truth(other)
    del new.arguments["uris"][1]
    assert "holdout" not in run(**new.arguments)
    page = (out / "report.html").read_text()
    of_huvec = sum(id_code.startswith("HUVEC") for id_code in new.labels)
    assert f"the truth has 0 of {of_huvec} wells; there is no score" in page
    assert "no output of assign was given for RPE; it is not in the predictions" in page
    assert set(pd.read_csv(out / "predictions.csv")["id_code"].str.split("-").str[0]) == {"HUVEC"}
    # Its plates are measured nevertheless.
    assert set(pd.read_csv(out / "qc.csv")["experiment"]) == {"HUVEC-04", "RPE-03"}


def other_plates(new: NewPlates, _: Path) -> None:
    new.plates = new.plates.model_copy(update={"plates": new.plates.plates[1:]})
    new.write()


def missing_site(new: NewPlates, _: Path) -> None:
    plate = new.plates.plates[3]
    del new.store.objects[f"{plate.prefix}/{plate.wells[2].sites[1].key}"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda new, _: new.truth({"HUVEC-04_1_Z99": "sirna_1"}),
         r"truth\.csv line 2 \(HUVEC-04_1_Z99\): field id_code .* not a treatment well of a held-out experiment"),
        (lambda new, _: new.arguments["uris"].clear(), r"^--uri: no output of assign was given; give one a cell type"),
        (lambda _, folder: (folder / "assign-RPE" / "assign.json").unlink(),
         r"assign-RPE/assign\.json: cannot be read .*; is this an output of assign\?"),
        (lambda new, _: new.arguments["uris"].append(new.arguments["uris"][0]),
         r"^--uri: two outputs of assign are of HUVEC; give one a cell type"),
        (other_plates, r"holdout\.csv: \d+ faults: line 2 \(\S+\): field id_code .* not a treatment well of this screen's"),
        (missing_site, r"plate 4.*well \w+.*site 2"),
    ],
    ids=["foreign well", "no output", "no file", "output twice", "other plates", "no site"],
)  # fmt: skip
def test_rejects_inputs_that_do_not_match(
    new: NewPlates, tmp_path: Path, spoil: Callable[[NewPlates, Path], None], message: str
) -> None:
    spoil(new, tmp_path)
    with pytest.raises(InputError, match=message):
        run(**new.arguments)
    assert not new.arguments["out"].exists()


def test_each_well_has_the_measures_of_its_own_sites_and_their_reasons_to_look(finished: NewPlates) -> None:
    """Threads and batches must not mix up wells."""
    new = finished
    measured = measure_wells(new.plates, predictions([{}])[:0], new.store)
    reader = SiteReader(new.store, new.plates)
    table, sites = measured.set_index("id_code", drop=False), iter(reader.read(np.arange(reader.table.sites)))
    assert table["id_code"].tolist() == [well.id_code for plate in new.plates.plates for well in plate.wells]
    assert set(quality_columns(CHANNELS)) <= set(table)
    for plate in new.plates.plates:
        threshold = otsu_threshold(plate.histograms.array[0])
        for well in plate.wells:
            own = [next(sites) for _ in well.sites]
            found = table.loc[[well.id_code]]
            expected = {
                "focus": np.min([focus(site) for site in own], axis=0),
                "noisiest": np.max([focus(site) for site in own], axis=0),
                "saturated": np.max([saturated(histogram(site)) for site in own], axis=0),
            }
            for name, values in expected.items():
                assert by_channel(found, name, CHANNELS).iloc[0].tolist() == pytest.approx(values)
            shares = [nuclear_fraction(histogram(site)[0], threshold) for site in own]
            assert found["nuclei_share"].item() == pytest.approx(np.mean(shares))
            assert (found["well"].item(), found["role"].item()) == (well.well, well.role)
    assert next(sites, None) is None
    assert table["look_at"].any()
    for _, of_plate in table.groupby(["experiment", "plate"]):
        assert of_plate["look_at"].tolist() == reasons_to_look(of_plate, CHANNELS)


def test_the_screens_own_columns_and_its_word_for_a_perturbation_are_in_every_table(new: NewPlates) -> None:
    def with_dose(plate: PlateRecord) -> PlateRecord:
        wells = (well.model_copy(update={"extra": (f"{well.well} µM", "=1+1")}) for well in plate.wells)
        return plate.model_copy(update={"wells": tuple(wells)})

    plates = tuple(map(with_dose, new.plates.plates))
    new.plates = new.plates.model_copy(update={"plates": plates, "columns": ("dose", "note")})
    new.write()
    config = new.arguments["config"]
    screen = config.screen.model_copy(update={"perturbation_name": "compound"})
    new.arguments["config"] = config.model_copy(update={"screen": screen})
    run(**new.arguments)
    out = new.arguments["out"]
    table, quality = (pd.read_csv(out / name) for name in ("predictions.csv", "qc.csv"))
    first = ["id_code", "compound", "confidence", "margin", "raw_compound", "raw_confidence", "top5"]
    assert list(table) == [*first, "dose", "note"]
    assert list(quality) == [*quality_columns(CHANNELS), "dose", "note"]
    for written in (table, quality):
        assert (written["dose"] == written["id_code"].str[-3:] + " µM").all()
        assert set(written["note"]) == {"'=1+1"}
    page = (out / "report.html").read_text()
    assert "<h1>Compound predictions" in page
    assert "siRNA" not in page.split("<summary>Configuration")[0]


def test_truth_in_another_spelling_is_matched_and_the_page_says_so(new: NewPlates) -> None:
    new.truth({id_code: f"{label.removeprefix('sirna_')}.0" for id_code, label in new.labels.items()})
    metrics = run(**new.arguments)
    assert metrics["wells"]["holdout"]["overall"] == len(new.labels)
    assert "labels are not written as in the screen&#39;s tables" in (new.arguments["out"] / "report.html").read_text()


def test_confidences_of_a_model_without_fitted_temperatures_are_not_called_calibrated(
    new: NewPlates, report: Path
) -> None:
    assert "Confidences were calibrated" in (report / "report.html").read_text()
    for uri in new.arguments["uris"]:
        path = Path(uri) / "assign.json"
        found = json.loads(path.read_text())
        path.write_text(json.dumps({**found, "temperature": {**found["temperature"], "balanced": 1.0}}))
    run(**new.arguments)
    page = (Path(new.arguments["out"]) / "report.html").read_text()
    assert "Confidences are not calibrated" in page
    assert "were calibrated" not in page
