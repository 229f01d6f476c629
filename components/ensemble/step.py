"""ensemble: logits of the folds of one cell type in, their mean out. Reads, checks and writes; no model."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.core import progress
from components.core.errors import InputError
from components.core.files import atomic_directory
from components.core.storage.arrays import LogitsDirectory, WellLogits, read_logits, write_logits
from components.core.storage.manifest import Manifest
from components.core.storage.task_status import report_status


def main(screen: str, logits: Sequence[str], averaged: str) -> None:
    """Runs the step on paths; a failure is recorded under the run that the screen's manifest names."""
    manifest, folds = Manifest.read(Path(screen)), [Path(path) for path in logits]
    try:
        cell_type = read_logits(folds[0]).cell_type if folds else None
    except InputError:  # `run` raises it, inside the task
        cell_type = None
    with progress.task("ensemble", cell_type=cell_type):
        report_status(manifest.store, manifest.run)
        shared = {
            w.id_code for plate in manifest.plates if plate.experiment in manifest.more_folds for w in plate.wells
        }
        run(folds, Path(averaged), shared)


def run(folds: Sequence[Path], out: Path, shared: Container[str] = ()) -> None:
    """Joins the folds of a cell type: out-of-fold wells are concatenated, the logits of all others averaged.

    An out-of-fold well is predicted by its own fold only, whose models never saw its label, or by several if folds overlap.
    Logits are averaged, before any softmax.

    Args:
        folds: one logits directory a fold, in any order; meta.json holds its fold.
        out: directory, written atomically.
        shared: wells that several folds may hold out.

    Raises:
        InputError: no directories, different cell types, a fold twice, different classes or wells, or a well that is
            not `shared` and out of fold in two folds.
    """
    if not folds:
        raise InputError("ensemble needs at least one logits directory; give one a fold with --logits")
    parts = _in_fold_order([(path, read_logits(path)) for path in folds])
    wells = {"oof": _joined(parts, shared), **{use: _mean(parts, use) for use in ("unlabelled", "holdout")}}
    merged = LogitsDirectory(wells, _merged_meta(parts))
    with atomic_directory(out) as folder:
        write_logits(folder, merged)
    joined, averaged = len(wells["oof"].ids_W), sum(len(wells[use].ids_W) for use in ("unlabelled", "holdout"))
    progress.note(f"{len(parts)} folds: {joined:,} out-of-fold wells joined, {averaged:,} other wells averaged")


Part = tuple[Path, LogitsDirectory]


def _in_fold_order(parts: Sequence[Part]) -> list[Part]:
    seen: dict[int, Path] = {}
    first_path, first = parts[0]
    for path, content in parts:
        fold = content.meta.get("fold")
        if not isinstance(fold, int):
            raise InputError(f"{path}: meta.json has no fold; give the outputs of pseudo_label")
        if fold in seen:
            raise InputError(f"{path}: fold {fold} is also in {seen[fold]}; give each fold once")
        seen[fold] = path
        if content.cell_type != first.cell_type:
            raise InputError(
                f"{path}: cell type {content.cell_type}, but {first_path} has {first.cell_type}; "
                "ensemble one cell type at a time"
            )
        if content.classes != first.classes:
            raise InputError(
                f"{path}: {content.classes} classes, but {first_path} has {first.classes}; "
                "the folds are not of one screen"
            )
    return sorted(parts, key=lambda part: int(part[1].meta["fold"]))


def _joined(parts: Sequence[Part], shared: Container[str]) -> WellLogits:
    owner: dict[str, Path] = {}
    for path, content in parts:
        for id_code in content.wells["oof"].ids_W:
            if id_code in owner and id_code not in shared:
                raise InputError(
                    f"{path}: well {id_code} is out of fold here and in {owner[id_code]}; "
                    "the folds must not share experiments"
                )
            owner.setdefault(id_code, path)
    row_of = {id_code: row for row, id_code in enumerate(owner)}
    total_WK, count_W = np.zeros((len(owner), parts[0][1].classes)), np.zeros(len(owner))
    for _, content in parts:
        rows = [row_of[id_code] for id_code in content.wells["oof"].ids_W]
        total_WK[rows] += content.wells["oof"].logits_WK
        count_W[rows] += 1
    return WellLogits(tuple(owner), (total_WK / count_W[:, None]).astype(np.float32))


def _mean(parts: Sequence[Part], use: str) -> WellLogits:
    first_path, first = parts[0]
    ids = first.wells[use].ids_W
    # Float64 so that the mean of many folds rounds once.
    total_WK = np.zeros(first.wells[use].logits_WK.shape, dtype=np.float64)
    for path, content in parts:
        differing = set(ids) ^ set(content.wells[use].ids_W)
        if differing:
            raise InputError(
                f"{path}: {use} well {min(differing)} is only here or only in {first_path}; "
                "run the folds on one screen manifest"
            )
        total_WK += content.wells[use].take(ids)
    return WellLogits(ids, (total_WK / len(parts)).astype(np.float32))


def _merged_meta(parts: Sequence[Part]) -> dict[str, Any]:
    """Histories keep every record: the report drops the repeats of pretraining, which is in each cell type's history."""
    return {
        "cell_type": parts[0][1].cell_type,
        "folds": [entry for _, content in parts for entry in content.meta["folds"]],
        "history": [record for _, content in parts for record in content.meta["history"]],
    }
