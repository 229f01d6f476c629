"""Reads the report's inputs: outputs of assign, labels of held-out wells, truth."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.core.errors import InputError
from components.core.evaluation.scores import SCORES, Score
from components.core.label_tables import matched_labels, read_label_table
from components.core.screen.wells import is_of
from components.core.storage.artifacts import local_copy
from components.core.storage.manifest import Manifest
from components.core.tables import TableFaults, read_table_file, unescaped

FILES: dict[Score, str] = {"out_of_fold": "oof.csv", "unlabelled": "unlabelled.csv", "holdout": "holdout.csv"}
LABELS = ("perturbation", "raw_perturbation", "group_perturbation")
PROBABILITIES = ("confidence", "raw_confidence", "group_confidence", "raw_confidence_uncalibrated")
KINDS: dict[Score, str] = {"unlabelled": "an unlabelled", "holdout": "a held-out"}


def treatment_wells(screen: Manifest, holdout: Manifest) -> pd.DataFrame:
    """The treatment wells of a run, first the screen's, then those held out or new.

    Returns:
        A row a well, in manifest order; columns score, id_code, experiment, plate, well, cell_type, fold (the first
        that validates on it; -1 or a number that no fold has if none does), label (None if hidden).
    """
    columns = ["score", "id_code", "experiment", "plate", "well", "cell_type", "fold", "label"]
    rows = [
        (
            "holdout"
            if manifest is holdout
            else "out_of_fold"
            if plate.labelled and well.perturbation is not None
            else "unlabelled",
            well.id_code,
            plate.experiment,
            plate.plate,
            well.well,
            plate.cell_type,
            plate.well_folds[n] if plate.well_folds else manifest.folds.get(plate.experiment, -1),
            well.perturbation,
        )
        for manifest in (screen, holdout)
        for plate in manifest.plates
        for n, well in enumerate(plate.wells)
        if well.role == "treatment"
    ]
    return pd.DataFrame(rows, columns=columns)


def own_columns(*manifests: Manifest, hidden: Path | None = None) -> pd.DataFrame:
    """The screen's own columns of every well, by id_code, as text; `hidden` is a table of what the held-out manifest hides."""
    wells = {well.id_code: well.extra for manifest in manifests for plate in manifest.plates for well in plate.wells}
    columns = next((manifest.columns for manifest in manifests if manifest.columns), ())
    own = pd.DataFrame.from_dict(wells, orient="index", columns=list(columns), dtype=str)
    if hidden is not None:
        table = unescaped(read_table_file(hidden, ("id_code",))).set_index("id_code")
        own.update(table[[column for column in table.columns if column in own.columns]])
    return own


@dataclass(frozen=True)
class AssignOutput:
    """The output of assign for one cell type: contents of assign.json and meta.json, predictions without the column truth."""

    cell_type: str
    predictions: pd.DataFrame
    assign: dict[str, Any]
    meta: dict[str, Any]


def read_outputs(
    uris: Sequence[str], wells: pd.DataFrame, treatments: Collection[str], cell_types: Sequence[str]
) -> tuple[list[AssignOutput], pd.DataFrame]:
    """The outputs of assign in the configured order of the cell types, and the predictions of all.

    Raises:
        InputError: no output, or two of one cell type; a file is missing or malformed, a well or perturbation is not of the
            screen, or an unlabelled or held-out well of the cell type has no prediction.
    """
    if not uris:
        raise InputError("--uri: no output of assign was given; give one a cell type")
    with tempfile.TemporaryDirectory() as copies:
        folders = [local_copy(uri, Path(copies) / str(n)) for n, uri in enumerate(uris)]
        outputs = [_read_output(folder, wells, treatments) for folder in folders]
    names = [output.cell_type for output in outputs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"--uri: two outputs of assign are of {twice}; give one a cell type")
    rank = {name: n for n, name in enumerate(cell_types)}
    outputs.sort(key=lambda output: (rank.get(output.cell_type, len(rank)), output.cell_type))
    return outputs, pd.concat([output.predictions for output in outputs], ignore_index=True)


def _read_output(folder: Path, wells: pd.DataFrame, treatments: Collection[str]) -> AssignOutput:
    assign, meta = _read_json(folder / "assign.json"), _read_json(folder / "meta.json")
    cell_type = assign.get("cell_type")
    if not isinstance(cell_type, str):
        raise InputError(f"{folder / 'assign.json'}: cell_type is missing; run assign again")
    parts = []
    for score in SCORES:
        path = folder / FILES[score]
        own = wells[(wells["score"] == score) & (wells["cell_type"] == cell_type)]
        part = _read_predictions(path, own, treatments)
        missing = own.loc[~own["id_code"].isin(part["id_code"]), "id_code"]
        # A run that is finished without some folds has fewer out-of-fold wells; the others are complete.
        if len(missing) and score != "out_of_fold":
            raise InputError(
                f"{path}: {len(missing)} wells of {cell_type} have no row, first {missing.iloc[0]}; run assign again on "
                "this screen's manifest"
            )
        parts.append(part)
    return AssignOutput(cell_type, pd.concat(parts, ignore_index=True), assign, meta)


def _read_predictions(path: Path, wells: pd.DataFrame, treatments: Collection[str]) -> pd.DataFrame:
    """Reads one table of assign and joins it with the wells that it may have."""
    table = unescaped(read_table_file(path, ("id_code", *LABELS, *PROBABILITIES, "margin", "top5")))
    faults = TableFaults(str(path), table)
    faults.require_one_of(
        ["id_code"],
        wells["id_code"],
        f"it is not a treatment well of this screen's {path.stem} wells of the cell type; assign and report must read the "
        "same manifests",
    )
    faults.require_unique("id_code")
    faults.require_one_of(LABELS, treatments, "it is not a treatment of this screen")
    numbers = {field: faults.numbers(field) for field in PROBABILITIES}
    numbers["margin"] = faults.numbers("margin", low=-1.0)
    faults.check()
    return wells.drop(columns="label").merge(table.assign(**numbers), on="id_code", how="right")


def read_labels(
    path: Path,
    wells: pd.DataFrame,
    score: Score,
    treatments: Collection[str],
    column: str,
    experiments: Collection[str] | None = None,
) -> tuple[dict[str, str], str]:
    """Reads a table of labels of the wells of one score; rows of other experiments, if given, are ignored.

    Returns:
        Label by id_code, and what to tell the user of labels that are written in another way; empty if there are none.

    Raises:
        InputError: a column or value is missing, or an id_code or perturbation is not of the screen; names line and well.
    """
    table, column = read_label_table(path, column)
    if experiments is not None:
        table = table[[not id_code or is_of(id_code, experiments) for id_code in table["id_code"]]]
    faults = TableFaults(str(path), table)
    faults.require(("id_code", column))
    table[column], remark = matched_labels(table[column], treatments)
    allowed = wells.loc[wells["score"] == score, "id_code"]
    faults.require_one_of(
        ["id_code"], allowed, f"it is not a treatment well of {KINDS[score]} experiment of this screen"
    )
    faults.require_unique("id_code")
    faults.require_one_of([column], treatments, "it is not a treatment of this screen: use the labels of its tables")
    faults.check()
    return dict(zip(table["id_code"], table[column], strict=True)), remark


def json_object(text: str, name: str) -> dict[str, Any]:
    """Parses a JSON object, empty for an empty text; `name` is for errors."""
    try:
        data = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"{name}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{name}: a JSON object was expected")
    return data


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json_object(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); is this an output of assign?") from None
