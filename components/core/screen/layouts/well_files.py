"""The images of RxRx1's releases: files WELL_sSITE_wCHANNEL in a folder a plate, found by listing."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pandas as pd

from components.core.config import CHANNELS
from components.core.errors import shortened
from components.core.screen.layouts.reading import LISTINGS, Reading, with_planes
from components.core.screen.plane_header import contents_of
from components.core.screen.screen_source import files_in
from components.core.screen.wells import Plane, well_name

_IMAGE = re.compile(
    r"(?P<well>[A-Za-z]{1,2}\d{1,2})_s(?P<site>\d{1,3})(?:_w(?P<channel>\d{1,2}))?\.(?:png|tiff?|jpe?g)", re.IGNORECASE
)
_ANY_IMAGE = re.compile(r".+\.(?:png|tiff?|jpe?g|bmp|flex|c01)", re.IGNORECASE)

Files = dict[str, dict[int, dict[int, str]]]
"""File names of a folder by well, site and channel, from 1; channel 0 is a picture of all channels."""


def find_sites(reading: Reading, wells: pd.DataFrame, folders: pd.Series[str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A row a site for wells that have a row each, and the names of the channels.

    Args:
        reading: the screen; without its images all wells get a row without channels.
        wells: with the columns `well`, `experiment` and `plate`, one row a well.
        folders: of each well's images.
    """
    names = reading.config.channels or CHANNELS
    if not reading.images:
        return with_planes(wells.assign(site=0), [[()] * len(wells) for _ in names]), tuple(names)
    distinct = list(dict.fromkeys(folders))
    with ThreadPoolExecutor(LISTINGS, thread_name_prefix="list") as pool:
        listed = dict(zip(distinct, pool.map(lambda folder: _list(reading, folder), distinct), strict=True))
    pictures = _check_channels(reading, {folder: files for folder, (files, _) in listed.items()}, len(names))
    _warn_of_others(reading, wells, folders, listed)
    rows: list[int] = []
    sites: list[int] = []
    planes: list[list[tuple[Plane, ...]]] = [[] for _ in names]
    numbers = range(1, len(names) + 1)
    of_file, of_picture = contents_of(1), contents_of(len(names))
    for row, (well, folder) in enumerate(zip(wells["well"], folders, strict=True)):
        of_well = listed[folder][0].get(well, {})
        rows.extend([row] * max(1, len(of_well)))
        sites.extend(sorted(of_well) or [0])
        for site in sorted(of_well) or [0]:
            files = of_well.get(site, {})
            for channel in numbers:
                if pictures and 0 in files:
                    planes[channel - 1].append((Plane(f"{folder}/{files[0]}", channel - 1, of_picture),))
                else:
                    name = files.get(channel)
                    planes[channel - 1].append((Plane(f"{folder}/{name}", 0, of_file),) if name else ())
    expanded = wells.iloc[rows].reset_index(drop=True)
    return with_planes(expanded.assign(site=sites), planes), tuple(names)


def _list(reading: Reading, folder: str) -> tuple[Files, list[str]]:
    """The images of a folder, and the names of other files; both empty without a folder."""
    files: Files = {}
    others = []
    for name in (facts.name for facts in files_in(reading.source, folder)):
        match = _IMAGE.fullmatch(name)
        well = well_name(match["well"]) if match else None
        if match is None or well is None:
            others.append(name)
            continue
        files.setdefault(well, {}).setdefault(int(match["site"]), {})[int(match["channel"] or 0)] = name
    return files, others


def _check_channels(reading: Reading, files: dict[str, Files], expected: int) -> bool:
    """Whether a site is one picture of all channels; refuses a screen of another number of channels."""
    numbers: Counter[tuple[int, ...]] = Counter()
    for folder in files.values():
        for of_well in folder.values():
            numbers.update(tuple(sorted(of_site)) for of_site in of_well.values())
    if not numbers:
        return False
    usual = numbers.most_common(1)[0][0]
    configured = reading.config.channels is not None
    if usual == (0,):
        if configured:
            return True
        reading.refuse(
            "the images are pictures WELL_sSITE, one a site, and one file a channel (WELL_sSITE_wCHANNEL) was looked for; set "
            "screen.channels to the names of a picture's samples, for example [red, green, blue], to read these as channels"
        )
    highest = max(max(each) for each in numbers)
    all_alike = len(numbers) == 1
    if highest > expected or (all_alike and usual != (0,) and len(usual) != expected):
        words = f"{len(usual)} channels (w{usual[0]}-w{usual[-1]}) were found in {'all' if all_alike else 'most'} wells"
        looked = f"the {expected} of screen.channels" if configured else f"RxRx1's {expected} were looked for"
        reading.refuse(f"{words}, and {looked}: set screen.channels to the names of all, in the order of their numbers")
    return False


def _warn_of_others(
    reading: Reading, wells: pd.DataFrame, folders: pd.Series[str], listed: dict[str, tuple[Files, list[str]]]
) -> None:
    """Warns of images of wells that no table lists, and of images with other names."""
    frame = pd.DataFrame(
        {"folder": folders, "well": wells["well"], "experiment": wells["experiment"], "plate": wells["plate"]}
    )
    for folder, rows in frame.groupby("folder", sort=False):
        files, others = listed[str(folder)]
        strangers = sorted(files.keys() - set(rows["well"]))
        if strangers:
            where = f"well{'s' if len(strangers) > 1 else ''} {shortened(strangers)}"
            plate = f"{rows['experiment'].iloc[0]} plate {rows['plate'].iloc[0]}"
            reading.warn(f"{plate}: images of wells that no table lists are left out, {where}")
        odd = sorted(name for name in others if _ANY_IMAGE.fullmatch(name))
        if odd:
            reading.warn(
                f"{reading.source.address(str(folder))}: images with other names are left out, {shortened(odd)}"
            )
