"""Plates that are derived copies of others: corrected, projected, masks. Taken for plates they would leak labels between folds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations

from components.core.screen.layouts.reading import Reading

_WORD = (
    r"(?:corr(?:ected)?|illum\w*|flat(?:[-_ ]?field)?\w*|mips?|max(?:[-_ ]?(?:ip|proj\w*))?|proj(?:ect\w*)?|raw|originals?|"
    r"process(?:ed)?|aligned|registered|denoised?|decon\w*|stitched|compressed|converted|normali[sz]ed|background|"
    r"masks?|outlines?|overlays?|segment\w*|labels?|montages?|thumb\w*|tiffs?|tifs?|pngs?|jpe?gs?|8[-_ ]?bit|16[-_ ]?bit)"
)
_DERIVED = re.compile(rf"(?i){_WORD}(?:[-_ .]{_WORD}|[-_ .]?images?)*")
_SUFFIX = re.compile(rf"(?i)(?P<stem>.+?)(?:[-_ .]{_WORD})+")
_BARCODE = re.compile(r".*\d{4}.*")

Place = tuple[str, ...]


def is_derived(folder: str) -> bool:
    """Whether a folder is called like one of derived images: masks, overlays, corrected ones."""
    return any(_DERIVED.fullmatch(part) for part in folder.split("/"))


def refuse_copies(reading: Reading, folders: Iterable[Place], imaged: Iterable[str], choose: str) -> None:
    """Refuses plates that look like copies of each other; warns of one barcode in several experiments.

    Args:
        reading: receives findings.
        folders: of the plate of each image, as the parts of its path.
        imaged: the well of each image.
        choose: how to choose, for the message.
    """
    plates: dict[Place, set[str]] = {}
    for place, well in zip(folders, imaged, strict=True):
        plates.setdefault(place, set()).add(well)
    copies = sorted({" and ".join("/".join(each) for each in sorted(pair, key=len)) for pair in _copies(plates)})
    if copies:
        reading.refuse(
            "folders that look like copies of one plate, with the same wells; as plates of their own they would be in training and "
            f"in validation at once: {choose}",
            copies,
        )
        return
    same: dict[str, list[Place]] = {}
    for place in plates:
        if place and _BARCODE.fullmatch(place[-1]):
            same.setdefault(place[-1], []).append(place)
    several = [" and ".join("/".join(each) for each in places) for places in same.values() if len(places) > 1]
    if several:
        reading.warn("plates of one barcode in several folders: are they copies?", several)


def _copies(wells: Mapping[Place, set[str]]) -> Iterator[tuple[Place, Place]]:
    """Pairs that differ by words of processing alone, or of which one is in a further folder, and that share wells."""
    stems: dict[Place, list[Place]] = {}
    names: dict[str, list[Place]] = {}
    for place in wells:
        stems.setdefault(_stem(place), []).append(place)
        names.setdefault(place[-1] if place else "", []).append(place)
    for group in stems.values():
        yield from ((a, b) for a, b in combinations(group, 2) if wells[a] & wells[b])
    for group in names.values():
        if len({len(place) for place in group}) > 1:
            for a, b in combinations(sorted(group, key=len), 2):
                if len(a) < len(b) and _within(a, b) and wells[a] & wells[b]:
                    yield a, b


def _stem(place: Place) -> Place:
    """A folder without what words of processing say."""
    parts = []
    for part in place:
        if _DERIVED.fullmatch(part):
            continue
        match = _SUFFIX.fullmatch(part)
        parts.append(match["stem"] if match else part)
    return tuple(parts) or place


def _within(short: Place, long: Place) -> bool:
    """Whether all parts of a path are in the other, in order."""
    parts = iter(long)
    return all(part in parts for part in short)
