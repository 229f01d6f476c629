"""The image files of a plate's sites: whether they are there, their bytes, and pixels. Reads through ScreenSource."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from posixpath import basename, commonpath, dirname, relpath

import numpy as np
from numpy.typing import NDArray

from components.core.errors import InputError, one_line
from components.core.screen.plane_header import BadImageError
from components.core.screen.planes import checksums, decode_plane, plane_header
from components.core.screen.screen_source import FileFacts, ScreenSource, UnreadableError
from components.core.screen.wells import Plane, Plate, Screen
from components.core.screen.zarr_images import is_zarr

_LISTINGS = 8
"""Folders of a plate listed in parallel: in a bucket each takes several requests."""


@dataclass(frozen=True, slots=True)
class SiteFiles:
    """The files of one imaged site."""

    well: str
    site: int  # site number, from 1
    field: int  # index among the well's sites, from 0
    channels: tuple[tuple[Plane, ...], ...]  # of each channel its planes

    @property
    def paths(self) -> list[str]:
        """The files, once each, in order of the channels."""
        return list(dict.fromkeys(plane.path for planes in self.channels for plane in planes))


@dataclass(frozen=True, slots=True)
class PlateFiles:
    """The files of a plate's sites."""

    sites: tuple[SiteFiles, ...]  # row-major by well, then by site
    facts: tuple[FileFacts, ...]  # of their files, by path relative to `folder`
    folder: str  # the lowest that holds all of them

    def name(self, path: str) -> str:
        """A file's path relative to `folder`: it stays when a plate is moved."""
        return relpath(path, self.folder) if self.folder else path


def plate_files(source: ScreenSource, plate: Plate) -> PlateFiles:
    """The files of a plate's sites, from a listing of their folders; opens none.

    Raises:
        InputError: a folder cannot be listed or lacks files; counts all of them.
    """
    sites = [
        SiteFiles(well.well, site.site, field, site.channels)
        for well in plate.wells
        for field, site in enumerate(well.sites)
    ]
    first = {path: site for site in reversed(sites) for path in site.paths}
    images = sorted(path for path in first if is_zarr(path))
    folders = sorted({dirname(path) for path in first if not is_zarr(path)})
    found: dict[str, FileFacts] = {}
    with ThreadPoolExecutor(_LISTINGS, thread_name_prefix="list") as pool:
        for folder, listed in zip(folders, pool.map(lambda each: _list(source, each), folders), strict=True):
            prefix = f"{folder}/" if folder else ""
            found |= {prefix + facts.name: facts for facts in listed if prefix + facts.name in first}
    missing = [path for path in first if path not in found and not is_zarr(path)]
    trees = source.list_trees(images) if images else []
    present = {path for path in images if any(facts.name.startswith(f"{path}/") for facts in trees)}
    missing += [path for path in images if path not in present]
    if missing:
        faults = [
            f"{source.address(path)} (well {first[path].well}, site {first[path].site})" for path in sorted(missing)
        ]
        advice = "add them, or take their wells out of the tables"
        raise InputError(
            f"{plate.name}: missing image file{'s' if len(faults) > 1 else ''}: {one_line(faults)}; {advice}"
        )
    found |= {facts.name: facts for facts in trees}
    folder = commonpath([dirname(path) for path in found]) if found else ""
    named = [facts._replace(name=relpath(path, folder) if folder else path) for path, facts in sorted(found.items())]
    return PlateFiles(tuple(sites), tuple(named), folder)


def table_facts(source: ScreenSource, screen: Screen) -> list[FileFacts]:
    """The facts of a screen's tables, by path."""
    folders = sorted({dirname(path) for path in screen.tables})
    listed = {folder: {facts.name: facts for facts in _list(source, folder)} for folder in folders}
    found = {path: listed[dirname(path)].get(basename(path)) for path in sorted(screen.tables)}
    return [facts._replace(name=path) for path, facts in found.items() if facts]


def _list(source: ScreenSource, folder: str) -> Sequence[FileFacts]:
    """The files of a folder; none without it."""
    try:
        return source.list_files(folder)
    except UnreadableError:
        return []


def read_sites(source: ScreenSource, sites: Sequence[SiteFiles]) -> list[dict[str, bytes]]:
    """The bytes of some sites' files by path, read together.

    Raises:
        InputError: a file cannot be read; names file and well.
    """
    paths = [path for site in sites for path in site.paths]
    try:
        contents = iter(source.read_many(paths))
    except UnreadableError as error:
        site = next((site for site in sites if error.path in site.paths), sites[0])
        raise InputError(
            f"{source.address(error.path)}: of well {site.well}, site {site.site}: {error.reason}"
        ) from None
    return [{path: next(contents) for path in site.paths} for site in sites]


def file_checksums(
    source: ScreenSource, site: SiteFiles, contents: Mapping[str, bytes], size: int, channels: Sequence[str]
) -> list[str]:
    """Checksums of a site's files, in order of `paths`, and a check of their headers; see `decode_channel`."""
    by_path: dict[str, tuple[int, Plane]] = {}
    for channel, planes in enumerate(site.channels):
        for plane in planes:
            by_path.setdefault(plane.path, (channel, plane))
    found = []
    for path, (channel, plane) in by_path.items():
        try:
            found.append(checksums(contents[path]))
            plane_header(contents[path]).check((size, size), "uint8", plane.index)
        except BadImageError as error:
            raise _bad_image(source, site, channel, path, channels, error) from None
    return found


def decode_channel(
    source: ScreenSource,
    site: SiteFiles,
    channel: int,
    contents: Mapping[str, bytes],
    out_HW: NDArray[np.uint8],
    channels: Sequence[str],
) -> None:
    """Decodes a channel of a site: its only plane, or the maximum of its planes.

    Args:
        source: the screen, for messages.
        site: the site.
        channel: its number, from 0.
        contents: the bytes of the site's files by path.
        out_HW: receives the pixels.
        channels: names of the channels.

    Raises:
        InputError: a file is truncated, damaged or of another kind or size; names file, channel and well.
    """
    first, *others = site.channels[channel]
    for plane in (first, *others):
        try:
            if plane is first:
                decode_plane(contents[plane.path], plane.index, out_HW)
            else:
                one_HW = np.empty_like(out_HW)
                decode_plane(contents[plane.path], plane.index, one_HW)
                np.maximum(out_HW, one_HW, out=out_HW)
        except BadImageError as error:
            raise _bad_image(source, site, channel, plane.path, channels, error) from None


def _bad_image(
    source: ScreenSource, site: SiteFiles, channel: int, path: str, channels: Sequence[str], reason: object
) -> InputError:
    return InputError(
        f"{source.address(path)}: channel {channel + 1} ({channels[channel]}) of well {site.well}, site {site.site}: {reason}"
    )
