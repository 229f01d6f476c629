"""The conditions on a screen's wells and sites together, and the Screen that they make. The same for every layout."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import pandas as pd

from components.core.errors import InputError, one_line, shortened
from components.core.screen.layouts.reading import KEY, Reading, Rows, channel_columns, own_column
from components.core.screen.wells import Plate, Screen, Site, Well, natural_key, well_key
from components.core.storage.manifest import ROLES, Vocabulary

LEAST_USUAL_WELLS = 4
"""Wells of the median treatment from which on a label seen once is a slip; smaller screens may miss a well by chance."""
_RARELY = 0.1
"""Share of a plate's wells up to which a site counts as missing in them; else wells differ in their number of sites by design."""


def check_rows(reading: Reading, rows: Rows) -> Rows:
    """Checks the rows of a screen's tables and images; leaves out sites and wells as configured.

    Faults of rows go to the tables' faults, others to the findings of `reading`; `raise_all` raises them.

    Raises:
        InputError: there are no wells at all.
    """
    sites = rows.sites
    if sites.empty:
        if any(len(faults) for faults in reading.faults) or any(finding.wrong for finding in reading.findings):
            return rows  # its faults are those
        raise InputError(f"{reading.source.address()}: the screen is empty, its tables have no wells")
    checks = _Checks(reading, rows)
    checks.unique()
    checks.cell_types()
    if reading.labels:
        checks.labels()
    if reading.images:
        sites = _with_images(reading, rows)
    return replace(rows, sites=sites)


def raise_all(reading: Reading) -> None:
    """Raises InputError for everything that is wrong, the first table's faults first, with the number of the others."""
    errors = [finding for finding in reading.findings if finding.wrong]
    faulty = [faults for faults in reading.faults if len(faults)]
    if not faulty and not errors:
        return
    others = [f"{len(faults)} in {faults.name}" for faults in faulty[1:]]
    if faulty:
        end = [*others, *([f"{len(errors)} that concern{'s' if len(errors) == 1 else ''} no row"] if errors else [])]
        try:
            faulty[0].check()
        except InputError as error:
            tail = f" | further faults: {', '.join(end)}; cellsignal check-screen lists them all" if end else ""
            raise InputError(f"{error}{tail}") from None
    raise InputError(f"{reading.source.address()}: {one_line([str(error) for error in errors])}")


class _Checks:
    """The conditions on all rows; each condition adds its faults to those of the row's table."""

    def __init__(self, reading: Reading, rows: Rows) -> None:
        self._reading, self._rows, self._sites = reading, rows, rows.sites
        # One row a line of the tables and well: a line has all sites of a well, and may be for several plates.
        self._lines = rows.sites.drop_duplicates(["file", "line", *KEY])
        self._wells = rows.sites.drop_duplicates(KEY)

    def unique(self) -> None:
        """Each well appears once in all tables; sites of tables that have a row each are checked when their planes are sorted."""
        again = self._lines.duplicated(KEY)
        if self._rows.per_well and again.any():
            first = {tuple(row[name] for name in KEY): row for _, row in self._lines[~again].iterrows()}
            for row in self._each(self._lines[again]):
                place = self._place(first[tuple(getattr(row, name) for name in KEY)])
                self._add(
                    row,
                    "id_code" if self._rows.strict else "well",
                    "the well appears twice: remove one of the rows",
                    f"first in {place}",
                )

    def cell_types(self) -> None:
        """An experiment has one cell type: its networks and folds are those of the type."""
        types = self._wells.groupby("experiment", sort=False)["cell_type"].agg(lambda each: sorted(set(each.dropna())))
        mixed = types[types.map(len) > 1]
        if len(mixed):
            experiment, names = str(mixed.index[0]), mixed.iloc[0]
            self._reading.refuse(
                f"experiment{'s' if len(mixed) > 1 else ''} of several cell types, and one is expected: give the wells of each "
                f"cell type an experiment of their own in the tables' column experiment, for example {experiment}-{names[0]} and "
                f"{experiment}-{names[1]}",
                [f"{name}: {', '.join(each)}" for name, each in mixed.items()],
            )

    def labels(self) -> None:
        """A perturbation has one role, controls of unlabelled experiments are known, and no label is a slip."""
        wells = self._wells
        labelled, treated = wells["perturbation"].notna(), wells["role"] == "treatment"
        first = wells[labelled].drop_duplicates("perturbation").set_index("perturbation")
        for row in self._each(wells[labelled & (wells["role"] != wells["perturbation"].map(first["role"]))]):
            other = first.loc[row.perturbation]
            advice = f"a {row.role} here and a {other['role']} in another row; a label has one role"
            self._add(row, "perturbation", advice, f"other than in {self._place(other)}")
        if self._rows.strict:
            self._known_controls(wells, labelled & ~treated)
        names = wells["perturbation"].dropna().astype(str).unique()
        alike = pd.Series(names).groupby([" ".join(name.casefold().split()) for name in names]).agg(list)
        pairs = [" and ".join(map(repr, each)) for each in alike if len(each) > 1]
        if pairs:
            self._reading.warn("labels that differ in case or blanks alone are two: write them in one way", pairs)
        # A label in one well alone, if the others are in every experiment, is a slip.
        count = wells["perturbation"][labelled & treated].value_counts()
        usual = int(count.sort_values().iloc[len(count) // 2]) if len(count) else 0
        if usual >= LEAST_USUAL_WELLS:
            advice = f"no other well has it, and most labels are in {usual} wells"
            once = wells[labelled & treated & wells["perturbation"].isin(count.index[count == 1])]
            if self._rows.strict:
                for row in self._each(once):
                    self._add(row, "perturbation", f"an unknown label: {advice}; correct the label or remove the row")
            elif len(once):
                places = [f"{self._place(row)}: {row['perturbation']!r}" for _, row in once.iterrows()]
                self._reading.warn(f"{_count(len(once), 'label')} in one well alone: {advice}", places)

    def _known_controls(self, wells: pd.DataFrame, controls: pd.Series[bool]) -> None:
        """Controls of unlabelled experiments are among those of labelled ones."""
        trained = wells[controls & wells["labelled"]]
        unknown = wells[controls & ~wells["labelled"] & ~wells["perturbation"].isin(trained["perturbation"].unique())]
        slips = unknown["role"].isin(trained["role"].unique())
        for row in self._each(unknown[slips]):
            self._add(row, "perturbation", "an unknown label: no training control has it; correct the label")
        for role, rows in unknown[~slips].groupby("role"):
            places = [f"{self._place(row)}: {row['perturbation']!r}" for _, row in rows.iterrows()]
            self._reading.warn(f"labelled experiments have no {role}, unlabelled ones have", places)

    @staticmethod
    def _each(rows: pd.DataFrame) -> Iterator[Any]:
        return rows.itertuples()

    def _place(self, row: Any) -> str:
        return f"{self._reading.faults[row['file']].name} line {row['line']}"

    def _add(self, row: Any, field: str, advice: str, detail: str = "") -> None:
        self._reading.faults[row.file].add_at(row.line, self._rows.fields.get(field, field), advice, detail)


def _with_images(reading: Reading, rows: Rows) -> pd.DataFrame:
    """The rows that have images; reports wells without any, sites that lack channels, and sites that wells lack."""
    sites, columns = rows.sites, channel_columns(rows.channels)
    drop = reading.config.missing_images == "drop"
    bare = sites["site"] == 0
    lacking = pd.DataFrame({column: ~sites[column].astype(bool) for column in columns})
    partial = ~bare & lacking.any(axis=1)
    names = _names(sites)
    incomplete = bare.copy()
    if partial.any():
        incomplete |= names.isin(names[partial])
    advice = "add them, take the wells out of the tables, or set screen.missing_images to drop"
    if bare.any():
        words = f"{_count(int(bare.sum()), 'well')} of {names.nunique()} without images"
        if drop:
            reading.warn(f"{words} left out (screen.missing_images)", names[bare])
        elif bare.all() and not reading.missing:
            reading.refuse(f"no images found: {rows.looked_for}")
        elif not reading.missing:
            reading.refuse(f"{words} ({rows.looked_for}): {advice}", names[bare])
    # Of a screen whose sites are all incomplete, another number of channels was reported already.
    explained = reading.missing and not drop
    if partial.any() and not explained and not (partial[~bare].all() and any(each.wrong for each in reading.findings)):
        texts = []
        for row in sites.index[partial]:
            absent = [name for name, column in zip(rows.channels, columns, strict=True) if lacking[column][row]]
            texts.append(f"{names[row]} site {sites['site'][row]} lacks {shortened(absent)}")
        words = f"{_count(int(partial.sum()), 'site')} without all of {len(rows.channels)} channels"
        if drop:
            reading.warn(f"{words}: their wells left out (screen.missing_images)", texts)
        else:
            reading.refuse(f"{words}: {advice}", texts)
    kept = sites[~incomplete]
    if drop and kept.empty:
        raise InputError(f"{reading.source.address()}: no well has complete images: {rows.looked_for}")
    return _limited(reading, kept)


def _limited(reading: Reading, sites: pd.DataFrame) -> pd.DataFrame:
    """At most as many sites a well as configured; warns of sites that few wells of a plate lack."""
    most = reading.config.sites
    if most is not None:
        rank = sites.groupby(KEY, sort=False)["site"].rank(method="first")
        if (rank > most).any():
            found = int(rank.max())
            reading.warn(f"wells have up to {found} sites, the first {most} are read (screen.sites)")
            sites = sites[rank <= most]
    few = []
    for (experiment, plate), rows in sites.groupby(["experiment", "plate"], sort=False):
        wells = list(dict.fromkeys(rows["well"]))
        of_site = rows.groupby("site")["well"].agg(set)
        for site, having in of_site.items():
            missing = sorted(set(wells) - having, key=well_key)
            if missing and (len(missing) <= max(1, _RARELY * len(wells)) or len(of_site) <= 2):
                where = f"well{'s' if len(missing) > 1 else ''} {shortened(missing)}"
                few.append(f"{experiment} plate {plate}: site {site} is missing in {where}")
    if few:
        reading.warn("sites that some wells of their plate lack", few)
    return sites


def _names(sites: pd.DataFrame) -> pd.Series[str]:
    return sites["experiment"] + "_" + sites["plate"] + "_" + sites["well"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def make_screen(reading: Reading, rows: Rows, holdout: Collection[str] = ()) -> Screen:
    """The screen of checked rows: experiments and plates in natural order, wells in row-major order, sites ascending."""
    warnings = tuple(str(finding) for finding in reading.findings if not finding.wrong)
    vocabulary = _vocabulary(rows.sites)
    return Screen(_plates(rows, holdout), vocabulary, rows.columns, rows.channels, warnings, tuple(reading.tables))


def _vocabulary(sites: pd.DataFrame) -> Vocabulary:
    """The screen's classes, in natural order of their labels."""
    labels = sites[sites["perturbation"].notna()].groupby("role")["perturbation"].unique()
    treatments, positives, negatives = (tuple(sorted(labels.get(role, ()), key=natural_key)) for role in ROLES)
    return Vocabulary(treatments=treatments, positives=positives, negatives=negatives)


def _plates(rows: Rows, holdout: Collection[str]) -> tuple[Plate, ...]:
    """The plates: experiments and plates in natural order, wells in row-major order, sites ascending."""
    columns = channel_columns(rows.channels)
    order = {well: n for n, well in enumerate(sorted(rows.sites["well"].unique(), key=well_key))}
    sites = rows.sites.assign(row_major=rows.sites["well"].map(order)).sort_values(["row_major", "site"], kind="stable")
    plates = []
    for key, of_plate in sites.groupby(["experiment", "plate"], sort=False):
        experiment, plate = map(str, key)
        planes = list(zip(*(of_plate[column] for column in columns), strict=True)) or [()] * len(of_plate)
        extra = list(zip(*(of_plate[own_column(name)] for name in rows.columns), strict=True)) or [()] * len(of_plate)
        found: dict[str, list[Site]] = {}
        facts: dict[str, tuple[Any, Any, tuple[str, ...]]] = {}
        fields = zip(*(of_plate[name] for name in ("well", "site", "role", "perturbation")), planes, extra, strict=True)
        for well, site, role, perturbation, channels, more in fields:
            facts.setdefault(well, (role, perturbation, more))
            of_well = found.setdefault(well, [])
            if site:
                of_well.append(Site(site, channels))
        first = of_plate.iloc[0]
        plates.append(
            Plate(
                experiment=experiment,
                plate=plate,
                cell_type=first["cell_type"],
                labelled=bool(first["labelled"]),
                holdout=experiment in holdout,
                wells=tuple(
                    Well(f"{experiment}_{plate}_{well}", well, role, perturbation, tuple(found[well]), more)
                    for well, (role, perturbation, more) in facts.items()
                ),
            )
        )
    return tuple(sorted(plates, key=lambda each: (natural_key(each.experiment), natural_key(each.plate))))
