"""The results of a run on this machine: put into its folder from the tasks' artifacts, and how to finish without failed folds."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from components.core.config import RunConfig
from components.core.errors import StepError
from components.core.files import atomic_directory, write_atomically
from components.core.progress import finished_tasks
from pipelines.dag import OUTPUTS, training_graph
from pipelines.run.folder import RunFolder

RESULTS = (
    "predictions.csv",
    "predictions_oof.csv",
    "predictions_holdout.csv",
    "qc.csv",
    "metrics.json",
    "report.html",
    "config.yaml",
    "lineage.json",
)
"""Files of the report; a training has no qc.csv, and new plates have predictions.csv alone."""
EMBEDDINGS = "embeddings"


def collect(folder: RunFolder) -> None:
    """Puts the report step's files into the results folder, each atomically, and the folds' embeddings beside them.

    lineage.json gets the duration of each task, and the paths of the embeddings.

    Raises:
        StepError: the report left no results, or they cannot be written.
    """
    found = sorted(folder.work.glob("kfp/*/report/**/results"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise StepError(f"the report step left no results under {folder.work / 'kfp'}")
    try:
        embeddings = _collect_embeddings(folder)
        for name in RESULTS:
            source = found[-1] / name
            if not source.is_file():
                continue
            content = source.read_bytes()
            if name == "lineage.json":
                # The report is itself a task of the run, so only now is every duration known.
                more = {"steps": finished_tasks(folder.events), "embeddings": embeddings}
                content = f"{json.dumps({**json.loads(content), **more}, indent=2)}\n".encode()
            write_atomically(folder.out / name, content)
    except OSError as error:
        raise StepError(
            f"{folder.out}: the results cannot be written ({error.strerror}); make room and run the same command again"
        ) from None


def _collect_embeddings(folder: RunFolder) -> list[str]:
    """Joins the embeddings of all folds and cell types in one folder; returns their files, relative to OUT.

    Each task wrote a part of the same tree: backbone, cell type, fold.
    """
    work = folder.work
    files = {
        file.relative_to(part).as_posix(): file
        for part in sorted(work.glob(f"kfp/*/*/**/{EMBEDDINGS}"))
        if EMBEDDINGS not in part.relative_to(work).parts[:-1]  # a backbone may have any name
        for file in part.rglob("*.parquet")
    }
    if not files:
        return []
    with atomic_directory(folder.out / EMBEDDINGS) as making:
        for name, file in files.items():
            (making / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, making / name)
    return [f"{EMBEDDINGS}/{name}" for name in sorted(files)]


def read_metrics(out: Path) -> dict[str, Any]:
    """The metrics.json of a finished run."""
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def finish_hint(config: RunConfig, events: Path, out: Path) -> str:
    """How to end a failed training from the folds that every cell type has; empty if there is none."""
    (last,) = {task.step for task in training_graph(config).tasks if "logits" in OUTPUTS[task.step]}
    done = {(task["cell_type"], task["fold"]) for task in finished_tasks(events) if task["step"] == last}
    common = min(sum(of == cell_type for of, _ in done) for cell_type in config.screen.cell_types)
    if not common or common == len(config.folds.trained):
        return ""  # with every fold there, none is to be left out
    return f"; or end it without the other folds: cellsignal finish --run {shlex.quote(str(out))} --quorum {common}"
