"""The image files of a plate: which there are, their bytes, and a site's six channels. Reads files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.core.config import CHANNELS
from components.core.errors import InputError
from components.core.screen.png import BadPngError, check_png, decode_png
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
class PlateFiles:
    """The files of a plate's listed wells.

    Attributes:
        sites: row-major by well, then by site.
        warnings: what is missing or superfluous without being an error.
    """

    folder: Path
    sites: tuple[SiteFiles, ...]
    warnings: tuple[str, ...]


def image_name(well: str, site: int, channel: int) -> str:
    """File name of one channel of one site; sites and channels count from 1."""
    return f"{well}_s{site}_w{channel}.png"


def list_plate(plate: Plate, sites: int) -> PlateFiles:
    """Finds the image files of a plate's wells by name; opens none.

    Args:
        plate: the plate whose folder is listed.
        sites: largest number of sites a well has.

    Raises:
        InputError: no folder, a well without any site, a site without one of its channels, a site or channel beyond the
            expected ones.
    """
    try:
        names = set(os.listdir(plate.folder))  # noqa: PTH208 - names only; a full plate has 3,700
    except OSError as error:
        raise InputError(
            f"{plate.folder}: cannot list the images of {plate.name} ({error.strerror}); put them there or remove the "
            "plate from the tables"
        ) from None
    found: list[SiteFiles] = []
    missing: dict[int, list[str]] = {}
    for well in plate.wells:
        before = len(found)
        for site in range(1, sites + 1):
            expected = tuple(image_name(well.well, site, channel) for channel in range(1, len(CHANNELS) + 1))
            absent = [name for name in expected if name not in names]
            if not absent:
                found.append(SiteFiles(well.well, site, expected))
            elif len(absent) == len(expected):
                missing.setdefault(site, []).append(well.well)
            else:
                channel = expected.index(absent[0])
                raise InputError(
                    f"{plate.folder / absent[0]}: missing; site {site} of well {well.well} lacks channel "
                    f"w{channel + 1} ({CHANNELS[channel]}); add the file or remove the site's other files"
                )
        if len(found) == before:
            raise InputError(
                f"{plate.folder}: well {well.well} of {plate.name} has no images "
                f"({image_name(well.well, 1, 1)} ...); add them or remove {well.id_code} from the tables"
            )
    warnings = [f"{plate.name}: site {site} is missing in {_shown(wells)}" for site, wells in sorted(missing.items())]
    names.difference_update(name for site in found for name in site.names)
    warnings += _unlisted(plate, names, sites)
    return PlateFiles(plate.folder, tuple(found), tuple(warnings))


def _unlisted(plate: Plate, names: set[str], sites: int) -> list[str]:
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
                f"{plate.folder / name}: unexpected; well {match['well']} has sites 1-{sites} (screen.sites) and "
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


def check_image(folder: Path, site: SiteFiles, channel: int, data: bytes, size: int) -> None:
    """Checks one channel's file without decompressing it.

    Args:
        folder: the plate's folder.
        site: which site.
        channel: index into the site's names, from 0.
        data: the file's bytes.
        size: expected side, pixels.

    Raises:
        InputError: names file, channel, well and what is wrong.
    """
    try:
        check_png(data, size)
    except BadPngError as error:
        raise _blame(folder, site, channel, error) from None


def decode_site(folder: Path, site: SiteFiles, data: Sequence[bytes], size: int) -> NDArray[np.uint8]:
    """The pixels of a site whose files `check_image` accepted.

    Args:
        folder: the plate's folder.
        site: which site.
        data: the files' bytes in channel order.
        size: side, pixels.

    Returns:
        Shape (C, size, size), uint8.

    Raises:
        InputError: a file cannot be decoded; names file, channel and well.
    """
    pixels_CHW = np.empty((len(site.names), size, size), np.uint8)
    for channel, content in enumerate(data):
        try:
            decode_png(content, pixels_CHW[channel])
        except BadPngError as error:
            raise _blame(folder, site, channel, error) from None
    return pixels_CHW


def read_site(folder: Path, site: SiteFiles, size: int) -> NDArray[np.uint8]:
    """Reads, checks and decodes the six files of a site.

    Returns:
        Shape (C, size, size), uint8.

    Raises:
        InputError: a file is missing, truncated, damaged or of another kind or size.
    """
    data = [read_image(folder, site, channel) for channel in range(len(site.names))]
    for channel, content in enumerate(data):
        check_image(folder, site, channel, content, size)
    return decode_site(folder, site, data, size)


def read_image(folder: Path, site: SiteFiles, channel: int) -> bytes:
    """The bytes of one channel's file.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return (folder / site.names[channel]).read_bytes()
    except OSError as error:
        raise _blame(folder, site, channel, error.strerror or "cannot be read") from None


def _blame(folder: Path, site: SiteFiles, channel: int, reason: object) -> InputError:
    return InputError(
        f"{folder / site.names[channel]}: channel w{channel + 1} ({CHANNELS[channel]}) of well {site.well}, site "
        f"{site.site}: {reason}"
    )
