"""Reads what the report stands on: assign outputs, labels of held-out wells, truth. Errors name file, row and field."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.errors import InputError
from components.core.evaluation.named_wells import SCORES, NamedWell, Score
from components.core.screen.wells import experiment_of
from components.core.storage.manifest import Manifest, PlateRecord, WellRecord

FILES: dict[Score, str] = {"out_of_fold": "oof.csv", "unlabelled": "unlabelled.csv", "holdout": "holdout.csv"}
COLUMNS = (
    "id_code",
    "sirna",
    "confidence",
    "margin",
    "raw_sirna",
    "raw_confidence",
    "group_sirna",
    "group_confidence",
    "top5",
)
UNCALIBRATED = "raw_confidence_uncalibrated"
"""Optional column: the raw confidence at temperature 1, for the reliability plot's curve before calibration."""


@dataclass(frozen=True)
class AssignOutput:
    """One cell type's output directory of assign."""

    cell_type: str
    wells: dict[Score, list[NamedWell]]
    assign: dict[str, Any]
    meta: dict[str, Any]

    @property
    def arrangements(self) -> list[dict[str, Any]]:
        """What was inferred of its experiments' plate groups, with the cell type; none without the prior."""
        return [{**entry, "cell_type": self.cell_type} for entry in self.assign.get("experiments", [])]


class Places:
    """Finds a treatment well of the screen or the holdout by id_code, and says which score it belongs to."""

    def __init__(self, screen: Manifest, holdout: Manifest) -> None:
        self.treatments = frozenset(screen.vocabulary.treatments)
        self._folds: dict[str, int] = {}
        self._places: dict[str, tuple[Score, PlateRecord, WellRecord]] = {}
        for manifest in (screen, holdout):
            for plate in manifest.plates:
                score: Score = "holdout" if manifest is holdout else "out_of_fold" if plate.labelled else "unlabelled"
                for n, well in enumerate(plate.wells):
                    if well.well_type == "treatment":
                        self._places[well.id_code] = (score, plate, well)
                        fold = plate.well_folds[n] if plate.well_folds else manifest.folds.get(plate.experiment, -1)
                        if fold >= 0:
                            self._folds[well.id_code] = fold

    def find(self, id_code: str, score: Score) -> tuple[PlateRecord, WellRecord] | None:
        """The well's plate and record, or None when it is no treatment well of this score."""
        found = self._places.get(id_code)
        return (found[1], found[2]) if found and found[0] == score else None

    def fold(self, id_code: str) -> int | None:
        """The fold that validates on the well, None where none does."""
        return self._folds.get(id_code)

    def ids(self, score: Score, cell_type: str) -> list[str]:
        """All treatment wells of a score and cell type, in manifest order."""
        return [i for i, (s, plate, _) in self._places.items() if s == score and plate.cell_type == cell_type]

    def labels(self) -> dict[str, str]:
        """The labels of the labelled wells, by id_code."""
        return {i: well.sirna for i, (s, _, well) in self._places.items() if s == "out_of_fold" and well.sirna}


def read_assign_output(folder: Path, places: Places) -> AssignOutput:
    """Reads and checks one output directory of assign.

    Raises:
        InputError: a file is missing or malformed, a well or siRNA is not of the screen, or an unlabelled or held-out
            well of the cell type has no name.
    """
    assign = _read_json(folder / "assign.json")
    meta = _read_json(folder / "meta.json")
    cell_type = assign.get("cell_type")
    if not isinstance(cell_type, str):
        raise InputError(f"{folder / 'assign.json'}: cell_type is missing; run assign again")
    wells: dict[Score, list[NamedWell]] = {}
    for score in SCORES:
        path = folder / FILES[score]
        wells[score] = [_named_well(path, row, record, score, places) for row, record in _rows(path, COLUMNS)]
        seen: set[str] = set()
        for well in wells[score]:
            if well.cell_type != cell_type:
                raise InputError(f"{path}: id_code {well.id_code} is of {well.cell_type}, the folder of {cell_type}")
            if well.id_code in seen:
                raise InputError(f"{path}: id_code {well.id_code} appears twice")
            seen.add(well.id_code)
        # Out-of-fold wells may be fewer when a run is finished without some folds; the others cannot.
        missing = [i for i in places.ids(score, cell_type) if i not in seen]
        if missing and score != "out_of_fold":
            raise InputError(
                f"{path}: {len(missing)} wells of {cell_type} have no row, first {missing[0]}; run assign "
                "again on this screen's manifest"
            )
    return AssignOutput(cell_type, wells, assign, meta)


def read_labels(path: Path, places: Places, score: Score, experiments: Collection[str] | None = None) -> dict[str, str]:
    """Reads a table id_code,sirna: the truth of the unlabelled wells, or the labels of the held-out ones.

    Args:
        path: the table.
        places: of all wells.
        score: whose wells it may name.
        experiments: rows of other ones are left alone; None leaves none.

    Raises:
        InputError: a column is missing, a value is empty or NaN, an id_code is no treatment well of `score` or comes
            twice, or a siRNA is not one of the screen's treatments.
    """
    known = {"unlabelled": "an unlabelled", "holdout": "a held-out", "out_of_fold": "a labelled"}[score]
    labels: dict[str, str] = {}
    for row, record in _rows(path, ("id_code", "sirna")):
        for field in ("id_code", "sirna"):
            if record[field].strip().lower() in ("", "nan"):
                raise InputError(f"{path}, row {row}: {field} is empty; give a value or remove the row")
        id_code, sirna = record["id_code"].strip(), record["sirna"].strip()
        if experiments is not None and experiment_of(id_code) not in experiments:
            continue
        if places.find(id_code, score) is None:
            raise InputError(
                f"{path}, row {row}: id_code {id_code!r} is not a treatment well of {known} experiment of this screen"
            )
        if sirna not in places.treatments:
            raise InputError(
                f"{path}, row {row}: sirna {sirna!r} is not a treatment of this screen; use the encoding of train.csv"
            )
        if id_code in labels:
            raise InputError(f"{path}, row {row}: id_code {id_code} appears twice; remove one of the rows")
        labels[id_code] = sirna
    return labels


def merge_history(outputs: Sequence[AssignOutput]) -> list[dict[str, Any]]:
    """The epochs of all outputs, each once: pretrain's are in the history of every cell type."""
    unique: dict[tuple[Any, ...], dict[str, Any]] = {}
    for output in outputs:
        for record in output.meta.get("history", []):
            key = tuple(record.get(name) for name in ("step", "fold", "cell_type", "backbone", "epoch"))
            unique.setdefault(key, record)
    return list(unique.values())


def merge_validated(outputs: Sequence[AssignOutput]) -> dict[tuple[int, str], bool]:
    """Whether each fold had validation wells, by fold and cell type."""
    return {
        (int(f["fold"]), output.cell_type): bool(f["validated"])
        for output in outputs
        for f in output.meta.get("folds", [])
    }


def _named_well(path: Path, row: int, record: Mapping[str, str], score: Score, places: Places) -> NamedWell:
    id_code = record["id_code"]
    found = places.find(id_code, score)
    if found is None:
        raise InputError(
            f"{path}, row {row}: id_code {id_code!r} is not a treatment well of this screen's "
            f"{FILES[score].removesuffix('.csv')} wells; assign and report must read the same manifests"
        )
    plate, well = found
    for field in ("sirna", "raw_sirna", "group_sirna"):
        if record[field] not in places.treatments:
            raise InputError(f"{path}, row {row}: {field} {record[field]!r} is not a treatment of this screen")
    uncalibrated = record.get(UNCALIBRATED)
    return NamedWell(
        id_code=id_code,
        experiment=plate.experiment,
        plate=plate.plate,
        well=well.well,
        cell_type=plate.cell_type,
        sirna=record["sirna"],
        confidence=_number(path, row, record, "confidence"),
        margin=_number(path, row, record, "margin", low=-1.0),
        raw_sirna=record["raw_sirna"],
        raw_confidence=_number(path, row, record, "raw_confidence"),
        group_sirna=record["group_sirna"],
        group_confidence=_number(path, row, record, "group_confidence"),
        top5=tuple(record["top5"].split()),
        fold=places.fold(id_code),
        raw_uncalibrated=_number(path, row, record, UNCALIBRATED) if uncalibrated else None,
    )


def _number(path: Path, row: int, record: Mapping[str, str], field: str, low: float = 0.0) -> float:
    try:
        value = float(record[field])
    except ValueError:
        value = math.nan
    # Rounding may carry a probability of one a little past it.
    if not low - 1e-6 <= value <= 1.0 + 1e-6:
        raise InputError(f"{path}, row {row}: {field} {record[field]!r} is not a number from {low:g} to 1")
    return min(max(value, low), 1.0)


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with their line numbers; checks the header and that no row is short."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path}: column {missing[0]} is missing; the header must have {','.join(columns)}")
            for record in reader:
                short = next((name for name in columns if record[name] is None), None)
                if short:
                    raise InputError(f"{path}, row {reader.line_num}: {short} is missing; the row is too short")
                yield reader.line_num, {k: v for k, v in record.items() if isinstance(k, str) and v is not None}
    except OSError as error:
        raise InputError(f"{path}: cannot read the table ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV table in UTF-8 ({error})") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror}); is this an output of assign?") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: a JSON object was expected")
    return data
