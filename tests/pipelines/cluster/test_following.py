"""submit --wait on a simulated cluster: true progress, every kind of failure by its name, and when a run is submitted again."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from components.core.config import RunConfig
from components.core.errors import InputError, StepError
from components.core.storage import task_status
from components.core.storage.object_store import ObjectStore
from components.core.storage.task_status import StatusReader, StatusReporter
from pipelines.cli import app
from pipelines.cluster import follow as following
from pipelines.cluster import submit as submission
from pipelines.dag import training_graph
from pipelines.task_states import task_states
from tests.pipelines.cluster.conftest import Submitting, key_of
from tests.pipelines.cluster.kfp_server import KfpServer
from tests.pipelines.cluster.simulated_cluster import DETAILED, SimulatedCluster, write_kubeconfig
from tests.seaweedfs import BUCKET

NETWORK = "stem: 4, second_stride: 2, entry: [4, 8], middle_blocks: 0, exit: [8, 8, 8]"
RXRX1 = [
    "screen.cell_types=[HUVEC, RPE, HEPG2, U2OS]",
    "folds.count=5",
    f"backbones=[{{name: xception, {NETWORK}}}, {{name: xception_large, {NETWORK}}}]",
]
"""Its shape: 60 tasks."""
PRETRAIN, OTHER = "pretrain fold 0 tiny", "pretrain fold 1 tiny"
POLICIES = ["OnError", pytest.param("Always", marks=pytest.mark.slow)]
ALL_AT_ONCE = ["cluster.parallel_folds=9"]
TIMES = {
    "components.core.storage.task_status.INTERVAL": 0.1,
    "pipelines.cluster.follow.POLL": 0.05,
    "pipelines.cluster.submit.SETTLE": 0.1,
    "pipelines.cluster.follow.WAITS_SHOWN": 0.2,
    "pipelines.cluster.pods.CACHED_SECONDS": 0.1,
    "pipelines.cluster.pods.UNSCHEDULABLE_SECONDS": 0.3,
    "pipelines.run.display.QUIET_SECONDS": 0.0,
}


@dataclass
class Following:
    """submit --wait of a run on a simulated cluster."""

    submitting: Submitting
    cluster: SimulatedCluster
    server: KfpServer

    def __call__(self, **more: Any) -> str:
        """Follows a run to its end with the default of --resubmit; returns the console's text."""
        return self.submitting(wait=True, timeout=120, out=Path("results"), **{"resubmit": None, **more})

    @property
    def shown(self) -> str:
        return self.submitting.shown.getvalue()

    def terminations(self) -> int:
        return len(self.server.asked("POST", ":terminate"))

    def succeeded_once(self) -> None:
        """Every task of the DAG finished exactly once by what was shown, and in the store."""
        names = [task.name for task in self.cluster.graph.tasks]
        done = re.findall(r"^\[\d+/\d+ tasks\] (.*): done in", self.shown, re.MULTILINE)
        assert Counter(done) == Counter(names)
        assert f"[{len(names)}/{len(names)} tasks] report: done in" in self.shown
        attempts = StatusReader(self.cluster.store, key_of(self.server.runs[0])).read()
        finished = Counter(each.status.task for each in attempts if each.status.state == "finished")
        if self.cluster.config.cluster.group == "task":  # else the tasks of a pod that is retried copy their outputs
            assert finished == Counter(names)
        assert {each.state for each in task_states(self.cluster.graph, attempts)} == {"finished"}


@pytest.fixture
def follow_a(
    submitting: Submitting, server: KfpServer, config_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Following]]:
    """Makes a cluster for runs with changes of the configuration; by default 10 tasks, two folds of one backbone and cell type.

    `silence` and `stuck` are seconds until a task counts as lost, and a run as stuck; by default longer than a test.
    """
    for name, seconds in TIMES.items():
        monkeypatch.setattr(name, seconds)
    monkeypatch.setattr(task_status, "ObjectStore", functools.cache(ObjectStore))  # a client takes 50 ms
    tiny, check = submitting.config, submission.check_screen
    monkeypatch.setattr(submission, "check_screen", lambda _, *rest: check(tiny, *rest))  # the screen has one cell type
    write_kubeconfig(tmp_path / "kubeconfig", server.url)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    made: list[SimulatedCluster] = []

    def make(*changes: str, silence: float = 30.0, stuck: float = 60.0, **more: Any) -> Following:
        monkeypatch.setattr(task_status, "SILENCE", silence)
        for name in ("STUCK", "BLIND"):
            monkeypatch.setattr(following, name, stuck)
        store = submitting.store
        settings = [f"store.bucket={BUCKET}", f"store.prefix={store.prefix}", "embeddings.enabled=false", *changes]
        submitting.config = config = RunConfig.load(str(config_file), settings)
        server.cluster = SimulatedCluster(store, config, training_graph(config), **more)
        made.append(server.cluster)
        return Following(submitting, server.cluster, server)

    yield make
    for cluster in made:
        cluster.stop()


@pytest.mark.parametrize(
    ("policy", "group"),
    [("OnError", "task"), pytest.param("Always", "task", marks=pytest.mark.slow), ("OnError", "fold")],
)
def test_a_run_of_60_tasks_shows_true_progress_and_survives_failures(
    follow_a: Callable[..., Following], server: KfpServer, policy: str, group: str
):
    faults = {
        ("pretrain fold 1 xception", 1): "exit",
        ("finetune fold 2 RPE", 1): "delete",
        ("pseudo_label fold 4 U2OS", 1): "oom",
    }
    follow = follow_a(*RXRX1, f"cluster.group={group}", policy=policy, faults=faults)
    shown = follow()
    assert len(follow.cluster.graph.tasks) == 60
    follow.succeeded_once()
    counts = [int(count) for count in re.findall(r"^\[(\d+)/60 tasks\]", shown, re.MULTILINE)]
    assert counts == sorted(counts)
    assert "pretrain fold 1 xception failed: CUDA error: lost" in shown
    assert "; its limit is 24Gi, raise cluster.steps.pseudo_label.memory_gib" in shown
    assert len(server.runs) == (2 if policy == "OnError" else 1)
    assert follow.terminations() == 0
    details = follow.cluster.task_details(server.runs[0]["run_id"])
    assert len(details) == DETAILED + 1, "the stand-in has frozen them"
    assert any(each["state"] == "RUNNING" for each in details)
    if policy == "OnError" and group == "task":
        assert shown.count("submitted again under the same key, 2 more") == 1
        pods = follow.cluster.pods_of
        # Not once more than needed: 60 tasks, and one more pod for each failure.
        assert sum(pods.values()) == 63


ENDS = {
    "exit": r"failed: CUDA error: lost",
    "kill": r"was lost: its pod run-pretrain-\w+ on node node-7 ended with exit code 1 and no message: its process was killed, ",
    "oom": r"was lost: .* was killed for lack of memory \(OOM\); its limit is 24Gi, raise cluster\.steps\.pretrain\.memory_gib",
    "delete": r"was lost: its pod run-pretrain-\w+ on node node-7 was deleted",
    "evict": r"was lost: .* was evicted by its node.*: The node was low on resource: ephemeral-storage",
    "node": r"was lost: .* was evicted because its node was lost or tainted",
}


def fold_task(fold: int) -> str:
    return f"pretrain fold {fold} tiny"


def first(faults: Mapping[str, str]) -> dict[tuple[str, int], str]:
    """Faults of the first attempts at tasks."""
    return {(task, 1): fault for task, fault in faults.items()}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_message_names_how_each_task_ended(follow_a: Callable[..., Following], server: KfpServer, policy: str):
    failing = {fold_task(n): fault for n, fault in enumerate(ENDS)}
    follow = follow_a(
        f"folds.count={len(ENDS)}", *ALL_AT_ONCE, faults=first(failing), policy=policy, silence=0.8, stuck=1.8
    )
    shown = follow()
    for task, fault in failing.items():
        lines = [line for line in shown.splitlines() if re.match(f"{task} {ENDS[fault]}", line)]
        assert len([line for line in lines if "submitted again" not in line]) == 1, (fault, shown)
    follow.succeeded_once()
    # A run with a pod on a lost node does not end by itself.
    assert (len(server.runs), follow.terminations()) == (2, 1)
    assert follow.cluster.pods_of == {task.name: 1 + (task.name in failing) for task in follow.cluster.graph.tasks}


def test_without_the_right_to_read_pods_the_message_is_true_and_the_run_ends_well(
    follow_a: Callable[..., Following], server: KfpServer
):
    failing = {fold_task(0): "oom", fold_task(1): "delete", fold_task(2): "node"}
    follow = follow_a("folds.count=3", *ALL_AT_ONCE, faults=first(failing), may_read_pods=False, silence=0.8, stuck=1.8)
    shown = follow()
    sentence = (
        " was lost: it stopped reporting: its process was killed, or its pod or its node node-7 is gone; which of these is "
        "unknown, because pods cannot be read (403 Forbidden)\n"
    )
    assert [task for task in failing if shown.count(f"{task}{sentence}") == 1] == [*failing], shown
    follow.succeeded_once()
    assert (len(server.runs), follow.terminations()) == (2, 1)


def test_pods_that_cannot_start_and_what_they_wait_for_are_shown(follow_a: Callable[..., Following], server: KfpServer):
    failing = {fold_task(0): "image", fold_task(1): "unschedulable", fold_task(2): "queue"}
    follow = follow_a("folds.count=3", *ALL_AT_ONCE, faults=first(failing), pending=2.0, begin=0.6)
    shown = follow()
    image = (
        r"pretrain waits: the image of its pod cannot be pulled \(ImagePullBackOff: Back-off pulling image \"registry"
    )
    node = (
        r"pretrain waits: its pod has been unschedulable for \d+ min \(0/3 nodes are available: 3 Insufficient nvidia"
    )
    assert [len(re.findall(message, shown)) for message in (image, node)] == [1, 1], shown
    assert "waiting: 1 task for its driver\n" in shown
    assert "waiting: 1 pretrain for a node, 1 pretrain for its image, 1 pretrain for the queue\n" in shown
    follow.succeeded_once()
    assert len(server.runs) == 1


def test_other_branches_run_to_their_end_before_a_run_is_submitted_again(
    follow_a: Callable[..., Following], server: KfpServer
):
    """Also a slow one: longer than the time after which a run counts as stuck."""
    failing = {(PRETRAIN, attempt): "exit" for attempt in range(1, 5)}  # with all retries
    follow = follow_a(faults=failing, slow={OTHER: 2.6}, policy="Always", stuck=1.2)
    shown = follow()
    assert len(re.findall(rf"{OTHER}: 2 of 2 sites", shown)) == 1, "an unchanged state is shown once"
    follow.succeeded_once()
    assert (len(server.runs), follow.terminations()) == (2, 0)


def test_a_deleted_pod_is_left_to_kubeflow(follow_a: Callable[..., Following], server: KfpServer):
    """It counts as lost before it is retried."""
    follow = follow_a(faults={(PRETRAIN, 1): "delete", (OTHER, 1): "delete"}, backoff=2.0, silence=0.8, stuck=6.0)
    shown = follow()
    assert shown.count("was deleted") == 2
    follow.succeeded_once()
    assert (len(server.runs), follow.terminations()) == (1, 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_pod_that_waits_in_the_queue_is_progress(follow_a: Callable[..., Following], server: KfpServer, policy: str):
    """Even if nothing has reported for longer than the time after which a run counts as stuck."""
    queued = (OTHER, 1) if policy == "OnError" else (PRETRAIN, 2)
    follow = follow_a(faults={(PRETRAIN, 1): "exit", queued: "queue"}, pending=2.5, policy=policy, stuck=1.0)
    follow()
    follow.succeeded_once()
    assert (len(server.runs), follow.terminations()) == (2 if policy == "OnError" else 1, 0), follow.shown


def test_a_run_is_submitted_again_if_only_a_pod_that_cannot_start_is_left(
    follow_a: Callable[..., Following], server: KfpServer
):
    follow = follow_a(faults={(PRETRAIN, 1): "exit", (OTHER, 1): "image"}, pending=60.0, stuck=1.5)
    shown = follow()
    follow.succeeded_once()
    assert "a task has failed and nothing else makes progress; the run is being terminated" in shown
    assert (len(server.runs), follow.terminations()) == (2, 1)


def test_a_run_is_not_submitted_again_with_resubmit_0(follow_a: Callable[..., Following], server: KfpServer):
    follow = follow_a(faults={(PRETRAIN, 1): "oom"})
    with pytest.raises(
        StepError, match=rf"^{PRETRAIN} was lost: its pod .* \(OOM\); .* raise .*; no report: .*/#/runs/details/"
    ):
        follow(resubmit=0)
    assert len(server.runs) == 1


def test_resubmission_stops_at_its_default(
    follow_a: Callable[..., Following], server: KfpServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(submission, "PAUSES", (0.0, 0.2, 0.6))
    follow = follow_a(faults={("normalize", n): "exit" for n in range(1, 9)})
    with pytest.raises(StepError, match=r"^normalize failed: CUDA error: lost; no report"):
        follow()
    assert len(server.runs) == 4
    again = re.findall(r"submitted again under the same key(.*), (\d) more", follow.shown)
    assert again == [("", "2"), (" in 0 s", "1"), (" in 1 s", "0")]
    assert follow.cluster.pods_of["normalize"] == 4


@pytest.mark.parametrize("policy", POLICIES)
def test_bad_input_ends_the_run_and_is_not_submitted_again(
    follow_a: Callable[..., Following], server: KfpServer, policy: str
):
    follow = follow_a(faults={(PRETRAIN, 1): "input"}, slow={OTHER: 30.0}, policy=policy)
    with pytest.raises(InputError, match=rf"^{PRETRAIN} failed: train\.csv row 7: no such well; not submitted again"):
        follow()
    assert (len(server.runs), follow.terminations()) == (1, 1)


@pytest.mark.parametrize("fault", [pytest.param("oom", marks=pytest.mark.slow), "node"])
def test_two_processes_that_follow_a_run_both_end_well(
    follow_a: Callable[..., Following], server: KfpServer, monkeypatch: pytest.MonkeyPatch, fault: str
):
    monkeypatch.setattr(submission, "interruptible", lambda _: contextlib.nullcontext())  # signals need the main thread
    follow = follow_a(begin=1.0, slow={"report": 1.5}, faults={(PRETRAIN, 1): fault}, silence=0.8, stuck=1.6)
    submitting = follow.submitting
    others = [Submitting(server, submitting.config, submitting.screen, submitting.store) for _ in range(2)]
    shown: dict[int, str] = {}

    def one(number: int) -> None:
        out = Path(f"results-{number}")
        shown[number] = others[number](wait=True, timeout=120, out=out, resubmit=None)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.3)
    for thread in threads:
        thread.join()
    assert len(shown) == 2
    for number, text in shown.items():
        assert (Path(f"results-{number}") / "report.html").exists()
        assert "[10/10 tasks] report: done in" in text
    assert follow.cluster.pods_of == {task.name: 1 + (task.name == PRETRAIN) for task in follow.cluster.graph.tasks}
    assert sum(server.cluster.state(run["run_id"]) == "SUCCEEDED" for run in server.runs) == 1


@pytest.mark.parametrize("readable", [True, False])
def test_a_pod_that_fails_before_its_step_reports_is_explained(
    follow_a: Callable[..., Following], server: KfpServer, readable: bool
):
    follow = follow_a(faults={(PRETRAIN, 1): "start"}, may_read_pods=readable)
    shown = follow()
    follow.succeeded_once()
    assert len(server.runs) == 2
    if readable:
        end = r"its pod run-pretrain-\w+ ended with exit code 1 and no message"
        assert len(re.findall(f"^pretrain failed before it could report: {end}", shown, re.MULTILINE)) == 1
        assert re.search(
            rf"run [-0-9a-f]+ failed: pretrain failed before it could report: {end}.*; submitted again", shown
        )
    else:
        assert "failed: no task left a message, as when a pod cannot start; submitted again" in shown
    assert follow.terminations() == 0


@pytest.mark.slow
def test_time_left_counts_from_the_start_of_the_run_and_not_from_when_it_is_joined(
    follow_a: Callable[..., Following], server: KfpServer
):
    follow = follow_a(slow={OTHER: 2.4})
    follow.submitting()
    time.sleep(1.4)
    shown = follow()
    assert len(server.runs) == 1
    left = next(line for line in shown.splitlines() if "started" in line and "about" in line)
    assert not re.search(r"about 0 s left", left), left
    follow.succeeded_once()


def test_status_shows_what_pods_wait_for_and_how_they_ended(follow_a: Callable[..., Following]):
    follow = follow_a(
        "cluster.namespace=lab", faults={(PRETRAIN, 1): "oom", (OTHER, 1): "image"}, pending=30.0, silence=1.0
    )
    printed = re.search(r"its progress: cellsignal (.*) --watch$", follow.submitting(), re.MULTILINE)
    assert printed, follow.shown
    key, command = key_of(follow.server.runs[0]), printed[1].split()
    assert CliRunner().invoke(app, command).exit_code == 0, "nothing has reported yet"
    end = time.monotonic() + 30
    while "lost" not in (done := CliRunner().invoke(app, command, env={"COLUMNS": "250"})).output:
        assert time.monotonic() < end, done.output
        time.sleep(0.2)
    assert done.exit_code == 3
    assert re.search(
        rf"^{PRETRAIN}: its pod .* \(OOM\); .* raise cluster\.steps\.pretrain\.memory_gib", done.stdout, re.MULTILINE
    )
    assert "waiting: 1 pretrain for its image" in done.stdout
    assert f"run {key} failed: 1 of 10 tasks finished, 1 lost, 8 waiting; last report" in done.stdout
    asked = {request.path.split("/")[4] for request in follow.server.asked("GET", "^/api/v1/namespaces/")}
    assert asked == {"lab"}, "the record has no section `cluster`"
    (run,) = follow.cluster.runs.values()
    run.pods = {name: pod for name, pod in run.pods.items() if pod["status"]["phase"] != "Failed"}
    done = CliRunner().invoke(app, command, env={"COLUMNS": "250"})
    assert re.search(rf"^{PRETRAIN}: its pod .* was deleted$", done.stdout, re.MULTILINE)


def test_without_kubeflows_cache_finished_tasks_are_counted_once(follow_a: Callable[..., Following], server: KfpServer):
    """They start again, and copy their outputs."""
    follow = follow_a("cluster.caching=false", faults={("pseudo_label fold 1 HUVEC", 1): "exit"})
    shown = follow()
    names = [task.name for task in follow.cluster.graph.tasks]
    assert follow.cluster.pods_of["normalize"] == len(server.runs) == 2
    assert Counter(re.findall(r"^\[\d+/10 tasks\] (.*): done in", shown, re.MULTILINE)) == Counter(names)


def test_a_store_that_answers_nobody_for_a_while_raises_no_false_alarm(
    follow_a: Callable[..., Following], server: KfpServer, monkeypatch: pytest.MonkeyPatch
):
    follow = follow_a(slow={PRETRAIN: 3.2, OTHER: 3.2}, silence=0.9)
    put, scan = ObjectStore.put, ObjectStore.scan
    began = time.monotonic()

    def down() -> bool:
        return bool(server.runs) and 1.2 < time.monotonic() - began < 3.2 and "pretrain" in follow.shown

    def failing(work: Callable[..., Any]) -> Callable[..., Any]:
        def request(store: ObjectStore, key: str = "", *rest: Any, **more: Any) -> Any:
            if down() and "/status/" in key:
                raise StepError("s3://cellsignal: no answer")
            return work(store, key, *rest, **more)

        return request

    monkeypatch.setattr(ObjectStore, "put", failing(put))
    monkeypatch.setattr(ObjectStore, "scan", failing(scan))
    shown = follow()
    assert (
        shown.count("the states of tasks cannot be read (s3://cellsignal: no answer); the run is still followed") == 1
    )
    assert "lost" not in shown
    follow.succeeded_once()
    assert len(server.runs) == 1


def test_a_run_that_is_cancelled_is_neither_submitted_again_nor_called_lost(
    follow_a: Callable[..., Following], server: KfpServer
):
    follow = follow_a(slow={PRETRAIN: 30.0, OTHER: 30.0})

    def cancel() -> None:
        while f"{OTHER}: started" not in follow.shown:
            time.sleep(0.05)
        follow.cluster.terminate(server.runs[0]["run_id"])

    thread = threading.Thread(target=cancel, daemon=True)
    follow.submitting.shown = io.StringIO()
    thread.start()
    with pytest.raises(StepError, match=r"^run [-0-9a-f]+ was cancelled; no report"):
        follow()
    thread.join()
    assert follow.cluster.state(server.runs[0]["run_id"]) == "FAILED", "as on a real cluster"
    assert "lost" not in follow.shown
    assert len(server.runs) == 1


def test_the_same_command_resumes_a_run_that_has_failed_for_good(follow_a: Callable[..., Following], server: KfpServer):
    follow = follow_a(faults={(PRETRAIN, 1): "exit"})
    with pytest.raises(StepError, match="CUDA error: lost"):
        follow(resubmit=0)
    shown = follow(resubmit=0)
    assert "CUDA" not in shown, "the earlier failure is history"
    follow.succeeded_once()
    assert (len(server.runs), follow.cluster.pods_of["normalize"]) == (2, 1)


@pytest.mark.slow
def test_pods_of_a_terminated_start_that_linger_are_not_called_lost(
    follow_a: Callable[..., Following], server: KfpServer
):
    """A pod works on for its grace period while the same command has started the run again."""
    follow = follow_a(slow={OTHER: 2.4}, silence=0.8)
    follow.submitting()
    key = key_of(server.runs[0])
    lingering = StatusReporter(follow.cluster.store.uri(""), key, {"step": "normalize"}, {"KFP_POD_NAME": "old"})
    follow.cluster.terminate(server.runs[0]["run_id"])
    while follow.cluster.state(server.runs[0]["run_id"]) != "FAILED":
        time.sleep(0.05)
    threading.Timer(0.8, lingering.stop).start()
    shown = follow()
    assert len(server.runs) == 2
    assert "lost" not in shown
    assert "[10/10 tasks] report: done in" in shown


def test_a_wrong_clock_makes_no_task_look_lost_in_a_run_that_is_joined(
    follow_a: Callable[..., Following], server: KfpServer, monkeypatch: pytest.MonkeyPatch
):
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(minutes=10)

    follow = follow_a(slow={PRETRAIN: 1.5, OTHER: 1.5})
    follow.submitting()
    time.sleep(0.8)
    monkeypatch.setattr(task_status, "datetime", Ahead)
    shown = follow()
    assert f"{OTHER}: started" in shown
    assert "lost" not in shown
    follow.succeeded_once()
