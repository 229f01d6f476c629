"""submit against a server that speaks KFP's API: what is created once, how runs are followed, how they end, what they leave."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ContactError, InputError, StepError
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import RECIPE, RunRecord, cluster_run_key
from components.core.storage.task_status import StatusReader
from pipelines.cluster import follow
from pipelines.cluster import submit as submission
from tests.pipelines.cluster.conftest import Submitting, key_of, report_task
from tests.pipelines.cluster.kfp_server import Fault, KfpServer


def test_everything_is_created_once_and_named_by_commit_and_fingerprint(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING"], ["SUCCEEDED"]]
    shown = submitting()
    assert [each["display_name"] for each in server.pipelines] == ["cellsignal-tiny"]
    first, mine = (each["display_name"] for each in server.versions)
    assert first == "cellsignal-tiny"
    assert re.fullmatch(r"cellsignal-tiny-[a-z0-9-]+-[0-9a-f]{12}", mine)
    (run,) = server.runs
    assert f"run {key_of(run)} " in shown
    assert run["service_account"] == "cellsignal-run"
    assert f"{server.url}/#/runs/details/{run['run_id']}" in shown
    assert [each["display_name"] for each in server.experiments] == ["cellsignal"]
    # In the run's store, whatever default the namespace has: the pods' Secret opens no other bucket.
    assert run["runtime_config"]["pipeline_root"] == f"{submitting.store.uri('').rstrip('/')}/kfp"
    parameters = run["runtime_config"]["parameters"]
    assert (parameters["source"], parameters["truth"]) == (submitting.screen, "")
    lineage = json.loads(parameters["lineage"])
    assert key_of(run) == cluster_run_key("tiny", lineage[RECIPE], submitting.screen, parameters["fingerprint"])
    assert lineage["submitted"]["pipeline_version"] == mine
    again = submitting()
    assert "in progress with the same content" in again
    assert [len(made) for made in (server.pipelines, server.versions, server.experiments, server.runs)] == [1, 2, 1, 1]


def test_only_a_run_that_has_not_ended_is_followed(submitting: Submitting, server: KfpServer):
    for n, state in enumerate(["SUCCEEDED", "CANCELING"], 1):
        submitting()
        assert len(server.runs) == n
        server.runs[-1]["state"] = state
    server.runs[0]["state"] = "RUNNING"
    assert server.runs[0]["run_id"] in submitting()
    assert (len(server.runs), len(server.asked("POST", "upload"))) == (2, 2)


def test_names_that_another_process_takes_at_the_same_time_are_used(submitting: Submitting, server: KfpServer):
    for path in ("/upload_version", "/upload", "/experiments"):
        server.faults.append(Fault(409, path=path, method="POST", body='{"error_message": "taken"}', after=True))
    submitting()
    assert (len(server.versions), len(server.runs)) == (2, 1)


def test_a_run_whose_start_was_not_answered_is_found_and_not_started_twice(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING"]]
    server.faults.append(Fault(503, path="/runs", method="POST", after=True))
    shown = submitting()
    assert len(server.runs) == 1
    assert server.runs[0]["run_id"] in shown


@pytest.mark.parametrize(("status", "error"), [(500, InputError), (504, ContactError)])
def test_a_start_that_fails_is_not_repeated(
    submitting: Submitting, server: KfpServer, status: int, error: type[Exception]
):
    """Kubeflow answers 500 to what it can never serve; after a gateway's 504, a second request might start a second run."""
    server.faults.append(Fault(status, times=100, path="/runs", method="POST"))
    with pytest.raises(error):
        submitting()
    assert len(server.asked("POST", "/runs")) == 1


def test_kubeflows_cache_recognises_a_run_as_long_as_the_store_has_its_record(
    submitting: Submitting, server: KfpServer
):
    """normalize's cache key contains its parameters; without the record, the plates that it packed may be gone."""

    def lineage() -> str:
        server.script = [["FAILED"]]
        submitting()
        server.runs[-1]["state"] = "FAILED"
        return str(server.runs[-1]["runtime_config"]["parameters"]["lineage"])

    first = lineage()
    run = key_of(server.runs[0])
    record = RunRecord(key=run, config={}, lineage={**json.loads(first), "run": run})
    submitting.store.put(f"runs/{run}/run.json", record.model_dump_json().encode())
    assert lineage() == lineage() == first
    # As after a lack of memory: the pods of another version of the pipeline request more, and nothing is computed again.
    pods = submitting.config.cluster.model_copy(update={"parallel_folds": 7})
    submitting.config = submitting.config.model_copy(update={"cluster": pods})
    assert lineage() == first
    assert len(server.versions) == 3
    submitting.store.delete(f"runs/{run}/run.json")
    assert lineage() != first
    assert {key_of(each) for each in server.runs} == {run}


def test_wait_shows_the_states_and_fetches_the_results(submitting: Submitting, server: KfpServer):
    server.script = [["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"]]
    shown = submitting(wait=True, out=Path("results"))
    states = re.findall(r"^run (\w+)$", shown, re.MULTILINE)
    assert states == ["pending", "running", "succeeded"]
    assert sorted(path.name for path in Path("results").iterdir()) == [
        "lineage.json", "metrics.json", "predictions.csv", "report.html",
    ]  # fmt: skip
    assert json.loads(Path("results/lineage.json").read_text())["run"] == key_of(server.runs[0])
    submitting(wait=True, out=Path("results"))  # the same run's folder is accepted again


def test_an_archived_experiment_is_refused_before_a_run_is_started(submitting: Submitting, server: KfpServer):
    server.experiments.append({"experiment_id": "7", "display_name": "cellsignal", "storage_state": "ARCHIVED"})
    with pytest.raises(InputError, match=r"cluster\.experiment: cellsignal is archived at http.*; unarchive it"):
        submitting()
    assert server.runs == []


def test_a_folder_of_something_else_is_refused_before_anything_is_sent(submitting: Submitting, server: KfpServer):
    Path("results").mkdir()
    Path("results/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="--out results: not empty"):
        submitting(wait=True, out=Path("results"))
    assert server.requests == []


def test_the_last_attempt_of_a_task_explains_a_failed_run(submitting: Submitting, server: KfpServer):
    def ended(run: dict[str, Any]) -> None:
        report_task(
            submitting.store,
            key_of(run),
            message="a passing outage",
            name="0",
            step="normalize",
            fold=None,
            backbone=None,
        )
        later = {
            "started": datetime.now(UTC) + timedelta(seconds=1),
            "updated": datetime.now(UTC) + timedelta(seconds=5),
        }
        again = {"step": "normalize", "fold": None, "backbone": None, "state": "finished", "kind": "", **later}
        report_task(submitting.store, key_of(run), name="1", **again)
        for second in range(1, 4):
            at = datetime.now(UTC) + timedelta(seconds=second)
            report_task(
                submitting.store, key_of(run), message="out of memory", name=str(second), started=at, updated=at
            )

    server.script, server.on_end = [["FAILED"]], ended
    with pytest.raises(StepError, match=r"^pretrain fold 1 tiny failed: out of memory; no report: .*packed; see http"):
        submitting(wait=True)
    assert submitting.shown.getvalue().count("pretrain fold 1 tiny failed: out of memory") == 3


def test_a_failed_run_without_a_record_is_explained_by_the_apis_error(submitting: Submitting, server: KfpServer):
    server.script = [["FAILED"]]
    with pytest.raises(
        StepError, match=r"run [0-9a-f-]{36} failed: no task left a message, as when a pod cannot start"
    ):
        submitting(wait=True)
    server.on_end = lambda run: run.update(error={"code": 3, "message": "quota\n exceeded"})
    with pytest.raises(StepError, match="failed: quota exceeded; no report"):
        submitting(wait=True)


def test_a_cancelled_run_ends_following_and_is_not_submitted_again(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING", "CANCELING", "FAILED"]]
    with pytest.raises(StepError, match=r"run [0-9a-f-]{36} was cancelled"):
        submitting(wait=True, resubmit=3)
    assert len(server.runs) == 1


def test_a_start_that_finished_nothing_is_followed_by_a_pause_that_ctrl_c_ends(
    submitting: Submitting, server: KfpServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(submission, "PAUSES", (0.0, 60.0))
    server.script = [["FAILED"]]
    submitting.shown = io.StringIO()

    def interrupt() -> None:
        while "submitted again under the same key in 1 min 00 s, 0 more" not in submitting.shown.getvalue():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(ContactError, match=r"no longer followed; run .* has failed: the same command submits it again"):
        submitting(wait=True, resubmit=2)
    assert len(server.runs) == 2


def test_resubmit_resumes_under_the_same_key_until_it_succeeds(
    submitting: Submitting, server: KfpServer, store, monkeypatch: pytest.MonkeyPatch
):
    server.script = [["FAILED"], ["FAILED"], ["SUCCEEDED"]]
    monkeypatch.setattr(submission, "PAUSES", (60.0,))

    def end(run: dict[str, Any]) -> None:
        # In each start a task finishes, so none is followed by a pause.
        task = {"step": "normalize", "fold": None, "backbone": None} if len(server.runs) == 1 else {"fold": 0}
        report_task(store, key_of(run), state="finished", kind="", **task)
        if run["state"] == "FAILED":
            report_task(store, key_of(run), kind="step", message=f"attempt {len(server.runs)}")
        else:
            submitting.results_of(run)

    server.on_end = end
    shown = submitting(wait=True, resubmit=2, out=Path("results"))
    assert len({run["display_name"] for run in server.runs}) == 1
    assert len(server.runs) == 3
    assert "attempt 1; submitted again" in shown
    assert "attempt 2; submitted again" in shown


def test_contact_lost_while_resubmitting_does_not_advise_about_the_failed_run(
    submitting: Submitting, server: KfpServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(follow, "OUTAGE", 0.3)
    server.script = [["FAILED"]]
    server.on_end = lambda _: server.faults.append(Fault(503, times=10_000, path="/runs", method="GET"))
    with pytest.raises(ContactError, match=r"whether run .* has started is unknown: the same command follows it"):
        submitting(wait=True, resubmit=1)
    assert len(server.runs) == 1


def test_a_failure_that_an_earlier_attempt_records_late_does_not_count(
    submitting: Submitting, server: KfpServer, store
):
    server.script = [["RUNNING"] * 2 + ["SUCCEEDED"]]
    before = datetime.now(UTC) - timedelta(hours=2)
    server.on_look = lambda run: report_task(
        store, key_of(run), kind="input", message="no such well", started=before, updated=before
    )
    server.on_end = submitting.results_of
    assert "no such well" not in submitting(wait=True)
    assert server.asked("POST", ":terminate") == []


def test_resubmit_stops_at_its_number_and_at_bad_input(submitting: Submitting, server: KfpServer, store: ObjectStore):
    server.script = [["FAILED"]]
    with pytest.raises(StepError):
        submitting(wait=True, resubmit=1)
    assert len(server.runs) == 2
    server.on_end = lambda run: report_task(store, key_of(run), kind="input", message="train.csv row 7: no such well")
    with pytest.raises(InputError, match=r"train\.csv row 7: no such well; not submitted again"):
        submitting(wait=True, resubmit=5)
    assert len(server.runs) == 3


def test_a_run_is_terminated_once_a_task_fails_of_bad_input(
    submitting: Submitting, server: KfpServer, store: ObjectStore
):
    """Failures that a retry may overcome terminate nothing."""
    server.script = [["RUNNING"]]
    server.faults.append(Fault(503, path=":terminate"))
    looks: list[str] = []

    def looked(run: dict[str, Any]) -> None:
        looks.append(run["state"])
        if len(looks) == 1:
            report_task(store, key_of(run), kind="step", message="out of memory")
        if len(looks) == 10:
            assert server.asked("POST", ":terminate") == []
            report_task(store, key_of(run), kind="input", message="train.csv row 7: no such well", name="b")

    server.on_look = looked
    line = r"^pretrain fold 1 tiny failed: train\.csv row 7: no such well; not submitted again, .*; no report: .*/#/runs/details/"
    with pytest.raises(InputError, match=line):
        submitting(wait=True, resubmit=3, timeout=60)
    assert (len(server.asked("POST", ":terminate")), len(server.runs)) == (2, 1)
    assert server.runs[0]["state"] == "CANCELING"
    assert (
        "pretrain fold 1 tiny failed because of bad input; the run is being terminated" in submitting.shown.getvalue()
    )


def test_bad_input_ends_following_even_if_the_run_cannot_be_terminated(
    submitting: Submitting, server: KfpServer, store
):
    server.script = [["RUNNING"]]
    server.on_look = lambda run: report_task(store, key_of(run), kind="input", message="no such well")
    server.faults.append(Fault(403, times=100, path=":terminate"))
    with pytest.raises(InputError, match="no such well"):
        submitting(wait=True)
    assert "the run cannot be terminated" in submitting.shown.getvalue()


def test_a_run_is_followed_while_the_store_does_not_answer(
    submitting: Submitting, server: KfpServer, monkeypatch: pytest.MonkeyPatch
):
    server.script = [["RUNNING"] * 10 + ["SUCCEEDED"]]

    def down(*_: Any) -> Any:
        raise StepError("s3://cellsignal: no answer")

    monkeypatch.setattr(StatusReader, "read", down)
    shown = submitting(wait=True, out=Path("results"))
    assert shown.count("the states of tasks cannot be read (s3://cellsignal: no answer)") == 1


def test_short_outages_are_waited_out(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING"] * 3 + ["SUCCEEDED"]]
    server.faults += [
        Fault(0, times=2, path="/runs/"),
        Fault(502, times=2, path="/runs/", body="<html>bad gateway</html>", kind="text/html"),
        Fault(429, path="/runs/"),
        Fault(404, path="/runs/", body="<html>nginx</html>"),  # of a proxy, as the next
        Fault(404, path="/runs/", body='{"error": "no such service"}'),
    ]
    shown = submitting(wait=True, out=Path("results"))
    assert shown.count("trying again") == 1
    assert "the endpoint answers again" in shown


@pytest.mark.parametrize(("status", "message"), [(503, "503"), (0, "no answer"), (401, "401")])
def test_lost_contact_is_an_error_of_its_own(
    submitting: Submitting, server: KfpServer, monkeypatch: pytest.MonkeyPatch, status: int, message: str
):
    monkeypatch.setattr(follow, "OUTAGE", 0.3)
    server.script = [["RUNNING"]]
    server.faults.append(Fault(status, times=10_000, path="/runs/"))
    line = rf"{message}.*may go on: the same command follows it again.*/#/runs/details/"
    with pytest.raises(ContactError, match=line):
        submitting(wait=True)
    assert len(server.runs) == 1


def test_following_has_a_deadline(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING"]]
    with pytest.raises(ContactError, match=r"deadline of --timeout.*the same command follows it again"):
        submitting(wait=True, timeout=0.2)


@pytest.mark.parametrize("down", [3, 10_000])
def test_an_endpoint_that_is_down_at_first_is_waited_for(
    submitting: Submitting, server: KfpServer, monkeypatch: pytest.MonkeyPatch, down: int
):
    server.faults.append(Fault(503, times=down, path="/healthz"))
    if down == 3:
        submitting()
    else:
        monkeypatch.setattr(follow, "OUTAGE", 0.3)
        with pytest.raises(ContactError, match=r"whether run .* has started is unknown: the same command follows it"):
            submitting()
    assert len(server.runs) == (1 if down == 3 else 0)


def test_a_deleted_run_ends_following(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING"]]
    server.on_look = lambda run: server.runs.clear()
    with pytest.raises(StepError, match="was deleted"):
        submitting(wait=True)


def test_ctrl_c_stops_following_and_not_the_run(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING"]]
    before = signal.getsignal(signal.SIGINT)
    server.on_look = lambda run: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(ContactError, match=r"no longer followed; run .* may go on.*Terminate at"):
        submitting(wait=True)
    assert server.asked("POST", ":terminate") == []
    assert signal.getsignal(signal.SIGINT) is before


def test_multi_user_installations_get_the_namespace(
    submitting: Submitting, server: KfpServer, monkeypatch: pytest.MonkeyPatch
):
    server.multi_user, server.token = True, "sesame"
    monkeypatch.setenv("KFP_TOKEN", "sesame")
    submitting()
    assert server.experiments[0]["namespace"] == "cellsignal"
    assert server.asked("POST", "/upload$")[0].query["namespace"] == "cellsignal"


def test_progress_is_printed_when_it_changes_and_not_at_every_report(
    submitting: Submitting, server: KfpServer, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipelines.run.display.QUIET_SECONDS", 0.0)
    server.script = [["RUNNING"] * 12 + ["SUCCEEDED"]]
    began, looks = datetime.now(UTC), []

    def looked(run: dict[str, Any]) -> None:
        looks.append(1)
        done = {"what": "epochs", "done": len(looks) // 6, "total": 40}
        report_task(store, key_of(run), state="running", kind="", started=began, updated=datetime.now(UTC), **done)

    server.on_look, server.on_end = looked, submitting.results_of
    shown = submitting(wait=True, out=Path("results"))
    lines = re.findall(r"pretrain fold 1 tiny: (\d of 40 epochs)", shown)
    assert lines == ["0 of 40 epochs", "1 of 40 epochs", "2 of 40 epochs"]
