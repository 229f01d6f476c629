"""The image files of a plate: which there are, their bytes, and a site's six channels. Reads through ScreenSource."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.core.config import CHANNELS
from components.core.errors import InputError
from components.core.screen.png import BadPngError, check_png, decode_png
from components.core.screen.screen_source import FileFacts, ScreenSource, UnreadableError
from components.core.screen.wells import Plate

_IMAGE = re.compile(r"(?P<well>[A-P]\d\d)_s(?P<site>\d+)_w(?P<channel>\d+)\.png")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class SiteFiles:
    """The files of one imaged site, in channel order.

    Attributes:
        site: site number, from 1.
        names: file names, one a channel, relative to the plate's folder.
    """

    well: str
    site: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlateFolder:
    """Where a plate's files lie.

    Attributes:
        place: the screen's.
        folder: of the plate, relative to the screen.
    """

    place: ScreenSource
    folder: str


@dataclass(frozen=True, slots=True)
class PlateFiles(PlateFolder):
    """The files of a plate's listed wells.

    Attributes:
        sites: row-major by well, then by site.
        facts: what the listing told of their files, by name.
        warnings: what is missing or superfluous without being an error.
    """

    sites: tuple[SiteFiles, ...]
    facts: tuple[FileFacts, ...]
    warnings: tuple[str, ...]


def image_name(well: str, site: int, channel: int) -> str:
    """File name of one channel of one site; sites and channels count from 1."""
    return f"{well}_s{site}_w{channel}.png"


def list_plate(place: ScreenSource, plate: Plate, sites: int) -> PlateFiles:
    """Finds the image files of a plate's wells by name; opens none.

    Args:
        place: the screen's.
        plate: the plate whose folder is listed.
        sites: largest number of sites a well has.

    Raises:
        InputError: no folder, a well without any site, a site without one of its channels, a site or channel beyond the
            expected ones.
    """
    folder = place.address(plate.folder)
    try:
        facts = {file.name: file for file in place.list_files(plate.folder)}
    except UnreadableError as error:
        raise InputError(
            f"{folder}: cannot list the images of {plate.name} ({error.reason}); put them there or remove the plate from "
            "the tables"
        ) from None
    found: list[SiteFiles] = []
    missing: dict[int, list[str]] = {}
    for well in plate.wells:
        before = len(found)
        for site in range(1, sites + 1):
            expected = tuple(image_name(well.well, site, channel) for channel in range(1, len(CHANNELS) + 1))
            absent = [name for name in expected if name not in facts]
            if not absent:
                found.append(SiteFiles(well.well, site, expected))
            elif len(absent) == len(expected):
                missing.setdefault(site, []).append(well.well)
            else:
                channel = expected.index(absent[0])
                raise InputError(
                    f"{folder}/{absent[0]}: missing; site {site} of well {well.well} lacks channel "
                    f"w{channel + 1} ({CHANNELS[channel]}); add the file or remove the site's other files"
                )
        if len(found) == before:
            raise InputError(
                f"{folder}: well {well.well} of {plate.name} has no images "
                f"({image_name(well.well, 1, 1)} ...); add them or remove {well.id_code} from the tables"
            )
    warnings = [f"{plate.name}: site {site} is missing in {_shown(wells)}" for site, wells in sorted(missing.items())]
    listed = {name for site in found for name in site.names}
    warnings += _unlisted(folder, plate, facts.keys() - listed, sites)
    of_sites = tuple(facts[name] for name in sorted(listed))
    return PlateFiles(place, plate.folder, tuple(found), of_sites, tuple(warnings))


def _unlisted(folder: str, plate: Plate, names: set[str], sites: int) -> list[str]:
    """Judges the files that belong to no expected site."""
    listed = {well.well for well in plate.wells}
    strangers: set[str] = set()
    for name in sorted(names):
        match = _IMAGE.fullmatch(name)
        if match is None:
            continue
        if match["well"] not in listed:
            strangers.add(match["well"])
        else:
            raise InputError(
                f"{folder}/{name}: unexpected; well {match['well']} has sites 1-{sites} (screen.sites) and "
                f"channels 1-{len(CHANNELS)}; correct screen.sites or remove the file"
            )
    return (
        [f"{plate.name}: images of wells that no table names are left out, {_shown(sorted(strangers))}"]
        if strangers
        else []
    )


def _shown(wells: Sequence[str]) -> str:
    more = f" and {len(wells) - _SHOWN} more" if len(wells) > _SHOWN else ""
    return f"well{'s' if len(wells) > 1 else ''} {', '.join(wells[:_SHOWN])}{more}"


def read_sites(plate: PlateFolder, sites: Sequence[SiteFiles]) -> list[list[bytes]]:
    """The bytes of some sites' files, in channel order, with many requests in flight.

    Raises:
        InputError: a file cannot be read; names file, channel and well.
    """
    paths = [f"{plate.folder}/{name}" for site in sites for name in site.names]
    try:
        contents = iter(plate.place.read_many(paths))
    except UnreadableError as error:
        which = paths.index(error.path)
        site = sites[which // len(CHANNELS)]
        raise _blame(plate, site, which % len(CHANNELS), error.reason) from None
    return [[next(contents) for _ in site.names] for site in sites]


def check_image(plate: PlateFolder, site: SiteFiles, channel: int, content: bytes, size: int) -> str:
    """Checks an image file without decompressing it.

    Args:
        plate: the site's.
        site: which site.
        channel: index into the site's names, from 0.
        content: the file's bytes.
        size: expected side, pixels.

    Returns:
        What tells it from other files of its size, in hexadecimal.

    Raises:
        InputError: the file is truncated, damaged or of another kind or size; names file, channel and well.
    """
    try:
        return check_png(content, size).hex()
    except BadPngError as error:
        raise _blame(plate, site, channel, error) from None


def decode_image(plate: PlateFolder, site: SiteFiles, channel: int, content: bytes, out_HW: NDArray[np.uint8]) -> None:
    """Decodes an image file that `check_image` accepted.

    Args:
        plate: the site's.
        site: which site.
        channel: index into the site's names, from 0.
        content: the file's bytes.
        out_HW: receives the pixels, shape (size, size), uint8.

    Raises:
        InputError: it cannot be decoded; names file, channel and well.
    """
    try:
        decode_png(content, out_HW)
    except BadPngError as error:
        raise _blame(plate, site, channel, error) from None


def _blame(plate: PlateFolder, site: SiteFiles, channel: int, reason: object) -> InputError:
    return InputError(
        f"{plate.place.address(f'{plate.folder}/{site.names[channel]}')}: channel w{channel + 1} ({CHANNELS[channel]}) of "
        f"well {site.well}, site {site.site}: {reason}"
    )
