"""From single image planes to sites: channels in their order, one time point, one plane or the projection of a z-stack.

For layouts whose tables or file names give each plane on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from posixpath import dirname

import pandas as pd

from components.core.errors import shortened
from components.core.screen.layouts.reading import KEY, LISTINGS, Reading, with_planes
from components.core.screen.plane_header import BadImageError
from components.core.screen.planes import plane_header
from components.core.screen.screen_source import UnreadableError
from components.core.screen.wells import Plane, natural_key
from components.core.screen.zarr_images import is_zarr

NO_Z = -1
"""Where a file name says no plane of a stack, or no time point."""
COLUMNS = [*KEY, "site", "channel", "z", "t", "path", "index"]
"""Of a table of planes: text, but site, z, t and index, which are numbers."""


def stack_sites(
    reading: Reading, planes: pd.DataFrame, order: Sequence[str] | None = None
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A row a site, with a column a channel, and the names of the channels.

    A site that lacks a channel has no planes there. Stacks and series that the configuration does not choose from are refused.

    Args:
        reading: receives findings.
        planes: with the columns COLUMNS.
        order: the channels as their table has them; None for natural order.
    """
    planes = _one_time_point(reading, planes)
    planes, order = _pages(reading, planes, order)
    planes, names = _channels(reading, planes, order)
    planes = _one_plane(reading, planes)
    number = {name: c for c, name in enumerate(names)}
    planes = planes.assign(order=planes["channel"].map(number)).sort_values(["order", "z", "index"], kind="stable")
    found: dict[tuple[str, str, str, int], list[list[Plane]]] = {}
    columns = (planes[name] for name in (*KEY, "site", "order", "path", "index"))
    for experiment, plate, well, site, channel, path, index in zip(*columns, strict=True):
        channels = found.setdefault((experiment, plate, well, site), [[] for _ in names])
        channels[channel].append(Plane(path, index))
    sites = pd.DataFrame(list(found), columns=[*KEY, "site"])
    return with_planes(sites, [[tuple(each[c]) for each in found.values()] for c in range(len(names))]), names


def _one_time_point(reading: Reading, planes: pd.DataFrame) -> pd.DataFrame:
    times = sorted(planes["t"].unique())
    wanted = reading.config.time_point
    if wanted is None:
        if len(times) > 1:
            reading.refuse(
                f"a series of {len(times)} time points ({_numbers(times)}): set screen.time_point to one of them"
            )
        return planes[planes["t"].isin(times[:1])]
    if times and wanted not in times and times != [NO_Z]:
        reading.refuse(f"screen.time_point is {wanted}, but the time points are {_numbers(times)}")
    return planes[planes["t"].isin([wanted, NO_Z])]


def _pages(
    reading: Reading, planes: pd.DataFrame, order: Sequence[str] | None
) -> tuple[pd.DataFrame, Sequence[str] | None]:
    """The planes of files that hold several, as the first one does: the channels that the configuration names, or a z-stack."""
    if not reading.images or planes.empty or planes["index"].any() or is_zarr(planes["path"].iloc[0]):
        return planes, order
    try:
        count = plane_header(reading.source.read_many([planes["path"].iloc[0]])[0]).planes
    except (BadImageError, UnreadableError):
        return planes, order  # reported when it is packed
    wanted, z = reading.config.channels, reading.config.z
    if count == 1:
        return planes, order
    if wanted and len(wanted) == count and planes["channel"].nunique() == 1:
        return pd.concat(
            [planes.assign(channel=name, index=n) for n, name in enumerate(wanted)], ignore_index=True
        ), wanted
    if z == "error":
        reading.refuse(
            f"image files hold {count} planes each, and one was expected: set screen.z to max or to a plane's number if they are "
            f"z-stacks, or screen.channels to {count} names if they are channels",
            [planes["path"].iloc[0]],
        )
        return planes, order
    return pd.concat([planes.assign(z=n + 1, index=n) for n in range(count)], ignore_index=True), order


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

    A plane 0 beside others is a projection that the microscope made (ImageXpress's ZStep_0). A channel with a single plane in a
    site keeps it, whatever its number: mixed acquisitions have stacks of some channels only.
    """
    wanted, key = reading.config.z, [*KEY, "site", "channel"]
    if planes.empty:
        return planes
    count = planes.groupby(key, sort=False)["z"].transform("nunique")
    stacked = count > 1
    if not stacked.any():
        return planes
    numbers = sorted(planes["z"][stacked].unique())
    if wanted == "error":
        sites = planes[stacked].drop_duplicates([*KEY, "site"])
        reading.refuse(
            f"z-stacks of {int(count.max())} planes ({_numbers(numbers)}): set screen.z to max, for the maximum projection, or to "
            "the number of a plane",
            [f"{row.experiment}_{row.plate}_{row.well} site {row.site}" for row in sites.itertuples()],
        )
        chosen = planes["z"] == numbers[0]
    elif wanted == "max":
        chosen = planes["z"] != 0
    else:
        chosen = planes["z"] == wanted
    if isinstance(wanted, int) and wanted not in numbers:
        reading.refuse(f"screen.z is {wanted}, but the planes of z-stacks are {_numbers(numbers)}")
    read: pd.DataFrame = planes[~stacked | chosen]
    return read


def _numbers(values: Sequence[int]) -> str:
    return shortened([str(value) for value in values], 8)


def existing_files(reading: Reading, paths: Sequence[str]) -> set[str]:
    """Those of the paths that are files, or OME-Zarr images, by listing the folders that they are in."""
    folders = sorted({path if is_zarr(path) else dirname(path) for path in paths})
    with ThreadPoolExecutor(LISTINGS, thread_name_prefix="list") as pool:
        listed = dict(zip(folders, pool.map(lambda folder: _names(reading, folder), folders), strict=True))
    return {
        path
        for path in paths
        if (
            listed[path] & {"zarr.json", ".zattrs"}
            if is_zarr(path)
            else path.rpartition("/")[2] in listed[dirname(path)]
        )
    }


def _names(reading: Reading, folder: str) -> set[str]:
    try:
        return {facts.name for facts in reading.source.list_files(folder)}
    except UnreadableError:
        return set()


def report_missing(reading: Reading, planes: pd.DataFrame, places: pd.Series[str]) -> pd.DataFrame:
    """The planes whose files exist; reports the others by the `places` that name them, table and line."""
    if not reading.images:
        return planes
    there = existing_files(reading, list(dict.fromkeys(planes["path"])))
    gone = ~planes["path"].isin(list(there))
    if gone.any():
        folders = {dirname(path) for path in planes["path"][gone]} - {dirname(path) for path in there}
        words = f"{gone.sum()} of {len(planes)} image files do not exist"
        if folders:
            words += f" ({len(folders)} folder{'s' if len(folders) > 1 else ''} without any: {shortened(sorted(folders), 2)})"
        texts = [f"{place}: {path}" for place, path in zip(places[gone], planes["path"][gone], strict=True)]
        if reading.config.missing_images == "drop":
            reading.warn(words, texts)
        else:
            reading.refuse(f"{words}: correct the paths, add the files, or set screen.missing_images to drop", texts)
    return planes[~gone]
