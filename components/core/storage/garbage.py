"""What in a store no run needs: a decision from listings and records. Pure; claims.py reads, sweeping.py deletes.

    plates/NAME_PlateN-DIGEST/...            a plate, whole with its plate.json
    fingerprints/DIGEST.json, copies/DIGEST.json  lead from a screen's files to a plate: plate_record.py
    finished/STEP/KEY/ATTEMPT/..., done.json a finished output; attempts that done.json does not name are of no use
    checkpoints/STEP/KEY/...                 what a step goes on from after an interruption

Keys of any other form are nobody's business here. What is young stays, whatever the records say: a run that packs has no
record yet, and the output of a step is there before its record. Of what lives and dies together the youngest object counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from components.core.storage.inventory import StoredObject, UnfinishedUpload

PLACES = ("plates/", "finished/", "checkpoints/")
LEADS = ("fingerprints/", "copies/")
PLATE_RECORD, DONE = "plate.json", "done.json"

Kind = Literal[
    "plate", "unfinished plate", "plate lead", "finished output", "unused attempt", "checkpoint", "unfinished upload"
]

_PREFIX = r"plates/[^/]+_Plate\d+-[0-9a-f]{32}"
_PLATE = re.compile(rf"({_PREFIX})/(.+)")
_FINISHED = re.compile(r"(finished/\w+/[0-9a-f]{64})/(?:(done\.json)|([0-9a-f]{32})/.+)")
_CHECKPOINT = re.compile(r"(checkpoints/\w+/[0-9a-f]{64})/.+")
_LEAD = re.compile(r"(fingerprints|copies)/[0-9a-f]{64}\.json")
LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass
class Pile:
    """The objects below one prefix, added up.

    Attributes:
        objects: how many.
        size: bytes.
        newest: time of the youngest.
        whole: whether the record is there that makes them a plate or a finished output.
    """

    objects: int = 0
    size: int = 0
    newest: datetime = LONG_AGO
    whole: bool = False

    def add(self, found: StoredObject, is_record: bool = False) -> None:
        """Counts one object."""
        self.objects += 1
        self.size += found.size
        self.newest = max(self.newest, found.modified)
        self.whole |= is_record


@dataclass(frozen=True)
class Lead:
    """A fingerprint or a note of copies, and the prefix of the plate that it leads to."""

    modified: datetime
    size: int
    plate: str


@dataclass
class Contents:
    """What a store holds, added up by plate, output and checkpoint, so that millions of sites take little memory.

    Attributes:
        plates: by prefix.
        finished: finished outputs with all attempts, by place.
        attempts: the attempts of each, by name.
        checkpoints: by place.
        uploads: uploads that have not ended.
        others: objects of another form below our prefixes, which are left alone.
    """

    plates: dict[str, Pile] = field(default_factory=dict)
    finished: dict[str, Pile] = field(default_factory=dict)
    attempts: dict[str, dict[str, Pile]] = field(default_factory=dict)
    checkpoints: dict[str, Pile] = field(default_factory=dict)
    uploads: list[UnfinishedUpload] = field(default_factory=list)
    others: int = 0

    def add(self, found: StoredObject) -> None:
        """Counts one object where it belongs."""
        if plate := _PLATE.fullmatch(found.key):
            self.plates.setdefault(plate[1], Pile()).add(found, plate[2] == PLATE_RECORD)
        elif finished := _FINISHED.fullmatch(found.key):
            place, done, attempt = finished.groups()
            self.finished.setdefault(place, Pile()).add(found, bool(done))
            if attempt:
                self.attempts.setdefault(place, {}).setdefault(attempt, Pile()).add(found)
        elif checkpoint := _CHECKPOINT.fullmatch(found.key):
            self.checkpoints.setdefault(checkpoint[1], Pile()).add(found)
        else:
            self.others += 1

    def add_upload(self, upload: UnfinishedUpload) -> None:
        """Counts an upload that has not ended, if it is one of ours."""
        if is_ours(upload.key):
            self.uploads.append(upload)


@dataclass(frozen=True)
class Needs:
    """What must stay.

    Attributes:
        plates: prefixes of plates.
        finished: places of finished outputs.
    """

    plates: frozenset[str]
    finished: frozenset[str]


@dataclass(frozen=True)
class Garbage:
    """Something to remove, all of it or nothing.

    Attributes:
        kind: what it is.
        prefix: everything below it goes that is ours; the key itself of a lead and of an upload.
        objects: how many.
        size: bytes.
        newest: time of the youngest.
        plate: prefix that a lead leads to.
        record: key that goes first, so that a removal that is cut short leaves nothing that is taken for whole.
        upload: of an unfinished upload.
    """

    kind: Kind
    prefix: str
    objects: int
    size: int
    newest: datetime
    plate: str | None = None
    record: str | None = None
    upload: UnfinishedUpload | None = None


def is_ours(key: str) -> bool:
    """Whether an object is part of a plate, a finished output or a checkpoint."""
    return any(form.fullmatch(key) for form in (_PLATE, _FINISHED, _CHECKPOINT))


def is_lead(key: str) -> bool:
    """Whether this is the key of a fingerprint or of a note of copies."""
    return _LEAD.fullmatch(key) is not None


def is_plate(prefix: str) -> bool:
    """Whether a plate may lie below this prefix."""
    return re.fullmatch(_PREFIX, prefix) is not None


def needs_of(plates: Iterable[str], finished: Iterable[str], leads: Mapping[str, Lead], cutoff: datetime) -> Needs:
    """What runs need by their records, and the plates that a run may be about to name.

    Args:
        plates: prefixes in the manifests of recorded runs.
        finished: places that recorded runs made or fetched.
        leads: by key; packing renews the fingerprint of a plate that it uses again.
        cutoff: what is younger stays.
    """
    renewed = {lead.plate for lead in leads.values() if lead.modified > cutoff}
    return Needs(frozenset(plates) | renewed, frozenset(finished))


def needed(item: Garbage, needs: Needs) -> bool:
    """Whether something that was garbage a while ago is needed now."""
    if item.kind == "finished output":
        return item.prefix in needs.finished
    return (item.plate if item.kind == "plate lead" else item.prefix) in needs.plates


def find_garbage(
    contents: Contents,
    leads: Mapping[str, Lead],
    needs: Needs,
    winners: Mapping[str, str],
    cutoff: datetime,
) -> list[Garbage]:
    """Everything that may go, plates before what leads to them.

    Args:
        contents: the store's, added up.
        leads: by key.
        needs: from needs_of.
        winners: the attempt that done.json names, by place; where it is not known, all attempts stay.
        cutoff: what is younger stays, but for checkpoints of steps that have finished.
    """
    found: list[Garbage] = []
    for prefix, pile in contents.plates.items():
        if prefix not in needs.plates and pile.newest <= cutoff:
            found.append(_all(pile, "plate" if pile.whole else "unfinished plate", prefix, PLATE_RECORD))
    stay = contents.plates.keys() - {item.prefix for item in found}
    for key, lead in leads.items():
        if lead.plate not in stay and lead.modified <= cutoff:
            found.append(Garbage("plate lead", key, 1, lead.size, lead.modified, plate=lead.plate))
    for place, pile in contents.finished.items():
        if place not in needs.finished and pile.newest <= cutoff:
            found.append(_all(pile, "finished output" if pile.whole else "unused attempt", place, DONE))
        elif not pile.whole or place in winners:
            for name, attempt in contents.attempts.get(place, {}).items():
                if name != winners.get(place) and attempt.newest <= cutoff:
                    found.append(_all(attempt, "unused attempt", f"{place}/{name}"))
    for place, pile in contents.checkpoints.items():
        output = contents.finished.get(place.replace("checkpoints/", "finished/", 1))
        if (output is not None and output.whole) or pile.newest <= cutoff:
            found.append(_all(pile, "checkpoint", place))
    for upload in contents.uploads:
        if upload.started <= cutoff:
            found.append(Garbage("unfinished upload", upload.key, 1, upload.size, upload.started, upload=upload))
    return found


def _all(pile: Pile, kind: Kind, prefix: str, record: str = "") -> Garbage:
    first = f"{prefix}/{record}" if record and pile.whole else None
    return Garbage(kind, prefix, pile.objects, pile.size, pile.newest, record=first)
