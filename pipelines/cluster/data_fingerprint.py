"""Whether a screen is still the same, without reading an image: names, sizes and ETags of the files that are read, by listings.

Lists as normalize does, so that a missing image is found before any pod starts. A plate takes two to four requests.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from components.core.screen.images import PlateFiles, list_plate
from components.core.screen.layouts import TABLES
from components.core.screen.screen_source import ScreenSource
from components.core.screen.wells import Plate, Screen
from components.core.storage.digests import digest_text

LISTINGS = 16
"""Folders that are listed side by side."""


def fingerprint(place: ScreenSource, screen: Screen, sites: int) -> str:
    """Digest of the facts of a screen's tables and images; another one when any of them is written again.

    Args:
        place: where the screen lies.
        screen: what its tables say.
        sites: largest number of sites a well has.

    Raises:
        InputError: an image that the tables need is not there.
    """

    def files_of(plate: Plate) -> PlateFiles:
        return list_plate(place, plate, sites)

    with ThreadPoolExecutor(LISTINGS, thread_name_prefix="list") as pool:
        plates = [[files.folder, sorted(files.facts)] for files in pool.map(files_of, screen.plates)]
    tables = sorted(facts for facts in place.list_files() if facts.name in TABLES)
    return digest_text(json.dumps([tables, plates]))
