"""A screen from its tables, in whichever of the two releases' layouts they are. Reads tables only; knows no image.

Labels are kept as they are written; their digits mean nothing (the releases number the siRNAs in unrelated ways).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from components.core.config import ScreenConfig
from components.core.errors import InputError
from components.core.screen import kaggle_layout, rxrx_layout
from components.core.screen.screen_source import ScreenSource, UnreadableError, source_of
from components.core.screen.tables import Entry, Row, Split
from components.core.screen.wells import Plate, Screen, Well, natural_key
from components.core.storage.manifest import Vocabulary, WellType

FOLDERS = sorted({*kaggle_layout.FOLDERS.values(), *rxrx_layout.FOLDERS.values()})
"""Where either layout has its images."""
TABLES = frozenset({*kaggle_layout.TABLES, rxrx_layout.METADATA})
"""What either layout reads besides; other files may lie there."""
LEAST_USUAL_WELLS = 4
"""Wells of the median treatment from which on a label seen once is a slip; smaller screens may miss a well by chance."""


def read_screen(source: ScreenSource | Path, config: ScreenConfig) -> Screen:
    """Reads and checks the tables of a screen; no image is touched.

    Args:
        source: where train.csv lies and, where the screen has them, train_controls.csv, test.csv, test_controls.csv; or
            else metadata.csv.
        config: known cell types and held-out experiments.

    Raises:
        InputError: there are no tables, a row is malformed, a well appears twice, a label contradicts another, an
            experiment is in both halves, or a held-out experiment is not labelled.
    """
    place = source_of(source)
    names = _files(place)
    # The tables of the Kaggle layout win: a screen in that layout may keep a metadata.csv of its own.
    layout = rxrx_layout if rxrx_layout.METADATA in names and "train.csv" not in names else kaggle_layout
    entries = list(layout.read_entries(place, names, config.cell_types))
    tables = layout.tables(place)
    if not entries:
        raise InputError(f"{tables['train']}: the screen is empty, the table has no wells")
    _check_unique(entries)
    splits = _check_experiments(tables, entries)
    for experiment in config.holdout_experiments:
        if splits.get(experiment) != "train":
            raise InputError(
                f"screen.holdout_experiments: {experiment!r} is not a labelled experiment of {tables['train']}; "
                "correct its spelling or take it off the list"
            )
    vocabulary = _vocabulary(entries, layout.LABEL)
    _check_strays(entries, layout.LABEL)
    folders = layout.FOLDERS
    return Screen(_plates(folders, entries, frozenset(config.holdout_experiments)), vocabulary)


def read_new_plates(source: ScreenSource | Path, experiments: Sequence[str] = ()) -> tuple[Plate, ...]:
    """Reads and checks the tables of plates that are to be predicted; no label is read, nor an image touched.

    Args:
        source: where test.csv lies, or train.csv, or both, with their *_controls.csv; or else metadata.csv.
        experiments: the wanted ones; none for all.

    Returns:
        Experiments in natural order, plates ascending, all of them as unlabelled.

    Raises:
        InputError: there are no tables, a row is malformed, a well appears twice, an experiment is in both halves or has
            controls alone, or a wanted one is not there.
    """
    place = source_of(source)
    names = _files(place)
    layout = rxrx_layout if rxrx_layout.METADATA in names and not names & {"train.csv", "test.csv"} else kaggle_layout
    entries = list(layout.read_entries(place, names, None, labels=False))
    if not entries:
        raise InputError(f"{place.address()}: the tables have no wells")
    _check_unique(entries)
    there = _check_experiments(layout.tables(place), entries)
    for experiment in experiments:
        if experiment not in there:
            known = ", ".join(sorted(there, key=natural_key))
            raise InputError(f"{place.address()}: there is no experiment {experiment!r}; those there are {known}")
    wanted = [entry for entry in entries if not experiments or entry.row.experiment in experiments]
    return tuple(replace(plate, labelled=False) for plate in _plates(layout.FOLDERS, wanted, frozenset()))


def _files(place: ScreenSource) -> set[str]:
    """Names of the files where the tables are."""
    place.check()
    try:
        return {facts.name for facts in place.list_files()}
    except UnreadableError as error:
        raise InputError(f"{place.address()}: cannot be listed ({error.reason})") from None


def _check_unique(entries: list[Entry]) -> None:
    """Each well appears once in all the tables."""
    seen: dict[str, Row] = {}
    for entry in entries:
        first = seen.setdefault(entry.row.id_code, entry.row)
        if first is not entry.row:
            raise InputError(
                f"{entry.row.where}: the well appears twice, first in {first.where}; remove one of the rows"
            )


def _check_experiments(tables: dict[Split, str], entries: list[Entry]) -> dict[str, Split]:
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
                f"{tables[entry.split]}; add its treatments or remove its controls"
            )
        if known != entry.split:
            raise InputError(
                f"{entry.row.where}: experiment {experiment} is in the {entry.split} half of the screen, but its treatments "
                f"are in the {known} half; an experiment is either labelled or not"
            )
    return splits


def _check_strays(entries: list[Entry], field: str) -> None:
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
                f"{rows[0].where}: field {field} is {sirna!r}, an unknown siRNA: no other well has it, and most siRNAs are "
                f"in {usual} wells; correct the label or remove the row"
            )


def _vocabulary(entries: list[Entry], field: str) -> Vocabulary:
    """The screen's classes; a siRNA has one well type, and test controls are known from training controls."""
    first: dict[str, Entry] = {}
    trained = {e.sirna for e in entries if e.split == "train" and e.well_type != "treatment"}
    has_training_controls = bool(trained)
    for entry in entries:
        if entry.sirna is None:
            continue
        earlier = first.setdefault(entry.sirna, entry)
        if earlier.well_type != entry.well_type:
            raise InputError(
                f"{entry.row.where}: field {field} is {entry.sirna!r}, a {entry.well_type} here and a "
                f"{earlier.well_type} in {earlier.row.where}; a siRNA has one well type"
            )
        if entry.split == "test" and entry.sirna not in trained:
            hint = "correct the label" if has_training_controls else "add the controls of labelled experiments"
            raise InputError(
                f"{entry.row.where}: field {field} is {entry.sirna!r}, an unknown siRNA: no training control has "
                f"it; {hint}"
            )
    by_type: dict[WellType, list[str]] = {"treatment": [], "positive_control": [], "negative_control": []}
    for sirna, entry in first.items():
        by_type[entry.well_type].append(sirna)
    treatments, positives, negatives = (tuple(sorted(labels, key=natural_key)) for labels in by_type.values())
    return Vocabulary(treatments=treatments, positives=positives, negatives=negatives)


def _plates(folders: dict[Split, str], entries: list[Entry], holdout: frozenset[str]) -> tuple[Plate, ...]:
    grouped: dict[tuple[str, int], list[Entry]] = {}
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
                folder=f"{folders[split]}/{experiment}/Plate{plate}",
                wells=tuple(Well(e.row.id_code, e.row.well, e.well_type, e.sirna) for e in members),
            )
        )
    return tuple(plates)
