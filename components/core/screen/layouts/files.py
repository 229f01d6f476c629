"""Images whose names say their place, as microscopes write them, and a plate map (plate_map.py).

A pattern is a regular expression with named groups: well, or row and column; and any of experiment, plate, site, channel, z and t.
The shipped ones are for file names; folders of time points, of z-steps and `Images` count as the microscopes mean them, the folder
above is the plate's, and one above that the experiment's.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from components.core.errors import InputError
from components.core.screen.layouts.plate_map import finish_wells, join_wells, read_plate_map
from components.core.screen.layouts.reading import Layout, Reading, Rows
from components.core.screen.layouts.stacks import COLUMNS, NO_Z, PROJECTION, stack_sites
from components.core.screen.screen_source import UnreadableError
from components.core.screen.wells import natural_key, well_at, well_name

_END = r"(?:\.ome)?\.(?:tiff?|png|jpe?g)"
_GUID = r"(?:[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12})?"
_WELL = r"(?P<well>[A-Z]{1,2}\d{1,2})"
PATTERNS: dict[str, str] = {
    "phenix": r"r(?P<row>\d+)c(?P<column>\d+)f(?P<site>\d+)p(?P<z>\d+)-ch(?P<channel>\d+)"
    rf"(?:sk(?P<t>\d+))?(?:fk\d+)?(?:fl\d+)?{_END}",
    "yokogawa": rf"(?:.*?_)??{_WELL}_T(?P<t>\d+)F(?P<site>\d+)L\d+A\d+Z(?P<z>\d+)C(?P<channel>\d+){_END}",
    "cytation": rf"{_WELL}_\d+_\d+_(?P<site>\d+)(?:Z(?P<z>\d+))?_(?P<channel>[^_]+)_(?P<t>\d+){_END}",
    "cellomics": rf"(?:.*?_)??{_WELL}f(?P<site>\d+)d(?P<channel>\d+){_END}",
    "imagexpress": rf"(?:.*?_)??{_WELL}(?:_s(?P<site>\d+))?(?:_w(?P<channel>\d+?))?(?:_z(?P<z>\d+))?(?:_t(?P<t>\d+))?{_GUID}{_END}",
}
"""File names of microscopes, in the order in which they are tried: ImageXpress's fit many."""
ALIASES = {
    "operetta": "phenix",
    "opera": "phenix",
    "harmony": "phenix",
    "cellworx": "imagexpress",
    "cellvoyager": "yokogawa",
}
_IMAGE = re.compile(rf".+{_END}", re.IGNORECASE)
_STEP = re.compile(r"(?i)(?:TimePoint_(?P<t>\d+)|ZStep_(?P<z>\d+)|Images|TIFF?s?)")
"""Folders that are no plate's. ImageXpress writes the projections of its stacks into ZStep_0."""
_MEASUREMENT = re.compile(r"(.+?)__\d{4}-\d\d-\d\dT.*")
"""Folder of a measurement as Harmony names it: the plate's name, the time, the number of the measurement."""
_INDEX = re.compile(r"(?i)index(?:\.(?:idx|ref|flex))?\.xml")


class _Place(NamedTuple):
    """What a path says of its image; texts are empty, and numbers NO_Z, where it says nothing."""

    experiment: str
    plate: str
    well: str
    site: int
    channel: str
    z: int
    t: int


def found(reading: Reading) -> bool:
    """Whether there are images anywhere."""
    return any(map(_IMAGE.fullmatch, reading.paths()))


def read(reading: Reading) -> Rows:
    """Reads names and plate map."""
    paths = reading.paths()
    images = [path for path in paths if _IMAGE.fullmatch(path) and "_thumb" not in path.lower()]
    if not images:
        raise InputError(
            f"{reading.source.address()}: there are no images (.tif, .png or .jpg) in it, nor in folders below"
        )
    pattern, whole = _pattern(reading, images)
    planes = _planes(reading, images, pattern, whole)
    plates = planes[["experiment", "plate", "folder"]].drop_duplicates()
    wells, fields = read_plate_map(reading)
    planes, order = _named_channels(reading, planes, plates, paths)
    sites, channels = stack_sites(reading, planes[COLUMNS], order)
    merged = join_wells(reading, sites, wells, planes[["experiment", "plate"]].drop_duplicates())
    merged = reading.chosen(finish_wells(reading, merged))
    looked_for = f"looked for names that fit the pattern {reading.config.pattern or _name_of(pattern)}"
    return Rows(merged, channels, looked_for, fields)


def _name_of(pattern: re.Pattern[str]) -> str:
    return next((name for name, text in PATTERNS.items() if text == pattern.pattern), pattern.pattern)


def _pattern(reading: Reading, images: list[str]) -> tuple[re.Pattern[str], bool]:
    """The pattern, and whether it is for whole paths; else it is for the names of files."""
    wanted = reading.config.pattern
    if wanted is None:
        names = [path.rpartition("/")[2] for path in images]
        counts = {
            text: sum(map(bool, map(re.compile(text, re.IGNORECASE).fullmatch, names))) for text in PATTERNS.values()
        }
        best = max(counts, key=lambda text: counts[text])
        if not counts[best]:
            raise InputError(
                f"{reading.source.address()}: {len(images)} images whose names fit no known microscope, such as {images[0]}; set "
                "screen.pattern to a regular expression with the named groups well, site and channel"
            )
        return re.compile(best, re.IGNORECASE), False
    name = ALIASES.get(wanted.lower(), wanted.lower())
    if name in PATTERNS:
        return re.compile(PATTERNS[name], re.IGNORECASE), False
    try:
        pattern = re.compile(wanted)
    except re.error as error:
        raise InputError(
            f"screen.pattern: {wanted!r} is no regular expression ({error}), nor one of {', '.join(PATTERNS)}"
        ) from None
    if "well" not in pattern.groupindex and not {"row", "column"} <= pattern.groupindex.keys():
        raise InputError("screen.pattern: it has no named group (?P<well>...), nor (?P<row>...) and (?P<column>...)")
    return pattern, True


def _planes(reading: Reading, images: list[str], pattern: re.Pattern[str], whole: bool) -> pd.DataFrame:
    """A row an image whose path fits, with the columns of stacks.COLUMNS and `folder`, the plate's; warns of others."""
    rows, others = [], []
    for path in images:
        folder, _, name = path.rpartition("/")
        match = pattern.search(path) if whole else pattern.fullmatch(name)
        place = _place(reading, folder, match.groupdict()) if match else None
        if place is None:
            others.append(path)
        else:
            rows.append((*place, path, 0, folder))
    if not rows:
        raise InputError(
            f"{reading.source.address()}: none of {len(images)} images fits screen.pattern {reading.config.pattern}, for example "
            f"{images[0]}"
        )
    if others:
        reading.warn(f"{len(others)} images with other names are left out", others)
    planes = pd.DataFrame(rows, columns=[*_Place._fields, "path", "index", "folder"])
    if (planes["site"] == 0).any():
        planes["site"] += 1  # fields counted from 0
    return planes


def _place(reading: Reading, folder: str, groups: Mapping[str, str | None]) -> _Place | None:
    """The place of an image; None if it is in no well."""
    row, column = groups.get("row") or "", groups.get("column") or ""
    numbers = row.isdecimal() and column.isdecimal()
    well = well_at(int(row), int(column)) if numbers else well_name(groups.get("well") or row + column)
    if well is None:
        return None
    steps = {"t": groups.get("t"), "z": groups.get("z")}
    folders, projected = [], False
    for part in folder.split("/") if folder else []:
        step = _STEP.fullmatch(part)
        if step is None:
            folders.append(part)
        else:
            steps |= {axis: value for axis, value in step.groupdict().items() if value}
            projected = projected or int(step["z"] or 1) == 0
    top = reading.source.address().rstrip("/").rpartition("/")[2]
    plate = groups.get("plate") or (folders[-1] if folders else top)
    measured = _MEASUREMENT.fullmatch(plate)
    experiment = groups.get("experiment") or (folders[-2] if len(folders) > 1 else "")
    return _Place(
        experiment,
        measured[1] if measured else plate,
        well,
        int(groups.get("site") or 1),
        groups.get("channel") or "1",
        PROJECTION if projected else NO_Z if steps["z"] is None else int(steps["z"]),
        NO_Z if steps["t"] is None else int(steps["t"]),
    )


def _named_channels(
    reading: Reading, planes: pd.DataFrame, plates: pd.DataFrame, paths: Iterable[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Channels, and a plate without a folder, by the names in Harmony's index or ImageXpress's .HTD; and the channels in order."""
    indices, settings = {}, {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if _INDEX.fullmatch(name):
            indices[folder] = path
        elif name.lower().endswith(".htd"):
            settings[folder] = path
    names: Counter[tuple[int, str]] = Counter()
    for _, _, folder in plates.itertuples(index=False):
        above = folder.rpartition("/")[0]
        if folder in indices:
            text = _text(reading, indices[folder])
            names.update(set(_harmony_channels(text)))
            if not folder.replace("Images", "").strip("/"):  # the screen's folder is that of the plate's measurement
                title = re.search(r"<(?:PlateID|Name)>(.*?)</", text)
                name = html.unescape(title[1]) if title else ""
                planes = planes.assign(plate=planes["plate"].mask((planes["folder"] == folder) & bool(name), name))
        elif folder in settings or above in settings:
            names.update(set(_htd_channels(_text(reading, settings.get(folder) or settings[above]))))
    best = {number: name for (number, name), _ in reversed(names.most_common())}
    numbers = sorted(planes["channel"].unique(), key=natural_key)
    given = {text: best.get(int(text), "") if text.isdecimal() else "" for text in numbers}
    wanted = reading.config.channels
    distinct = all(given.values()) and len(set(given.values())) == len(given)
    if distinct and (wanted is None or set(wanted) <= set(given.values())):
        return planes.assign(channel=planes["channel"].map(given)), list(given.values())
    return planes, numbers


def _text(reading: Reading, path: str) -> str:
    try:
        return reading.source.read_many([path])[0].decode("utf-8-sig", errors="replace")
    except UnreadableError:
        return ""


def _harmony_channels(text: str) -> list[tuple[int, str]]:
    """Numbers and names of channels in an index of Harmony, whose versions differ in where they are."""
    one = r"<ChannelID>(\d+)</ChannelID>(?:(?!<ChannelID>).)*?<ChannelName>(.*?)</ChannelName>"
    entry = r'<Entry ChannelID="(\d+)">(?:(?!</Entry>).)*?<ChannelName>(.*?)</ChannelName>'
    found = {**dict(re.findall(entry, text, re.DOTALL)), **dict(re.findall(one, text, re.DOTALL))}
    return [(int(number), html.unescape(name)) for number, name in found.items()]


def _htd_channels(text: str) -> list[tuple[int, str]]:
    """Numbers and names of channels in an .HTD file."""
    return [(int(number), name) for number, name in re.findall(r'"WaveName(\d+)",\s*"([^"]+)"', text)]


FILES = Layout("files", f"images with names of {', '.join(PATTERNS)} (screen.pattern), and a plate map", found, read)
