"""The image files of a plate's sites: whether they are there, their form, bytes and pixels. Reads through ScreenSource."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from posixpath import basename, commonpath, dirname, relpath

import numpy as np

from components.core.errors import InputError, joined, one_line
from components.core.screen.plane_header import BadImageError, ImageForm, Pixels
from components.core.screen.planes import Content, checksums, decode_plane, pixel_size, plane_header
from components.core.screen.screen_source import FileFacts, ScreenSource, UnreadableError, files_in
from components.core.screen.wells import Plane, Plate, Screen
from components.core.screen.zarr_images import is_zarr, read_zarr_planes

_LISTINGS = 8
"""Folders of a plate listed in parallel: in a bucket each takes several requests."""

Contents = Mapping[Plane, Content]
"""What the planes of a site are decoded from."""


@dataclass(frozen=True, slots=True)
class SiteFiles:
    """The files of one imaged site."""

    well: str
    site: int  # site number, from 1
    field: int  # index among the well's sites, from 0
    channels: tuple[tuple[Plane, ...], ...]  # of each channel its planes

    @property
    def planes(self) -> dict[Plane, int]:
        """The planes, once each, in order of the channels, with the first channel that needs each."""
        found: dict[Plane, int] = {}
        for channel, planes in enumerate(self.channels):
            for plane in planes:
                found.setdefault(plane, channel)
        return found

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
        return _below(path, self.folder)


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
        for folder, listed in zip(folders, pool.map(lambda each: files_in(source, each), folders), strict=True):
            prefix = f"{folder}/" if folder else ""
            found |= {prefix + facts.name: facts for facts in listed if prefix + facts.name in first}
    missing = [path for path in first if path not in found and not is_zarr(path)]
    trees = source.list_trees(images) if images else []
    present: set[str] = set()
    for facts in trees:
        parent = dirname(facts.name)
        while parent and parent not in present:
            present.add(parent)
            parent = dirname(parent)
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
    kinds = {path.startswith("/") for path in found}
    folder = commonpath([dirname(path) for path in found]) if len(kinds) == 1 else ""
    named = [facts._replace(name=_below(path, folder)) for path, facts in sorted(found.items())]
    return PlateFiles(tuple(sites), tuple(named), folder)


def _below(path: str, folder: str) -> str:
    if not folder:
        return path
    return path[len(folder) + 1 :] if path.startswith(f"{folder}/") else relpath(path, folder)


def table_facts(source: ScreenSource, screen: Screen) -> list[FileFacts]:
    """The facts of a screen's tables, by path."""
    folders = sorted({dirname(path) for path in screen.tables})
    listed = {folder: {facts.name: facts for facts in files_in(source, folder)} for folder in folders}
    found = {path: listed[dirname(path)].get(basename(path)) for path in sorted(screen.tables)}
    return [facts._replace(name=path) for path, facts in found.items() if facts]


def image_form(source: ScreenSource, screen: Screen, shape: tuple[int, int] | None) -> ImageForm:
    """The form of a screen's images, from the first one's header.

    Args:
        source: the screen.
        screen: its tables, with at least one imaged site.
        shape: the expected height and width, pixels; None takes any.

    Raises:
        InputError: the first image cannot be read, is damaged, or of another kind or size; names file, channel and well.
    """
    first = next(
        SiteFiles(well.well, site.site, 0, site.channels[:1])
        for plate in screen.plates
        for well in plate.wells
        for site in well.sites
    )
    plane = first.channels[0][0]
    content = read_sites(source, [first], screen.channels)[0][plane]
    try:
        header = plane_header(content)
        header.check(shape or header.shape, header.dtype, plane.index)
        return ImageForm(screen.channels, header.shape, header.dtype, pixel_size(content))
    except BadImageError as error:
        raise _bad_image(source, first, plane, screen.channels, error) from None


def read_sites(source: ScreenSource, sites: Sequence[SiteFiles], channels: Sequence[str]) -> list[dict[Plane, Content]]:
    """What the planes of some sites are decoded from, read together.

    Raises:
        InputError: a file cannot be read; names file, channel and well.
    """
    of_files = list(dict.fromkeys(path for site in sites for path in site.paths if not is_zarr(path)))
    of_zarr = list(dict.fromkeys(plane for site in sites for plane in site.planes if is_zarr(plane.path)))
    try:
        files = dict(zip(of_files, source.read_many(of_files), strict=True)) if of_files else {}
        planes = dict(zip(of_zarr, read_zarr_planes(source, of_zarr), strict=True)) if of_zarr else {}
    except UnreadableError as error:
        site, plane = next(
            ((site, plane) for site in sites for plane in site.planes if error.path.startswith(plane.path)),
            (sites[0], next(iter(sites[0].planes))),
        )
        raise _bad_image(source, site, plane, channels, error.reason, error.path) from None
    return [{plane: planes[plane] if plane in planes else files[plane.path] for plane in site.planes} for site in sites]


def file_checksums(
    source: ScreenSource, site: SiteFiles, contents: Contents, channels: Sequence[str]
) -> tuple[str, ...]:
    """Checksums of a site's files, in order of `paths`: files of the same size and checksums are the same.

    Raises:
        InputError: PNGs are damaged; names file, channel and well of each.
    """
    found: dict[str, str] = {}
    broken: list[InputError] = []
    for plane, content in contents.items():
        if isinstance(content, bytes) and plane.path in found:
            continue
        try:
            found[plane.path] = found.get(plane.path, "") + checksums(content)
        except BadImageError as error:
            broken.append(_bad_image(source, site, plane, channels, error))
    if broken:
        raise joined(broken)
    return tuple(found.values())


def decode_channel(
    source: ScreenSource, site: SiteFiles, channel: int, contents: Contents, out_HW: Pixels, channels: Sequence[str]
) -> None:
    """Decodes a channel of a site, whose checksums were taken: its only plane, or the maximum of its planes.

    Args:
        source: the screen, for messages.
        site: the site.
        channel: its number, from 0.
        contents: of the site's planes.
        out_HW: receives the pixels.
        channels: names of the channels.

    Raises:
        InputError: a file is truncated, damaged or of another kind, size or bit depth; names file, channel and well.
    """
    first, *others = site.channels[channel]
    plane = first
    try:
        decode_plane(contents[first], first.index, out_HW, first.file)
        for plane in others:
            one_HW = np.empty_like(out_HW)
            decode_plane(contents[plane], plane.index, one_HW, plane.file)
            np.maximum(out_HW, one_HW, out=out_HW)
    except BadImageError as error:
        raise _bad_image(source, site, plane, channels, error) from None


def _bad_image(
    source: ScreenSource, site: SiteFiles, plane: Plane, channels: Sequence[str], reason: object, path: str = ""
) -> InputError:
    channel = site.planes[plane]
    return InputError(
        f"{source.address(path or plane.path)}: channel {channel + 1} ({channels[channel]}) of well {site.well}, "
        f"site {site.site}: {reason}"
    )
