"""cellsignal status and cellsignal runs: what the runs of a store have done so far, by what their tasks reported.

Imports neither torch nor kfp. A run on this machine and one on a cluster report alike, so both are shown from anywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.core.errors import InputError
from pipelines.options import (
    Json,
    StoreOptions,
    console_of_terminal,
    print_json,
    print_line,
    with_store_options,
)

if TYPE_CHECKING:
    from rich.console import Group

    from components.core.storage.object_store import ObjectStore
    from components.core.storage.task_status import Attempt
    from pipelines.cluster.pods import PodReader
    from pipelines.dag import TaskGraph
    from pipelines.task_states import TaskState

REFRESH = 5.0
"""Seconds between two looks of --watch."""
PODS_TRIED = 10
"""Pods that are looked for, the last first, to find out a run's id in KFP."""
BETWEEN_TASKS = 30.0
"""Seconds after a task's end for which a run counts as running: the next task starts."""
_STYLES = {"running": "bold", "finished": "green", "failed": "red", "lost": "red", "waiting": "dim"}


@with_store_options
def runs(
    sizes: Annotated[
        bool, typer.Option("--sizes", help="also the bytes that each run alone keeps in the store; lists every object")
    ] = False,
    as_json: Json = False,
    *,
    options: StoreOptions,
) -> None:
    """Lists the runs of a store, their kind (training, retraining or prediction) and state. The most recently active is last."""
    from components.core.storage.garbage import list_groups
    from components.core.storage.runs import read_runs
    from pipelines.retrain.records import retrained_runs
    from pipelines.store.tables import run_row, runs_table, sizes_alone

    console = console_of_terminal(as_json)
    opened = options.open()
    found, retrained = read_runs(opened), retrained_runs(opened)
    rows = [run_row(run, retrained) for run in found]
    alone = sizes_alone(found, list_groups(opened)) if sizes and found else {}
    if as_json:
        sized = [{**row, **({"bytes_alone": alone[row["key"]]} if sizes else {})} for row in rows]
        print_json(store=opened.uri(""), runs=sized)
    elif rows:
        console.print(runs_table(rows, alone, console.width))
    else:
        print_line(console, f"{opened.uri('')}: no runs")


@with_store_options
def status(
    run: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="key of the run, its address ADDRESS_OF_STORE/runs/KEY, or the folder of `cellsignal run --out`; default: the "
            "most recently active run, of the configuration if one is given",
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="show it until the run ends; Ctrl-C stops showing it")] = False,
    as_json: Json = False,
    *,
    options: StoreOptions,
) -> None:
    """Shows the state and progress of every task of a run, on this machine or on a cluster.

    Tasks report to the run's store, so Kubeflow is not contacted. A task without a report waits; what for is shown if you may read
    the pods of the namespace (see docs/cluster.md). One that has not reported for two minutes counts as lost. Exits with 3 if a
    task has failed or is lost and nothing else is running; on a cluster --watch then waits a few minutes for another attempt.
    """
    from rich.live import Live

    from components.core.errors import StepError
    from pipelines.cluster.follow import interruptible

    if watch and as_json:
        raise InputError("--json prints one state; leave --watch out, or run it repeatedly")
    console = console_of_terminal(as_json)
    followed = _FollowedRun.find(run, options)
    shown = followed.read()
    if as_json:
        rows = [_row(each, shown.reasons.get(each.task.name)) for each in shown.tasks]
        print_json(store=followed.store.uri(""), run=followed.key, state=shown.state, tasks=rows)
        raise typer.Exit(3 if shown.state == "failed" else 0)
    in_place = watch and console.is_terminal
    live_table = Live(console=console, auto_refresh=False) if in_place else nullcontext()
    with interruptible(lambda: "the run is not affected"), live_table as live:
        line, problem = "", ""
        while watch and not shown.ended:
            if live:
                live.update(shown.render(console.height), refresh=True)
            elif shown.headline != line:
                line = shown.headline
                print_line(console, f"{datetime.now():%H:%M:%S} {line}")
            time.sleep(REFRESH)
            try:
                shown, problem = followed.read(), ""
            except (InputError, StepError) as error:  # the store may answer the next time, or credentials be renewed
                if str(error) != problem:
                    problem = str(error)
                    print_line(console, problem, "yellow")
        if live:
            live.update("", refresh=True)
        console.print(shown.render())
    raise typer.Exit(3 if shown.state == "failed" else 0)


@dataclass(frozen=True)
class _RunState:
    """The state of a run at one moment."""

    key: str
    tasks: Sequence[TaskState]
    planned: bool  # whether all tasks are known; until normalize has ended, only those that have reported
    done: bool
    silence: float  # seconds since the last report of any task
    reasons: Mapping[str, str]  # why tasks failed or are lost, by name
    waits: str  # what pods wait for

    @property
    def state(self) -> str:
        """`running` if a task is or has just ended, else `finished`, `failed`, or `waiting`."""
        states = {each.state for each in self.tasks}
        if "running" in states:
            return "running"
        if self.done or (self.planned and states == {"finished"}):
            return "finished"
        if states & {"failed", "lost"}:
            return "failed"
        return "running" if self.silence < BETWEEN_TASKS else "waiting"

    @property
    def ended(self) -> bool:
        """Whether nothing more is expected: on a cluster, Kubeflow or `submit --wait` may try a failed task again."""
        from pipelines.cluster.follow import STUCK

        on_cluster = any(each.last and each.last.pod for each in self.tasks)
        return self.state == "finished" or (self.state == "failed" and (not on_cluster or self.silence > STUCK))

    @property
    def headline(self) -> str:
        """The run in one line."""
        from pipelines.run.display import duration
        from pipelines.task_states import summary

        if not self.tasks:
            return f"run {self.key}: no task has reported yet; `cellsignal runs` lists the runs of the store"
        planned = "" if self.planned else ", more once normalize has ended"
        quiet = self.state in ("failed", "waiting") and self.silence < math.inf
        last = f"; last report {duration(self.silence)} ago" if quiet else ""
        return f"run {self.key} {self.state}: {summary(self.tasks)}{planned}{last}"

    def render(self, height: int | None = None) -> Group:
        """The headline and a table with a line per task; if they do not fit into a height, only of those that run or failed."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        from pipelines.run.display import duration

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in ("task", "state", "progress"):
            table.add_column(name, no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("node", overflow="fold")
        shown, left_out = self.tasks, ""
        if height is not None and len(self.tasks) + len(self.reasons) + 7 > height:
            busy = [each for each in self.tasks if each.state in ("running", "failed", "lost")]
            shown = busy[: max(1, height - len(self.reasons) - 7)]
            left_out = (
                f"{len(self.tasks) - len(shown)} more tasks; the whole table: without --watch, or in a higher terminal"
            )
        for each in shown:
            last = each.last
            state = Text(each.state + (f" ({each.attempts} attempts)" if each.attempts > 1 else ""))
            state.stylize(_STYLES[each.state])
            progress = last.progress if last and each.state == "running" else ""
            seconds, node = (duration(each.seconds), last.node) if last else ("", "")
            table.add_row(each.task.name, state, progress, seconds, node)
        lines: list[Any] = [Text(self.headline), *([table] if self.tasks else [])]
        lines += [Text(left_out, style="dim")] if left_out else []
        lines += [Text(f"{name}: {reason}", style="red") for name, reason in self.reasons.items()]
        lines += [Text(f"waiting: {self.waits}", style="dim")] if self.waits else []
        return Group(*lines)


@dataclass
class _FollowedRun:
    """A run of a store, read again and again."""

    store: ObjectStore
    key: str
    namespace: str  # of its pods; empty for the run's own

    def __post_init__(self) -> None:
        from components.core.storage.task_status import StatusReader
        from pipelines.cluster.pods import PodReader

        self._reader = StatusReader(self.store, self.key)
        self._pods: PodReader | None = PodReader(self.namespace) if self.namespace else None
        self._graph: TaskGraph | None = None

    @classmethod
    def find(cls, name: str | None, options: StoreOptions) -> _FollowedRun:
        """The run that --run gives, else the most recently active one; InputError if there is none."""
        from components.core.config import RunConfig
        from components.core.storage.opening import open_existing
        from pipelines.run.folder import find_run

        known = find_run(name, any_kind=True) if name else None
        store = open_existing(known.store.address) if known and known.store.bucket else options.open()
        config = RunConfig.load(options.config, options.set or []) if options.config else None
        key = known.key if known else _newest(store, config.name if config else "")
        if not key:
            which = f" of configuration {config.name}" if config else ""
            raise InputError(f"{store.uri('')}: no run{which}; give --store, or --run as `cellsignal runs` lists them")
        return cls(store, key, config.cluster.namespace if config else "")

    def read(self) -> _RunState:
        """The run's state now."""
        from components.core.storage.runs import has_results
        from pipelines.task_states import task_states

        attempts = self._reader.read()
        if self._graph is None:
            self._graph = self._read_graph()
        tasks: list[TaskState] = task_states(self._graph or _reported(attempts), attempts)
        done = has_results(self.store, self.key)
        if done and not any(each.state == "running" for each in tasks):
            tasks = [each._replace(state="finished") for each in tasks]
        silence = min((each.silence for each in attempts), default=math.inf)
        reasons, waits = self._explain(tasks, attempts)
        return _RunState(self.key, tasks, self._graph is not None, done, silence, reasons, waits)

    def _explain(self, tasks: Sequence[TaskState], attempts: Sequence[Attempt]) -> tuple[dict[str, str], str]:
        """Why tasks failed or are lost, by name, and what pods wait for: with their pods, if this account may read them."""
        reasons = {each.task.name: each.failure for each in tasks if each.failure}
        open_tasks = any(each.ready and each.state not in ("finished", "running") for each in tasks)
        if self._pods is None or not open_tasks:
            return reasons, ""
        last = sorted((each for each in attempts if each.status.pod), key=lambda each: each.silence)[:PODS_TRIED]
        run_id = next(filter(None, (self._pods.run_of(each.status.pod) for each in last)), "")
        for each in tasks:
            if each.state == "lost" and each.last and run_id:
                reasons[each.task.name] = self._pods.why_lost(each.last, run_id)
        return reasons, self._pods.waits(run_id)

    def _read_graph(self) -> TaskGraph | None:
        """The run's DAG; None until normalize has written the run's record."""
        from components.core.config import RunConfig, parse
        from components.core.errors import MissingObjectError
        from components.core.storage.run_records import RECIPE, RUN, RunRecord, run_file
        from pipelines.dag import prediction_graph, training_graph

        try:
            record = RunRecord.load(self.store, run_file(self.key, RUN))
        except MissingObjectError:
            return None
        config = parse(RunConfig, record.config, f"run {self.key}")
        if not self._pods and RECIPE in record.lineage:  # on a cluster
            from pipelines.cluster.pods import PodReader

            # The record's configuration has no section `cluster`.
            self._pods = PodReader(str(record.lineage.get("namespace") or config.cluster.namespace))
        return prediction_graph(record.prediction.folds) if record.prediction else training_graph(config)


def _newest(store: ObjectStore, name: str) -> str:
    """Key of the most recently active run, of the configuration with a name unless that is empty; empty without any."""
    from components.core.storage.run_records import RUNS, predicting_name

    active: dict[str, datetime] = {}
    for found in store.scan(f"{RUNS}/"):
        key, _, file = found.key.removeprefix(f"{RUNS}/").partition("/")
        if file and (not name or key.rpartition("-")[0] in (name, predicting_name(name))):
            active[key] = max(active.get(key, found.modified), found.modified)
    return max(active, key=lambda key: (active[key], key), default="")


def _reported(attempts: Sequence[Any]) -> TaskGraph:
    """The tasks that have reported, of a run whose DAG is not known yet."""
    from pipelines.dag import TaskGraph

    graph = TaskGraph()
    for step, fold, cell_type, backbone in dict.fromkeys(attempt.status.identity for attempt in attempts):
        graph.add(step, {}, fold, cell_type, backbone)
    return graph


def _row(task: TaskState, failure: str | None) -> dict[str, Any]:
    """A task in plain values."""
    last = task.last
    return {
        "task": task.task.name,
        "step": task.task.step,
        **{name: task.task.labels.get(name) for name in ("fold", "cell_type", "backbone")},
        "state": task.state,
        "ready": task.ready,
        "attempts": task.attempts,
        "failure": failure,
        "kind": (last.kind or None) if last else None,
        "started": last.started.isoformat() if last else None,
        "updated": last.updated.isoformat() if last else None,
        "seconds": round(task.seconds, 1) if last else None,
        "done": last.done if last and last.what else None,
        "total": last.total if last and last.what else None,
        "unit": (last.what or None) if last else None,
        "node": last.node if last else None,
        "pod": (last.pod or None) if last else None,
    }
