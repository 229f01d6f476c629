"""What no challenger is judged by: plates that a model knows under another name; and what a late decision does not overwrite."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from components.core.errors import InputError
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.publishing import publish
from components.core.storage.folder_store import FolderStore
from components.core.storage.object_store import ObjectStore
from pipelines.retraining.holdout import Comparable
from pipelines.retraining.judging import Judge
from pipelines.retraining.order import Order
from pipelines.retraining.records import read_latest, read_outcome, write_outcome
from pipelines.retraining.runs import Runs
from tests.components.core.registry.finished_run import KEY, FinishedRun
from tests.pipelines.retraining.outcomes import DAY, outcome

HELD_OUT = Comparable(("HUVEC-04",), ("RPE-09 is left out: so",))


@pytest.fixture(scope="module")
def model(lab: FinishedRun) -> ModelManifest:
    return publish(lab.store, KEY).model


def judge(lab: FinishedRun, model: ModelManifest) -> Judge:
    runs = Runs(lab.config, Order(screen="screen"), lab.folder / "out", Console(), 0.0)
    return Judge(lab.config, lab.store, runs, KEY, model, [("HUVEC-04", "HUVEC")], allowed=False)


def test_plates_that_were_trained_on_under_another_name_are_left_out(lab: FinishedRun, model: ModelManifest) -> None:
    found = judge(lab, model)._without_twins(lab.holdout, model, HELD_OUT)
    assert found == HELD_OUT
    first, *others = lab.holdout.plates
    twin = next(plate for plate in lab.screen.plates if plate.experiment == "HUVEC-02")
    renamed = lab.holdout.model_copy(
        update={"plates": (first.model_copy(update={"histograms": twin.histograms}), *others)}
    )
    found = judge(lab, model)._without_twins(renamed, model, HELD_OUT)
    assert found.experiments == ()
    assert found.remarks == (
        *HELD_OUT.remarks,
        f"HUVEC-04 is left out: the champion {model.short} was trained on the same images as HUVEC-02",
    )


def test_the_challengers_names_are_those_of_the_published_networks(
    lab: FinishedRun, model: ModelManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.store.put(f"runs/{KEY}/results/predictions_holdout.csv", b"of the run")
    own = judge(lab, model)._challengers_names(tmp_path, ["HUVEC-04"])
    assert own.read_bytes() == b"of the run"
    asked: list[tuple[str, list[str]]] = []

    def name(_self: Runs, _store: object, who: ModelManifest, experiments: list[str]) -> Path:
        asked.append((who.fingerprint, list(experiments)))
        return tmp_path / "anew.csv"

    monkeypatch.setattr(Runs, "name", name)
    other = replace(judge(lab, model), run="tiny-of-another-machine")
    assert other._challengers_names(tmp_path, ["HUVEC-04"]) == tmp_path / "anew.csv"
    assert asked == [(model.fingerprint, ["HUVEC-04"])]


def test_the_last_outcome_is_that_of_the_latest_state_of_the_screen(either_store: ObjectStore | FolderStore) -> None:
    assert read_latest(either_store, "tiny") is None
    first, second, late = (outcome(name, DAY + timedelta(hours=n)) for name, n in (("a", 0), ("b", 2), ("c", 1)))
    write_outcome(either_store, first)
    assert read_latest(either_store, "tiny") == first
    write_outcome(either_store, second)
    write_outcome(either_store, late)
    assert read_latest(either_store, "tiny") == second
    assert read_outcome(either_store, "tiny", late.fingerprint.digest) == late
    again = outcome("a", DAY + timedelta(hours=3))
    write_outcome(either_store, again)
    assert read_latest(either_store, "tiny") == again
    assert read_latest(either_store, "other") is None


def test_a_damaged_or_newer_record_is_told(either_store: ObjectStore | FolderStore) -> None:
    path = "retrainings/tiny/latest.json"
    for content, said in (
        (b"{", "damaged, not a record"),
        (b'{"retraining_schema": 2}', "newer than this version reads"),
    ):
        either_store.put(path, content)
        with pytest.raises(InputError, match=said):
            read_latest(either_store, "tiny")
        with pytest.raises(InputError, match=said):
            write_outcome(either_store, outcome("a", DAY))
