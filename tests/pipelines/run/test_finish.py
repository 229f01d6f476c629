"""A run finished without its missing folds: predictions, record of the missing folds, and refusals."""

from __future__ import annotations

import copy
import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.arrays import LogitsDirectory, WellLogits, write_logits
from components.core.storage.finished import run_once
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.runs import finished_folds, record_task
from components.normalize.step import main as normalize
from pipelines.images.code_version import code_version
from pipelines.run.finish import finish
from tests.tiny_screen import CONFIG, LABELLED, UNLABELLED, TinyScreen

KEY = "tiny-0123456789ab"


class FoldedRun:
    """A normalised screen of two cell types whose folds have random logits, as if trained."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        self.folder, self.store = folder, store
        self.config = RunConfig(
            name="tiny",
            screen=CONFIG.screen.model_copy(update={"holdout_experiments": ("HUVEC-04",)}),
            folds=CONFIG.folds,
            store=CONFIG.store.model_copy(update={"bucket": store.uri("")}),
        )
        imaged = (*LABELLED, *UNLABELLED, "RPE-02", "HUVEC-04")
        source = TinyScreen(folder / "screen", imaged, more=("RPE-02", "HUVEC-04"))
        self.normalize(source.root)

    def normalize(self, source: Path) -> None:
        paths = [str(self.folder / name) for name in ("screen.json", "holdout.json", "labels.csv")]
        lineage = json.dumps({"run": KEY, "code_version": "1"})
        normalize(self.config.model_dump_json(), str(source), *paths, lineage=lineage)
        self.screen, self.holdout = (Manifest.read(Path(path)) for path in paths[:2])

    def logits(self, cell_type: str, fold: int) -> Mapping[str, WellLogits]:
        rng = np.random.default_rng([fold, len(cell_type)])
        ids: dict[str, list[str]] = {"oof": [], "unlabelled": [], "holdout": []}
        for plate in self.screen.plates:
            own = self.screen.folds.get(plate.experiment) == fold
            role = "unlabelled" if not plate.labelled else "oof" if own else ""
            if role and plate.cell_type == cell_type:
                ids[role] += [well.id_code for well in plate.wells if well.role == "treatment"]
        for plate in self.holdout.plates:
            if plate.cell_type == cell_type:
                ids["holdout"] += [well.id_code for well in plate.wells if well.role == "treatment"]
        classes = len(self.screen.vocabulary.classes)
        return {
            role: WellLogits(tuple(names), rng.standard_normal((len(names), classes)).astype(np.float32))
            for role, names in ids.items()
        }

    def train(self, cell_type: str, fold: int) -> None:
        def work(out: Mapping[str, Path]) -> None:
            out["logits"].mkdir()
            folds = [{"fold": fold, "validated": True}]
            meta = {"cell_type": cell_type, "fold": fold, "folds": folds, "history": []}
            write_logits(out["logits"], LogitsDirectory(self.logits(cell_type, fold), meta))
            (out["embeddings"] / "net" / cell_type).mkdir(parents=True)
            (out["embeddings"] / "net" / cell_type / f"fold_{fold}.parquet").write_text(f"{cell_type} {fold}")
            out["weights"].mkdir()
            (out["weights"] / "large").write_text("not wanted")

        outputs = {name: self.folder / f"{cell_type}{fold}" / name for name in ("logits", "embeddings", "weights")}
        inputs = {"cell_type": cell_type, "fold": str(fold)}
        prefix = run_once(self.store, "pseudo_label", inputs, outputs, work)
        record_task(self.store, self.screen, prefix, "infer", fold=fold, cell_type=cell_type, holdout=self.holdout)

    def finish(self, quorum: int, out: str = "out", truth: Path | None = None) -> tuple[Mapping[str, Any], Path, str]:
        output, path = io.StringIO(), self.folder / out
        metrics = finish(self.store, KEY, quorum, path, truth, Console(file=output, width=200))
        return metrics, path, output.getvalue()

    def expected(self, cell_type: str, folds: Sequence[int], role: str = "unlabelled") -> dict[str, str]:
        """The most probable treatment of a role's wells, by the mean of some folds' logits."""
        treatments = self.screen.vocabulary.treatments
        wells = [self.logits(cell_type, fold)[role] for fold in folds]
        mean_WK = np.mean([part.logits_WK for part in wells], axis=0)[:, : len(treatments)]
        return {i: treatments[k] for i, k in zip(wells[0].ids_W, mean_WK.argmax(axis=1), strict=True)}


def raw_predictions(path: Path) -> dict[str, str]:
    with path.open(newline="") as file:
        return {row["id_code"]: row["raw_sirna"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> FoldedRun:
    """HUVEC has both folds, RPE the first alone."""
    folder = tmp_path_factory.mktemp("folded")
    run = FoldedRun(folder, ObjectStore(folder / "lab data"))
    for cell_type, fold in (("HUVEC", 1), ("HUVEC", 0), ("RPE", 0)):
        run.train(cell_type, fold)
    return run


@pytest.fixture
def run(folded: FoldedRun, tmp_path: Path) -> FoldedRun:
    """A copy for one test."""
    shutil.copytree(folded.folder, tmp_path, dirs_exist_ok=True)
    copied = copy.copy(folded)
    copied.folder, copied.store = tmp_path, ObjectStore(tmp_path / "lab data")
    own = folded.config.store.model_copy(update={"bucket": copied.store.uri("")})
    copied.config = folded.config.model_copy(update={"store": own})
    return copied


def test_predictions_come_from_the_finished_folds_and_the_missing_ones_are_recorded(run: FoldedRun) -> None:
    predicted = run.expected("HUVEC", (0, 1))
    truth = run.folder / "truth.csv"
    rows = [
        f"{id_code},{perturbation if n else 'sirna_7'}" for n, (id_code, perturbation) in enumerate(predicted.items())
    ]
    truth.write_text("\n".join(["id_code,sirna", *rows]) + "\n")
    metrics, out, output = run.finish(1, truth=truth)
    assert raw_predictions(out / "predictions.csv") == predicted
    right = [predicted[row.split(",")[0]] == row.split(",")[1] for row in rows]
    assert metrics["unlabelled"]["raw"]["overall"] == pytest.approx(sum(right) / len(right))
    held_out = run.expected("HUVEC", (0, 1), "holdout")
    assert len(held_out) == 6
    assert raw_predictions(out / "predictions_holdout.csv") == held_out
    labels = dict(line.split(",") for line in (run.folder / "labels.csv").read_text().split()[1:])
    right = [labels[id_code] == perturbation for id_code, perturbation in held_out.items()]
    assert metrics["holdout"]["raw"]["overall"] == pytest.approx(sum(right) / len(right))
    of_fold_0 = {e for e, fold in run.screen.folds.items() if fold == 0}
    assert {i.split("_")[0] for i in raw_predictions(out / "predictions_oof.csv")} == {
        *(e for e in run.screen.folds if e.startswith("HUVEC")),
        *(e for e in of_fold_0 if e.startswith("RPE")),
    }
    partial = {"quorum": 1, "folds": {"HUVEC": [0, 1], "RPE": [0]}, "missing": {"HUVEC": [], "RPE": [1]}}
    lineage = json.loads((out / "lineage.json").read_text())
    assert metrics["partial"] == lineage["partial"] == partial
    assert (lineage["run"], lineage["code_version"]) == (KEY, "1")
    assert lineage["finished"]["code_version"] == code_version()
    assert json.loads((out / "metrics.json").read_text())["partial"] == partial
    assert "Missing: RPE fold 1." in (out / "report.html").read_text()
    assert "partial: RPE lacks fold 1\n" in output
    names = [f"embeddings/net/{fold}.parquet" for fold in ("HUVEC/fold_0", "HUVEC/fold_1", "RPE/fold_0")]
    assert lineage["embeddings"] == names == sorted(str(p.relative_to(out)) for p in out.rglob("*.parquet"))
    assert (out / names[1]).read_text() == "HUVEC 1"


def test_results_are_stored_and_partial_ones_never_replace_complete_ones(run: FoldedRun) -> None:
    def kept(name: str = "metrics.json") -> bytes:
        return run.store.get(f"runs/{KEY}/results/{name}")

    _, out, _ = run.finish(1)
    assert kept() == (out / "metrics.json").read_bytes()
    run.train("RPE", 1)
    metrics, out, output = run.finish(2)
    assert "partial" not in {*metrics, *json.loads((out / "lineage.json").read_text())}
    assert ">partial<" not in (out / "report.html").read_text()
    assert "all folds are there" in output
    whole = (out / "metrics.json").read_bytes()
    assert kept() == whole
    assert kept("lineage.json") == (out / "lineage.json").read_bytes()
    run.store.delete(f"runs/{KEY}/tasks/infer/1/RPE.json")
    run.finish(1)
    assert kept() == whole
    run.store.put(f"runs/{KEY}/results/lineage.json", json.dumps({"manifest_digest": "of an earlier screen"}).encode())
    _, out, _ = run.finish(1)
    assert kept() == (out / "metrics.json").read_bytes() != whole


@pytest.mark.parametrize(
    ("quorum", "message"),
    [
        (2, "--quorum 2 of 2 folds is not reached: RPE has fold 0; .* --quorum 1"),
        *((quorum, f"--quorum {quorum}: run {KEY} trains 2 folds; give a number from 1") for quorum in (0, -1, 3)),
    ],
)
def test_a_quorum_that_is_not_reached_or_impossible_writes_nothing(run: FoldedRun, quorum: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run.finish(quorum)
    assert not (run.folder / "out").exists()


def test_a_cell_type_without_any_fold_cannot_be_finished(run: FoldedRun) -> None:
    for fold in (0, 1):
        run.store.delete(f"runs/{KEY}/tasks/infer/{fold}/RPE.json")
    with pytest.raises(InputError, match=rf"RPE has none; run {KEY} again, until each cell type has a fold"):
        run.finish(1)


def test_folds_of_a_screen_that_changed_do_not_count(run: FoldedRun) -> None:
    source = run.folder / "screen"
    table = source / "test.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]) + "\n")
    run.normalize(source)
    with pytest.raises(InputError, match=r"HUVEC has none; RPE has none"):
        run.finish(1)


def test_the_same_run_replaces_its_results_and_nothing_else_is_touched(run: FoldedRun) -> None:
    run.finish(1)
    (run.folder / "out" / "stale").write_text("")
    _, out, _ = run.finish(1)
    assert not (out / "stale").exists()
    other = run.folder / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"--out .*other: not empty, and not results of run"):
        run.finish(1, out="other")
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def test_a_fold_damaged_in_the_store_counts_as_missing_with_a_warning(run: FoldedRun) -> None:
    records = finished_folds(run.store, KEY, run.screen, run.holdout)["HUVEC"]
    run.store.delete_prefix(f"{records[1].prefix}/")
    metrics, out, output = run.finish(1)
    assert metrics["partial"]["missing"] == {"HUVEC": [1], "RPE": [1]}
    assert raw_predictions(out / "predictions.csv") == run.expected("HUVEC", (0,))
    assert "HUVEC fold 1 is left out: " in output
    assert not (out / "work").exists()
    with pytest.raises(InputError, match=r"--quorum 2 of 2 folds is not reached: RPE has fold 0"):
        run.finish(2)
