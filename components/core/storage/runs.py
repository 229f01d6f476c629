"""The records of runs in an object store: written as a run proceeds, read by later steps and commands. See run_records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from components.core.config import BackboneConfig, HeadConfig, parse
from components.core.errors import InputError, MissingObjectError
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import split_address
from components.core.storage.run_records import (
    HOLDOUT,
    HOLDOUT_LABELS,
    KEY,
    LINEAGE,
    MANIFEST,
    OPTION,
    PREDICTING_STEPS,
    RESULTS,
    RUN,
    RUNS,
    STATUS,
    RunRecord,
    SourceRun,
    TaskRecord,
    run_file,
)


def write_run(
    store: ObjectStore,
    record: RunRecord,
    screen: bytes,
    holdout: bytes,
    holdout_labels: bytes | None,
    plates: Iterable[str],
) -> None:
    """Writes what a run starts from; run.json comes last, so a run with a record is complete.

    The manifests are JSON, `holdout_labels` is CSV (None for a prediction), `plates` are the prefixes of the packed plates.
    """
    for name, content in ((MANIFEST, screen), (HOLDOUT, holdout), (HOLDOUT_LABELS, holdout_labels)):
        if content is not None:
            store.put(run_file(record.key, name), content)
    record = record.model_copy(update={"plates": tuple(sorted(set(plates)))})
    store.put(run_file(record.key, RUN), record.to_json())


def record_task(
    store: ObjectStore, screen: Manifest, prefix: str, step: str, *, holdout: Manifest | None = None, **fields: Any
) -> None:
    """Records a finished task under the run of its screen's manifest; does nothing if that has none (a step started by hand).

    `prefix` is the key prefix of its outputs, from `run_once`, `holdout` the manifest of the held-out plates that it predicts;
    `fields` are further ones of TaskRecord.
    """
    if screen.run:
        digest = holdout.digest() if holdout else None
        record = TaskRecord(step=step, prefix=prefix, screen=screen.digest(), holdout=digest, **fields)
        store.put(record.key(screen.run), record.to_json())


def read_run(store: ObjectStore, key: str, label: str) -> RunRecord:
    """A training's record; InputError, which calls the run `label`, if there is none, it is a prediction or cannot be read."""
    try:
        record = RunRecord.load(store, run_file(key, RUN))
    except MissingObjectError:
        raise InputError(
            f"{label} {key}: no such run below {store.uri('')} (`cellsignal runs` lists the runs there); one in another "
            f"store is s3://BUCKET/PREFIX/{RUNS}/KEY or file:///FOLDER/{RUNS}/KEY"
        ) from None
    if record.prediction is not None:
        raise InputError(
            f"{label} {key}: is a prediction by model {record.prediction.model[:12]}, which trains nothing; give the key of a "
            "training (`cellsignal runs` shows the kind of each run)"
        )
    return record


def fetch_run(store: ObjectStore, key: str, folder: Path, label: str = "--run") -> RunRecord:
    """As `read_run`; also downloads screen.json, holdout.json and holdout_labels.csv into a folder."""
    record = read_run(store, key, label)
    for name in (MANIFEST, HOLDOUT, HOLDOUT_LABELS):
        try:
            (folder / name).write_bytes(store.get(run_file(key, name)))
        except MissingObjectError as missing:
            raise InputError(f"{missing.args[0]}: missing; run {key} again") from None
    return record


def lineage_of(store: ObjectStore, key: str) -> dict[str, Any]:
    """The lineage in a run's record; empty if it has no readable record."""
    try:
        return dict(RunRecord.load(store, run_file(key, RUN)).lineage)
    except (MissingObjectError, InputError):
        return {}


def finished_folds(store: ObjectStore, key: str, screen: Manifest, holdout: Manifest) -> dict[str, list[TaskRecord]]:
    """The tasks that have predicted with these manifests, by cell type, ascending by fold."""
    found: dict[str, list[TaskRecord]] = {}
    digests = screen.digest(), holdout.digest()
    for record in read_tasks(store, key, *PREDICTING_STEPS):
        if (record.screen, record.holdout) == digests and record.cell_type:
            found.setdefault(record.cell_type, []).append(record)
    return found


def read_tasks(store: ObjectStore, key: str, *steps: str) -> list[TaskRecord]:
    """The records of the finished tasks of some steps, ascending by fold; InputError if one is damaged."""
    paths = [path for step in steps for path in store.list(run_file(key, f"tasks/{step}/")) if path.endswith(".json")]
    found = store.get_present(paths).items()
    return sorted((TaskRecord.parse(content, store.uri(path)) for path, content in found), key=lambda task: task.fold)


def read_source(own: ObjectStore, init_from: str) -> tuple[ObjectStore, SourceRun]:
    """The run that another starts from, and its store; `init_from` is its address, or its key in the run's own store.

    InputError for anything else, or as `read_run`.
    """
    try:
        address, key = split_address(init_from, RUNS, KEY, "a run's key", "KEY")
    except InputError as error:
        folder = "; `cellsignal run` also takes its folder" if Path(init_from).is_dir() else ""
        raise InputError(f"{OPTION}: {error}{folder}") from None
    store, label = ObjectStore(address) if address else own, f"{OPTION}: run"
    record = read_run(store, key, label)
    backbones = [parse(BackboneConfig, each, f"{label} {key}") for each in record.config.get("backbones") or ()]
    return store, SourceRun(
        key,
        {backbone.name: backbone for backbone in backbones},
        parse(HeadConfig, record.config.get("head"), f"{label} {key}"),
        {(task.fold, task.backbone or ""): task for task in read_tasks(store, key, "pretrain")},
        tuple(record.config["screen"]["cell_types"]),
    )


def read_source_screen(store: ObjectStore, source: SourceRun) -> Manifest:
    """The screen that the run's pretrained weights were trained with; InputError if it is missing or a weight has another."""
    path = run_file(source.key, MANIFEST)
    try:
        screen = Manifest.load(store, path)
    except MissingObjectError:
        raise InputError(
            f"{OPTION}: {store.uri(path)} is missing, so the labels that run {source.key} has learned are unknown"
        ) from None
    digest = screen.digest()
    for (fold, backbone), record in source.weights.items():
        if record.screen != digest:
            raise InputError(
                f"{OPTION}: {backbone} of fold {fold} of run {source.key} was trained with an earlier screen than the run's "
                "present one; run it again to its end first"
            )
    return screen


def record_results(store: ObjectStore, run: str, folder: Path) -> None:
    """Keeps a report's files under its run; lineage.json comes last: if it is there, all are."""
    prefix = run_file(run, RESULTS)
    store.delete(run_file(run, LINEAGE))
    for file in sorted(folder.iterdir(), key=lambda file: (file.name == "lineage.json", file.name)):
        if file.is_file():
            store.upload_file(file, f"{prefix}/{file.name}")


def has_results(store: ObjectStore, run: str) -> bool:
    """Whether all results of a run are in the store; partial results, which lack folds, do not count."""
    try:
        return _is_whole(run, store.get(run_file(run, LINEAGE)))  # written last
    except MissingObjectError:
        return False


def _is_whole(run: str, lineage: bytes) -> bool:
    """Whether this is the lineage of all results of a run."""
    try:
        content = json.loads(lineage)
        return bool(content.get("run") == run and not content.get("partial"))
    except (ValueError, AttributeError):
        return False


def fetch_results(store: ObjectStore, run: str, into: Path) -> Sequence[str]:
    """Downloads a report's files into a folder; returns their names. InputError if there are none, or some are missing."""
    prefix = run_file(run, f"{RESULTS}/")
    names = [key.removeprefix(prefix) for key in store.list(prefix)]
    if "lineage.json" not in names:
        raise InputError(f"{store.uri(prefix)}: the results of run {run} are not there")
    try:
        for name in names:
            if "/" not in name and name != "..":
                store.download_file(f"{prefix}{name}", into / name)
    except MissingObjectError as missing:
        raise InputError(f"{missing.args[0]}: was deleted during the download; run the same command again") from None
    return names


@dataclass
class RecordedRun:
    """A run and its records."""

    key: str
    active: datetime  # time of its newest object
    record: RunRecord | None = None  # None if it is missing or cannot be read
    tasks: list[TaskRecord] = field(default_factory=list)
    problem: str = ""  # message about a record that cannot be read
    reported: datetime | None = None  # time of its tasks' last report
    has_results: bool = False  # all of them, not those of a partial run

    @property
    def needs(self) -> frozenset[str]:
        """Prefixes of the plates and finished outputs that it needs."""
        outputs = (prefix for task in self.tasks for prefix in (task.prefix, task.sphered) if prefix)
        return frozenset((*(self.record.plates if self.record else ()), *outputs))


def read_runs(store: ObjectStore) -> list[RecordedRun]:
    """The runs of a store, the most recently active last."""
    runs: dict[str, RecordedRun] = {}
    started, records = set(), []
    for found in store.scan(f"{RUNS}/"):
        if found.key.count("/") < 2:
            continue
        _, key, name = found.key.split("/", 2)
        run = runs.setdefault(key, RecordedRun(key, found.modified))
        run.active = max(run.active, found.modified)
        if name.startswith(f"{STATUS}/"):
            run.reported = max(run.reported or found.modified, found.modified)
        if name.split("/")[0] not in (RESULTS, STATUS):
            started.add(key)
        if name in (RUN, LINEAGE) or (name.startswith("tasks/") and name.endswith(".json")):
            records.append(found.key)
    for path, content in store.get_present(records).items():
        run = runs[path.split("/")[1]]
        try:
            if path.endswith(LINEAGE):
                run.has_results = _is_whole(run.key, content)
            elif path.endswith(f"/{RUN}"):
                run.record = RunRecord.parse(content, store.uri(path))
            else:
                run.tasks.append(TaskRecord.parse(content, store.uri(path)))
        except InputError as error:
            run.problem = str(error)
    for key in started:
        if runs[key].record is None and not runs[key].problem:
            runs[key].problem = f"{store.uri(run_file(key, RUN))}: missing; {RunRecord.IF_DAMAGED}"
    return sorted(runs.values(), key=lambda run: (run.active, run.key))
