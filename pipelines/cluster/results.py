"""What a run on a cluster leaves: its results are downloaded from the object store, and a failed training gets a partial report.

The steps from ensemble to report of a failed training are computed here, from its finished folds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import MissingObjectError, StepError
from components.core.evaluation.table import accuracy_table
from components.core.files import atomic_directory
from components.core.storage.artifacts import local_file
from components.core.storage.finished import EMBEDDINGS, fetch_finished
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import HOLDOUT, MANIFEST, TaskRecord, run_file
from components.core.storage.runs import fetch_results, finished_folds
from pipelines.dag import TaskGraph
from pipelines.images.record import ImageRecord
from pipelines.options import print_line
from pipelines.run.folder import join_embeddings, read_metrics


@dataclass(frozen=True)
class ClusterRun:
    """A training or a prediction on a cluster, whose input has been checked."""

    config: RunConfig
    key: str  # its key in the store, and the beginning of its name in KFP
    store: ObjectStore
    images: ImageRecord
    graph: TaskGraph
    lineage: Mapping[str, Any]  # what is known of the run before it starts, warnings included
    parameters: Mapping[str, Any]  # of its pipeline, all but the lineage; `truth` is the address of labels, or empty


def fetch(run: ClusterRun, out: Path, console: Console) -> None:
    """Downloads the results of a run into a folder, atomically, and shows them; earlier results of the run are replaced.

    Raises:
        InputError: there are no results.
        StepError: the folder cannot be written.
    """
    try:
        with atomic_directory(out) as folder:
            names = list(fetch_results(run.store, run.key, folder))
            if run.config.embeddings.enabled:
                names += _fetch_embeddings(run, folder)
    except OSError as error:
        raise StepError(f"{error.filename or out}: cannot be written ({error.strerror}); make room") from None
    metrics = read_metrics(out)
    if run.graph.trains:
        console.print(accuracy_table(metrics))
    elif "holdout" in metrics:
        console.print(accuracy_table(metrics, holdout="new plates"))
    print_line(console, f"{len(names)} files of results in {out}")
    print_line(console, f"report: {(out / 'report.html').resolve()}")


def _fetch_embeddings(run: ClusterRun, folder: Path) -> list[str]:
    """Joins the folds' embeddings, as a local run does."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        parts = []
        for cell_type, records in _recorded_folds(run).items():
            for record in records:
                parts.append(Path(work) / cell_type / str(record.fold))
                parts[-1].parent.mkdir(parents=True, exist_ok=True)
                fetch_finished(run.store, record.prefix_of(EMBEDDINGS), {EMBEDDINGS: parts[-1]})
        return [f"{EMBEDDINGS}/{name}" for name in join_embeddings(parts, folder / EMBEDDINGS)]


def report_of_failed(run: ClusterRun, out: Path, console: Console) -> str:
    """Writes the report of a failed training from its finished folds; returns a sentence about it, or why there is none.

    A failed prediction gets none: an ensemble of fewer folds would be another model.
    """
    from pipelines.run.finish import finish  # loads pandas and the report

    try:
        done = {cell_type: len(records) for cell_type, records in _recorded_folds(run).items()}
        if not run.graph.trains:
            total = run.graph.counts()["infer"]
            return f"no report: {sum(done.values())} of {total} folds have predicted, and the same command resumes"
        counts = {cell_type: done.get(cell_type, 0) for cell_type in run.config.screen.cell_types}
        common, total = min(counts.values()), len(run.config.folds.trained)
        if not common:
            have = ", ".join(f"{cell_type} {count}" for cell_type, count in counts.items())
            return f"no report: every cell type needs a finished fold, and there are {have} of {total}"
        print_line(console, f"the report of its finished folds ({common} of {total}):")
        with local_file(run.parameters["truth"] or None) as labels:
            finish(run.store, run.key, common, out, labels, console)
    except MissingObjectError:
        return "no report: the run failed before the plates were packed"
    except Exception as error:  # whatever it is, the run's own failure must be reported
        return f"no report: {error}"
    return f"its report is {out / 'report.html'}"


def _recorded_folds(run: ClusterRun) -> dict[str, list[TaskRecord]]:
    """Finished folds by cell type; MissingObjectError if the run has no record."""
    screen, holdout = (Manifest.load(run.store, run_file(run.key, name)) for name in (MANIFEST, HOLDOUT))
    return finished_folds(run.store, run.key, screen, holdout)
