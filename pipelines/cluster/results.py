"""What a run on a cluster leaves: its results are downloaded from the object store, and a failed run gets a partial report.

The steps from ensemble to report of a failed run are computed here, from its finished folds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from components.core.config import RunConfig
from components.core.errors import InputError, StepError
from components.core.files import atomic_directory
from components.core.storage.exchange import local_file
from components.core.storage.finished import fetch_finished
from components.core.storage.interface import MissingObjectError, ObjectStorage
from components.core.storage.manifest import Manifest
from components.core.storage.run_records import HOLDOUT, MANIFEST, RESULTS, RUNS, TaskRecord
from components.core.storage.runs import fetch_results, finished_folds
from pipelines.run.folder import EMBEDDINGS, join_embeddings

MetricsTable = Callable[[Mapping[str, Any]], Table | None]
"""From metrics.json to the table that is shown; None if there is nothing to show."""


def has_results(store: ObjectStorage, key: str) -> bool:
    """Whether all results of a complete run are in the store; those of one that lacks folds do not count."""
    try:
        lineage = json.loads(store.get(f"{RUNS}/{key}/{RESULTS}/lineage.json"))  # written last
        return lineage.get("run") == key and not lineage.get("partial")
    except (MissingObjectError, ValueError, AttributeError):
        return False


def fetch(
    store: ObjectStorage, key: str, config: RunConfig, out: Path, table_of: MetricsTable, console: Console
) -> list[str]:
    """Downloads the results of a run into a folder, atomically, and shows them; returns the names of the files.

    Args:
        store: store of the run.
        key: the run's key.
        config: the run's configuration.
        out: the folder; earlier results of the same run are replaced.
        table_of: makes the table of the metrics.
        console: where the results are shown.

    Raises:
        InputError: there are no results.
        StepError: the folder cannot be written.
    """
    try:
        with atomic_directory(out) as folder:
            names = list(fetch_results(store, key, folder))
            if config.embeddings.enabled:
                names += _fetch_embeddings(store, key, folder)
    except OSError as error:
        raise StepError(f"{error.filename or out}: cannot be written ({error.strerror}); make room") from None
    table = table_of(json.loads((out / "metrics.json").read_text(encoding="utf-8")))
    if table is not None:
        console.print(table)
    console.print(f"{len(names)} files of results in {out}", highlight=False, soft_wrap=True)
    console.print(f"report: {(out / 'report.html').resolve()}", highlight=False, soft_wrap=True)
    return names


def _fetch_embeddings(store: ObjectStorage, key: str, folder: Path) -> list[str]:
    """Joins the folds' embeddings, as a local run does."""
    work = folder / ".folds"
    parts = []
    for cell_type, records in recorded_folds(store, key).items():
        for record in records:
            parts.append(work / cell_type / str(record.fold))
            parts[-1].parent.mkdir(parents=True, exist_ok=True)
            fetch_finished(store, record.prefix, {EMBEDDINGS: parts[-1]})
    found = join_embeddings(parts, folder / EMBEDDINGS)
    shutil.rmtree(work, ignore_errors=True)
    return [f"{EMBEDDINGS}/{name}" for name in found]


def report_of_failed(
    store: ObjectStorage, key: str, config: RunConfig, truth: str | None, out: Path, console: Console
) -> str:
    """Writes the report of a failed training from its finished folds; returns a sentence about it, or why there is none.

    Args:
        store: store of the run.
        key: the run's key.
        config: the run's configuration.
        truth: address of the labels of unlabelled wells.
        out: folder of the results.
        console: where progress is shown.
    """
    from pipelines.run.finish import finish  # loads pandas and the report

    try:
        folds = recorded_folds(store, key)
        counts = {cell_type: len(folds.get(cell_type, [])) for cell_type in config.screen.cell_types}
        common = min(counts.values())
        if not common:
            have = ", ".join(f"{cell_type} {count}" for cell_type, count in counts.items())
            return (
                f"no report: every cell type needs a finished fold, and there are {have} of {len(config.folds.trained)}"
            )
        with local_file(truth) as labels:
            console.print(
                f"the report of its finished folds ({common} of {len(config.folds.trained)}):", highlight=False
            )
            path = labels.resolve() if labels is not None else None
            finish(store, key, common, out, path, console)
    except MissingObjectError:
        return "no report: the run failed before its screen was packed"
    except (InputError, StepError, OSError) as error:
        return f"no report: {error}"
    return f"its report is {out / 'report.html'}"


def recorded_folds(store: ObjectStorage, key: str) -> dict[str, list[TaskRecord]]:
    """Finished folds by cell type.

    Raises:
        MissingObjectError: the run has no record.
        InputError: a fold's record is damaged.
    """
    screen, holdout = (Manifest.load(store, f"{RUNS}/{key}/{name}") for name in (MANIFEST, HOLDOUT))
    return finished_folds(store, key, screen, holdout)
