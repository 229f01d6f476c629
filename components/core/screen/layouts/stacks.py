"""From single image planes to sites: channels in their order, one time point, one plane or the projection of a z-stack.

For layouts whose tables or file names give each plane on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from posixpath import dirname
from typing import NamedTuple

import pandas as pd

from components.core.errors import shortened
from components.core.screen.layouts.moved_paths import advice_on_missing, here
from components.core.screen.layouts.reading import KEY, LISTINGS, Reading, with_planes
from components.core.screen.plane_header import BadImageError, PlaneHeader
from components.core.screen.planes import plane_header
from components.core.screen.screen_source import UnreadableError, files_in
from components.core.screen.tiff import SIGNATURES as TIFF
from components.core.screen.tiff import TiffAxes, tiff_axes
from components.core.screen.wells import Plane, natural_key
from components.core.screen.zarr_images import is_zarr, open_image, zarr_header

NO_Z = -1
"""Where a file name says no plane of a stack, or no time point."""
PROJECTION = -2
"""The plane of a stack that is a projection which the microscope made: number 0 for the configuration."""
PLACE = [*KEY, "site", "channel", "z", "t"]
"""What tells a site's planes apart."""
COLUMNS = [*PLACE, "path", "index"]
"""Of a table of planes: text, but site, z, t and index, which are numbers. `source` may name the table's file and line."""


def stack_sites(
    reading: Reading, planes: pd.DataFrame, order: Sequence[str] | None = None, indexed: bool = False
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A row a site, with a column a channel, and the names of the channels.

    A site that lacks a channel has no planes there. Two planes of one place are refused, as are stacks and series that the
    configuration does not choose from.

    Args:
        reading: receives findings.
        planes: with the columns COLUMNS.
        order: the channels as their table has them; None for natural order.
        indexed: whether `index` is what a table or metadata say; else files may hold other planes, too.
    """
    planes = _without_duplicates(reading, planes)
    planes = planes.assign(file="") if "file" not in planes.columns else planes
    if not indexed:
        planes, order = _pages(reading, planes, order)
    planes = _one_time_point(reading, planes)
    planes, names = _channels(reading, planes, order)
    planes = _one_plane(reading, planes)
    number = {name: c for c, name in enumerate(names)}
    planes = planes.assign(order=planes["channel"].map(number)).sort_values(["order", "z", "index"], kind="stable")
    found: dict[tuple[str, str, str, int], list[list[Plane]]] = {}
    columns = (planes[name].tolist() for name in (*KEY, "site", "order", "path", "index", "file"))
    for experiment, plate, well, site, channel, path, index, file in zip(*columns, strict=True):
        channels = found.setdefault((experiment, plate, well, site), [[] for _ in names])
        channels[channel].append(Plane(path, index, file))
    sites = pd.DataFrame(list(found), columns=[*KEY, "site"])
    return with_planes(sites, [[tuple(each[c]) for each in found.values()] for c in range(len(names))]), names


def _without_duplicates(reading: Reading, planes: pd.DataFrame) -> pd.DataFrame:
    """The first plane of each place; refuses the others, which would otherwise be taken for a stack's."""
    again = planes.duplicated(PLACE)
    if not again.any():
        return planes
    named = planes["path"]
    if "source" in planes.columns:
        named = planes["source"] + ": " + named
    first = dict(zip(planes[~again][PLACE].itertuples(index=False, name=None), named[~again], strict=True))
    places = []
    for name, row in zip(named[again], planes[again][PLACE].itertuples(index=False, name=None), strict=True):
        experiment, plate, well, site, channel, z, t = row
        steps = [f"{axis} {number}" for axis, number in (("z", z), ("time point", t)) if number >= 0]
        well_id = "_".join(filter(None, (experiment, plate, well)))
        place = ", ".join([f"{well_id} site {site}", f"channel {channel}", *steps])
        places.append(f"{name} and {first[row]} ({place})")
    reading.refuse(
        f"{len(places)} image{'s have' if len(places) > 1 else ' has'} the place of another, the same experiment, plate, well, "
        "site, channel, z and time point: remove one of each two, or tell them apart by experiment, plate or site",
        places,
    )
    return planes[~again]


def _one_time_point(reading: Reading, planes: pd.DataFrame) -> pd.DataFrame:
    """The planes of one time point. Sites that have one each are no series, whatever its number."""
    series = planes.groupby([name for name in PLACE if name != "t"], sort=False)["t"].transform("nunique") > 1
    if reading.config.time_point is None and not series.any():
        return planes
    times = sorted(planes["t"].unique())
    wanted = reading.config.time_point
    if wanted is None:
        if len(times) > 1:
            reading.missing = True  # wells that were imaged at other time points
            reading.refuse(
                f"a series of {len(times)} time points ({_numbers(times)}): set screen.time_point to one of them"
            )
        return planes[planes["t"].isin(times[:1])]
    if times and wanted not in times and times != [NO_Z]:
        reading.missing = True
        reading.refuse(f"screen.time_point is {wanted}, but the time points are {_numbers(times)}")
    return planes[planes["t"].isin([wanted, NO_Z])]


class _Pages(NamedTuple):
    """What the first file of a channel holds."""

    path: str
    header: PlaneHeader
    axes: TiffAxes | None  # of several grey pages, where the file describes them

    @property
    def channels(self) -> int:
        """How many there are by the file itself: samples of a colour picture, or what its description says."""
        return max(self.header.samples, self.axes.lengths.get("c", 1) if self.axes is not None else 1)


def _pages(
    reading: Reading, planes: pd.DataFrame, order: Sequence[str] | None
) -> tuple[pd.DataFrame, Sequence[str] | None]:
    """The planes of files that hold several, as the first one of each channel does.

    They are what OME or ImageJ say, else channels or a z-stack: channels if the configuration names as many, a z-stack if it
    chooses planes of one. A file that differs from the first of its channel in its number of planes is refused when it is
    decoded.
    """
    if not reading.images or planes.empty:
        return planes, order
    groups = dict(list(planes.groupby("channel", sort=False)))
    first = {channel: _first_pages(reading, rows["path"].iloc[0]) for channel, rows in groups.items()}
    if len(groups) == 1:
        ((rows, pages),) = zip(groups.values(), first.values(), strict=True)
        named = None if pages is None else _pages_of_channels(reading, rows, pages, order)
        if named is not None:
            return named
    parts, stacks, pictures = [], [], []
    said = _said(planes)
    for channel, rows in groups.items():
        pages, part = first[channel], rows
        if pages is not None:
            part = rows.assign(file=pages.header.contents)
            if pages.header.planes > 1:
                described = _described(part, pages.axes, said) if pages.axes is not None else None
                if described is not None:
                    part = described
                elif pages.channels > 1:
                    pictures.append(pages)
                elif reading.config.z == "error":
                    stacks.append(pages)
                elif rows.duplicated([name for name in PLACE if name != "z"]).any():
                    reading.refuse(
                        f"image files hold {pages.header.planes} planes each, and several files are of one site and channel: "
                        "export a file a plane",
                        [pages.path],
                    )
                else:
                    part = pd.concat(
                        [part.assign(z=n + 1, index=n) for n in range(pages.header.planes)], ignore_index=True
                    )
        parts.append(part)
    _refuse_pages(reading, stacks, pictures, len(groups))
    return pd.concat(parts, ignore_index=True), order


def _first_pages(reading: Reading, path: str) -> _Pages | None:
    """What a file holds; None if it cannot be read, which is reported when it is packed."""
    try:
        if is_zarr(path):
            return _Pages(path, zarr_header(open_image(reading.source, path)), None)
        (content,) = reading.source.read_many([path])
        header = plane_header(content)
        return _Pages(path, header, tiff_axes(content) if header.planes > 1 and content.startswith(TIFF) else None)
    except (BadImageError, UnreadableError):
        return None


def _pages_of_channels(
    reading: Reading, planes: pd.DataFrame, pages: _Pages, order: Sequence[str] | None
) -> tuple[pd.DataFrame, Sequence[str] | None] | None:
    """The planes of files that hold the channels by their description or by the configuration; None if they do not."""
    count, wanted = pages.header.planes, reading.config.channels
    if count == 1:
        return None
    planes, several = planes.assign(file=pages.header.contents), pages.channels > 1
    if pages.axes is not None and (several or not wanted or len(wanted) != count):
        described = _described(planes, pages.axes, _said(planes))
        if described is not None:
            return described, (pages.axes.channels or None) if several else order
    if wanted and len(wanted) == count:
        named = [planes.assign(channel=name, index=n) for n, name in enumerate(wanted)]
        return pd.concat(named, ignore_index=True), wanted
    return None


def _refuse_pages(reading: Reading, stacks: Sequence[_Pages], pictures: Sequence[_Pages], channels: int) -> None:
    """Refuses files of several planes for which the configuration has no word, those of channels apart from those of others."""
    for found in (stacks, pictures):
        by_count: dict[tuple[int, int], list[_Pages]] = {}
        for pages in found:
            by_count.setdefault((pages.header.planes, pages.channels), []).append(pages)
        for (count, named), same in by_count.items():
            some = f" of {len(same)} of {channels} channels" if len(same) < channels else ""
            names = f"screen.channels to {count} names" if channels == 1 else ""
            if named == 1:
                held = f"{count} planes each"
                advice = "set screen.z to max or to a plane's number if they are z-stacks"
                advice += f", or {names} if they are channels" if names else ""
            else:
                held = f"{named} channels each" + (" (colour pictures)" if same[0].header.samples > 1 else "")
                advice = f"set {names}, or " if names and named == count else ""
                advice += "export each channel as grey, in a file of its own"
            reading.refuse(
                f"image files{some} hold {held}, and one was expected: {advice}", [each.path for each in same]
            )


def _said(planes: pd.DataFrame) -> set[str]:
    """The axes that the names or table of the files tell apart."""
    return {axis for axis, column in (("c", "channel"), ("z", "z"), ("t", "t")) if planes[column].nunique() > 1}


def _described(planes: pd.DataFrame, axes: TiffAxes, said: set[str]) -> pd.DataFrame | None:
    """The planes of files whose pages have places of their own; None if these contradict what is said of the files."""
    long = {axis for axis, length in axes.lengths.items() if length > 1}
    if long & said:
        return None
    parts = []
    for index, place in enumerate(axes.places):
        part = planes.assign(index=index)
        if "c" in long:
            part["channel"] = axes.channels[place["c"]] if axes.channels else str(place["c"] + 1)
        for axis in long & {"z", "t"}:
            part[axis] = place[axis] + 1
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _channels(
    reading: Reading, planes: pd.DataFrame, order: Sequence[str] | None
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The planes of the wanted channels, and their names in order."""
    found = list(order or sorted(planes["channel"].unique(), key=natural_key))
    wanted = reading.config.channels
    if wanted is None:
        return planes, tuple(found)
    if set(wanted) <= set(found):
        return planes[planes["channel"].isin(list(wanted))], wanted
    if len(wanted) != len(found):
        reading.refuse(
            f"{len(found)} channels were found ({', '.join(found)}), and screen.channels names {len(wanted)} "
            f"({', '.join(wanted)}): give names of all, or some of those that were found"
        )
        return planes, tuple(found)
    return planes.assign(channel=planes["channel"].map(dict(zip(found, wanted, strict=True)))), wanted


def _one_plane(reading: Reading, planes: pd.DataFrame) -> pd.DataFrame:
    """The planes that are read of each site and channel.

    The maximum leaves out a PROJECTION. A channel with a single plane in a site keeps it, whatever its number: mixed acquisitions
    have stacks of some channels only.
    """
    wanted, key = reading.config.z, [*KEY, "site", "channel"]
    if planes.empty:
        return planes
    count = planes.groupby(key, sort=False)["z"].transform("nunique")
    stacked = count > 1
    if not stacked.any():
        return planes
    numbers = sorted(planes["z"][stacked].replace(PROJECTION, 0).unique())
    if wanted == "error":
        sites = planes[stacked].drop_duplicates([*KEY, "site"])
        reading.refuse(
            f"z-stacks of {int(count.max())} planes ({_numbers(numbers)}): set screen.z to max, for the maximum projection, or to "
            "the number of a plane",
            [
                f"{'_'.join(filter(None, row[:3]))} site {row[3]}"
                for row in sites[[*KEY, "site"]].itertuples(index=False)
            ],
        )
        chosen = planes["z"].replace(PROJECTION, 0) == numbers[0]
    elif wanted == "max":
        chosen = planes["z"] != PROJECTION
    else:
        chosen = planes["z"].replace(PROJECTION, 0) == wanted
    if isinstance(wanted, int) and wanted not in numbers:
        reading.missing = True
        reading.refuse(f"screen.z is {wanted}, but the planes of z-stacks are {_numbers(numbers)}")
    read: pd.DataFrame = planes[~stacked | chosen]
    return read


def _numbers(values: Sequence[int]) -> str:
    return shortened([str(value) for value in values], 8)


def existing_files(reading: Reading, paths: Sequence[str]) -> set[str]:
    """Those of the paths that are files, or OME-Zarr images, by listing the folders that they are in."""
    folders = sorted({path if is_zarr(path) else dirname(path) for path in paths})

    def names(folder: str) -> set[str]:
        return {facts.name for facts in files_in(reading.source, folder)}

    with ThreadPoolExecutor(LISTINGS, thread_name_prefix="list") as pool:
        listed = dict(zip(folders, pool.map(names, folders), strict=True))
    return {
        path
        for path in paths
        if (
            listed[path] & {"zarr.json", ".zattrs"}
            if is_zarr(path)
            else path.rpartition("/")[2] in listed[dirname(path)]
        )
    }


def find_files(reading: Reading, planes: pd.DataFrame) -> pd.DataFrame:
    """The planes whose files exist, with their paths as screen.path_prefixes has them here; reports the others.

    Args:
        reading: receives findings.
        planes: with the columns COLUMNS, paths as their table has them, and `source`.
    """
    planes = planes.assign(path=here(planes["path"], reading.config.path_prefixes))
    if not reading.images:
        return planes
    there = existing_files(reading, list(dict.fromkeys(planes["path"])))
    gone = ~planes["path"].isin(list(there))
    if gone.any():
        reading.missing = True
        folders = {dirname(path) for path in planes["path"][gone]} - {dirname(path) for path in there}
        words = f"{gone.sum()} of {len(planes)} image files do not exist"
        if folders:
            words += f" ({len(folders)} folder{'s' if len(folders) > 1 else ''} without any: {shortened(sorted(folders), 2)})"
        texts = (planes["source"][gone] + ": " + planes["path"][gone]).tolist()
        drop = reading.config.missing_images == "drop"
        # The advice lists the whole screen, which a run that goes on without the files does not need.
        advice = "" if drop and there else advice_on_missing(reading, list(dict.fromkeys(planes["path"][gone])))
        if drop:
            reading.warn(f"{words}{f' ({advice})' if advice else ''}", texts)
        else:
            advice = advice or "correct the paths"
            reading.refuse(f"{words}: {advice}, add the files, or set screen.missing_images to drop", texts)
    return planes[~gone]
