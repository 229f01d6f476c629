"""What the readers of all layouts share: the reading in progress, with its tables and faults, and the form of what they return.

A reader returns one table, `Rows`: a row a site, or a row a well without images. Nothing behind it knows the layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, KeysView, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from components.core.config import ScreenConfig
from components.core.errors import InputError
from components.core.screen.layouts.control_words import is_empty, is_like_control, is_negative
from components.core.screen.screen_source import ScreenSource, UnreadableError
from components.core.screen.wells import LONGEST_LABEL, Plane, is_label, natural_key, well_name
from components.core.storage.manifest import Role
from components.core.tables import ABSENT, Finding, TableFaults, read_table

KEY = ["experiment", "plate", "well"]
"""What identifies a well."""
OF_WELL = ("role", "perturbation", "cell_type")
"""What is a well's, not a site's, beside KEY."""
KEPT = 1 << 28
"""Bytes of files that are kept; larger tables whose name does not say what they are, such as CellProfiler's Cells.csv, are not
opened."""
LISTINGS = 12
"""Folders listed in parallel: in a bucket each takes several requests."""

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("treatment", "treated", "trt", "compound", "sample", "test"), "treatment"),
    **dict.fromkeys(
        ("negative_control", "negcon", "negative", "neg", "control_negative", "vehicle"), "negative_control"
    ),
    **dict.fromkeys(("positive_control", "poscon", "positive", "pos", "control_positive"), "positive_control"),
}
_DATED = re.compile(r"(.+?)(?:[-_ ]\d[\w.]*)+")
_WHOLE = re.compile(r"[A-Za-z_ ]*(\d{1,6})(?:\.0*)?")
_NUMBERED = re.compile(r"(.+)-[A-Za-z0-9._]+")


@dataclass(slots=True)
class Reading:
    """A screen being read."""

    source: ScreenSource
    config: ScreenConfig
    labels: bool  # whether labels are read
    images: bool  # whether folders are listed for images
    cell_types: tuple[str, ...] | None  # known ones; None for any
    sizes: Mapping[str, int]  # bytes of the files directly in the screen's folder
    experiments: Sequence[str] = ()  # the wanted ones; none for all
    faults: list[TableFaults] = field(default_factory=list)  # of the tables read so far; `file` in Rows counts them
    findings: list[Finding] = field(default_factory=list)  # what concerns no single row
    tables: list[str] = field(default_factory=list)  # paths of the tables read so far
    layout: str = ""  # name of the layout in which it is read
    missing: bool = False  # whether something that was reported explains that wells or sites lack images
    _paths: list[str] | None = None
    _headers: dict[str, list[str]] = field(default_factory=dict)
    _kept: dict[str, bytes] = field(default_factory=dict)
    """Files that were read, the last ones, up to KEPT bytes: a table is looked at by several layouts."""

    @property
    def names(self) -> KeysView[str]:
        """The files directly in the screen's folder."""
        return self.sizes.keys()

    def paths(self) -> list[str]:
        """Paths of all files, sorted; they are listed once."""
        if self._paths is None:
            self._paths = sorted(facts.name for facts in self.source.list_trees([""]))
        return self._paths

    def content(self, path: str) -> bytes:
        """The bytes of a file. InputError if it cannot be read."""
        if path not in self._kept:
            try:
                self._kept[path] = self.source.read_many([path])[0]
            except UnreadableError as error:
                raise InputError(f"{self.source.address(path)}: cannot be read ({error.reason})") from None
        content = self._kept[path]
        while sum(map(len, self._kept.values())) > KEPT:
            del self._kept[next(iter(self._kept))]
        return content

    def header(self, path: str) -> list[str]:
        """The columns of a table; none if it is no table."""
        if path not in self._headers:
            try:
                self._headers[path] = list(read_table(self.content(path), path, (), records=False).columns)
            except InputError:
                self._headers[path] = []
        return self._headers[path]

    def table(self, path: str, needed: Sequence[str] = (), id_column: str | None = None) -> pd.DataFrame:
        """A table as text, with the columns `file` and `line`; its faults are the last of `faults`.

        `id_column` names a row in messages; None is the first column.
        """
        name = self.source.address(path)
        table = read_table(self.content(path), name, needed)
        self.tables.append(path)
        self.faults.append(TableFaults(name, table, id_column or str(table.columns[0])))
        return table

    def chosen(self, wells: pd.DataFrame) -> pd.DataFrame:
        """The rows of the wanted experiments. InputError if one of them is missing."""
        known = sorted(set(wells["experiment"]), key=natural_key)
        for experiment in self.experiments:
            if experiment not in known:
                there = f"there is no experiment {experiment!r}; there are {', '.join(known)}"
                raise InputError(f"{self.source.address()}: {there}")
        if not self.experiments:
            return wells
        return wells[wells["experiment"].isin(list(self.experiments))].reset_index(drop=True)

    def warn(self, what: str, places: Iterable[str] = ()) -> None:
        """Records what is doubtful."""
        self._found(Finding(False, what, tuple(places)))

    def refuse(self, what: str, places: Iterable[str] = ()) -> None:
        """Records what is wrong."""
        self._found(Finding(True, what, tuple(places)))

    def _found(self, finding: Finding) -> None:
        """Records a finding; of several tables that say the same, once."""
        for n, other in enumerate(self.findings):
            if other[:2] == finding[:2]:
                places = dict.fromkeys((*other.places, *finding.places))
                self.findings[n] = finding._replace(places=tuple(places))
                return
        self.findings.append(finding)


class Layout(NamedTuple):
    """A form of screen.

    `found` says whether the names of the files and folders directly in the screen's folder look like it, `read` reads it.
    """

    name: str
    found: Callable[[Reading], bool]
    read: Callable[[Reading], Rows]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What a layout returns."""

    # a row a site. Columns: `file` (index into Reading.faults) and `line`; `experiment`, `plate`, `well`, text; `site`,
    # its number, 0 in the only row of a well without images; `role`; `perturbation`, None if unlabelled or unread;
    # `cell_type`; `labelled`, whether the labels of the experiment's treatments are known; `channel 0`, `channel 1`,
    # ..., tuples of Plane, empty where a channel is missing; and the screen's own columns, named by `own_column`.
    sites: pd.DataFrame
    channels: tuple[str, ...]
    looked_for: str = ""  # form of a file's path, for messages about missing ones
    fields: dict[str, str] = field(default_factory=dict)  # names in the tables of our fields, for messages
    per_well: bool = True  # whether a line of the tables is a well; else it is a site
    strict: bool = False  # whether a label that is in one well alone is refused

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the screen's own columns."""
        return tuple(column.removeprefix(own_column("")) for column in named_own(self.sites))


def own_column(name: str) -> str:
    """Name in `Rows.sites` of one of the screen's own columns, which may be called like one of ours."""
    return f"own {name}"


def named_own(table: pd.DataFrame) -> list[str]:
    """The columns of a table of wells or sites that are the screen's own."""
    return [column for column in table.columns if column.startswith(own_column(""))]


def own_columns(table: pd.DataFrame, known: Collection[str]) -> pd.DataFrame:
    """The columns of a table that are the screen's own, as they are named in `Rows.sites`."""
    own = [column for column in table.columns if column not in known]
    return table[own].rename(columns=own_column)


def fill_channels(table: pd.DataFrame) -> list[str]:
    """Gives rows without planes of a channel an empty tuple, in place; returns the channels' columns."""
    columns = [column for column in table.columns if column.startswith("channel ")]
    for column in columns:
        table[column] = [planes if isinstance(planes, tuple) else () for planes in table[column]]
    return columns


def channel_columns(channels: Sequence[object]) -> list[str]:
    """Names of the channels' columns in `Rows.sites`."""
    return [f"channel {c}" for c in range(len(channels))]


def with_planes(sites: pd.DataFrame, planes: Sequence[Sequence[tuple[Plane, ...]]]) -> pd.DataFrame:
    """The rows with the channels' columns; `planes` are of each channel those of each row."""
    columns = dict(zip(channel_columns(planes), planes, strict=True))
    return pd.concat([sites, pd.DataFrame(columns, index=sites.index, dtype=object)], axis=1)


def name_wells(wells: pd.Series[str], faults: TableFaults, column: str) -> pd.Series[Any]:
    """Well names in their standard form, B03; records the others, which become None."""
    named = {text: well_name(text) for text in wells.unique()}
    found = wells.map(named)
    faults.add(column, found.isna(), "expected a row A-AF and a column 1-48, for example B03")
    return found


def whole_numbers(
    table: pd.DataFrame, column: str, faults: TableFaults, least: int = 0, absent: int | None = None
) -> pd.Series[int]:
    """The whole numbers of a column, also as `3.0`, `f03` or `Site 3`; records the others, whose rows get `least`.

    `absent` is the number of an empty cell, or of one that says that the value is missing; None records these, too.
    """
    found: dict[str, int] = {}
    for text in table[column].unique():
        match = _WHOLE.fullmatch(text)
        if match and int(match[1]) >= least:
            found[text] = int(match[1])
        elif absent is not None and text.lower() in ABSENT:
            found[text] = absent
    wrong = ~table[column].isin(list(found))
    faults.add(column, wrong, f"expected a whole number from {least}{'' if absent is None else ', or nothing'}")
    return table[column].map(found).fillna(least).astype(int)


def are_whole(texts: pd.Series[str]) -> bool:
    """Whether all texts that are there are such numbers, and there is one."""
    there = [text for text in texts.unique() if text.lower() not in ABSENT]
    return bool(there) and all(_WHOLE.fullmatch(text) for text in there)


def check_texts(table: pd.DataFrame, faults: TableFaults, columns: Iterable[str]) -> None:
    """Records values that are too long or hold control characters."""
    for column in columns:
        wrong = [text for text in table[column].unique() if not is_label(text)]
        faults.add(column, table[column].isin(wrong), f"expected at most {LONGEST_LABEL} printable characters")


def is_absent(values: pd.Series[str]) -> pd.Series[bool]:
    """Which values are missing."""
    return values.str.lower().isin(ABSENT)


def role_of(text: str) -> Role | None:
    """The role that a table's text means; None for one that is neither treatment nor control."""
    word = text.strip().lower().replace(" ", "_").replace("-", "_")
    return _ROLES.get(word) or next((_ROLES[start] for start in ("poscon", "negcon") if word.startswith(start)), None)


def find_roles(reading: Reading, roles: pd.Series[str], wells: pd.Series[str], what: str = "role") -> pd.Series[Any]:
    """Roles in our words; None, and counted in a warning, for wells of any other role.

    Args:
        reading: receives the warning.
        roles: texts of the table.
        wells: names of the wells, for the warning.
        what: the column's name.
    """
    found = roles.map({text: role_of(text) for text in roles.unique()})
    other = found.isna()
    if other.any():
        words = ", ".join(sorted(f"{word!r}" for word in roles[other].unique())[:5])
        count = wells[other].nunique()
        reading.warn(
            f"{count} well{'s' if count > 1 else ''} left out: neither treatment nor control ({what} {words})",
            dict.fromkeys(wells[other]),
        )
    return found


def roles_by_label(reading: Reading, labels: pd.Series[Any]) -> pd.Series[Any]:
    """Roles where no table says them: by the labels that the configuration names as controls, or by their usual names."""
    config = reading.config
    words = {text.lower() for text in config.negative_controls}
    positive = {text.lower() for text in config.positive_controls}
    roles: dict[str, Role | None] = {}
    for label in map(str, labels.dropna().unique()):
        low = label.lower()
        if low in positive:
            roles[label] = "positive_control"
        elif low in words or (not words and is_negative(label)):
            roles[label] = "negative_control"
        else:
            roles[label] = None if is_empty(label) else "treatment"
    empty = labels.map(roles, na_action="ignore").isna() & labels.notna()
    if empty.any():
        names = ", ".join(sorted(map(str, labels[empty].unique())))
        reading.warn(f"rows of wells without a treatment are left out ({names})", [f"{empty.sum()} rows"])
    like = sorted(label for label, role in roles.items() if role == "treatment" and is_like_control(label))
    if like:
        reading.warn(
            "labels that look like controls are treatments: if they are controls, name them in screen.negative_controls",
            like,
        )
    negative = sorted(label for label, role in roles.items() if role == "negative_control")
    if negative and not config.negative_controls:
        reading.warn(
            f"no table says roles: {', '.join(negative)} is taken as negative control (screen.negative_controls)"
        )
    return pd.Series([roles.get(label, "treatment") for label in labels], index=labels.index, dtype=object)


def check_agreement(
    reading: Reading, rows: pd.DataFrame, columns: Mapping[str, str], fields: Sequence[str] = OF_WELL
) -> None:
    """Adds faults for rows that say something else of their well than its first row does.

    Args:
        reading: receives the faults.
        rows: a row a site, or a plane of it, with the columns file, line, KEY and `fields`.
        columns: the table's columns by our fields.
        fields: those that all rows of a well share.
    """
    wells = rows.groupby(KEY, sort=False)
    files, lines = wells["file"].transform("first"), wells["line"].transform("first")
    for name in fields:
        # Not the group's "first", which passes over missing values.
        first = rows.drop_duplicates(KEY).set_index(KEY)[name].reindex(pd.MultiIndex.from_frame(rows[KEY]))
        differs = rows[name].fillna("").to_numpy() != first.fillna("").to_numpy()
        for n in differs.nonzero()[0]:
            file, other, line = rows["file"].iloc[n], files.iloc[n], lines.iloc[n]
            place = f"line {line}" if file == other else f"{reading.faults[other].name} line {line}"
            advice = "another row of the well differs: correct one of them"
            reading.faults[file].add_at(rows["line"].iloc[n], columns.get(name, name), advice, f"not as in {place}")


def cell_types_of(reading: Reading, experiments: Iterable[str]) -> dict[str, str | None]:
    """Cell types where no column says them; None for experiments of which nothing does.

    That is the only one of the configuration, or one of several with which all names of experiments begin. Of RxRx1's releases
    names are taken apart (`HUVEC-01`); elsewhere a name is a batch's, of any words and dates.
    """
    known = reading.cell_types
    if reading.layout not in ("kaggle", "rxrx"):
        return _configured_cells(known or reading.config.cell_types, list(experiments))
    types: dict[str, str | None] = {}
    for name in experiments:
        starts = [each for each in known or () if name.startswith(f"{each}-")]
        if starts:
            types[name] = max(starts, key=len)
        elif known is not None and len(known) == 1 and not _other_cells(name, known[0]):
            types[name] = known[0]
        else:
            match = _DATED.fullmatch(name) or _NUMBERED.fullmatch(name)
            types[name] = match[1] if match else None
    return types


def _configured_cells(known: Sequence[str], experiments: Sequence[str]) -> dict[str, str | None]:
    """The configured cell types of experiments: the only one, or one with which each name begins."""
    starts = {
        name: [each for each in known if re.match(rf"{re.escape(each)}(?:[-_ .]|$)", name)] for name in experiments
    }
    found = {name: max(of_name, key=len, default=None) for name, of_name in starts.items()}
    if all(found.values()):
        return dict(found)
    single = len(known) == 1 and not any(_other_cells(name, known[0]) for name in experiments)
    return dict.fromkeys(experiments, known[0] if single else None)


def check_cell_types(found: pd.Series[Any], known: Sequence[str], faults: TableFaults, column: str) -> None:
    """Records cell types that the configuration does not name."""
    unknown = found.notna() & ~found.isin(list(known))
    words = f"known are {', '.join(known)} (screen.cell_types)"
    faults.add(
        column, unknown, f"an unknown cell type; {words}", found[unknown].map(lambda name: f"cell type {name!r}")
    )


def _other_cells(experiment: str, only: str) -> bool:
    """Whether an experiment's name begins with another of RxRx1's cell types."""
    return any(experiment.startswith(f"{each}-") for each in ScreenConfig().cell_types if each != only)
