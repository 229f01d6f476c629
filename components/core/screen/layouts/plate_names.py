"""Plates that a plate map names otherwise than the folders or file names of their images: `1` and `P1`, `123` and `00123`."""

from __future__ import annotations

import re

import pandas as pd

from components.core.errors import shortened
from components.core.screen.layouts.reading import Reading
from components.core.screen.wells import natural_key

_NUMBERED = re.compile(r"(?:plate|pl|p)?[ _-]*0*(\d+)(?:\.0*)?")


def match_plates(reading: Reading, wells: pd.DataFrame, plates: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """The wells of a plate map with the imaged plates' names, and whether the two have plates in common.

    Names that differ in case, leading zeros or the word plate are matched if that is unambiguous, which is said. Reports plates
    that have nothing in common.

    Args:
        reading: receives findings.
        wells: of a map, with the column plate, empty where it holds for all.
        plates: the imaged ones, with the column plate.
    """
    theirs, ours = ({*table["plate"]} - {""} for table in (wells, plates))
    unknown, lacking = theirs - ours, ours - theirs
    if not unknown or not lacking:
        return wells, True
    keys = pd.Series({name: _key(name) for name in theirs | ours})
    pairs = {}
    for name in unknown:
        alike = [other for other in keys.index[keys == keys[name]] if other != name]
        if len(alike) == 1 and alike[0] in lacking:
            pairs[name] = alike[0]
    if lacking <= set(pairs.values()):
        shown = [f"{name}: {pairs[name]}" for name in sorted(pairs, key=natural_key)]
        reading.warn(
            "plates of the plate map are taken as those of the images that differ in how the name is written", shown
        )
        return wells.assign(plate=wells["plate"].replace(pairs)), True
    if theirs & ours:
        return wells, True
    named = [shortened(sorted(names, key=natural_key)) for names in (theirs, ours)]
    reading.missing = True
    reading.refuse(
        f"plates of the plate map: {named[0]}; of the images: {named[1]}: give them the same names in the map, or set "
        "screen.table_columns.plate to the column that has the images' names"
    )
    return wells, False


def _key(name: str) -> str:
    text = re.sub(r"[ _-]+", "_", name.strip().casefold())
    numbered = _NUMBERED.fullmatch(text)
    return numbered[1] if numbered else text
