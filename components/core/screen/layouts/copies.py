"""Plates that are derived copies of others: corrected, projected, masks. Taken for plates they would leak labels between folds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations

from components.core.screen.layouts.reading import Reading

_CORRECTION = r"(?:[-_ ]?corr(?:ected|ection)?)?"
_WORD = (
    rf"(?:corr(?:ected|ection)?|illum(?:ination)?{_CORRECTION}|flat(?:[-_ ]?field(?:ed)?)?{_CORRECTION}|mips?|"
    r"max(?:[-_ ]?(?:ip|proj(?:ected|ections?)?))?|proj(?:ected|ections?)?|raw|originals?|process(?:ed)?|aligned|registered|"
    r"denoised?|decon(?:v(?:olved|olution)?)?|stitched|compressed|converted|normali[sz]ed|background|masks?|outlines?|overlays?|"
    r"seg(?:ment(?:ed|ations?))?|labels?|montages?|thumb(?:nail)?s?|cop(?:y|ies)|backups?|"
    r"tiffs?|tifs?|pngs?|jpe?gs?|8[-_ ]?bit|16[-_ ]?bit)"
)
_DERIVED = re.compile(rf"(?i){_WORD}(?:[-_ .]{_WORD}|[-_ .]?images?)*")
_SUFFIX = re.compile(rf"(?i)(?P<stem>.+?)(?:[-_ .]+{_WORD})+")
_BARCODE = re.compile(r".*\d{4}.*")

Place = tuple[str, ...]


def is_derived(folder: str) -> bool:
    """Whether a folder is called like one of derived images: masks, overlays, corrected ones."""
    return any(_DERIVED.fullmatch(part) for part in folder.split("/"))


def refuse_copies(reading: Reading, folders: Iterable[Place], imaged: Iterable[str], choose: str) -> None:
    """Refuses plates that look like copies of each other; warns of those that may be, by their names.

    A screen.pattern that says experiments and plates is taken at its word, with a warning.

    Args:
        reading: receives findings.
        folders: of the plate of each image, as the parts of its path.
        imaged: the well of each image.
        choose: how to choose, for the message.
    """
    plates: dict[Place, set[str]] = {}
    for place, well in zip(folders, imaged, strict=True):
        plates.setdefault(place, set()).add(well)
    copies = _pairs(plates, _stem)
    if (
        copies
        and reading.config.pattern
        and {"experiment", "plate"} <= re.compile(reading.config.pattern).groupindex.keys()
    ):
        reading.warn("folders that look like copies of one plate are plates of their own by screen.pattern", copies)
    elif copies:
        reading.refuse(
            "folders that look like copies of one plate, with the same wells; as plates of their own they would be in training and "
            f"in validation at once: {choose}; if they are several plates, say so by a screen.pattern with the groups experiment "
            "and plate, or rename them",
            copies,
        )
    else:
        several = _pairs(plates, lambda place: place[-1:], _may_be_one)
        if several:
            reading.warn("plates of one name in several folders: are they copies?", several)


def _pairs(
    wells: Mapping[Place, set[str]],
    alike: Callable[[Place], Place],
    further: Callable[[Place, Place], bool] = lambda short, long: True,
) -> list[str]:
    """Pairs of folders that share wells and are alike, for a message; `further` is asked with the shorter path first."""
    groups: dict[Place, list[Place]] = {}
    for place in sorted(wells, key=len):
        groups.setdefault(alike(place), []).append(place)
    pairs = [
        (a, b) for group in groups.values() for a, b in combinations(group, 2) if further(a, b) and wells[a] & wells[b]
    ]
    return sorted(f"{'/'.join(a) or 'the folder itself'} and {'/'.join(b)}" for a, b in pairs)


def _stem(place: Place) -> Place:
    """A folder without what words of processing say."""
    matches = [(part, _SUFFIX.fullmatch(part)) for part in place if not _DERIVED.fullmatch(part)]
    return tuple(match["stem"] if match else part for part, match in matches)


def _may_be_one(short: Place, long: Place) -> bool:
    """Whether two folders of one name have a barcode, or one has all parts of the other, in order, and further ones."""
    parts = iter(long)
    return _BARCODE.fullmatch(long[-1]) is not None or (len(short) < len(long) and all(part in parts for part in short))
