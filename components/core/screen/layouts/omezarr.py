"""OME-Zarr HCS plates, 0.4 (Zarr v2) and 0.5 (Zarr v3), and a plate map (plate_map.py).

The screen's folder is a plate, with its map inside or beside it, or holds plates PLATE.zarr, or folders of experiments that hold
them. Reads metadata only.
Source: https://ngff.openmicroscopy.org
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from components.core.errors import InputError, shortened
from components.core.screen.layouts.copies import refuse_copies
from components.core.screen.layouts.imaged_wells import join_wells
from components.core.screen.layouts.plate_map import finish_wells, read_plate_map
from components.core.screen.layouts.reading import Layout, Reading, Rows
from components.core.screen.layouts.stacks import COLUMNS, NO_Z, stack_sites
from components.core.screen.screen_source import UnreadableError, files_in
from components.core.screen.wells import natural_key, well_name
from components.core.screen.zarr_images import open_image, zarr_header

_ENDS = (".ome.zarr", ".zarr")
_METADATA = {".zattrs", "zarr.json"}
_CHOOSE = (
    "set screen.pattern to a regular expression that only the folders of those that are meant fit, or move the others"
)


def found(reading: Reading) -> bool:
    """Whether there is a plate."""
    return bool(_plates(reading))


def _plates(reading: Reading) -> list[tuple[str, str, str]]:
    """Experiment, name and folder of each plate; the experiment is empty if no folder names one."""
    if reading.names & _METADATA:
        name = reading.source.address().rstrip("/").rpartition("/")[2]
        return [("", _stem(name), "")]
    plates = []
    for folder in sorted(reading.source.list_folders()):
        if folder.endswith(".zarr"):
            plates.append(("", _stem(folder), folder))
        else:
            inside = sorted(reading.source.list_folders(folder))
            plates += [(folder, _stem(name), f"{folder}/{name}") for name in inside if name.endswith(".zarr")]
    try:
        pattern = re.compile(reading.config.pattern or "")
    except re.error as error:
        raise InputError(f"screen.pattern: {reading.config.pattern!r} is no regular expression ({error})") from None
    return [plate for plate in plates if pattern.search(plate[2])]


def _stem(name: str) -> str:
    return next((name.removesuffix(end) for end in _ENDS if name.endswith(end)), name)


def read(reading: Reading) -> Rows:
    """Reads metadata and plate map."""
    plates = _plates(reading)
    if not plates:
        raise InputError(f"{reading.source.address()}: there is no OME-Zarr plate: expected PLATE.zarr folders")
    wells, fields = read_plate_map(reading)
    planes = pd.DataFrame([row for plate in plates for row in _planes(reading, *plate)], columns=[*COLUMNS, "file"])
    folders = [tuple(filter(None, place)) for place in zip(planes["experiment"], planes["plate"], strict=True)]
    refuse_copies(reading, folders, planes["well"], _CHOOSE)
    if planes.empty:
        raise InputError(f"{reading.source.address()}: the plates have no wells with images")
    names = list(dict.fromkeys(planes["channel"]))
    sites, channels = stack_sites(reading, planes, names, indexed=True)
    merged = join_wells(reading, sites, wells, planes[["experiment", "plate"]].drop_duplicates())
    merged = reading.chosen(finish_wells(reading, merged))
    return Rows(merged, channels, "looked for wells of the OME-Zarr plates", fields)


def _planes(reading: Reading, experiment: str, plate: str, folder: str) -> Iterator[tuple[Any, ...]]:
    """The planes of a plate, with the columns of stacks.COLUMNS and `file`."""
    attributes = _attributes(reading, [folder])[0]
    address = reading.source.address(folder)
    try:
        paths = [_text(well["path"]) for well in attributes["plate"]["wells"]]
    except (KeyError, TypeError):
        raise InputError(f"{address}: no OME-Zarr plate: its metadata have no wells") from None
    folders = [_join(folder, path) for path in paths]
    form: tuple[list[str], list[int], list[str], str] | None = None
    several: dict[str, list[str]] = {}  # wells of several acquisitions by the first
    for path, well_folder, described in zip(paths, folders, _wells(reading, folders), strict=True):
        well = well_name(path.replace("/", ""))
        if well is None:
            raise InputError(f"{address}: {path} is no well: expected ROW/COLUMN, for example B/03")
        images = _images(described, reading.source.address(_join(well_folder, "")))
        if not images:  # some converters leave the wells' metadata out
            names = reading.source.list_folders(well_folder)
            images = [{"path": name} for name in sorted(filter(str.isdecimal, names), key=int)]
        acquisitions = [str(image.get("acquisition") or 0) for image in images]
        first = min(acquisitions, key=natural_key, default="")
        if len(set(acquisitions)) > 1:
            several.setdefault(first, []).append(path)
        of_first = (image for image, each in zip(images, acquisitions, strict=True) if each == first)
        for position, image in enumerate(of_first):
            name = str(image["path"])
            site = int(name) + 1 if name.isdecimal() else position + 1
            image_folder = _join(well_folder, name)
            form = form or _form(reading, image_folder)
            axes, shape, labels, contents = form
            for index in range(math.prod(shape)):
                at = dict(zip(axes, _unravel(index, shape), strict=True))
                z = at["z"] + 1 if "z" in at and shape[axes.index("z")] > 1 else NO_Z
                t = at["t"] + 1 if "t" in at and shape[axes.index("t")] > 1 else NO_Z
                yield experiment, plate, well, site, labels[at.get("c", 0)], z, t, image_folder, index, contents
    for first, of_wells in several.items():
        reading.warn(f"several acquisitions: the first, {first}, is read", [f"{address}: {shortened(of_wells)}"])


def _text(value: object) -> str:
    """A text of the metadata; TypeError if it is none."""
    if not isinstance(value, str):
        raise TypeError
    return value


def _images(described: Mapping[str, Any], address: str) -> list[Mapping[str, Any]]:
    """The images of a well by its metadata; none without."""
    well = described.get("well", {})
    images = well.get("images", []) if isinstance(well, dict) else None
    if not isinstance(images, list) or not all(isinstance(each, dict) and "path" in each for each in images):
        raise InputError(f"{address}: no metadata of an OME-Zarr well: `well` has no list of `images` with their paths")
    return images


def _wells(reading: Reading, folders: list[str]) -> list[Mapping[str, Any]]:
    """The metadata of wells; empty for those that have none."""
    try:
        return _attributes(reading, folders)
    except InputError:
        there = [any(facts.name in _METADATA for facts in files_in(reading.source, folder)) for folder in folders]
        return [_attributes(reading, [folder])[0] if has else {} for folder, has in zip(folders, there, strict=True)]


def _form(reading: Reading, folder: str) -> tuple[list[str], list[int], list[str], str]:
    """Axes of an image before y and x, their lengths, names of the channels, and `Plane.file`, by which the others are checked."""
    (attributes,) = _attributes(reading, [folder])
    try:
        image = open_image(reading.source, folder)
        shape = list(image.array({}).shape[:-2])
        contents = zarr_header(image).contents
    except (UnreadableError, ValueError) as error:
        raise InputError(f"{reading.source.address(folder)}: {getattr(error, 'reason', error)}") from None
    axes = list(image.axes)
    count = shape[axes.index("c")] if "c" in axes else 1
    omero = attributes.get("omero")
    described = omero.get("channels") if isinstance(omero, dict) else None
    given = [str(each.get("label", "")) for each in described or () if isinstance(each, dict)]
    named = len(given) == count and all(given) and len(set(given)) == count
    return axes, shape, given if named else [str(c + 1) for c in range(count)], contents


def _unravel(index: int, shape: list[int]) -> list[int]:
    places = []
    for length in reversed(shape):
        index, place = divmod(index, length)
        places.append(place)
    return places[::-1]


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _attributes(reading: Reading, folders: list[str]) -> list[Mapping[str, Any]]:
    """The NGFF metadata of groups, read together."""
    for name in ("zarr.json", ".zattrs"):
        paths = [_join(folder, name) for folder in folders]
        try:
            contents = reading.source.read_many(paths)
        except UnreadableError as error:
            if name == ".zattrs" or not error.missing:
                raise InputError(
                    f"{reading.source.address(error.path)}: {error.reason}; is it an OME-Zarr plate?"
                ) from None
            continue
        try:
            documents = [json.loads(content) for content in contents]
            found = [doc["attributes"]["ome"] if name == "zarr.json" else doc for doc in documents]
            bad = next((path for path, doc in zip(paths, found, strict=True) if not isinstance(doc, dict)), None)
            if bad:
                raise InputError(f"{reading.source.address(bad)}: no OME-Zarr metadata: expected a JSON object")
            return found
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{reading.source.address(paths[0])}: no metadata of an OME-Zarr plate") from None
    raise AssertionError


OMEZARR = Layout("omezarr", found, read)
