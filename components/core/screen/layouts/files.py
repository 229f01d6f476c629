"""Images whose names say their place, as microscopes write them, and a plate map (plate_map.py).

A pattern is a regular expression with named groups: well, or row and column; and any of experiment, plate, site, channel, z and t.
The shipped ones (microscopes.py) are for file names; folders of time points, of z-steps, of single wells and `Images` count as the
microscopes mean them, the folder above is the plate's, and one above that the experiment's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from components.core.errors import InputError, shortened
from components.core.screen.layouts.copies import is_derived, refuse_copies
from components.core.screen.layouts.imaged_wells import join_wells
from components.core.screen.layouts.microscopes import (
    ALIASES,
    END,
    PATTERNS,
    channel_names,
    decoded,
    is_index,
    named_part,
    names_channels,
    plate_title,
)
from components.core.screen.layouts.plate_map import finish_wells, read_plate_map
from components.core.screen.layouts.reading import Layout, Reading, Rows
from components.core.screen.layouts.stacks import COLUMNS, NO_Z, PLACE, PROJECTION, stack_sites
from components.core.screen.screen_source import UnreadableError
from components.core.screen.wells import natural_key, well_at, well_name

_IMAGE = re.compile(rf".+{END}", re.IGNORECASE)
_STEP = re.compile(r"(?i)(?:TimePoint_(?P<t>\d+)|ZStep_(?P<z>\d+)|Images|TIFF?s?)")
"""Folders that are no plate's. ImageXpress writes the projections of its stacks into ZStep_0."""
_MEASUREMENT = re.compile(r"(?P<after>.+?)__\d{4}-\d\d-\d\dT.*|\d{8}T\d{6}_(?P<before>.+)")
"""Folder of a measurement as Harmony (the plate's name, the time, a number) or CellVoyager (the time, the plate's name) call it."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_MADE = re.compile(
    r"(?i)(?:.*[-_ ./])?(?:masks?|overlays?|outlines?|labels?|objects|segmented|segmentations?)(?:/.*|(?:\.ome)?\.\w+)"
)
"""Paths of images that an analysis makes of others, by their name or a folder's."""
_PLACES = ("well", "row", "column", "site", "channel", "z", "t")
_CHOOSE = "give the folder of those that are meant as the screen, or set screen.pattern to a pattern that only they fit"


class _Image(NamedTuple):
    """What a path says of its image; texts are empty where it says nothing."""

    folders: tuple[str, ...]  # that are the plate's or above it
    prefix: str  # what its name begins with
    experiment: str  # if a pattern says it
    well: str
    site: str
    channel: str
    z: str
    t: str
    projected: bool
    path: str


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
    wells, fields = read_plate_map(reading)
    planes, order = _named_channels(reading, planes, paths)
    refuse_copies(reading, planes["folders"], planes["well"], _CHOOSE)
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
        best = _most_fit([path for path in images if not _MADE.fullmatch(path)]) or _most_fit(images)
        if best is None:
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


def _most_fit(images: Sequence[str]) -> str | None:
    """The microscope's pattern that most images fit; None if none fits any."""
    counts = {text: sum(map(bool, _matches(images, text))) for text in PATTERNS.values()}
    best = max(counts, key=lambda text: counts[text])
    microscope = PATTERNS["imagexpress"]
    if best == PATTERNS["plain"] and counts[microscope]:
        numbered = sum(bool(match and match["channel"]) for match in _matches(images, microscope))
        if 4 * numbered >= counts[best]:
            return microscope  # whose numbered channels have several images each that were made of them
    return best if counts[best] else None


def _matches(images: Sequence[str], pattern: str) -> Iterator[re.Match[str] | None]:
    """What each image's name is by a microscope's pattern."""
    fit = re.compile(pattern, re.IGNORECASE).fullmatch
    return (fit(named_part(path, pattern)) for path in images)


def _partly_made(rows: list[_Image]) -> set[str]:
    """Channels, called masks or alike, that some sites of the others lack: an analysis was not of all."""
    sites: dict[str, set[tuple[tuple[str, ...], str, str]]] = {}
    made: dict[str, bool] = {}
    for image in rows:
        sites.setdefault(image.channel, set()).add((image.folders, image.well, image.site))
        made[image.channel] = _MADE.fullmatch(f"{image.channel}.tif") is not None
    whole = set().union(*(having for channel, having in sites.items() if not made[channel]))
    return {channel for channel, having in sites.items() if made[channel] and not whole <= having}


def _planes(reading: Reading, images: list[str], pattern: re.Pattern[str], whole: bool) -> pd.DataFrame:
    """A row an image whose path fits, with the columns of stacks.COLUMNS, `folder`, which it is in, and `folders`, the plate's."""
    rows, others = [], []
    for path in images:
        image = _image(path, pattern, whole)
        if image is None:
            others.append(path)
        else:
            rows.append(image)
    if not rows:
        raise InputError(
            f"{reading.source.address()}: none of {len(images)} images fits screen.pattern {reading.config.pattern}, for example "
            f"{images[0]}"
        )
    if not whole and pattern.pattern == PATTERNS["plain"]:
        made = _partly_made(rows)
        others += [image.path for image in rows if image.channel in made]
        rows = [image for image in rows if image.channel not in made]
    _report_others(reading, rows, others)
    planes = pd.DataFrame(rows, columns=_Image._fields)
    if all(len(image.folders) and _of_well(image.folders[-1]) == image.well for image in rows):
        planes["folders"] = planes["folders"].map(lambda folders: folders[:-1])  # a folder a well
    top = reading.source.address().rstrip("/").rpartition("/")[2]
    named = _plate_names(planes, top, "" if whole else pattern.pattern)
    planes["folders"], given, planes["plate"] = zip(*(named[folders] for folders in planes["folders"]), strict=True)
    planes["experiment"] = planes["experiment"].mask(planes["experiment"] == "", pd.Series(given, dtype=object))
    sites, z, times = (_numbers(reading, planes[column], column) for column in ("site", "z", "t"))
    planes["site"] = sites.where(sites != NO_Z, 1)
    if (planes["site"] == 0).any():
        planes["site"] += 1  # fields counted from 0
    planes["z"], planes["t"], planes["index"] = z.mask(planes["projected"], PROJECTION), times, 0
    planes["folder"] = planes["path"].str.rpartition("/")[0]
    return _one_measurement(reading, planes)


def _of_well(folder: str) -> str | None:
    return well_name(re.sub(r"(?i)^well[ _-]?", "", folder))


def _report_others(reading: Reading, rows: list[_Image], others: list[str]) -> None:
    """Warns of images with other names; refuses folders that hold no others, unless a pattern chose or they are derived ones."""
    if not others:
        return
    read = {image.path.rpartition("/")[0] for image in rows}
    above = {"/".join(folder.split("/")[:n]) for folder in read for n in range(folder.count("/") + 2)} | {""}
    lost: dict[str, list[str]] = {}
    for path in others:
        folder = path.rpartition("/")[0]
        if folder not in above and not is_derived(folder) and reading.config.pattern is None:
            lost.setdefault(folder, []).append(path)
    if lost:
        reading.refuse(
            "folders whose images all have other names than the rest: rename or move them, or set screen.pattern (to the name of a "
            f"microscope, {', '.join(PATTERNS)}, or a regular expression) to leave them out",
            [f"{folder}: {len(paths)} such as {paths[0].rpartition('/')[2]}" for folder, paths in lost.items()],
        )
    left = [path for path in others if path.rpartition("/")[0] not in lost]
    if left:
        reading.warn(f"{len(left)} images with other names are left out", left)


def _image(path: str, pattern: re.Pattern[str], whole: bool) -> _Image | None:
    """The place of an image; None if it is in no well."""
    tail = path if whole else named_part(path, pattern.pattern)
    match = pattern.search(path) if whole else pattern.fullmatch(tail)
    if match is None:
        return None
    groups = {name: text or "" for name, text in match.groupdict().items()}
    row, column = groups.get("row", ""), groups.get("column", "")
    written = re.sub(r"[ -]|(?<=[A-Za-z])0+(?=\d\d)", "", groups.get("well") or row + column)
    well = well_at(int(row), int(column)) if row.isdecimal() and column.isdecimal() else well_name(written)
    if well is None:
        return None
    parts = path.split("/")
    level = path.count("/", 0, match.start("plate")) if whole and groups.get("plate") else len(parts)
    used = {len(parts) - 1 - n for n in range(tail.count("/") + 1)}
    if whole:
        spans = [match.span(name) for name in _PLACES if groups.get(name)]
        used = {len(parts) - 1} | {n for a, b in spans for n in range(path.count("/", 0, a), path.count("/", 0, b) + 1)}
    folders: list[str] = []
    above: list[str] = []  # the plate's, if a pattern says it
    projected = False
    for n, part in enumerate(parts):
        step = _STEP.fullmatch(part) if n not in used else None
        if step:
            groups |= {axis: value for axis, value in step.groupdict().items() if value}
            projected = projected or int(step["z"] or 1) == 0
        elif n not in used:
            folders.append(part)
            above += [part] if n < level else []
    if groups.get("plate"):
        batch = groups.setdefault("experiment", above[-1] if above else "")
        folders = [*above, *([batch] if batch not in ("", *above) else []), groups["plate"]]
    channel = groups.get("channel") or "1"
    if groups.get("camera", "1") not in ("", "1"):
        channel = f"{groups['camera']}-{channel}"
    prefix, experiment, site, z, t = (groups.get(name, "") for name in ("prefix", "experiment", "site", "z", "t"))
    return _Image(tuple(folders), prefix, experiment, well, site, channel, z, t, projected, path)


def _plate_names(
    planes: pd.DataFrame, top: str, pattern: str
) -> dict[tuple[str, ...], tuple[tuple[str, ...], str, str]]:
    """For each plate's folders those that name it, the experiment and the plate; `pattern` is a microscope's, or empty.

    MetaXpress exports into PLATE/DATE/NUMBER, and CellVoyager into TIME_PLATE/TYPE, the type of plate in all names.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for place, prefix in planes[["folders", "prefix"]].drop_duplicates().itertuples(index=False):
        found.setdefault(place, []).append(prefix)
    ends = {place: _without_export(place) for place in found} if pattern else {}
    exported = {place: rest for place, rest in ends.items() if rest is not None}
    firsts = [names[0] for place, names in found.items() if place in exported and len(names) == 1 and names[0]]
    by_prefix = len(firsts) == len(set(firsts)) == len(exported)
    types = {place[-1] for place, names in found.items() if len(place) > 1 and names == [place[-1]]}
    typed = (
        pattern == PATTERNS["yokogawa"]
        and len(types) == 1
        and len(found) > 1
        and all(place[-1] in types for place in found)
    )
    by_folder = len(set(exported.values()) - {()}) == len(exported)
    named = {}
    for place, names in found.items():
        folders = place[:-1] if typed else place
        if place in exported and by_prefix:
            folders = (*(part for part in exported[place] if part != names[0]), names[0])
        elif place in exported and by_folder:
            folders = exported[place]
        plate = folders[-1] if folders else top
        measured = _MEASUREMENT.fullmatch(plate)
        plate = measured["after"] or measured["before"] if measured else plate
        named[place] = folders, folders[-2] if len(folders) > 1 else "", plate
    return named


def _without_export(folders: tuple[str, ...]) -> tuple[str, ...] | None:
    """The folders above those of a date and a number with which a path ends; None if it does not."""
    count = len(folders)
    while count and (folders[count - 1].isdecimal() or _DATE.fullmatch(folders[count - 1])):
        count -= 1
    dated = any(_DATE.fullmatch(part) for part in folders[count:])
    return folders[:count] if dated and not _DATE.fullmatch(folders[-1]) else None


def _numbers(reading: Reading, texts: pd.Series[str], what: str) -> pd.Series[int]:
    """Numbers of up to 9 digits that texts are, or end in; NO_Z for empty ones. Others are counted in order, which is said."""
    distinct = sorted(set(texts) - {""}, key=natural_key)
    ends = {text: re.fullmatch(r"\D*0*(\d{1,9})", text) for text in distinct}
    given = {text: int(match[1]) for text, match in ends.items() if match}
    plain = all(text.isdecimal() for text in distinct)
    if len(given) < len(distinct) or (not plain and len(set(given.values())) < len(distinct)):
        given = {text: n for n, text in enumerate(distinct, 1)}
        if len(distinct) > 1:
            word = {"t": "time points", "z": "planes"}.get(what, "sites")
            reading.warn(f"{word} are counted: {shortened([f'{n} is {text}' for text, n in given.items()])}")
    return texts.map({**given, "": NO_Z}).astype(int)


def _one_measurement(reading: Reading, planes: pd.DataFrame) -> pd.DataFrame:
    """Refuses several measurements of one plate; keeps the first of each."""
    again = planes.duplicated(PLACE, keep=False)
    if not again.any():
        return planes
    places, dropped = [], planes["path"].isna()
    for (_, plate), rows in planes[again].groupby(["experiment", "plate"], sort=False):
        measured = [each for each in dict.fromkeys(rows["folders"]) if each and _MEASUREMENT.fullmatch(each[-1])]
        if len(measured) > 1:
            places.append(f"plate {plate}: {' and '.join(each[-1] for each in measured)}")
            dropped |= planes["folders"].isin(measured[1:])
    if places:
        reading.refuse(
            "several measurements of one plate: keep one of each, or give the folder of one as the screen", places
        )
    return planes[~dropped]


def _named_channels(reading: Reading, planes: pd.DataFrame, paths: Iterable[str]) -> tuple[pd.DataFrame, list[str]]:
    """Channels, and a plate without a folder, by the names in Harmony's index or ImageXpress's .HTD; and the channels in order.

    A number means on each plate what the plate's own file says.
    """
    files = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if names_channels(name) and (is_index(name) or folder not in files):
            files[folder] = path
    numbers = sorted(planes["channel"].unique(), key=natural_key)
    spelled: dict[str, str] = {}  # the first spelling of a name
    own: dict[str, dict[str, str]] = {}
    said: dict[str, tuple[dict[str, str], str]] = {"": ({}, "")}  # by such a file, which may be that of many folders
    for folder in dict.fromkeys(planes["folder"]):
        file = next((files[each] for each in _and_above(folder) if each in files), "")
        if file not in said:
            text = _text(reading, file)
            said[file] = {str(number): name for number, name in channel_names(text).items()}, plate_title(text)
        names, title = said[file]
        own[folder] = {
            each: spelled.setdefault(names[each.lstrip("0")].casefold(), names[each.lstrip("0")])
            for each in numbers
            if each.lstrip("0") in names
        }
        if is_index(file.rpartition("/")[2]) and not folder.replace("Images", "").strip("/"):
            # The screen's folder is that of the plate's measurement.
            planes = planes.assign(plate=planes["plate"].mask((planes["folder"] == folder) & bool(title), title))
    meant = {each: {names[each] for names in own.values() if each in names} for each in numbers}
    wanted = reading.config.channels
    if all(len(names) <= 1 for names in meant.values()):
        given = {each: next(iter(names), "") for each, names in meant.items()}
        distinct = all(given.values()) and len(set(given.values())) == len(given)
        if distinct and (wanted is None or set(wanted) <= set(given.values())):
            return planes.assign(channel=planes["channel"].map(given)), list(given.values())
        return planes, numbers
    places = [
        f"{folder}: {', '.join(f'{each} {name}' for each, name in names.items())}" for folder, names in own.items()
    ]
    if wanted and set(wanted) <= set(numbers):
        reading.warn("numbers of channels mean other names on some plates, and are read as numbers", places)
        return planes, numbers
    sets = {frozenset(names.values()) for names in own.values()}
    if len(sets) > 1 or any(len(set(names.values())) < len(numbers) for names in own.values()):
        reading.refuse(
            "the channels of plates have other names, and a screen has the same channels on all plates: correct the index or .HTD "
            f"of a plate, or set screen.channels to [{', '.join(numbers)}] if the numbers mean the same",
            places,
        )
        return planes, numbers
    named = [own[folder][channel] for folder, channel in zip(planes["folder"], planes["channel"], strict=True)]
    return planes.assign(channel=named), list(next(iter(own.values())).values())


def _and_above(folder: str) -> Iterator[str]:
    """A folder and the one above it, and those above folders of time points and z-steps."""
    yield folder
    while folder:
        folder, _, name = folder.rpartition("/")
        yield folder
        if not _STEP.fullmatch(name):
            break


def _text(reading: Reading, path: str) -> str:
    try:
        return decoded(reading.source.read_many([path])[0])
    except UnreadableError:
        return ""


FILES = Layout("files", found, read)
