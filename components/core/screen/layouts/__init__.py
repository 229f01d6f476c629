"""A screen from its tables and the names of its images, in one of several layouts. Opens no image.

A layout is a small reader, a module here, that makes one typed table of sites (`Rows`) from its own files; checks.py checks it
and makes the Screen. Whatever follows knows no layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from components.core.config import ScreenConfig
from components.core.errors import InputError, shortened
from components.core.screen.layouts.checks import check_rows, make_screen, raise_all
from components.core.screen.layouts.files import FILES
from components.core.screen.layouts.kaggle import KAGGLE, TABLES, WELL_COLUMNS
from components.core.screen.layouts.loaddata import LOADDATA
from components.core.screen.layouts.microscopes import unread_formats
from components.core.screen.layouts.omezarr import OMEZARR
from components.core.screen.layouts.reading import Layout, Reading, Rows
from components.core.screen.layouts.rxrx import COLUMNS, RXRX
from components.core.screen.layouts.rxrx import TABLE as METADATA
from components.core.screen.layouts.samplesheet import SAMPLESHEET
from components.core.screen.screen_source import ScreenSource, UnreadableError, source_of
from components.core.screen.wells import Screen

LAYOUTS: tuple[Layout, ...] = (KAGGLE, RXRX, SAMPLESHEET, LOADDATA, OMEZARR, FILES)
"""In the order in which they are looked for: a screen in the Kaggle layout may keep a metadata.csv of its own."""


def read_screen(source: ScreenSource | Path, config: ScreenConfig, images: bool = True) -> Screen:
    """Reads and checks the tables of a screen, and finds its images by listing.

    Args:
        source: the screen; a path is a directory's.
        config: form of the screen, known cell types and held-out experiments.
        images: whether images are looked for; without, wells have no sites.

    Raises:
        InputError: there are no tables, a row is malformed, a well appears twice, a label contradicts another, images are
            missing, or a held-out experiment is not labelled. All faults of a table are in one line.
    """
    reading, rows = read_rows(source_of(source), config, config.cell_types, images=images)
    raise_all(reading)
    return make_screen(reading, rows, frozenset(config.holdout_experiments))


def read_new_plates(
    source: ScreenSource | Path,
    experiments: Sequence[str] = (),
    config: ScreenConfig | None = None,
    images: bool = True,
) -> Screen:
    """Reads and checks the tables of plates that are to be predicted; no label is read.

    Args:
        source: the plates; in the Kaggle layout test.csv or train.csv or both are enough.
        experiments: the wanted ones; none for all.
        config: form of the screen; its cell types do not limit those of the plates.
        images: whether images are looked for; without, wells have no sites.

    Returns:
        The plates, all of them as unlabelled, and an empty vocabulary.

    Raises:
        InputError: there are no tables, a row is malformed, a well appears twice, images are missing, or a wanted experiment is.
    """
    source = source_of(source)
    reading, rows = read_rows(
        source, config or ScreenConfig(), None, labels=False, images=images, experiments=experiments
    )
    raise_all(reading)
    screen = make_screen(reading, rows)
    return replace(screen, plates=tuple(replace(plate, labelled=False) for plate in screen.plates))


def read_rows(
    source: ScreenSource,
    config: ScreenConfig,
    cell_types: tuple[str, ...] | None,
    labels: bool = True,
    images: bool = True,
    experiments: Sequence[str] = (),
) -> tuple[Reading, Rows]:
    """Reads a screen in its layout and checks its rows; faults and findings are collected, not raised.

    Args:
        source: the screen.
        config: its form.
        cell_types: known ones; None for any.
        labels: whether labels are read.
        images: whether images are looked for.
        experiments: the wanted ones; none for all.

    Raises:
        InputError: the screen has no layout, or a table cannot be read at all.
    """
    reading = Reading(source, config, labels, images, cell_types, _sizes(source), experiments)
    layout = _choose(reading)
    reading.layout = layout.name
    passed = _passed_over(reading)
    try:
        rows = layout.read(reading)
    except InputError as error:
        if not passed:
            raise
        raise InputError(f"{error} | {'; '.join(passed)}; screen.layout chooses", error.places) from None
    for text in passed:
        reading.warn(f"{text}: layout {layout.name} is taken (screen.layout)")
    rows = check_rows(reading, rows)
    labelled = set(rows.sites["experiment"][rows.sites["labelled"]])
    whole = labels and not any(finding.wrong for finding in reading.findings)  # else images may be all that is missing
    for experiment in config.holdout_experiments if whole else ():
        if experiment not in labelled:
            advice = "is not a labelled experiment; correct its spelling or take it off the list"
            reading.refuse(f"screen.holdout_experiments: {experiment!r} {advice}")
    return reading, rows


def _passed_over(reading: Reading) -> list[str]:
    """Tables of other layouts: those that are called like RxRx1's and have other columns, or a sample sheet beside RxRx1's."""
    if reading.config.layout != "auto":
        return []
    if reading.layout in (KAGGLE.name, RXRX.name):
        return ["there is a table of layout samplesheet, too"] if SAMPLESHEET.found(reading) else []
    texts = [
        f"{name} is not of layout kaggle, whose columns are {', '.join(WELL_COLUMNS)}"
        for name in TABLES
        if name in reading.names
    ]
    if METADATA in reading.names and not {"well_id", "site_id"}.isdisjoint(reading.header(METADATA)):
        texts.append(f"{METADATA} is not of layout rxrx, whose columns are {', '.join(COLUMNS)}")
    return texts


def chosen_layout(source: ScreenSource, config: ScreenConfig) -> Layout:
    """The layout in which a screen is read. InputError if it has none."""
    return _choose(Reading(source, config, True, True, None, _sizes(source)))


def _sizes(source: ScreenSource) -> dict[str, int]:
    """The files directly in the screen's folder, and their bytes."""
    source.check()
    try:
        return {facts.name: facts.size for facts in source.list_files()}
    except UnreadableError as error:
        if source.list_folders():
            return {}  # a bucket's folder of folders alone
        raise InputError(f"{source.address()}: cannot be listed ({error.reason})") from None


def _choose(reading: Reading) -> Layout:
    """The configured layout, or the first that fits the folder's contents."""
    wanted = reading.config.layout
    if wanted != "auto":
        return next(layout for layout in LAYOUTS if layout.name == wanted)
    layout = next((layout for layout in LAYOUTS if layout.found(reading)), None)
    if layout is None:
        address, unread = reading.source.address(), unread_formats(reading.paths())
        if unread:
            raise InputError(f"{address}: {unread}: export the images as TIFF or OME-Zarr")
        there = shortened(sorted((*reading.names, *(f"{name}/" for name in reading.source.list_folders()))))
        raise InputError(
            f"{address}: no screen in a known layout: looked for images (.tif, .png, .jpg), OME-Zarr plates (PLATE.zarr), and the "
            f"tables samplesheet.csv, load_data.csv, train.csv and metadata.csv; there is {there or 'nothing'}"
        )
    return layout
