"""Names that microscopes give to image files, their formats that are not read, and the names of channels that they write beside."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable

END = r"(?:\.ome)?\.(?:tiff?|png|jpe?g)"
_GUID = r"(?:[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12})?"
_WELL = r"(?P<well>[A-Z]{1,2}\d{1,2})"
_BEFORE = r"(?:(?P<prefix>[^/]*?)_)??"
PATTERNS: dict[str, str] = {
    "phenix": r"r(?P<row>\d+)c(?P<column>\d+)f(?P<site>\d+)p(?P<z>\d+)(?:rc(?P<camera>\d+))?-ch(?P<channel>\d+)"
    rf"(?:sk(?P<t>\d+))?(?:fk\d+)?(?:fl\d+)?{END}",
    "columbus": rf"(?P<row>\d{{3}})(?P<column>\d{{3}})-(?P<site>\d+)-(?P<z>\d{{3}})(?P<t>\d{{3}})(?P<channel>\d{{3}}){END}",
    "yokogawa": rf"{_BEFORE}{_WELL}_T(?P<t>\d+)F(?P<site>\d+)L\d+A\d+Z(?P<z>\d+)C(?P<channel>\d+){END}",
    "cytation": rf"{_WELL}_\d+_\d+_(?P<site>\d+)(?:Z(?P<z>\d+))?_(?P<channel>[^_/]+)_(?P<t>\d+){END}",
    "cellomics": rf"{_BEFORE}{_WELL}f(?P<site>\d+)d(?P<channel>\d+){END}",
    "incell": rf"{_BEFORE}(?P<well>[A-Z]{{1,2}} - \d{{1,2}})\(fld (?P<site>\d+) wv (?P<channel>[^/]+?)(?: wix \d+)?"
    rf"(?: z (?P<z>\d+))?(?: time (?P<t>\d+))?\){END}",
    "incucyte": rf"{_BEFORE}{_WELL}_(?P<site>\d+)_(?P<t>\d+d\d+h\d+m|\d+y\d+m\d+d_\d+h\d+m){END}",
    "bdpathway": rf"Well (?P<well>[A-Z]{{1,2}}\d{{1,3}})/(?P<channel>[^/]+?) - n(?P<t>\d+){END}",
    "imagexpress": rf"{_BEFORE}{_WELL}(?:_s(?P<site>\d+))?(?:_w(?P<channel>\d+?))?(?:_z(?P<z>\d+))?(?:_t(?P<t>\d+))?{_GUID}{END}",
    "plain": rf"{_WELL}(?:_s?(?P<site>\d+))?_(?![SWZT]\d+{_GUID}[_.])(?P<channel>[A-Z][^_/.]*){END}",
}
"""File names, of BD Pathway with their folder, in the order in which they are tried: ImageXpress's and plain ones fit many.

No name fits both of these."""
ALIASES = {
    "operetta": "phenix",
    "opera": "phenix",
    "harmony": "phenix",
    "cellworx": "imagexpress",
    "cellvoyager": "yokogawa",
}
_UNREAD = {
    ".flex": "PerkinElmer Opera",
    ".czi": "Zeiss",
    ".lif": "Leica",
    ".nd2": "Nikon",
    ".vsi": "Olympus",
    ".oir": "Olympus",
    ".ims": "Imaris",
    ".mrxs": "3DHISTECH",
    ".c01": "Cellomics",
    ".stk": "MetaMorph",
    ".jp2": "JPEG 2000",
    ".tif.gz": "compressed TIFF",
    ".tiff.gz": "compressed TIFF",
}
_INDEX = re.compile(r"(?i)index(?:\.(?:idx|ref|flex))?\.xml")


def unread_formats(paths: Iterable[str]) -> str:
    """The files in formats that are not read, counted, for a message: `48 .czi files (Zeiss)`; empty if there are none."""
    found: Counter[str] = Counter()
    for path in paths:
        low = path.lower()
        end = next((end for end in _UNREAD if low.endswith(end)), None)
        if end:
            found[end] += 1
    return ", ".join(
        f"{count} {end} file{'s' if count > 1 else ''} ({_UNREAD[end]})" for end, count in found.most_common()
    )


def named_part(path: str, pattern: str) -> str:
    """What of a path a microscope's pattern is for: the file's name, with the well's folder if that has the well."""
    return "/".join(path.split("/")[-2 if pattern.startswith("Well ") else -1 :])


def is_index(name: str) -> bool:
    """Whether a file is Harmony's index of a measurement."""
    return _INDEX.fullmatch(name) is not None


def names_channels(name: str) -> bool:
    """Whether a file may name channels: Harmony's index, or ImageXpress's .HTD."""
    return is_index(name) or name.lower().endswith(".htd")


def decoded(content: bytes) -> str:
    """The text of such a file, in UTF-8 or Windows' Latin-1."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def channel_names(text: str) -> dict[int, str]:
    """Names of channels by their number, in Harmony's index, whose versions differ in where they are, or in an .HTD."""
    one = r"<ChannelID>(\d+)</ChannelID>(?:(?!<ChannelID>).)*?<ChannelName>(.*?)</ChannelName>"
    entry = r'<Entry ChannelID="(\d+)">(?:(?!</Entry>).)*?<ChannelName>(.*?)</ChannelName>'
    found = {**dict(re.findall(entry, text, re.DOTALL)), **dict(re.findall(one, text, re.DOTALL))}
    waves = re.findall(r'"WaveName(\d+)",\s*"([^"]+)"', text)
    named = [(int(number), html.unescape(name).strip()) for number, name in (*found.items(), *waves)]
    return {number: name for number, name in named if name}


def plate_title(text: str) -> str:
    """The plate's name in Harmony's index; empty without."""
    title = re.search(r"<(?:PlateID|Name)>(.*?)</", text)
    return html.unescape(title[1]) if title else ""
