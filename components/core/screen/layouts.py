"""A screen from its tables, in the layout of the Kaggle or of the rxrx.ai release. Reads tables only, never an image.

    kaggle   train.csv            id_code,experiment,plate,well,sirna             treatments of labelled experiments
             test.csv             id_code,experiment,plate,well                   treatments of unlabelled experiments
             *_controls.csv       id_code,experiment,plate,well,sirna,well_type   controls of either
             {train,test}/EXPERIMENT/PlateP/WELL_sSITE_wCHANNEL.png
    rxrx     metadata.csv         well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna_id, a row a site
             images/EXPERIMENT/PlateP/WELL_sSITE_wCHANNEL.png

A layout is a small reader that makes one typed table of wells from its own tables; whatever follows knows that table alone.
Labels stay as they are written: their digits mean nothing, since the releases number the perturbations in unrelated ways.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from components.core.config import ScreenConfig
from components.core.errors import InputError
from components.core.screen.screen_source import ScreenSource, UnreadableError, source_of
from components.core.screen.wells import LONGEST_LABEL, Plate, Screen, Well, is_label, is_well_name, natural_key
from components.core.storage.manifest import Role, Vocabulary
from components.core.tables import ABSENT, TableFaults, read_table

Split = Literal["train", "test"]
"""Whether an experiment is labelled."""

LEAST_USUAL_WELLS = 4
"""Wells of the median treatment from which on a label seen once is a slip; smaller screens may miss a well by chance."""

_EXPERIMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)-[A-Za-z0-9._]+")
_PLATE = re.compile(r"[1-9][0-9]{0,5}")
_SITE = re.compile(r"[1-9][0-9]{0,2}")
_ROLES = get_args(Role)
_CONTROLS = ("positive_control", "negative_control")


@dataclass(frozen=True, slots=True, eq=False)
class WellTable:
    """The wells of one file, one a row, indexed by their line.

    Columns: id_code, experiment, cell_type, plate, well, split (Split), role (Role) and perturbation, all text.
    perturbation is None for treatments of unlabelled experiments, and if labels are not read.
    """

    wells: pd.DataFrame
    faults: TableFaults


@dataclass(frozen=True, slots=True)
class Layout:
    """A form of screen.

    `read` makes tables of wells from the source, the names of the files there, the known cell types (None for any), and
    whether labels are read.
    """

    tables: tuple[str, ...]  # names of the files that are read
    folders: Mapping[Split, str]  # of the experiments' folders of images
    treatments: Mapping[Split, str]  # the file of the treatments of either half
    id_column: str
    label: str  # the column of labels
    read: Callable[[ScreenSource, Collection[str], Sequence[str] | None, bool], list[WellTable]]


def read_screen(source: ScreenSource | Path, config: ScreenConfig) -> Screen:
    """Reads and checks the tables of a screen.

    Args:
        source: the screen; a path is a directory's.
        config: known cell types and held-out experiments.

    Raises:
        InputError: there are no tables, a row is malformed, a well appears twice, a label contradicts another, an
            experiment is in both halves, or a held-out experiment is not labelled. All faults of a table are in one line.
    """
    source = source_of(source)
    layout, wells = _read(source, config.cell_types, labels=True)
    labelled = set(wells.experiment[wells.split == "train"])
    for experiment in config.holdout_experiments:
        if experiment not in labelled:
            raise InputError(
                f"screen.holdout_experiments: {experiment!r} is not a labelled experiment of "
                f"{source.address(layout.treatments['train'])}; correct its spelling or take it off the list"
            )
    return Screen(_plates(layout, wells, frozenset(config.holdout_experiments)), _vocabulary(wells))


def read_new_plates(source: ScreenSource | Path, experiments: Sequence[str] = ()) -> tuple[Plate, ...]:
    """Reads and checks the tables of plates that are to be predicted; no label is read.

    Args:
        source: where test.csv or train.csv or both are, with their *_controls.csv; or metadata.csv.
        experiments: the wanted ones; none for all.

    Returns:
        Experiments in natural order, plates ascending, all of them as unlabelled.

    Raises:
        InputError: there are no tables, a row is malformed, a well appears twice, an experiment is in both halves or has
            controls alone, or a wanted one is missing.
    """
    source = source_of(source)
    layout, wells = _read(source, None, labels=False)
    known = sorted(set(wells.experiment), key=natural_key)
    for experiment in experiments:
        if experiment not in known:
            raise InputError(f"{source.address()}: there is no experiment {experiment!r}; there are {', '.join(known)}")
    wanted = wells[wells.experiment.isin(list(experiments))] if experiments else wells
    return tuple(replace(plate, labelled=False) for plate in _plates(layout, wanted, frozenset()))


def _read(source: ScreenSource, cell_types: Sequence[str] | None, labels: bool) -> tuple[Layout, pd.DataFrame]:
    """The layout of a screen and the checked wells of all its tables, treatments first."""
    source.check()
    try:
        names = {facts.name for facts in source.list_files()}
    except UnreadableError as error:
        raise InputError(f"{source.address()}: cannot be listed ({error.reason})") from None
    # The tables of the Kaggle layout win: a screen in that layout may keep a metadata.csv of its own.
    needed = {"train.csv"} if labels else {"train.csv", "test.csv"}
    layout = RXRX if RXRX.tables[0] in names and not names & needed else KAGGLE
    tables = layout.read(source, names, cell_types, labels)
    wells = pd.concat([table.wells for table in tables], keys=range(len(tables)), names=["file", "line"]).reset_index()
    if wells.empty:
        raise InputError(f"{source.address()}: the screen is empty, its tables have no wells")
    wells = wells.sort_values("role", key=lambda kind: kind != "treatment", kind="stable", ignore_index=True)
    check = _Checks(layout, source, [table.faults for table in tables], wells)
    check.unique()
    check.experiments()
    if labels:
        check.labels()
    check.finish()
    return layout, wells


def _read_file(
    source: ScreenSource, name: str, columns: Sequence[str], id_column: str
) -> tuple[pd.DataFrame, TableFaults]:
    """A table of the screen as text."""
    try:
        (content,) = source.read_many([name])
    except UnreadableError as error:
        raise InputError(f"{source.address(name)}: cannot be read ({error.reason})") from None
    table = read_table(content, source.address(name), columns)
    return table, TableFaults(source.address(name), table, id_column)


def _typed(table: pd.DataFrame, faults: TableFaults, id_column: str, cell_types: Sequence[str] | None) -> pd.DataFrame:
    """The columns that every layout has, as `WellTable` describes them; adds the faults of single fields."""
    experiment, plate, well = table["experiment"], table["plate"], table["well"]
    faults.require([id_column, "experiment", "plate", "well"])
    matches = {name: _EXPERIMENT.fullmatch(name) for name in experiment.unique()}
    cell_type = experiment.map({name: match[1] for name, match in matches.items() if match})
    known_form = cell_type.notna()
    faults.add("experiment", ~known_form, "expected CELLTYPE-NUMBER, for example HUVEC-01")
    if cell_types is not None:
        unknown = known_form & ~cell_type.isin(list(cell_types))
        known = f"known are {', '.join(cell_types)} (screen.cell_types)"
        texts = cell_type[unknown].map(lambda name: f"of the unknown cell type {name!r}; {known}")
        faults.add("experiment", unknown, texts)
    numbered = plate.isin([text for text in plate.unique() if _PLATE.fullmatch(text)])
    faults.add("plate", ~numbered, "expected a whole number from 1")
    placed = well.isin([text for text in well.unique() if is_well_name(text)])
    faults.add("well", ~placed, "expected a row A-P and a column 01-24, for example B03")
    expected = experiment + "_" + plate + "_" + well
    other = (table[id_column] != expected) & known_form & numbered & placed
    faults.add(id_column, other, expected[other].map(lambda id_code: f"experiment, plate and well make {id_code}"))
    return pd.DataFrame(
        {
            "id_code": table[id_column],
            "experiment": experiment,
            "cell_type": cell_type,
            "plate": plate,
            "well": well,
        }
    )


def _read_kaggle(
    source: ScreenSource, names: Collection[str], cell_types: Sequence[str] | None, labels: bool
) -> list[WellTable]:
    common = ["id_code", "experiment", "plate", "well"]
    label = ["sirna"] if labels else []
    files: dict[str, tuple[Split, list[str]]] = {}
    if labels or "train.csv" in names or "test.csv" not in names:
        files["train.csv"] = "train", label
    # A sirna column of test.csv would be the truth of unlabelled wells: it is not read.
    files |= {"test.csv": ("test", []), "train_controls.csv": ("train", [*label, "well_type"])}
    files["test_controls.csv"] = "test", [*label, "well_type"]
    tables = []
    for name, (split, columns) in files.items():
        if name != "train.csv" and name not in names:
            continue
        table, faults = _read_file(source, name, [*common, *columns], "id_code")
        wells = _typed(table, faults, "id_code", cell_types)
        faults.require(columns)
        if "well_type" in columns:
            faults.require_one_of(["well_type"], _CONTROLS, f"expected {' or '.join(_CONTROLS)}")
        faults.check()
        wells["split"] = split
        wells["role"] = table["well_type"] if "well_type" in columns else "treatment"
        wells["perturbation"] = table["sirna"].astype(object) if "sirna" in columns else None
        tables.append(WellTable(wells, faults))
    return tables


def _read_rxrx(
    source: ScreenSource, _: Collection[str], cell_types: Sequence[str] | None, labels: bool
) -> list[WellTable]:
    """The column sirna, the manufacturer's number, is not read.

    The release gives the labels of unlabelled treatments too: the truth that predictions are compared with. They stay unread.
    """
    of_well = ["dataset", "well_type", *(["sirna_id"] if labels else [])]
    columns = ["well_id", "experiment", "plate", "well", "cell_type", "site", *of_well]
    table, faults = _read_file(source, "metadata.csv", columns, "well_id")
    wells = _typed(table, faults, "well_id", cell_types)
    faults.require(["cell_type", "site", "dataset", "well_type"])
    faults.require_one_of(["dataset"], get_args(Split), "expected train or test")
    faults.require_one_of(["well_type"], _ROLES, f"expected {' or '.join(_ROLES)}")
    other = wells["cell_type"].notna() & (table["cell_type"] != wells["cell_type"])
    texts = wells["cell_type"][other].map(lambda name: f"expected {name}, as the experiment's name begins")
    faults.add("cell_type", other, texts)
    site = table["site"]
    faults.add("site", ~site.isin([s for s in site.unique() if _SITE.fullmatch(s)]), "expected a whole number from 1")
    faults.check()
    faults.add("site", table.duplicated(["well_id", "site"]), "the site appears twice: remove one of the rows")
    wells["split"], wells["role"] = table["dataset"], table["well_type"]
    wells["perturbation"] = None
    if labels:
        shown = (table["dataset"] != "test") | (table["well_type"] != "treatment")
        missing = shown & table["sirna_id"].str.lower().isin(ABSENT)
        faults.add("sirna_id", missing, "it is empty: fill it in or remove the row")
        wells["perturbation"] = table["sirna_id"].astype(object).where(shown, None)
        table = table.assign(sirna_id=table["sirna_id"].where(shown, ""))
    first = table.index.to_series().groupby(table["well_id"]).transform("first")
    for field in of_well:
        differs = table[field] != first.map(table[field])
        texts = first[differs].map(lambda line: f"another site of the well differs, line {line}: correct one of them")
        faults.add(field, differs, texts)
    faults.check()
    return [WellTable(wells[~wells["id_code"].duplicated()], faults)]


KAGGLE = Layout(
    tables=("train.csv", "test.csv", "train_controls.csv", "test_controls.csv"),
    folders={"train": "train", "test": "test"},
    treatments={"train": "train.csv", "test": "test.csv"},
    id_column="id_code",
    label="sirna",
    read=_read_kaggle,
)
RXRX = Layout(
    tables=("metadata.csv",),
    folders={"train": "images", "test": "images"},
    treatments={"train": "metadata.csv", "test": "metadata.csv"},
    id_column="well_id",
    label="sirna_id",
    read=_read_rxrx,
)
FOLDERS = sorted({folder for layout in (KAGGLE, RXRX) for folder in layout.folders.values()})
"""Folders of images of either layout."""
TABLES = frozenset(KAGGLE.tables + RXRX.tables)
"""Tables of either layout; a screen may hold other files."""


class _Checks:
    """The conditions on the wells of a screen together. Collects faults for each file; `finish` raises them.

    Args:
        layout: the screen's form.
        source: the screen.
        faults: the faults of each file.
        wells: the wells of all files, with the columns `file`, position among the files, and `line`.
    """

    def __init__(
        self, layout: Layout, source: ScreenSource, faults: Sequence[TableFaults], wells: pd.DataFrame
    ) -> None:
        self._layout, self._source, self._faults, self._wells = layout, source, faults, wells

    def finish(self) -> None:
        """Raises InputError for the first file that has faults."""
        for faults in self._faults:
            faults.check()

    def unique(self) -> None:
        """Each well appears once in all tables."""
        again = self._wells["id_code"].duplicated()
        first = self._first("id_code") if again.any() else {}
        for well in self._rows(again):
            place = self._place(first[well.id_code])
            self._add(well, self._layout.id_column, f"the well appears twice, first in {place}; remove one of the rows")

    def experiments(self) -> None:
        """Each experiment has treatments in one half of the tables, and nothing in the other."""
        wells = self._wells
        treated = wells[wells["role"] == "treatment"].drop_duplicates("experiment")
        half = wells["experiment"].map(treated.set_index("experiment")["split"])
        for well in self._rows(half.isna()):
            table = self._source.address(self._layout.treatments[well.split])
            advice = f"it has controls but no treatment well in {table}; add its treatments or remove its controls"
            self._add(well, "experiment", advice)
        for well in self._rows(half.notna() & (half != wells["split"])):
            advice = (
                f"it is in the {well.split} half of the screen, but its treatments are in the {half[well.Index]} half"
            )
            self._add(well, "experiment", f"{advice}; an experiment is either labelled or not")

    def labels(self) -> None:
        """A perturbation has one well type, controls of unlabelled experiments are known, and no label is a slip."""
        field, perturbation, kind = self._layout.label, self._wells["perturbation"], self._wells["role"]
        labelled, control = perturbation.notna(), kind != "treatment"
        for well in self._rows(labelled & ~perturbation.map(is_label, na_action="ignore").fillna(True).astype(bool)):
            self._add(well, field, f"expected at most {LONGEST_LABEL} printable characters")
        first = self._first("perturbation")
        for well in self._rows(
            labelled & (kind != perturbation.map({label: row.role for label, row in first.items()}))
        ):
            other = first[well.perturbation]
            advice = f"a {well.role} here and a {other.role} in {self._place(other)}; a label has one role"
            self._add(well, field, advice)

        trained = perturbation[labelled & control & (self._wells["split"] == "train")].unique()
        hint = "correct the label" if len(trained) else "add the controls of labelled experiments"
        for well in self._rows(labelled & (self._wells["split"] == "test") & ~perturbation.isin(trained)):
            self._add(well, field, f"an unknown label: no training control has it; {hint}")

        # A label in one well alone, if the others are in every experiment, is a slip.
        count = perturbation[labelled & ~control].value_counts()
        usual = int(count.sort_values().iloc[len(count) // 2]) if len(count) else 0
        if usual >= LEAST_USUAL_WELLS:
            advice = f"an unknown label: no other well has it, and most labels are in {usual} wells"
            for well in self._rows(labelled & ~control & perturbation.isin(count.index[count == 1])):
                self._add(well, field, f"{advice}; correct the label or remove the row")

    def _rows(self, chosen: pd.Series[bool]) -> Iterator[Any]:
        """Some rows of the wells, as named tuples."""
        return self._wells[chosen].itertuples()

    def _first(self, column: str) -> dict[str, Any]:
        """The first row of each value of a column."""
        rows = self._wells[self._wells[column].notna()].drop_duplicates(column)
        return {getattr(row, column): row for row in rows.itertuples()}

    def _place(self, well: Any) -> str:
        return f"{self._faults[well.file].name} line {well.line}"

    def _add(self, well: Any, field: str, advice: str) -> None:
        self._faults[well.file].add_at(well.line, field, advice)


def _vocabulary(wells: pd.DataFrame) -> Vocabulary:
    """The screen's classes, in natural order of their labels."""
    labels = wells[wells["perturbation"].notna()].groupby("role")["perturbation"].unique()
    treatments, positives, negatives = (tuple(sorted(labels.get(kind, ()), key=natural_key)) for kind in _ROLES)
    return Vocabulary(treatments=treatments, positives=positives, negatives=negatives)


def _plates(layout: Layout, wells: pd.DataFrame, holdout: Collection[str]) -> tuple[Plate, ...]:
    """The plates: experiments in natural order, numbers ascending, wells in row-major order."""
    wells = wells.sort_values("well", ignore_index=True)
    all_wells = list(map(Well, *(wells[column].tolist() for column in ("id_code", "well", "role", "perturbation"))))
    plates = []
    for rows in wells.groupby(["experiment", "plate"], sort=False).indices.values():
        first: Any = next(wells.iloc[rows[:1]].itertuples())
        plates.append(
            Plate(
                experiment=first.experiment,
                plate=first.plate,
                cell_type=first.cell_type,
                labelled=first.split == "train",
                holdout=first.experiment in holdout,
                folder=f"{layout.folders[first.split]}/{first.experiment}/Plate{first.plate}",
                wells=tuple(all_wells[row] for row in rows),
            )
        )
    return tuple(sorted(plates, key=lambda plate: (natural_key(plate.experiment), natural_key(plate.plate))))
