"""The Kaggle layout of a screen: four tables and train/ and test/ folders of images. Reads the tables only.

    train.csv           id_code,experiment,plate,well,sirna             treatments of labelled experiments
    test.csv            id_code,experiment,plate,well                   treatments of unlabelled experiments
    *_controls.csv      id_code,experiment,plate,well,sirna,well_type   controls of either
    {train,test}/EXPERIMENT/PlateP/WELL_sSITE_wCHANNEL.png

Labels are kept as they are written; their digits mean nothing (the releases number the siRNAs in unrelated ways).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, cast

from components.core.config import ScreenConfig
from components.core.errors import InputError
from components.core.screen.tables import Row, read_rows
from components.core.screen.wells import Plate, Screen, Well, natural_key
from components.core.storage.manifest import Vocabulary, WellType

Split = Literal["train", "test"]
LEAST_USUAL_WELLS = 4
"""Wells of the median treatment from which on a label seen once is a slip; smaller screens may miss a well by chance."""
_CONTROL_TYPES = ("positive_control", "negative_control")


class _Entry(NamedTuple):
    row: Row
    split: Split
    well_type: WellType
    sirna: str | None


def read_screen(root: Path, config: ScreenConfig) -> Screen:
    """Reads and checks the tables of a screen; no image is touched.

    Args:
        root: directory with train.csv and, where the screen has them, train_controls.csv, test.csv, test_controls.csv.
        config: known cell types and held-out experiments.

    Raises:
        InputError: the directory or train.csv is missing, a row is malformed, a well appears twice, a label contradicts
            another, an experiment is in both halves, or a held-out experiment is not labelled.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such directory; give the directory that holds train.csv")
    entries = list(_read_entries(root, config))
    if not entries:
        raise InputError(f"{root / 'train.csv'}: the screen is empty, the table has no wells")
    _check_unique(entries)
    splits = _check_experiments(root, entries)
    for experiment in config.holdout_experiments:
        if splits.get(experiment) != "train":
            raise InputError(
                f"screen.holdout_experiments: {experiment!r} is not a labelled experiment of {root / 'train.csv'}; "
                "correct its spelling or take it off the list"
            )
    vocabulary = _vocabulary(entries)
    _check_strays(entries)
    return Screen(root, _plates(root, entries, frozenset(config.holdout_experiments)), vocabulary)


def _read_entries(root: Path, config: ScreenConfig) -> Iterator[_Entry]:
    """All rows of all tables, treatments first."""
    for row in read_rows(root / "train.csv", ["sirna"], config.cell_types):
        yield _Entry(row, "train", "treatment", row.values["sirna"])
    if (root / "test.csv").exists():
        # A sirna column here would be the truth of unlabelled wells: it is not even read.
        for row in read_rows(root / "test.csv", [], config.cell_types):
            yield _Entry(row, "test", "treatment", None)
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        path = root / f"{split}_controls.csv"
        if not path.exists():
            continue
        for row in read_rows(path, ["sirna", "well_type"], config.cell_types):
            well_type = row.values["well_type"]
            if well_type not in _CONTROL_TYPES:
                raise InputError(
                    f"{row.where}: field well_type is {well_type!r}; expected {' or '.join(_CONTROL_TYPES)}"
                )
            yield _Entry(row, split, cast(WellType, well_type), row.values["sirna"])


def _check_unique(entries: list[_Entry]) -> None:
    """Each well appears once in all the tables."""
    seen: dict[str, Row] = {}
    for entry in entries:
        first = seen.setdefault(entry.row.id_code, entry.row)
        if first is not entry.row:
            raise InputError(
                f"{entry.row.where}: the well appears twice, first in {first.where}; remove one of the rows"
            )


def _check_experiments(root: Path, entries: list[_Entry]) -> dict[str, Split]:
    """Each experiment has treatments in one half of the tables, and nothing in the other."""
    splits: dict[str, Split] = {}
    for entry in entries:  # treatments come first, so a control finds its experiment known
        experiment = entry.row.experiment
        if entry.well_type == "treatment":
            splits.setdefault(experiment, entry.split)
        known = splits.get(experiment)
        if known is None:
            raise InputError(
                f"{entry.row.where}: experiment {experiment} has controls but no treatment well in "
                f"{root / f'{entry.split}.csv'}; add its treatments or remove its controls"
            )
        if known != entry.split:
            raise InputError(
                f"{entry.row.where}: experiment {experiment} is in the {entry.split} tables, but its treatments are in "
                f"{known}.csv; an experiment is either labelled or not"
            )
    return splits


def _check_strays(entries: list[_Entry]) -> None:
    """No treatment label stands in one well alone where the others are in every experiment: such a label is a slip."""
    wells: dict[str, list[Row]] = {}
    for entry in entries:
        if entry.sirna is not None and entry.well_type == "treatment":
            wells.setdefault(entry.sirna, []).append(entry.row)
    usual = sorted(len(rows) for rows in wells.values())[len(wells) // 2] if wells else 0
    if usual < LEAST_USUAL_WELLS:
        return
    for sirna, rows in wells.items():
        if len(rows) == 1:
            raise InputError(
                f"{rows[0].where}: field sirna is {sirna!r}, an unknown siRNA: no other well has it, and most siRNAs are "
                f"in {usual} wells; correct the label or remove the row"
            )


def _vocabulary(entries: list[_Entry]) -> Vocabulary:
    """The screen's classes; a siRNA has one well type, and test controls are known from training controls."""
    first: dict[str, _Entry] = {}
    trained = {e.sirna for e in entries if e.split == "train" and e.well_type != "treatment"}
    has_training_controls = bool(trained)
    for entry in entries:
        if entry.sirna is None:
            continue
        earlier = first.setdefault(entry.sirna, entry)
        if earlier.well_type != entry.well_type:
            raise InputError(
                f"{entry.row.where}: field sirna is {entry.sirna!r}, a {entry.well_type} here and a "
                f"{earlier.well_type} in {earlier.row.where}; a siRNA has one well type"
            )
        if entry.split == "test" and entry.sirna not in trained:
            hint = "correct the label" if has_training_controls else "add train_controls.csv"
            raise InputError(
                f"{entry.row.where}: field sirna is {entry.sirna!r}, an unknown siRNA: no training control has "
                f"it; {hint}"
            )
    by_type: dict[WellType, list[str]] = {"treatment": [], "positive_control": [], "negative_control": []}
    for sirna, entry in first.items():
        by_type[entry.well_type].append(sirna)
    treatments, positives, negatives = (tuple(sorted(labels, key=natural_key)) for labels in by_type.values())
    return Vocabulary(treatments=treatments, positives=positives, negatives=negatives)


def _plates(root: Path, entries: list[_Entry], holdout: frozenset[str]) -> tuple[Plate, ...]:
    grouped: dict[tuple[str, int], list[_Entry]] = {}
    for entry in entries:
        grouped.setdefault((entry.row.experiment, entry.row.plate), []).append(entry)
    plates = []
    for experiment, plate in sorted(grouped, key=lambda key: (natural_key(key[0]), key[1])):
        members = sorted(grouped[experiment, plate], key=lambda entry: entry.row.well)
        split = members[0].split
        plates.append(
            Plate(
                experiment=experiment,
                plate=plate,
                cell_type=members[0].row.cell_type,
                labelled=split == "train",
                holdout=experiment in holdout,
                folder=root / split / experiment / f"Plate{plate}",
                wells=tuple(Well(e.row.id_code, e.row.well, e.well_type, e.sirna) for e in members),
            )
        )
    return tuple(plates)
