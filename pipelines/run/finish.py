"""Ends a run from its finished folds, which the store lists under the run's key. Imports neither torch nor kfp.

KFP offers no partial fan-in, so that a failed fold fails the whole run; this computes ensemble to report from the others and
marks every result as `partial`. It does not need the failed run's machine.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from components.assign.step import run as assign
from components.core.config import RunConfig, parse
from components.core.errors import InputError, MissingObjectError
from components.core.evaluation.table import accuracy_table
from components.core.files import atomic_directory
from components.core.storage.finished import EMBEDDINGS, fetch_finished
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import choose_store, open_existing
from components.core.storage.run_records import HOLDOUT, HOLDOUT_LABELS, MANIFEST, RESULTS, RUNS, TaskRecord, run_file
from components.core.storage.runs import fetch_run, finished_folds, read_run, record_results
from components.ensemble.step import run as ensemble
from components.report.step import run as report
from pipelines.dag import OUTPUTS, DagTask, TaskOutput, prediction_graph
from pipelines.images.code_version import code_version
from pipelines.run.folder import check_results_folder, find_run, join_embeddings

LINEAGE = "lineage.json"


def run_finish(
    run: str, quorum: int, out: Path | None, truth: Path | None, store: str | None, console: Console
) -> None:
    """Ends a run, by its key, address or folder, from its finished folds; the arguments are those of the command line.

    Raises:
        InputError: no such run or folder, an object store that cannot be used, or as `finish`.
    """
    known = find_run(run)
    truth = truth or known.truth
    if truth is not None and not truth.is_file():
        raise InputError(f"--truth {truth}: no such file")
    chosen = choose_store(known.store, store) if known.key == run or store else known.store
    opened = open_existing(chosen.address)
    finish(opened, known.key, quorum, out or Path("runs") / known.key, truth, console)


def finish(
    store: ObjectStore, key: str, quorum: int, out: Path, truth: Path | None, console: Console
) -> Mapping[str, Any]:
    """Computes ensemble to report of a run from its finished folds.

    Args:
        store: where the run's plates and finished outputs are.
        key: the run's key.
        quorum: folds that every cell type must have.
        out: folder of the results; an earlier result of the same run there is replaced.
        truth: labels of the unlabelled wells, for the report's scoring alone.
        console: where progress is shown.

    Returns:
        The content of metrics.json; it has `partial` if a fold is missing.

    Raises:
        InputError: no such run, a quorum that is not reached or impossible, or a folder of something else.
    """
    check_results_folder(out, key)
    read_run(store, key, "--run")  # before the folder of the results is made
    with atomic_directory(out) as making:
        console.file = console.file  # stays the terminal while the steps' output is held back
        with contextlib.redirect_stdout(io.StringIO()) as output:  # it has paths in the temporary folder
            metrics = _compute(store, key, quorum, making, truth, console)
    _record(store, key, out)
    for line in output.getvalue().splitlines():
        if line.startswith("warning: "):
            console.print(line, style="yellow", soft_wrap=True, markup=False, highlight=False)
    console.print(accuracy_table(metrics))
    missing = metrics.get("partial", {}).get("missing", {})
    lacking = "; ".join(f"{cell_type} lacks {_folds(gone)}" for cell_type, gone in missing.items() if gone)
    console.print(f"partial: {lacking}" if lacking else "all folds are there", highlight=False, soft_wrap=True)
    console.print(f"report: {(out / 'report.html').resolve()}", soft_wrap=True, highlight=False)
    return metrics


def _record(store: ObjectStore, key: str, out: Path) -> None:
    """Stores the results under the run, for publishing a model, unless those of the whole run are there."""
    own = json.loads((out / LINEAGE).read_text(encoding="utf-8"))
    try:
        earlier = json.loads(store.get(f"{RUNS}/{key}/{RESULTS}/{LINEAGE}"))
    except MissingObjectError:
        earlier = {}
    if "partial" in earlier or earlier.get("manifest_digest") != own["manifest_digest"]:
        record_results(store, key, out)


def _compute(
    store: ObjectStore, key: str, quorum: int, making: Path, truth: Path | None, console: Console
) -> dict[str, Any]:
    """Writes the results into `making`; returns the metrics."""
    work = making / "work"  # beside the results, on the disk that has room for them
    work.mkdir()
    record = fetch_run(store, key, work)
    config = parse(RunConfig, record.config, source=f"run {key}")
    manifests = [
        Manifest.parse((work / name).read_bytes(), store.uri(run_file(key, name))) for name in (MANIFEST, HOLDOUT)
    ]
    found = finished_folds(store, key, *manifests)
    folds = {cell_type: found.get(cell_type, []) for cell_type in config.screen.cell_types}
    _check_quorum(key, _numbers(folds), config.folds.trained, quorum)  # before anything is fetched
    folds = {
        cell_type: [f for f in of_type if _fetched(store, cell_type, f, work, console)]
        for cell_type, of_type in folds.items()
    }
    present = _numbers(folds)
    _check_quorum(key, present, config.folds.trained, quorum)
    missing = {
        cell_type: [fold for fold in config.folds.trained if fold not in there] for cell_type, there in present.items()
    }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    lineage: dict[str, Any] = {**record.lineage, "finished": {"code_version": code_version(), "at": now}}
    if any(missing.values()):
        lineage["partial"] = {"quorum": quorum, "folds": present, "missing": missing}
    embeddings = join_embeddings(sorted((work / EMBEDDINGS).glob("*/*")), making / EMBEDDINGS)
    lineage["embeddings"] = [f"{EMBEDDINGS}/{name}" for name in embeddings]
    metrics: dict[str, Any] = {}
    for task in prediction_graph(present).tasks:  # after the folds, it has the same tasks as a training
        written = _path(work, task.output(OUTPUTS[task.step][-1]))
        if task.step == "ensemble":
            there = present[str(task.cell_type)]
            console.print(f"{task.cell_type}: {_folds(there)} of {len(config.folds.trained)}", highlight=False)
            ensemble(_read(work, task, "logits"), written)
        elif task.step == "assign":
            screen, holdout, logits = (_read(work, task, name)[0] for name in ("screen", "holdout", "logits"))
            assign(screen, holdout, logits, written, config.prior)
        elif task.step == "report":
            screen, holdout, labels = (_read(work, task, name)[0] for name in ("screen", "holdout", "holdout_labels"))
            uris = [str(path) for path in _read(work, task, "uris")]
            metrics = report(config, screen, holdout, labels, truth, uris, written, lineage, store=store)
    for file in (work / "results").iterdir():
        file.rename(making / file.name)
    shutil.rmtree(work)
    return metrics


def _read(work: Path, task: DagTask, name: str) -> list[Path]:
    """Where an input of a task is; several if it is a list."""
    value = task.inputs[name]
    return [_path(work, output) for output in (value if isinstance(value, tuple) else (value,))]


def _path(work: Path, output: TaskOutput) -> Path:
    """Where an output of a task is below `work`, by its name, cell type and fold."""
    task = output.task
    if task.step == "normalize":
        return work / {"screen": MANIFEST, "holdout": HOLDOUT, "holdout_labels": HOLDOUT_LABELS}[output.name]
    return work.joinpath(output.name, *(str(label) for label in (task.cell_type, task.fold) if label is not None))


def _check_quorum(key: str, present: Mapping[str, Sequence[int]], trained: Sequence[int], quorum: int) -> None:
    if not 1 <= quorum <= len(trained):
        raise InputError(f"--quorum {quorum}: run {key} trains {len(trained)} folds; give a number from 1 to that")
    short = {cell_type: there for cell_type, there in present.items() if len(there) < quorum}
    if short:
        have = "; ".join(f"{cell_type} has {_folds(there) if there else 'none'}" for cell_type, there in short.items())
        enough = min(len(there) for there in present.values())
        advice = f"or give --quorum {enough}" if enough else "until each cell type has a fold"
        raise InputError(f"--quorum {quorum} of {len(trained)} folds is not reached: {have}; run {key} again, {advice}")


def _numbers(folds: Mapping[str, Sequence[TaskRecord]]) -> dict[str, list[int]]:
    return {cell_type: [record.fold for record in of_type] for cell_type, of_type in folds.items()}


def _fetched(store: ObjectStore, cell_type: str, record: TaskRecord, work: Path, console: Console) -> bool:
    """Fetches a fold's logits and embeddings; a damaged one counts as missing, with a warning."""
    outputs = {name: work / name / cell_type / str(record.fold) for name in ("logits", EMBEDDINGS)}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for name, path in outputs.items():
            fetch_finished(store, record.prefix_of(name), {name: path})
    except InputError as error:
        console.print(f"{cell_type} fold {record.fold} is left out: {error}", style="yellow", soft_wrap=True)
        for path in outputs.values():
            shutil.rmtree(path, ignore_errors=True)
        return False
    return True


def _folds(folds: Sequence[int]) -> str:
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
