"""`cellsignal retrain --endpoint` against a server like Kubeflow's: which runs it starts, resumes and reuses, and its decisions."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest

from components.core.errors import ContactError, InputError, StepError
from components.core.registry.champion import promote
from components.core.registry.published_models import fingerprints, read_model
from components.core.registry.publishing import publish
from components.core.storage.object_store import ObjectStore
from components.core.storage.runs import record_results
from pipelines.cluster import follow
from pipelines.retrain.records import read_latest, write_outcome
from tests.components.core.registry.finished_run import FinishedRun
from tests.pipelines.cluster.conftest import LOGINS, as_configuration, be_quick, key_of
from tests.pipelines.cluster.kfp_server import Fault, KfpServer, serve
from tests.pipelines.retrain.cluster_lab import FIRST, HELD_OUT, NEW, ClusterLab, predicts, prepare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.fixture
def server() -> Iterator[KfpServer]:
    with serve(KfpServer()) as running:
        yield running


@pytest.fixture
def lab(
    prepared: Path, tmp_path: Path, store: ObjectStore, server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> ClusterLab:
    for name in LOGINS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    be_quick(monkeypatch)
    monkeypatch.setattr("pipelines.cluster.submit.compiled", as_configuration)
    lab = ClusterLab(prepared, tmp_path, store, server)
    lab.add(*FIRST)
    return lab


class Counted:
    """obstore whose calls are listed."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(obstore, name)


def test_the_first_model_is_promoted_and_nothing_changed_costs_few_requests(
    lab: ClusterLab, server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lab() == "promoted"
    (run,) = server.runs
    assert not predicts(run)
    assert run["runtime_config"]["parameters"]["source"] == lab.store.uri("screen")
    assert lab.champion.now.generation == 1
    assert lab.champion.now.why.startswith("the first model")
    assert read_model(lab.store, lab.champion.now.fingerprint).run == key_of(run)

    server.requests.clear()
    before, objects = lab.store.list(""), len(lab.store.list("screen/"))
    requests: list[str] = []
    monkeypatch.setattr("components.core.storage.object_store.obstore", Counted(requests))
    assert lab() == "unchanged"
    assert lab.shown.startswith("nothing has changed since")
    assert server.requests == []
    assert 0 < len(requests) <= objects / 1000 + 50
    assert lab.store.list("") == before


def test_a_new_experiment_is_trained_on_and_the_models_compared_on_the_holdout(lab: ClusterLab, server: KfpServer):
    champion = read_model(lab.store, lab.with_champion().now.fingerprint)
    lab.add(NEW)
    lab.accurate = {"challenger"}
    before = lab.store.list("")
    assert lab.command("--dry-run") == 0
    assert (server.requests, lab.store.list("")) == ([], before)
    assert lab() == "promoted"

    prediction, training = server.runs
    assert predicts(prediction)
    parameters = prediction["runtime_config"]["parameters"]
    assert parameters["model"] == lab.store.uri(f"models/{champion.fingerprint}")
    assert json.loads(parameters["experiments"]) == [HELD_OUT]
    assert parameters["truth"] == ""
    assert lab.config_of(training).folds.known == champion.experiment_folds
    assert set(champion.experiment_folds) == {*FIRST} - {HELD_OUT, "HUVEC-03"}

    now = lab.champion
    assert (now.now.generation, now.history[0].fingerprint) == (2, champion.fingerprint)
    challenger = read_model(lab.store, now.now.fingerprint)
    assert challenger.run == key_of(training)
    assert NEW in challenger.taught.experiments
    assert champion.experiment_folds.items() <= challenger.experiment_folds.items()
    (report,) = lab.folder.glob("runs/*/comparison.json")
    decided = json.loads(report.read_text())
    assert decided["comparison"]["experiments"] == [HELD_OUT]
    row = decided["comparison"]["stages"]["assigned"][0]
    assert (row["champion"], row["challenger"]) == (pytest.approx(4 / 6), 1.0)
    latest = read_latest(lab.store, "tiny")
    assert latest is not None
    assert (latest.promoted, latest.reason) == (True, decided["reason"])


def test_a_worse_challenger_is_published_and_not_promoted(lab: ClusterLab, server: KfpServer) -> None:
    champion, summary = lab.with_champion(), lab.folder / "summary.md"
    lab.add(NEW)
    lab.accurate = {"champion"}
    assert lab.command("--summary", str(summary)) == 4
    assert "generation 1" in summary.read_text()
    assert lab.champion == champion
    assert len(fingerprints(lab.store)) == 2
    server.requests.clear()
    assert lab() == "unchanged"
    assert server.requests == []

    # Wider margins need no run: the results of both models are in the store.
    wide = lab.config.promotion.model_copy(update={"margin": 1.0, "cell_type_margin": 1.0})
    assert lab({"promotion": wide}, again=True) == "promoted"
    assert server.requests == []
    assert lab.shown.count("has finished before, so nothing is started") == 2
    assert lab.champion.now.generation == 2


def test_an_older_state_of_the_screen_does_not_replace_a_later_outcome(lab: ClusterLab) -> None:
    assert lab() == "promoted"
    champion, first = lab.champion, read_latest(lab.store, "tiny")
    assert first is not None
    later = first.model_copy(update={"run": "tiny-later", "observed": first.observed + timedelta(hours=1)})
    lab.after = lambda run: write_outcome(lab.store, later)  # another process looked later and was quicker
    lab.add(NEW)
    lab.accurate = {"challenger"}
    assert lab() == "not promoted"
    assert lab.champion == champion
    assert len(fingerprints(lab.store)) == 2
    assert "Not promoted: a later state of the screen has been retrained since (run tiny-later)" in lab.shown
    assert read_latest(lab.store, "tiny") == later


def test_after_lost_contact_the_same_command_follows_the_run(
    lab: ClusterLab, server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if another model is the champion by then: the configuration stays, and with it the run's key."""
    first = lab.with_champion()
    lab.add(NEW)
    server.script = [["SUCCEEDED"], ["RUNNING", "RUNNING", "SUCCEEDED"], ["SUCCEEDED"]]
    lab.after = lambda run: server.faults.append(Fault(503, times=10_000, path="/runs/", method="GET"))
    before = lab.registry()
    with monkeypatch.context() as patched:
        patched.setattr(follow, "OUTAGE", 0.3)
        with pytest.raises(ContactError, match="may go on: the same command follows it again"):
            lab()
    assert lab.registry() == before
    (training,) = lab.trainings
    assert training["state"] == "PENDING"
    known = lab.config_of(training).folds.known

    other = another_champion(lab)
    server.faults.clear()
    lab.after = lambda run: None
    assert lab() == "promoted"
    assert lab.trainings == [training]
    assert f"run {training['display_name']} is in progress with the same content" in lab.shown
    assert lab.config_of(training).folds.known == known != {}
    models = [json.loads(json.dumps(run["runtime_config"]["parameters"]["model"])) for run in lab.predictions]
    assert models == [lab.store.uri(f"models/{name}") for name in (first.now.fingerprint, other)]
    assert [promotion.generation for promotion in lab.champion.promotions] == [3, 2, 1]


def another_champion(lab: ClusterLab) -> str:
    """Promotes a model of another seed that learned the same labels."""
    folder = lab.folder / "another"
    folder.mkdir()
    (folder / "screen").symlink_to(lab.prepared / "first" / "screen")
    made = FinishedRun(
        folder, lab.store, key="tiny-another", **{**lab.config.model_dump(exclude={"store"}), "seed": 77}
    )
    model = publish(lab.store, made.key).model
    promote(lab.store, model.fingerprint, "manually")
    return model.fingerprint


def test_the_deadline_covers_both_runs(lab: ClusterLab) -> None:
    lab.with_champion()
    lab.add(NEW)
    lab.after = lambda run: time.sleep(1.5)
    with pytest.raises(ContactError, match="deadline of --timeout has passed; the same command resumes"):
        lab(timeout=1.4)
    assert lab.trainings == []


def test_a_failed_run_leaves_the_registry_as_it_was(lab: ClusterLab, server: KfpServer) -> None:
    lab.with_champion()
    lab.add(NEW)
    server.script = [["SUCCEEDED"], ["FAILED"]]
    finish = lab.finish
    server.on_end = lambda run: lab.fail(run, "step", "loss is not finite") if run["state"] == "FAILED" else finish(run)
    before = lab.registry()
    summary = lab.folder / "summary.md"
    with pytest.raises(StepError, match="pretrain fold 1 slim failed: loss is not finite"):
        lab(summary=summary, resubmit=0)
    assert lab.registry() == before
    assert read_latest(lab.store, "tiny") is None
    assert "### Retraining failed" in summary.read_text()
    # The next attempt reuses the prediction but no partial results, and submits the training as often as --resubmit allows.
    partial, key = lab.folder / "partial", key_of(lab.trainings[0])
    partial.mkdir()
    (partial / "lineage.json").write_text(json.dumps({"run": key, "partial": {"quorum": 1}}))
    record_results(lab.store, key, partial)
    server.script = [["FAILED"], ["SUCCEEDED"]]
    assert lab(resubmit=1) == "promoted"
    assert [key_of(run) for run in lab.trainings] == [key] * 3
    assert len(lab.predictions) == 1


def test_two_at_once_share_the_runs_and_promote_once(
    lab: ClusterLab, server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like two machines, with different folders; in threads, which cannot catch signals."""
    champion = lab.with_champion()
    lab.add(NEW)
    monkeypatch.setattr("pipelines.cluster.submit.interruptible", lambda contact: contextlib.nullcontext())
    server.script = [["RUNNING"] * 40 + ["SUCCEEDED"]]
    both = threading.Barrier(2, timeout=60)

    def decided(*arguments: Any, **named: Any) -> Any:
        """Both have decided before either promotes."""
        if named["expected"] == champion.now.generation:
            both.wait()
        return promote(*arguments, **named)

    monkeypatch.setattr("pipelines.retrain.retrain.promote", decided)
    labs = [dataclasses.replace(lab, folder=lab.folder / name) for name in ("a", "b")]
    server.on_end = lab.finish
    for each in labs:
        each.folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        results = [each.result() for each in [pool.submit(each) for each in labs]]
    assert results == ["promoted", "promoted"]
    assert len({key_of(run) for run in lab.trainings}) == len({key_of(run) for run in lab.predictions}) == 1
    assert sum(run["state"] == "SUCCEEDED" for run in server.runs) == 2
    now = lab.champion
    assert (now.now.generation, len(now.history)) == (2, 1)
    assert sum("has just promoted this model" in each.shown for each in labs) == 1
    latest = read_latest(lab.store, "tiny")
    assert latest is not None
    assert (latest.model, latest.generation, latest.promoted) == (now.now.fingerprint, 2, True)
    # The second records the decision of the first, not a comparison of the model with itself.
    assert latest.reason == now.now.why
    reports = [json.loads(path.read_text()) for each in labs for path in each.folder.glob("runs/*/comparison.json")]
    assert [report["reason"] for report in reports] == [now.now.why] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"screen": "."}, r"--screen \.: is not an address in a bucket"),
        ({"endpoint": "http://127.0.0.1:9"}, r"--endpoint http://127\.0\.0\.1:9: no answer"),
    ],
)
def test_rejects_what_a_cluster_cannot_use(lab: ClusterLab, server: KfpServer, change: dict[str, Any], message: str):
    summary = lab.folder / "summary.md"
    with pytest.raises(InputError, match=message) as raised:
        lab(summary=summary, **change)
    assert "### Retraining failed" in summary.read_text()
    assert "\n" not in str(raised.value)
    assert server.requests == []
    assert lab.registry() == {}
