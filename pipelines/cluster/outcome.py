"""What a submitted run leaves: results fetched from the object store, what a failed task said, and the report of a run that failed.

Ensemble to report of a failed run are computed here by `python -m pipelines.run.finish`, from whatever lies under its key.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import InputError, StepError
from components.core.files import atomic_directory
from components.core.storage.artifacts import local_file
from components.core.storage.finished import fetch_finished
from components.core.storage.interface import MissingObjectError, ObjectStorage
from components.core.storage.manifest import Manifest
from components.core.storage.run_outcome import RESULTS, fetch_results
from components.core.storage.run_record import HOLDOUT, MANIFEST, RUNS, FoldRecord, finished_folds
from pipelines.run.child import run_child
from pipelines.run.finishing import finish_command

EMBEDDINGS = "embeddings"


def check_out(out: Path, key: str) -> None:
    """Refuses a folder of results that holds anything else than results of the same run.

    Raises:
        InputError: it does.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        earlier = json.loads((out / "lineage.json").read_text(encoding="utf-8")).get("run")
    except (OSError, ValueError, AttributeError):
        earlier = None
    if earlier != key:
        raise InputError(f"--out {out}: not empty, and not results of run {key}; use a new folder")


def has_results(store: ObjectStorage, key: str) -> bool:
    """Whether all results of a whole run are in the store; those of one that lacks folds do not count."""
    try:
        lineage = json.loads(store.get(f"{RUNS}/{key}/{RESULTS}/lineage.json"))  # which is written last
        return lineage.get("run") == key and not lineage.get("partial")
    except (MissingObjectError, ValueError, AttributeError):
        return False


def fetch(store: ObjectStorage, key: str, out: Path, config: RunConfig) -> Sequence[str]:
    """Brings the results of a run that succeeded into a folder, whole; returns the names of the files.

    Args:
        store: of the run.
        key: of the run.
        out: the folder; earlier results of the same run there are replaced.
        config: of the run.

    Raises:
        InputError: they are not there.
        StepError: the folder cannot be written.
    """
    try:
        with atomic_directory(out) as making:
            names = list(fetch_results(store, key, making))
            if config.embeddings.enabled:
                names += _fetch_embeddings(store, key, making)
    except OSError as error:
        raise StepError(f"{error.filename or out}: cannot be written ({error.strerror}); make room") from None
    return names


def _fetch_embeddings(store: ObjectStorage, key: str, making: Path) -> list[str]:
    """Joins the folds' embeddings, as a local run does."""
    found = []
    work = making / ".folds"
    for records in recorded_folds(store, key).values():
        for record in records:
            part = work / record.cell_type / str(record.fold)
            part.parent.mkdir(parents=True, exist_ok=True)
            fetch_finished(store, record.place, {EMBEDDINGS: part})
            for file in sorted(part.rglob("*.parquet")):
                target = making / EMBEDDINGS / file.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.rename(target)
                found.append(target.relative_to(making).as_posix())
    shutil.rmtree(work, ignore_errors=True)
    return sorted(found)


def report_of_failed(
    store: ObjectStorage, key: str, config: RunConfig, truth: str | None, out: Path, console: Console
) -> str:
    """Makes the report of a failed run from its finished folds; returns a sentence that says so, or why there is none.

    Args:
        store: of the run.
        key: of the run.
        config: of the run.
        truth: address of the labels of unlabelled wells.
        out: folder of the results.
        console: where its progress is shown.
    """
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
            given = labels.resolve() if labels is not None else None
            code = run_child(finish_command(config.store, key, common, out, given), os.environ)
    except MissingObjectError:
        return "no report: the run did not get as far as packing its screen"
    except (InputError, StepError) as error:
        return f"no report: {error}"
    return f"its report is {out / 'report.html'}" if code == 0 else "no report: its lines above say why"


def recorded_folds(store: ObjectStorage, key: str) -> dict[str, list[FoldRecord]]:
    """Finished folds by cell type.

    Raises:
        MissingObjectError: the run has no record.
        InputError: a fold's record is damaged.
    """
    screen, holdout = (Manifest.model_validate_json(store.get(f"{RUNS}/{key}/{name}")) for name in (MANIFEST, HOLDOUT))
    return finished_folds(store, key, screen, holdout)
