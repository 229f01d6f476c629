"""The partial report of a failed run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from components.core.storage.object_store import ObjectStore
from pipelines.cluster.results import ClusterRun, report_of_failed
from pipelines.dag import training_graph
from tests.pipelines.cluster.test_jobs import RECORD
from tests.pipelines.run.test_finish import KEY, FoldedRun


@pytest.fixture
def failed(tmp_path: Path, store: ObjectStore) -> FoldedRun:
    return FoldedRun(tmp_path, store)


def report(failed: FoldedRun, out: Path) -> str:
    run = ClusterRun(failed.config, KEY, failed.store, RECORD, training_graph(failed.config), {}, {"truth": ""})
    return report_of_failed(run, out, Console(file=io.StringIO()))


def test_no_report_without_a_fold_of_every_cell_type(failed: FoldedRun, tmp_path: Path):
    failed.train("HUVEC", 0)
    assert report(failed, tmp_path / "out") == (
        "no report: every cell type needs a finished fold, and there are HUVEC 1, RPE 0 of 2"
    )
    assert not (tmp_path / "out").exists()


def test_finished_folds_get_a_partial_report(failed: FoldedRun, tmp_path: Path):
    for cell_type, folds in (("HUVEC", (0, 1)), ("RPE", (1,))):
        for fold in folds:
            failed.train(cell_type, fold)
    out = tmp_path / "out"
    assert report(failed, out) == f"its report is {out / 'report.html'}"
    assert json.loads((out / "metrics.json").read_text())["partial"]["missing"]["RPE"] == [0]
    assert "<html" in (out / "report.html").read_text()
