"""The image files of a plate: which there are, their bytes, and a site's channels. Reads through ScreenSource."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.core.config import CHANNELS
from components.core.errors import InputError, one_line, shortened
from components.core.screen.plane_header import BadImageError
from components.core.screen.planes import checksums, decode_plane, plane_header
from components.core.screen.screen_source import FileFacts, ScreenSource, UnreadableError
from components.core.screen.wells import Plate

_IMAGE = re.compile(r"(?P<well>[A-P]\d\d)_s(?P<site>\d+)_w(?P<channel>\d+)\.png")
_LISTINGS = 8
"""Folders listed in parallel: in a bucket each takes several requests."""


@dataclass(frozen=True, slots=True)
class SiteFiles:
    """The files of one imaged site."""

    well: str
    site: int  # site number, from 1
    field: int  # index among the well's sites, from 0
    names: tuple[str, ...]  # in channel order, relative to the plate's folder


@dataclass(frozen=True, slots=True)
class PlateFiles:
    """The files of a plate's wells."""

    folder: str  # the plate's, relative to the screen
    sites: tuple[SiteFiles, ...]  # row-major by well, then by site
    facts: tuple[FileFacts, ...]  # of their files, by name
    warnings: tuple[str, ...]  # missing sites and superfluous images


def image_name(well: str, site: int, channel: int) -> str:
    """File name of one channel of one site, in either layout; sites and channels count from 1."""
    return f"{well}_s{site}_w{channel}.png"


def list_plate(source: ScreenSource, plate: Plate, sites: int) -> PlateFiles:
    """Finds the image files of a plate's wells by name, of at most `sites` sites a well; opens none.

    Raises:
        InputError: no folder, wells without any site, sites without one of their channels, or files of sites or channels
            beyond the expected ones; all such wells, sites or files are counted.
    """
    folder = source.address(plate.folder)
    try:
        facts = {file.name: file for file in source.list_files(plate.folder)}
    except UnreadableError as error:
        raise InputError(
            f"{folder}: cannot list the images of {plate.name} ({error.reason}); put them there or remove the plate from "
            "the tables"
        ) from None
    found: list[SiteFiles] = []
    missing: dict[int, list[str]] = {}
    faults: list[str] = []
    for well in plate.wells:
        found_before, faults_before = len(found), len(faults)
        for site in range(1, sites + 1):
            expected = tuple(image_name(well.well, site, channel) for channel in range(1, len(CHANNELS) + 1))
            absent = [name for name in expected if name not in facts]
            if not absent:
                found.append(SiteFiles(well.well, site, len(found) - found_before, expected))
            elif len(absent) == len(expected):
                missing.setdefault(site, []).append(well.well)
            else:
                channel = expected.index(absent[0])
                faults.append(
                    f"{absent[0]} is missing: site {site} of well {well.well} lacks channel w{channel + 1} "
                    f"({CHANNELS[channel]}); add the file or remove the site's other files"
                )
        if (len(found), len(faults)) == (found_before, faults_before):
            faults.append(
                f"well {well.well} has no images ({image_name(well.well, 1, 1)} ...): add them or remove {well.id_code} "
                "from the tables"
            )
    listed = {name for site in found for name in site.names}
    unlisted = _images_of(facts.keys() - listed)
    wells = {well.well for well in plate.wells}
    if not faults:  # else the rest of an incomplete site would be reported too
        faults = [
            f"{name} is unexpected: well {well} has sites 1-{sites} (screen.sites) and channels 1-{len(CHANNELS)}; correct "
            "screen.sites or remove the file"
            for name, well in unlisted.items()
            if well in wells
        ]
    if faults:
        raise InputError(f"{folder}: {one_line(faults)}")
    strangers = sorted(set(unlisted.values()) - wells)
    warnings = [
        f"{plate.name}: site {site} is missing in {_wells(lacking)}" for site, lacking in sorted(missing.items())
    ]
    if strangers:
        warnings.append(f"{plate.name}: images of wells that no table lists are left out, {_wells(strangers)}")
    of_sites = tuple(facts[name] for name in sorted(listed))
    return PlateFiles(plate.folder, tuple(found), of_sites, tuple(warnings))


def check_files(source: ScreenSource, plates: Sequence[Plate], sites: int) -> None:
    """Checks by name that the images of all plates are there; see `list_plate`, which reports the first plate's faults."""
    with ThreadPoolExecutor(_LISTINGS, thread_name_prefix="list") as pool:
        checks = [pool.submit(list_plate, source, plate, sites) for plate in plates]
        try:
            while checks:
                checks.pop(0).result()  # not kept: a large screen has millions of files
        finally:
            pool.shutdown(cancel_futures=True)


def _images_of(names: Iterable[str]) -> dict[str, str]:
    """The names that are names of images, in order, each with its well."""
    matches = {name: _IMAGE.fullmatch(name) for name in sorted(names)}
    return {name: match["well"] for name, match in matches.items() if match}


def _wells(names: Sequence[str]) -> str:
    return f"well{'s' if len(names) > 1 else ''} {shortened(names)}"


def read_sites(source: ScreenSource, folder: str, sites: Sequence[SiteFiles]) -> list[list[bytes]]:
    """The bytes of some sites' files in channel order, read together from a plate's folder.

    Raises:
        InputError: a file cannot be read; names file, channel and well.
    """
    paths = [f"{folder}/{name}" for site in sites for name in site.names]
    try:
        contents = iter(source.read_many(paths))
    except UnreadableError as error:
        which, channel = divmod(paths.index(error.path), len(CHANNELS))
        raise _bad_image(source, folder, sites[which], channel, error.reason) from None
    return [[next(contents) for _ in site.names] for site in sites]


def read_image(
    source: ScreenSource,
    folder: str,
    site: SiteFiles,
    channel: int,
    content: bytes,
    size: int,
    out_HW: NDArray[np.uint8] | None = None,
) -> str:
    """Checks the content of an image file, and decodes it if there is an array for the pixels.

    Channels count from 0; `size` is the expected side, pixels.

    Returns:
        Checksums in hexadecimal; files of the same size and checksums are the same.

    Raises:
        InputError: the file is truncated, damaged or of another kind or size; names file, channel and well.
    """
    try:
        found = checksums(content)
        if out_HW is None:
            plane_header(content).check((size, size), "uint8", 0)
        else:
            decode_plane(content, 0, out_HW)
    except BadImageError as error:
        raise _bad_image(source, folder, site, channel, error) from None
    return found


def _bad_image(source: ScreenSource, folder: str, site: SiteFiles, channel: int, reason: object) -> InputError:
    return InputError(
        f"{source.address(f'{folder}/{site.names[channel]}')}: channel w{channel + 1} ({CHANNELS[channel]}) of "
        f"well {site.well}, site {site.site}: {reason}"
    )
