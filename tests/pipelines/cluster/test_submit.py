"""submit against a server that speaks KFP's API: what it makes once, how it follows, how it ends, and what it leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.errors import ContactError, InputError, StepError
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_outcome import FailureRecord
from components.core.storage.run_record import RECIPE, RunRecord, cluster_run_key
from pipelines.cluster import failure_watch
from pipelines.cluster.failure_watch import FailureWatch
from pipelines.cluster.following import Pace
from pipelines.cluster.submission import keep_first, run_in_progress
from tests.pipelines.cluster.conftest import QUICK, Submitting
from tests.pipelines.cluster.kfp_server import Fault, KfpServer, node


def fail(store: ObjectStore, key: str, kind: str, message: str, name: str = "a") -> None:
    record = FailureRecord(step="pretrain", fold=1, backbone="tiny", kind=kind, message=message, at=datetime.now(UTC))
    store.put(f"runs/{key}/failed/{name}.json", record.model_dump_json().encode())


def test_everything_is_made_once_and_named_by_commit_and_fingerprint(submitting: Submitting, server: KfpServer, key):
    server.script = [["RUNNING"], ["SUCCEEDED"]]
    shown = submitting()
    assert [each["display_name"] for each in server.pipelines] == ["cellsignal-tiny"]
    first, mine = (each["display_name"] for each in server.versions)
    assert first == "cellsignal-tiny"
    assert re.fullmatch(r"cellsignal-tiny-[a-z0-9-]+-[0-9a-f]{12}", mine)
    assert next(yaml.safe_load_all(server.uploaded[mine]))["pipelineInfo"]["name"] == "cellsignal-tiny"
    (run,) = server.runs
    assert run["display_name"].startswith(f"{key(shown)} ")
    assert run["service_account"] == "cellsignal-run"
    assert f"{server.url}/#/runs/details/{run['run_id']}" in shown
    assert [each["display_name"] for each in server.experiments] == ["cellsignal"]
    # Of the store, whatever root its namespace has: the pods' Secret opens no other bucket.
    assert run["runtime_config"]["pipeline_root"] == f"{submitting.store.uri('').rstrip('/')}/kfp"
    parameters = run["runtime_config"]["parameters"]
    assert (parameters["source"], parameters["truth"]) == (submitting.screen, "")
    lineage = json.loads(parameters["lineage"])
    assert key(shown) == cluster_run_key("tiny", lineage[RECIPE], submitting.screen, parameters["fingerprint"])
    assert lineage["submitted"]["pipeline_version"] == mine
    again = submitting()
    assert "in progress with the same content" in again
    assert [len(made) for made in (server.pipelines, server.versions, server.experiments, server.runs)] == [1, 2, 1, 1]


def test_a_version_is_found_on_a_later_page(submitting: Submitting, server: KfpServer):
    server.script = [["FAILED"]]
    submitting()
    for n in range(5):
        server.experiments.insert(0, {"experiment_id": str(n), "display_name": "cellsignal" if n < 0 else f"other {n}"})
        server.add_run(f"{server.runs[0]['display_name'].split(' ')[0]} x", "FAILED", server.runs[0]["experiment_id"])
    # The run in progress is the oldest of six, three pages away.
    server.runs[0]["state"] = "RUNNING"
    submitting()
    assert len(server.runs) == 6
    assert len(server.asked("POST", "upload")) == 2


def test_other_content_starts_another_run_and_other_resources_do_not(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING"]]
    submitting()
    submitting.config = submitting.config.model_copy(
        update={"cluster": submitting.config.cluster.model_copy(update={"parallel_folds": 2})}
    )
    submitting()
    assert len(server.runs) == 1
    submitting.config = submitting.config.model_copy(update={"seed": 5})
    submitting()
    assert len(server.runs) == 2


@pytest.mark.parametrize("state", ["SUCCEEDED", "CANCELING"])
def test_a_run_that_has_ended_is_not_followed(submitting: Submitting, server: KfpServer, state: str):
    submitting()
    server.runs[0]["state"] = state
    submitting()
    assert len(server.runs) == 2


def test_two_that_submit_at_once_share_what_either_makes(submitting: Submitting, server: KfpServer):
    # Each upload works, but somebody else's answer came first: the name is taken.
    for path in ("/upload_version", "/upload"):
        server.faults.append(Fault(409, path=path, method="POST", body='{"error_message": "taken"}', after=True))
    submitting()
    assert (len(server.versions), len(server.runs)) == (2, 1)


def test_of_two_runs_that_are_started_at_once_one_stays_and_both_follow_it(
    submitting: Submitting, server: KfpServer, monkeypatch: pytest.MonkeyPatch
):
    """Both have looked before either has started."""
    server.script = [["RUNNING"]]
    both, looked = threading.Barrier(2, timeout=30), set()

    def look(*arguments: Any) -> Any:
        found = run_in_progress(*arguments)
        if threading.get_ident() not in looked:
            looked.add(threading.get_ident())
            both.wait()
        return found

    def one_second(*arguments: Any) -> dict[str, Any]:
        made = new_run(*arguments)
        made["created_at"] = "2026-11-01T12:00:00+00:00"
        return made

    new_run = server._new_run
    monkeypatch.setattr(server, "_new_run", one_second)
    monkeypatch.setattr("pipelines.cluster.attempts.run_in_progress", look)
    monkeypatch.setattr("pipelines.cluster.attempts.keep_first", lambda *given: (both.wait(), keep_first(*given))[1])
    with ThreadPoolExecutor(2) as pool:
        shown = [told.result() for told in [pool.submit(submitting) for _ in range(2)]]
    states = {run["run_id"]: run["state"] for run in server.runs}
    assert sorted(states.values()) == ["CANCELING", "PENDING"]
    (stays,) = (run_id for run_id, state in states.items() if state == "PENDING")
    assert all(f"/#/runs/details/{stays}" in told for told in shown)
    assert sum("somebody started it at the same moment" in told for told in shown) == 1


@pytest.mark.parametrize("path", [":terminate", "/runs"])
def test_a_run_that_has_started_is_told_though_nothing_can_be_done_about_the_other(
    submitting: Submitting, server: KfpServer, path: str
):
    def two(request: Any) -> dict[str, Any]:
        body = json.loads(request.body)
        server.add_run(body["display_name"], "RUNNING", body["experiment_id"])
        server.faults.append(Fault(403, path=path, method="POST" if path == ":terminate" else "GET"))
        return create(request)

    create = server._create_run
    server._create_run = two  # type: ignore[method-assign]
    shown = submitting()
    mine = server.runs[1]["run_id"]
    assert (f"end one of them, here {server.url}/#/runs/details/{mine}" in shown) == (path == ":terminate")
    assert re.search(rf"run tiny-\w+ .* started\n{server.url}/#/runs/details/{mine}", shown)


def test_a_run_whose_start_was_not_answered_is_found_and_not_started_twice(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING"]]
    server.faults.append(Fault(503, path="/runs", method="POST", after=True))
    shown = submitting()
    assert len(server.runs) == 1
    assert server.runs[0]["run_id"] in shown


def test_kubeflows_cache_knows_a_run_as_long_as_the_store_does(submitting: Submitting, server: KfpServer, key):
    """normalize's key in that cache is made of its parameters; once a run is forgotten, the plates that it packed may be gone."""

    def lineage() -> str:
        server.script = [["FAILED"]]
        shown.append(submitting())
        server.runs[-1]["state"] = "FAILED"
        return server.runs[-1]["runtime_config"]["parameters"]["lineage"]

    shown: list[str] = []
    first = lineage()
    run = key(shown[0])
    record = RunRecord(key=run, config={}, lineage={**json.loads(first), "run": run})
    submitting.store.put(f"runs/{run}/run.json", record.model_dump_json().encode())
    assert lineage() == lineage() == first
    submitting.store.delete(f"runs/{run}/run.json")
    assert lineage() != first
    assert {key(each) for each in shown} == {run}


def test_wait_follows_through_states_and_fetches_the_results(submitting: Submitting, server: KfpServer, key):
    server.script = [["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"]]
    server.nodes = lambda run: [
        node("normalize-driver", "SUCCEEDED"),
        node("normalize", "SUCCEEDED"),
        node("pretrain", "SUCCEEDED"),
        node("pretrain", "RUNNING" if run["state"] == "RUNNING" else "SUCCEEDED"),
        node("finetune-2", "SKIPPED"),
        node("executor", "RUNNING"),
    ]
    shown = submitting(wait=True, out=Path("results"))
    assert "[2/" in shown or "[3/" in shown
    assert "pretrain: 1 of 2 done, 1 running" in shown
    assert "pretrain: 2 of 2 done" in shown
    assert "finetune: 1 of 2 done" in shown
    assert sorted(path.name for path in Path("results").iterdir()) == [
        "lineage.json", "metrics.json", "predictions.csv", "report.html",
    ]  # fmt: skip
    assert json.loads(Path("results/lineage.json").read_text())["run"] == key(shown)
    submitting(wait=True, out=Path("results"))  # the same run's folder is taken again


def test_an_archived_experiment_is_told_of_before_a_run_is_started(submitting: Submitting, server: KfpServer):
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
    assert Path("results/thesis.txt").read_text() == "mine"


def test_failed_names_the_task_and_what_it_said(submitting: Submitting, server: KfpServer, store: ObjectStore, key):
    server.script = [["RUNNING", "FAILED"]]
    server.on_end = lambda run: fail(store, run["display_name"].split(" ")[0], "step", "loss is not finite in epoch 3")
    with pytest.raises(
        StepError, match=r"pretrain fold 1 tiny failed: loss is not finite in epoch 3; no report: .*packing"
    ):
        submitting(wait=True)


def test_of_failed_tries_the_task_that_used_up_its_own_is_named(submitting: Submitting, server: KfpServer):
    def ended(run: dict[str, Any]) -> None:
        for second, (step, message) in enumerate(
            (("normalize", "a passing outage"), *[("pretrain", "out of memory")] * 3)
        ):
            at = datetime.now(UTC) + timedelta(seconds=second)
            record = FailureRecord(step=step, kind="step", message=message, at=at)
            run_key = run["display_name"].split(" ")[0]
            submitting.store.put(f"runs/{run_key}/failed/{second}.json", record.model_dump_json().encode())

    server.script, server.on_end = [["FAILED"]], ended
    with pytest.raises(StepError, match=r"^pretrain failed: out of memory; "):
        submitting(wait=True)


def test_failed_without_a_record_says_what_the_api_knows(submitting: Submitting, server: KfpServer):
    server.script = [["FAILED"]]
    server.nodes = lambda run: [
        node("root", "FAILED", end_time="2026-01-01T00:00:09Z"),
        node("finetune-2", "FAILED", end_time="2026-01-01T00:00:05Z"),
        node(
            "executor", "FAILED", end_time="2026-01-01T00:00:04Z", error={"code": 2, "message": "OOMKilled (exit 137)"}
        ),
    ]
    with pytest.raises(StepError, match=r"finetune failed: OOMKilled \(exit 137\); no report"):
        submitting(wait=True)


def test_cancelled_ends_though_kfp_would_wait_for_ever(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING", "CANCELING", "CANCELED"]]
    with pytest.raises(StepError, match=r"run [0-9a-f-]{36} was cancelled"):
        submitting(wait=True, resubmit=3)
    assert len(server.runs) == 1


def test_resubmit_goes_on_under_the_same_key_until_it_succeeds(submitting: Submitting, server: KfpServer, store, key):
    server.script = [["FAILED"], ["FAILED"], ["SUCCEEDED"]]

    def end(run: dict) -> None:
        if run["state"] == "FAILED":
            fail(store, run["display_name"].split(" ")[0], "step", f"attempt {len(server.runs)}")
        else:
            submitting.results_of(run)

    server.on_end = end
    shown = submitting(wait=True, resubmit=2, out=Path("results"))
    assert len({run["display_name"] for run in server.runs}) == 1
    assert len(server.runs) == 3
    assert "attempt 1; submitted again" in shown
    assert "attempt 2; submitted again" in shown
    assert store.list(f"runs/{key(shown)}/failed/") == []  # what earlier attempts said is not the last one's


def test_who_lets_pods_be_taken_away_is_told_that_kubeflow_does_not_try_them_again(
    submitting: Submitting, server: KfpServer
):
    line = "Kubeflow tries no pod again that is taken from its node"
    assert line not in submitting()
    cluster = submitting.config.cluster
    steps = cluster.steps.model_copy(update={"pretrain": cluster.steps.pretrain.model_copy(update={"spot": True})})
    submitting.config = submitting.config.model_copy(update={"cluster": cluster.model_copy(update={"steps": steps})})
    assert f"pretrain may run on spot nodes, and {line}" in submitting()
    server.runs.clear()
    assert line not in submitting(wait=True, resubmit=1)


def test_resubmit_stops_at_its_number_and_at_bad_input(submitting: Submitting, server: KfpServer, store: ObjectStore):
    server.script = [["FAILED"]]
    with pytest.raises(StepError):
        submitting(wait=True, resubmit=1)
    assert len(server.runs) == 2
    server.on_end = lambda run: fail(store, run["display_name"].split(" ")[0], "input", "train.csv row 7: no such well")
    with pytest.raises(InputError, match=r"train\.csv row 7: no such well; not tried again"):
        submitting(wait=True, resubmit=5)
    assert len(server.runs) == 3


def test_a_run_whose_input_is_bad_is_ended_though_kubeflow_would_try_again(
    submitting: Submitting, server: KfpServer, store: ObjectStore
):
    """Only what this attempt says counts: an earlier one's record, of a pod that took its time, ends nothing."""
    server.script = [["RUNNING"]]
    looks: list[str] = []

    def watched(run: dict[str, Any]) -> list[dict[str, Any]]:
        run_key = run["display_name"].split(" ")[0]
        looks.append(run["state"])
        if len(looks) == 1:
            early = FailureRecord(
                step="assign", kind="input", message="early", at=datetime.now(UTC) - timedelta(days=1)
            )
            store.put(f"runs/{run_key}/failed/early.json", early.model_dump_json().encode())
        if len(looks) == 20:
            assert server.asked("POST", ":terminate") == []
            fail(store, run_key, "step", "out of memory")
            fail(store, run_key, "input", "train.csv row 7: no such well", "b")
        return []

    server.nodes = watched
    line = r"^pretrain fold 1 tiny failed: train\.csv row 7: no such well; not tried again, .*; no report: .*/#/runs/details/"
    with pytest.raises(InputError, match=line):
        submitting(wait=True, resubmit=3, timeout=60)
    assert len(server.asked("POST", ":terminate")) == len(server.runs) == 1
    assert looks[-1] == "CANCELED"
    assert "pretrain fold 1 tiny failed of bad input; the run is being ended" in submitting.shown.getvalue()


def test_a_run_that_may_not_be_ended_or_does_not_end_is_told_of(submitting: Submitting, server: KfpServer, store):
    server.script = [["RUNNING"] * 20 + ["FAILED"]]
    server.nodes = lambda run: fail(store, run["display_name"].split(" ")[0], "input", "no such well") or []
    server.faults.append(Fault(403, times=100, path=":terminate"))
    with pytest.raises(InputError, match="no such well"):
        submitting(wait=True)
    assert submitting.shown.getvalue().count("the run cannot be ended from here") == 1
    server.faults.clear()
    server._terminate = lambda run_id: {}  # type: ignore[method-assign]
    server.script = [["RUNNING"]]
    with pytest.raises(InputError, match="no such well"):
        submitting(wait=True, timeout=60, pace=dataclasses.replace(QUICK, ending=0.1))


def test_failures_are_listed_once_in_a_while_and_each_is_read_once(submitting: Submitting, server: KfpServer, store):
    fail(store, "tiny-1", "step", "out of memory")
    now = [0.0]
    watch = FailureWatch(store, "tiny-1", datetime.now(UTC) - timedelta(hours=1), print, 60.0, lambda: now[0])
    store.requests.update(gets=0, lists=0)
    lists = []
    store.list = lambda prefix: lists.append(prefix) or type(store).list(store, prefix)  # type: ignore[method-assign]
    for _ in range(31):
        watch.look()
        now[0] += 10.0
    assert (len(lists), store.requests["gets"], len(watch.found)) == (6, 1, 1)


def test_a_store_that_cannot_be_reached_is_told_of_once_and_the_run_is_followed(
    submitting: Submitting, server: KfpServer, monkeypatch: pytest.MonkeyPatch
):
    server.script = [["RUNNING"] * 30 + ["SUCCEEDED"]]
    listed = failure_watch.failure_keys
    asked: list[int] = []

    def down(*given: Any) -> Any:
        asked.append(1)
        if len(asked) < 4:
            raise StepError("s3://cellsignal: no answer")
        return listed(*given)

    monkeypatch.setattr(failure_watch, "failure_keys", down)
    shown = submitting(wait=True, out=Path("results"), pace=dataclasses.replace(QUICK, failures=0.005))
    assert shown.count("is not known (s3://cellsignal: no answer)") == shown.count("the store answers again") == 1


def test_short_outages_are_ridden_out(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING"] * 3 + ["SUCCEEDED"]]
    server.faults += [
        Fault(0, times=2, path="/runs/"),
        Fault(502, times=2, path="/runs/", body="<html>bad gateway</html>", kind="text/html"),
        Fault(429, path="/runs/"),
    ]
    shown = submitting(wait=True, out=Path("results"), pace=Pace(poll=0.01, retry=0.01, longest_retry=0.02, outage=20))
    assert shown.count("trying again") == 1
    assert "the endpoint answers again" in shown


@pytest.mark.parametrize(("status", "told"), [(503, "answers 503"), (0, "no answer"), (401, "401")])
def test_lost_contact_says_that_the_run_may_go_on(submitting: Submitting, server: KfpServer, status: int, told: str):
    server.script = [["RUNNING"]]
    server.faults.append(Fault(status, times=10_000, path="/runs/"))
    with pytest.raises(ContactError, match=rf"{told}.*may go on: the same command follows it again.*/#/runs/details/"):
        submitting(wait=True)
    assert len(server.runs) == 1


def test_the_deadline_is_our_own(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING"]]
    with pytest.raises(ContactError, match=r"deadline of --timeout.*the same command follows it again"):
        submitting(wait=True, timeout=0.2)


def test_a_deleted_run_is_not_waited_for(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING"]]
    server.nodes = lambda run: server.runs.clear() or []
    with pytest.raises(StepError, match="was deleted"):
        submitting(wait=True)


def test_ctrl_c_stops_following_and_not_the_run(submitting: Submitting, server: KfpServer):
    server.script = [["RUNNING"]]
    before = signal.getsignal(signal.SIGINT)
    server.nodes = lambda run: os.kill(os.getpid(), signal.SIGINT) or []
    with pytest.raises(ContactError, match=r"no longer followed; run .* may go on.*Terminate at"):
        submitting(wait=True, pace=QUICK)
    assert server.asked("POST", ":terminate") == []
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("secret", ["keys", None])
def test_what_pods_need_to_reach_the_store_is_named(submitting: Submitting, server: KfpServer, secret: str | None):
    cluster = submitting.config.cluster.model_copy(update={"store_secret": secret})
    submitting.config = submitting.config.model_copy(update={"cluster": cluster})
    shown = submitting()
    account = "service account cellsignal-run and"
    assert f"{account} {'secret keys' if secret else 'the role of that account'} must be" in shown


def test_multi_user_deployments_are_told_the_namespace(submitting: Submitting, server: KfpServer):
    server.multi_user = True
    server.token, os.environ["KFP_TOKEN"] = "sesame", "sesame"
    try:
        submitting()
    finally:
        del os.environ["KFP_TOKEN"]
    assert server.experiments[0]["namespace"] == "cellsignal"
    assert server.asked("POST", "/upload$")[0].query["namespace"] == "cellsignal"
